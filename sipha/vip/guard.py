"""The guard: the one process that adds the virtual addresses, and that takes them away when the daemon can't.

It holds them while the daemon renews its claim. A claim whose deadline has passed, or whose daemon has died, is ended
here, and then the other nodes hear the last word that the daemon left. Plain, blocking and single: one loop waits for
sockets and deadlines. The daemon needs no privileges, and can have no addresses but those of the file that root owns.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import pwd
import selectors
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from sipha import systemd
from sipha.errors import ConfigError
from sipha.vip.addresses import Addresses, drain, open_watch
from sipha.vip.claim import LAPSED, Claim, State
from sipha.vip.clock import boottime
from sipha.vip.gate import Gate, GateError, Nft
from sipha.vip.link import Link
from sipha.vip.messages import (
    MAX_MESSAGE,
    Alarms,
    Claimed,
    Ended,
    Release,
    Renew,
    Renewed,
    Report,
    Tickle,
    decode_order,
    encode,
)
from sipha.vip.messages import Claim as ClaimOrder
from sipha.vip.rights import hurry
from sipha.vip.settings import Settings, read_settings, wanted
from sipha.vip.words import LastWords

EX_CONFIG = 78
"""The exit status that says that starting again is no use (sysexits.h)."""

RESPITE = 1.0
"""Seconds before a guard that can't guard ends: it is started again at once."""

MEMORY = 1000
"""How many last words are remembered: whoever has heard one has reason to believe that its claim is over."""

_UCRED = struct.Struct("3i")  # pid, uid, gid

log = logging.getLogger("sipha-guard")


