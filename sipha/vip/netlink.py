"""The virtual addresses by netlink, through the guard: the daemon asks, the guard does and takes away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.errors import NotClaimed
from sipha.sip.flow import Address, Flow
from sipha.vip.address import IVirtualAddress, Lost
from sipha.vip.clock import boottime
from sipha.vip.messages import (
    MAX_FLOWS,
    MAX_MESSAGE,
    Alarms,
    Claim,
    Claimed,
    Ended,
    Order,
    Release,
    Renew,
    Renewed,
    Report,
    Tickle,
    decode_report,
    encode,
)
from sipha.vip.placement import Placement

RETRY = 0.1
"""Seconds between attempts to reach the guard."""

RESPAWN = 1.0
"""Seconds between two starts of a guard."""

ABSENT = 3.0
"""Seconds for which a claim waits for a guard that isn't there: another node's may be."""

LATE = 0.05
"""Seconds after a deadline at which the kernel has surely shut the gate: its clock ticks."""

STOPPING = 1.0
"""Seconds that a guard of ours, which holds nothing any more, has to end."""

_REPORTS = 64


def guard_command(configuration: Path) -> tuple[str, ...]:
    """The command that starts a guard for the addresses of this configuration."""
    return sys.executable, "-m", "sipha.vip.guard", "--config", str(configuration)


@implementer(IReadDescriptor)
class _Connection:
    """The connection to a guard; `gone` is called once, when it ends without our doing. Raises OSError at first."""

    def __init__(
        self, reactor: Any, path: Path, received: Callable[[Report], None], gone: Callable[[str], None]
    ) -> None:
        self._reactor = reactor
        self._received = received
        self._gone = gone
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise
        reactor.addReader(self)

    def send(self, order: Order) -> None:
        """Say it; a guard that doesn't take it shows by not answering."""
        try:
            self._socket.send(encode(order))
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(error.strerror or "")

    def close(self) -> None:
        """Hang up."""
        self._reactor.removeReader(self)
        self._socket.close()

    def fileno(self) -> int:
        """See IReadDescriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See ILoggingContext."""
        return "guard"

    def doRead(self) -> None:
        """Take what the guard has said (IReadDescriptor)."""
        for _ in range(_REPORTS):
            if self.fileno() < 0:
                return
            try:
                packet = self._socket.recv(MAX_MESSAGE)
                if not packet:
                    self._end("it hung up")
                    return
                report = decode_report(packet)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it left without hearing us out; its last reports come next
            except (OSError, msgspec.DecodeError) as error:
                self._end(str(error))
                return
            self._received(report)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor can't watch the socket (IReadDescriptor)."""
        self._end(str(reason.value))

    def _end(self, why: str) -> None:
        if self.fileno() >= 0:
            self.close()
            self._gone(why)


class _Claim:
    """What we know of our claim; times are of CLOCK_BOOTTIME, in seconds."""

    def __init__(self, order: Claim) -> None:
        self.order = order
        self.abandoned = order.deadline + ABSENT  # unless a guard has come
        self.claimed: Deferred[None] = Deferred()
        self.releases: list[Deferred[None]] = []
        self.told = False  # the guard has been
        self.here = False  # the addresses are
        self.cut_off = ""  # why the guard that was told can't be talked to any more
        self.wanted = order.deadline  # the latest deadline that was asked for
        self.sent = order.deadline  # the latest that a guard may have heard of: so long the kernel may let pass
        self.confirmed = 0.0  # the latest that the guard keeps to
        self.renewing = False  # a renewal waits for its confirmation


