"""Virtual addresses that another tool moves, such as keepalived: nothing is added or removed, only watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha.errors import NotClaimed
from sipha.sip.flow import Address, Flow
from sipha.vip.address import IVirtualAddress, Lost
from sipha.vip.addresses import Addresses, drain, open_watch
from sipha.vip.placement import Placement

AGAIN = 0.1
"""Seconds after which the kernel is asked again that has not said which addresses are here."""


@implementer(IVirtualAddress, IReadDescriptor)
class ExternalAddress:
    """Addresses that are ours while they are here: a claim waits for them, a release only forgets them.

    `moved` is told, from the start on and with each change, which address isn't here; empty if all are.
    """

    def __init__(
        self,
        reactor: Any,
        placements: Sequence[Placement],
        lost: Lost,
        addresses: Addresses,
        moved: Callable[[str], None],
    ) -> None:
        self.held = False
        self._reactor = reactor
        self._placements = tuple(placements)
        self._lost = lost
        self._moved = moved
        self._addresses = addresses
        self._watch = open_watch()
        self._missing: Sequence[Placement] = ()  # when the kernel last said
        self._claimed: Deferred[None] | None = None
        self._again: IDelayedCall | None = None
        self._log = Logger(namespace="sipha.vip")

    def start(self) -> None:
        """Watch the machine's addresses."""
        self._reactor.addReader(self)
        self._look()

    def stop(self) -> Deferred[None]:
        """Watch no more."""
        self._reactor.removeReader(self)
        self._watch.close()
        if self._again is not None and self._again.active():
            self._again.cancel()
        return self.release()

    def claim(
        self,
        last_word: bytes,  # noqa: ARG002  the other tool doesn't speak for us
        peers: Sequence[Address],  # noqa: ARG002
        deadline: float,  # noqa: ARG002
    ) -> Deferred[None]:
        """Fires when all addresses are here; until then it waits, unless it is released."""
        if self.held or self._claimed is not None:
            return fail(NotClaimed("an earlier claim has not ended yet"))
        claimed = self._claimed = Deferred()
        self._look()
        return claimed

    def renew(self, deadline: float) -> None:
        """The other tool decides how long."""

    def release(self) -> Deferred[None]:
        """Fires at once: the addresses stay where they are."""
        self.held = False
        claimed, self._claimed = self._claimed, None
        if claimed is not None:
            claimed.errback(NotClaimed("it was released"))
        return succeed(None)

    def tickle(self, flows: Iterable[Flow]) -> None:
        """Nothing: that takes privileges."""

    def alarms(self) -> Iterator[str]:
        """What a claim waits for."""
        if self._claimed is not None and self._missing:
            missing = ", ".join(placement.address for placement in self._missing)
            yield f"this node leads, but {missing} isn't here, nor at any node that could lead in its place"

    def fileno(self) -> int:
        """See IReadDescriptor."""
        return self._watch.fileno()

    def logPrefix(self) -> str:
        """See ILoggingContext."""
        return "virtual address"

    def doRead(self) -> None:
        """Addresses have changed (IReadDescriptor)."""
        drain(self._watch)
        self._look()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor can't watch the socket (IReadDescriptor)."""
        raise RuntimeError(f"the machine's addresses can't be watched: {reason.value}")

    def _look(self) -> None:
        if self._again is not None and self._again.active():
            self._again.cancel()
        try:
            missing = self._missing = self._addresses.missing(self._placements)
        except OSError as error:  # a watch that fails would end with it
            self._log.warn("the machine's addresses can't be listed: {reason}", reason=error.strerror)
            self._again = self._reactor.callLater(AGAIN, self._look)
            return
        if self._claimed is not None and not missing:
            claimed, self._claimed = self._claimed, None
            self.held = True
            claimed.callback(None)
        elif self.held and missing:
            self.held = False
            self._lost(f"{missing[0].address} was taken away")
        self._moved(missing[0].address if missing else "")