class Daemon:
    """The daemon at the other end of a connection; its death shows by its pidfd, or the connection's end."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.pid, self.uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self.pidfd = os.pidfd_open(self.pid)

    def close(self) -> None:
        """Hang up."""
        self.connection.close()
        os.close(self.pidfd)


class Guard:
    """Guards the addresses of `settings` for one daemon at a time, which must run as one of the users `uids`.

    With `parent`, a process id, it ends when that process does. Raises ConfigError, OSError or GateError.
    """

    def __init__(self, settings: Settings, uids: frozenset[int], parent: int = 0) -> None:
        self._placements = {placement.address: placement for placement in settings.placements}
        self._uids = uids
        self._lock = _lock(settings)
        self._addresses = Addresses()
        self._gate = Gate(settings.placements, boottime, Nft().run)
        _clear(settings, self._gate, self._addresses)
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(settings.socket)
        self._watch(self._listener, self._accept)
        self._changes = open_watch()
        self._watch(self._changes, self._changed)
        if parent:
            pidfd = os.pidfd_open(parent)
            self._watch(pidfd, lambda: self._orphaned(pidfd))
        self._daemon: Daemon | None = None
        self._claim: Claim | None = None
        self._number = 0
        self._order: ClaimOrder | None = None
        self._words = LastWords()
        self._spoken: deque[bytes] = deque(maxlen=MEMORY)
        self._told: tuple[str, ...] | None = None
        self._leaving = False
        self._alive = systemd.patience() / 3
        """Seconds between two signs of life."""

    def run(self) -> None:
        """Serve until told to stop and nothing is held."""
        wake, signals = socket.socketpair()
        wake.setblocking(False)
        signals.setblocking(False)
        self._watch(signals, lambda: self._stop(signals))
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        systemd.notify("READY=1")
        alive = boottime()
        while not (self._leaving and self._claim is None and self._words.due == float("inf")):
            if boottime() >= alive:
                alive = boottime() + self._alive
                systemd.notify("WATCHDOG=1")
            due = min(alive, self._words.due, float("inf") if self._claim is None else self._claim.due)
            timeout = None if due == float("inf") else max(due - boottime(), 0.0)
            for key, _ in self._selector.select(timeout):
                if self._selector.get_map().get(key.fd) is key:  # what came before may have ended this
                    key.data()
            if self._claim is not None and boottime() >= self._claim.due:
                self._claim.wake()
            self._words.send(boottime())
            self._tell_alarms()

    # Whom it serves

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._read()  # the one before may have hung up just now
        try:
            daemon = Daemon(connection)
        except OSError:
            connection.close()  # it has died already
            return
        if daemon.uid not in self._uids:
            log.warning("refused process %d: user %d may not claim the addresses", daemon.pid, daemon.uid)
            daemon.close()
        elif self._daemon is not None:
            log.warning("refused process %d: process %d is served", daemon.pid, self._daemon.pid)
            daemon.close()
        else:
            self._daemon = daemon
            self._told = None
            self._watch(daemon.connection, self._read)
            self._watch(daemon.pidfd, self._died)

    def _read(self) -> None:
        while self._daemon is not None:
            try:
                packet = self._daemon.connection.recv(MAX_MESSAGE)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it left without hearing us out; its last orders come next
            if not packet:
                self._daemon_gone("the daemon hung up")
                return
            try:
                order = decode_order(packet)
            except msgspec.DecodeError as error:
                self._daemon_gone(f"the daemon says what nobody understands: {error}")
                return
            self._obey(order)

    def _obey(self, order: ClaimOrder | Renew | Release | Tickle) -> None:
        if isinstance(order, ClaimOrder):
            self._begin(order)
        elif self._claim is None or order.number != self._number:
            if not isinstance(order, Tickle):
                self._tell(Ended(order.number, "" if isinstance(order, Release) else "it has ended already"))
        elif isinstance(order, Renew):
            self._claim.renew(order.deadline)
            if self._claim is not None and self._claim.state in {State.PROBING, State.HELD}:
                self._tell(Renewed(order.number, self._claim.deadline))
        elif isinstance(order, Release):
            self._claim.end("")
        else:
            self._claim.tickle(order.flows)

    def _died(self) -> None:
        self._read()  # an orderly release may have been its last order
        self._daemon_gone("the daemon died")

    def _daemon_gone(self, why: str) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return
        self._selector.unregister(daemon.connection)
        self._selector.unregister(daemon.pidfd)
        if self._claim is not None:
            self._claim.end(why, may_speak=True)
        daemon.close()

    def _orphaned(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        self._leaving = True
        self._died()

    def _stop(self, signals: socket.socket) -> None:
        signals.recv(64)
        systemd.notify("STOPPING=1")
        self._leaving = True
        if self._claim is not None:
            self._claim.end("the guard was stopped")

    # What it does for it

    def _begin(self, order: ClaimOrder) -> None:
        strange = [address for address in order.addresses if address not in self._placements]
        if strange:
            self._tell(
                Ended(order.number, f"{strange[0]} is not among virtual_address.addresses, as the guard read it")
            )
            return
        if self._claim is not None or self._leaving:
            self._tell(Ended(order.number, "an earlier claim still ends"))
            return
        if boottime() >= order.deadline:  # we were stopped while it waited
            self._tell(Ended(order.number, LAPSED))
            return
        if order.last_word in self._spoken:
            self._tell(Ended(order.number, "its last word has been spoken; a claim needs a word of its own"))
            return
        self._number = order.number
        self._order = order
        self._claim = claim = Claim(
            [self._placements[address] for address in order.addresses],
            order.deadline,
            self._gate,
            self._addresses,
            self._open_link,
            boottime,
            lambda: self._tell(Claimed(order.number)),
            self._ended,
        )
        claim.begin()

    def _open_link(self, interface: str) -> Link:
        link = Link(interface)
        for each in link.sockets:
            self._watch(each, lambda: self._heard(link))
        return link

    def _heard(self, link: Link) -> None:
        if self._claim is not None:
            self._claim.heard(link)

    def _changed(self) -> None:
        drain(self._changes)
        if self._claim is not None:
            self._claim.changed()

    def _ended(self, reason: str, may_speak: bool) -> None:
        """Nothing is left of the claim: only now anybody hears of it."""
        order, self._order, claim, self._claim = self._order, None, self._claim, None
        for link in () if claim is None else claim.links:
            for each in link.sockets:
                self._selector.unregister(each)
            link.close()
        if order is not None and may_speak:
            self._spoken.append(order.last_word)
            self._words.speak(order.last_word, order.peers, boottime())
        self._tell(Ended(self._number, reason))
        if reason:
            log.warning("the virtual addresses are gone: %s", reason)

    def _tell(self, report: Report) -> None:
        if self._daemon is None:
            return
        try:
            self._daemon.connection.send(encode(report))
        except OSError:
            self._daemon_gone("the daemon doesn't listen")

    def _tell_alarms(self) -> None:
        alarms = () if self._claim is None else tuple(self._claim.alarms.values())
        if self._daemon is not None and alarms != self._told:
            self._told = alarms
            self._tell(Alarms(alarms))

    def _watch(self, what: socket.socket | int, ready: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, ready)


def remove(settings: Settings) -> None:
    """Take the addresses away that a guard has left which is no more; the gate stays, shut. Raises as Guard does."""
    lock = _lock(settings)
    _clear(settings, Gate(settings.placements, boottime, Nft().run), Addresses())
    os.close(lock)


def _clear(settings: Settings, gate: Gate, addresses: Addresses) -> None:
    """End what an earlier guard has left: nothing of it gets out from now on, and then it goes."""
    gate.install()
    for placement in settings.placements:
        addresses.remove(placement)


def _lock(settings: Settings) -> int:
    """Be the only guard at this socket; the lock goes with the process."""
    path = settings.socket.with_name(settings.socket.name + ".lock")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"{path}: another guard runs, and one is enough") from None
    return lock


def _listen(path: Path) -> socket.socket:
    """A socket for everybody: who may stay is decided by who he is."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    path.unlink(missing_ok=True)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen()
    return listener


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the guard of a node: `sipha-guard --config FILE [--user NAME]`, or do one thing in its place, and end."""
    parser = argparse.ArgumentParser("sipha-guard", description="Holds the virtual addresses for the sipha daemon.")
    parser.add_argument("--config", type=Path, default=Path("/etc/sipha/sipha.toml"), help="the configuration file")
    parser.add_argument("--user", help="who may claim the addresses, beside root and the guard's own user")
    parser.add_argument("--parent", type=int, default=0, help="the process with which the guard ends")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--wanted", action="store_true", help="only say by the exit status whether a guard is needed")
    instead.add_argument(
        "--remove", action="store_true", help="only take away the addresses that a dead guard has left"
    )
    instead.add_argument("--dismantle", action="store_true", help="only take down the gate in the kernel, for good")
    options = parser.parse_args(arguments)
    systemd.mark_priorities()
    logging.basicConfig(format="%(levelname)s%(name)s: %(message)s", level=logging.INFO)
    logging.raiseExceptions = False
    try:
        if options.wanted:
            sys.exit(not wanted(options.config))
        elif options.remove:
            if wanted(options.config):
                remove(read_settings(options.config))
        elif options.dismantle:
            Gate((), boottime, Nft().run).remove()
        else:
            guard = Guard(read_settings(options.config), _uids(options.user), options.parent)
    except (ConfigError, KeyError) as error:
        log.error("%s", error)  # noqa: TRY400  a traceback tells an operator nothing
        sys.exit(EX_CONFIG)
    except (OSError, GateError) as error:
        log.error("can't guard the virtual addresses: %s", error)  # noqa: TRY400
        time.sleep(RESPITE)
        sys.exit(1)
    if options.remove or options.dismantle:
        return
    for refused in hurry():
        log.warning("%s", refused)
    if options.parent:
        os.environ.pop("NOTIFY_SOCKET", None)  # systemd listens to the parent there
    guard.run()


def _uids(user: str | None) -> frozenset[int]:
    """Who may claim."""
    return frozenset({0, os.geteuid()} | ({pwd.getpwnam(user).pw_uid} if user else set()))


if __name__ == "__main__":
    main()
