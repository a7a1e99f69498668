"""What the service asks of the virtual addresses, and the way without privileges: the leader just binds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from twisted.internet.defer import Deferred, succeed
from zope.interface import Attribute, Interface, implementer

from sipha.sip.flow import Address, Flow

Lost = Callable[[str], None]
"""Called with the reason when the addresses are gone although nobody asked: verified, or the kernel lets none pass."""


class IVirtualAddress(Interface):
    """The virtual addresses of a node: taken and released together. Deadlines are of CLOCK_BOOTTIME, in seconds."""

    held: bool = Attribute("True while the addresses are here.")

    def start() -> None:
        """Get ready to claim."""

    def stop() -> Deferred[None]:
        """Release what is held; fires when nothing of it is left."""

    def claim(last_word: bytes, peers: Sequence[Address], deadline: float) -> Deferred[None]:
        """Take the addresses, until the deadline at first.

        Fires when they are here and announced, and fails with NotClaimed. If whoever holds them for us ends the claim
        itself, because we have died or not renewed it, it sends `last_word` to the UDP addresses `peers` once the
        addresses are gone, which may be long after we have given the claim up. So each claim has a word of its own, and
        what another one brings back is not meant by it.
        """

    def renew(deadline: float) -> None:
        """Keep the addresses until this deadline."""

    def release() -> Deferred[None]:
        """Give the addresses up, claimed or about to be; fires when they are verified gone."""

    def tickle(flows: Iterable[Flow]) -> None:
        """Have the peers of these streams, which an earlier holder had, notice that they are dead."""

    def alarms() -> Iterator[str]:
        """What an operator must know."""


@implementer(IVirtualAddress)
class LoopbackAddress:
    """Addresses that every node can bind at any time, as those of 127.0.0.0/8: held by whoever has claimed them."""

    def __init__(self) -> None:
        self.held = False

    def start(self) -> None:
        """Nothing is needed."""

    def stop(self) -> Deferred[None]:
        """See `release`."""
        return self.release()

    def claim(
        self,
        last_word: bytes,  # noqa: ARG002  nobody outlives us who could speak
        peers: Sequence[Address],  # noqa: ARG002
        deadline: float,  # noqa: ARG002
    ) -> Deferred[None]:
        """Fires at once."""
        self.held = True
        return succeed(None)

    def renew(self, deadline: float) -> None:
        """Nothing ends."""

    def release(self) -> Deferred[None]:
        """Fires at once."""
        self.held = False
        return succeed(None)

    def tickle(self, flows: Iterable[Flow]) -> None:
        """The kernel that had the streams has closed them itself."""

    def alarms(self) -> Iterator[str]:
        """Nothing can go wrong."""
        return iter(())
