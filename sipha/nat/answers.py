"""What becomes of pings: which wait for an answer, and how many in succession a binding has missed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import msgspec


class Awaited(msgspec.Struct, frozen=True, gc=False):
    """A ping that waits: sent in a slot for a binding as it was then, to the phone itself or to the edge before it.

    `remainder` is that of the binding's own slots, of which `sent` isn't one if it was late.
    """

    sent: int
    remainder: int
    aor: str
    contact_id: int
    version: int
    to_edge: bool


class Answers:
    """The pings under way by their tokens, for `patience` slots each; nothing else of them is kept."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._awaited: OrderedDict[str, Awaited] = OrderedDict()
        self.awaited: Callable[[str], Awaited | None] = self._awaited.get
        """The ping that an answer with a token is for; None if none is awaited, or no more."""
        self._missed: dict[int, tuple[int, int]] = {}  # contact id to the version, and how many in succession
        self._missed_before: dict[int, tuple[int, int]] = {}

    def await_(self, token: str, ping: Awaited) -> None:
        """A ping was sent, later than all others."""
        self._awaited[token] = ping

    def came(self, token: str) -> None:
        """The answer to a ping under way has come."""
        ping = self._awaited.pop(token)
        if self._missed or self._missed_before:
            self.answered(ping.contact_id)

    def answered(self, contact_id: int) -> None:
        """A binding has shown that it is reachable: it has missed nothing."""
        self._missed.pop(contact_id, None)
        self._missed_before.pop(contact_id, None)

    def overdue(self, slot: int) -> Iterator[Awaited]:
        """Take out the pings whose time is up when `slot` is now."""
        while self._awaited and slot - next(iter(self._awaited.values())).sent > self.patience:
            yield self._awaited.popitem(last=False)[1]

    def miss(self, ping: Awaited) -> int:
        """Note that a binding has missed an answer, and return how many in succession, since it was refreshed."""
        contact_id, version = ping.contact_id, ping.version
        seen, missed = self._missed.get(contact_id) or self._missed_before.get(contact_id) or (version, 0)
        missed = missed + 1 if seen == version else 1
        self._missed[contact_id] = (version, missed)
        return missed

    def forget_recovered(self) -> None:
        """Forget the bindings that have missed nothing since this was last called: they are gone, or answer again.

        It must be called less often than once in an interval, so that two misses in succession aren't told apart.
        """
        self._missed_before, self._missed = self._missed, {}

    def forget(self) -> None:
        """Wait for nothing that is under way: it isn't known whether it arrived."""
        self._awaited.clear()

    def forgive(self) -> None:
        """Hold nothing that was missed against any binding."""
        self._missed, self._missed_before = {}, {}
