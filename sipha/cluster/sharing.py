"""What a node shares with the others beside the log: sent once, to those who are there, and nobody waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from twisted.logger import Logger

from sipha.cluster.kinship import Kinship
from sipha.cluster.membership import Membership
from sipha.cluster.peers import INetwork
from sipha.cluster.wire import Shared

BATCH = 256 * 1024
"""Bytes of data after which another message begins."""

Heard = Callable[[Sequence[bytes]], None]

Told = Callable[[], Iterable[bytes]]


class Sharing:
    """Sends to the voters that may serve phones one day, and hands on what comes by its topic."""

    def __init__(self, network: INetwork, kinship: Kinship, membership: Membership) -> None:
        self.counters: Counter[str] = Counter()
        self._network = network
        self._kinship = kinship
        self._membership = membership
        self._heard: dict[str, Heard] = {}
        self._told: dict[str, Told] = {}
        self._newcomers: dict[str, Iterator[Shared]] = {}
        self._log = Logger(namespace="sipha.cluster")

    def subscribe(self, topic: str, heard: Heard, told: Told = tuple) -> None:
        """Have `heard` called with what other nodes share under a topic; who connects hears all that `told` says."""
        self._heard[topic] = heard
        self._told[topic] = told

    def share(self, topic: str, data: Sequence[bytes]) -> None:
        """Send to all who know what it is; a connection that is full already is spared, for the log has to pass."""
        peers = [peer for peer in self._membership.voters if self._is_interested(peer)]
        for batch in _batches(data):
            message = Shared(topic, batch)
            for peer in peers:
                self._send(peer, message)

    def connected(self, peer: str) -> None:
        """A node that may have heard nothing can be sent to."""
        self._newcomers[peer] = self._all()

    def step(self) -> None:
        """Tell those who have connected a little more."""
        for peer, messages in tuple(self._newcomers.items()):
            message = next(messages, None) if peer in self._membership.voters and self._is_interested(peer) else None
            if message is None:
                del self._newcomers[peer]
            else:
                self._send(peer, message)

    def received(self, message: Shared) -> None:
        """Hand on what a node has shared; what goes wrong with it there doesn't concern the log."""
        heard = self._heard.get(message.topic)
        if heard is None:
            return
        try:
            heard(message.data)
        except Exception:  # noqa: BLE001  whatever it is, it is logged
            self._log.failure("what a node has shared could not be taken")

    def _all(self) -> Iterator[Shared]:
        for topic, told in self._told.items():
            for batch in _batches(told()):
                yield Shared(topic, batch)

    def _send(self, peer: str, message: Shared) -> None:
        if not self._network.send(peer, message):
            self.counters["shared data dropped"] += len(message.data)

    def _is_interested(self, peer: str) -> bool:
        hello = self._kinship.hello(peer)
        return hello.trouble is not None and hello.priority > 0


def _batches(data: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for piece in data:
        if size + len(piece) > BATCH and batch:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += len(piece)
    if batch:
        yield batch