@implementer(IVirtualAddress)
class NetlinkAddress:
    """Claims addresses from the guard that listens at `path`.

    Where nobody listens, `command` is run if there is one: that of a guard of our own, which ends when we do. `lost` is
    told when a claim has ended that was fulfilled and not released, `guarded` why no guard serves us; with nothing once
    one does again.
    """

    def __init__(
        self,
        reactor: Any,
        placements: Sequence[Placement],
        path: Path,
        lost: Lost,
        guarded: Callable[[str], None],
        *,
        command: Sequence[str] = (),
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._log = Logger(namespace="sipha.vip")
        self._reactor = reactor
        self._addresses = tuple(placement.address for placement in placements)
        self._path = path
        self._lost = lost
        self._guarded = guarded
        self._command = tuple(command)
        self._clock = clock
        self._guard: _Connection | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._spawned = float("-inf")
        self._trouble = ""
        self._alarms: tuple[str, ...] = ()
        self._claim: _Claim | None = None
        self._number = 0
        self._retry: IDelayedCall | None = None
        self._expiry: IDelayedCall | None = None

    @property
    def held(self) -> bool:
        """True while the addresses are here, and the guard has said that they stay."""
        claim = self._claim
        return claim is not None and claim.here and not claim.releases and self._clock() < claim.confirmed

    def start(self) -> None:
        """Reach for the guard, now and whenever it is gone."""
        self._connect()

    def stop(self) -> Deferred[None]:
        """Release what is held, then let go of the guard; one of ours ends."""
        return self.release().addCallback(lambda _: self._leave())

    def claim(self, last_word: bytes, peers: Sequence[Address], deadline: float) -> Deferred[None]:
        """See IVirtualAddress. It may have to wait for a guard that just starts."""
        if self._claim is not None:
            return fail(NotClaimed("an earlier claim has not ended yet"))
        self._number += 1
        claim = self._claim = _Claim(Claim(self._number, self._addresses, last_word, tuple(peers), deadline))
        self._expiry = self._reactor.callLater(max(deadline - self._clock(), 0.0), self._expire)
        self._tell(claim)
        return claim.claimed

    def renew(self, deadline: float) -> None:
        """See IVirtualAddress.

        One renewal at a time is under way: a guard that is stopped finds no stock of them when it goes on.
        """
        claim = self._claim
        if claim is None or claim.releases or claim.cut_off:
            return
        claim.wanted = max(claim.wanted, deadline)
        if not claim.told:
            claim.sent = min(claim.wanted, claim.abandoned)
        elif not claim.renewing and claim.wanted > claim.sent and self._guard is not None:
            claim.renewing = True
            claim.sent = claim.wanted
            self._guard.send(Renew(claim.order.number, claim.wanted))

    def release(self) -> Deferred[None]:
        """See IVirtualAddress. Without a word from the guard, it fires when the kernel has shut the gate."""
        claim = self._claim
        if claim is None:
            return succeed(None)
        released: Deferred[None] = Deferred()
        claim.releases.append(released)
        if not claim.told:
            self._over("it was released")
        elif self._guard is not None and not claim.cut_off:
            self._guard.send(Release(claim.order.number))
        return released

    def tickle(self, flows: Iterable[Flow]) -> None:
        """See IVirtualAddress."""
        claim = self._claim
        if claim is None or not self.held or self._guard is None:
            return
        streams = [(flow.local, flow.remote) for flow in flows if flow.reliable]
        for first in range(0, len(streams), MAX_FLOWS):
            self._guard.send(Tickle(claim.order.number, tuple(streams[first : first + MAX_FLOWS])))

    def alarms(self) -> Iterator[str]:
        """See IVirtualAddress."""
        if self._trouble:
            yield self._trouble
        yield from self._alarms

    # The claim

    def _tell(self, claim: _Claim) -> None:
        """Hand the claim to the guard, if there is one."""
        if self._guard is not None:
            claim.told = True
            claim.sent = claim.wanted
            self._guard.send(msgspec.structs.replace(claim.order, deadline=claim.wanted))

    def _received(self, report: Report) -> None:
        claim = self._claim
        if self._trouble:  # who merely listens may yet refuse us
            self._trouble = ""
            self._guarded("")
        if isinstance(report, Alarms):
            for text in set(report.texts) - set(self._alarms):
                self._log.warn("the guard says: {text}", text=text)
            self._alarms = report.texts
        elif claim is None or report.number != claim.order.number:
            return  # of a claim that has run out meanwhile
        elif isinstance(report, Ended):
            self._over(report.reason or "it was released")
        elif isinstance(report, Renewed):
            claim.confirmed = max(claim.confirmed, report.deadline)
            claim.renewing = False
            self.renew(claim.wanted)
        elif isinstance(report, Claimed) and not claim.releases:
            claim.here = True
            claim.confirmed = max(claim.confirmed, claim.order.deadline)
            claim.claimed.callback(None)

    def _expire(self) -> None:
        """Nothing passes any more of a claim whose last deadline has passed, whatever the guard does."""
        if self._guard is not None:
            self._guard.doRead()  # we may be the one who was held up
        claim = self._claim
        if claim is None:
            return
        left = claim.sent + LATE - self._clock()
        if left > 0:
            self._expiry = self._reactor.callLater(left, self._expire)
        elif not claim.told:
            self._over(self._trouble or "the guard doesn't start")
        elif claim.renewing:
            self._complain("the guard doesn't answer")
            self._over(self._trouble)
        else:
            self._over(claim.cut_off or "it was not renewed in time")

    def _over(self, reason: str) -> None:
        """The claim has ended: nothing of it is left that anybody could see."""
        claim, self._claim = self._claim, None
        if self._expiry is not None and self._expiry.active():
            self._expiry.cancel()
        if claim is None:
            return
        if not claim.here:
            claim.claimed.errback(NotClaimed(reason))
        elif not claim.releases:
            self._lost(reason)
        for released in claim.releases:
            released.callback(None)

    # The guard

    def _connect(self) -> None:
        self._retry = None
        try:
            self._guard = _Connection(self._reactor, self._path, self._received, self._gone)
        except OSError as error:
            if self._command:
                self._spawn()
            else:
                self._complain(f"no guard at {self._path} ({error.strerror}); start sipha-guard.service")
            self._reconnect()
            return
        if self._claim is not None and not self._claim.told:
            self._tell(self._claim)

    def _gone(self, why: str) -> None:
        """The guard has died, or doesn't want us; what it held for us lasts until the kernel ends it."""
        self._guard = None
        self._alarms = ()
        self._complain(f"the guard is gone ({why}); see its log")
        if self._claim is not None and self._claim.told:
            self._claim.cut_off = self._trouble
            self._claim.renewing = False
        self._reconnect()

    def _reconnect(self) -> None:
        self._retry = self._reactor.callLater(RETRY, self._connect)

    def _spawn(self) -> None:
        """Start a guard of our own, in a session of its own: a terminal's Ctrl-C is ours to act on."""
        if self._child is not None and self._child.poll() is None:
            return
        if self._child is not None:
            self._complain(f"the guard ended with status {self._child.returncode}; see its log")
        if self._clock() >= self._spawned + RESPAWN:
            self._spawned = self._clock()
            command = (*self._command, "--parent", str(os.getpid()))
            try:
                self._child = subprocess.Popen(  # noqa: S603  it is ours
                    command, stdin=subprocess.DEVNULL, start_new_session=True
                )
            except OSError as error:
                self._complain(f"the guard can't be started: {error.strerror}")

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._log.warn("{trouble}", trouble=trouble)
            self._guarded(trouble)

    def _leave(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()
        child, self._child = self._child, None
        if child is not None:
            child.terminate()
            try:
                child.wait(STOPPING)
            except subprocess.TimeoutExpired:
                child.kill()
