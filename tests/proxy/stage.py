"""A stage with a caller, always the same one, on which a datagram is taken at a glance or parsed."""

from __future__ import annotations

from itertools import count

from sipha.proxy import invite, plain
from tests.proxy import ladder
from tests.proxy.ladder import House


class Stage:
    """A house with a caller who has an account."""

    def __init__(self) -> None:
        ladder._serial = count(1)
        self.house = House()
        self.alice = self.house.phone("alice", "203.0.113.1").account()

    def glance(self, data: bytes) -> bool:
        """Offer a datagram of the caller's to the proxy before it is parsed; True if it was taken."""
        proxy, flow, now = self.house.proxy, self.alice.flow, self.house.now
        taken = False
        if request := plain.read(data):
            taken = proxy.plain_received(request, flow, now)
        elif call := invite.read(data):
            taken = proxy.invite_received(call, flow, now)
        if taken:
            self.house.layer.counters.requests_received += 1  # as the endpoint does
            self.house.turn()
        return taken

    def parse(self, data: bytes) -> None:
        """Take a datagram of the caller's as any other."""
        self.house.receive(data, self.alice.flow)


def edited(text: str, edits: tuple[tuple[str, str], ...]) -> bytes:
    """A message with each of these texts replaced, where it comes first."""
    for old, new in edits:
        text = text.replace(old, new, 1)
    return text.encode("utf-8", "surrogateescape")
