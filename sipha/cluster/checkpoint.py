"""Do the nodes have the same table? They tell each other its hash at the same indices (pitfalls-log-vip 16).

Each second a node tells all others its hash at a late index that they can have, too; whoever has the hash at an index
that another speaks of, tells all its own there. So each node hears of all others' at one index, and the majority of the
cluster's members, not of those that answer, is right: whoever differs from it is odd. Where no majority agrees there is
an alarm and no guess.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from sipha.cluster.wire import Checkpoint

STEP = 64
"""Each node remembers its hash at the indices that are multiples of this, and at those of which it spoke."""

KEPT = 1 << 14
"""Hashes of its own that a node remembers at least: those of a million entries, if it needn't speak of others."""

PERIOD = 1.0
"""Seconds between two checkpoints that a node speaks of by itself."""

MAX_INDICES = 1024
"""Indices of which what the nodes said is remembered."""

_HASH = 16


class _Index:
    """What the nodes have at one index, and whom we have told what we have."""

    __slots__ = ("hashes", "told")

    def __init__(self) -> None:
        self.hashes: dict[str, int] = {}
        self.told: set[str] = set()


class Checkpoints:
    """The hashes of node `node` and of the others.

    `members` are all nodes that have the table, this one included. Two nodes of three that are odd in the same way are
    the majority: the honest one takes itself for odd. Nothing in the hashes tells it otherwise, and an alarm at each of
    the three with no table served would be the worse answer to the likely case, in which the one is odd.
    """

    def __init__(self, node: str, members: Callable[[], Collection[str]]) -> None:
        self.node = node
        self._members = members
        self._ours: dict[int, int] = {}
        self._last = (0, 0)
        self._rests_at = 0
        self._next = 0.0
        self._indices: dict[int, _Index] = {}
        self._owed: set[int] = set()
        self._judged: dict[str, tuple[int, bool]] = {}  # the latest index at which a majority judged; odd?
        self._dispute = (0, "")  # the latest index at which nodes differ and no majority agrees; who has what

    # Our own hashes

    @property
    def index(self) -> int:
        """The latest index at which we have said what our hash is; 0 if at none."""
        return self._last[0]

    def remembers(self, index: int) -> bool:
        """Return True if our hash at `index` is needed, be it the latest or not."""
        return not index % STEP or index in self._indices

    def applied(self, index: int, table_hash: int) -> None:
        """Our table has this hash once the entry at `index` is applied, or the snapshot at `index` is loaded."""
        self._last = (index, table_hash)
        if not index % STEP:
            self._keep(index, table_hash)
        if index in self._indices:
            self._speak(index, table_hash)

    def announce(self, index: int, table_hash: int) -> None:
        """Tell all, at the next `due`, the hash at which we take or send a snapshot, so that each tells its own."""
        self._speak(index, table_hash)

    def replaced(self) -> None:
        """Another node's snapshot takes the place of our table: what was said of ours is void, but for the verdict."""
        self._ours.clear()
        self._last = (0, 0)
        for at in self._indices.values():
            at.hashes.pop(self.node, None)
            at.told.clear()

    @staticmethod
    def comparable(index: int) -> bool:
        """Return True if all nodes remember their hash at `index`.

        A snapshot is to be taken at such an index; at any other only the leader may, and must announce it before the
        others apply that entry.
        """
        return not index % STEP

    # What the nodes tell each other

    def due(self, now: float) -> Sequence[Checkpoint]:
        """What all others are to be told now: at once what they wait for, and each second where we are."""
        if now >= self._next:
            self._next = now + PERIOD
            self._offer()
        if not self._owed:
            return ()
        owed, self._owed = self._owed, set()
        others, checkpoints = set(self._members()) - {self.node}, []
        for index in sorted(owed & self._indices.keys()):
            at = self._indices[index]
            if self.node in at.hashes and not others <= at.told:
                at.told |= others
                checkpoints.append(Checkpoint(index, at.hashes[self.node].to_bytes(_HASH, "big")))
        return checkpoints

    def received(self, peer: str, checkpoint: Checkpoint) -> None:
        """Take note of what another node has."""
        index = checkpoint.index
        self._note(index, peer, int.from_bytes(checkpoint.hash, "big"))
        ours = self._ours.get(index, self._last[1] if index == self._last[0] else None)
        if ours is not None:
            self._speak(index, ours)

    def forget(self, peer: str) -> None:
        """The connection with a peer is new: it may not know what we have told it."""
        for at in self._indices.values():
            at.told.discard(peer)

    # What follows

    @property
    def diverged(self) -> bool:
        """True if a majority has another table than we, until it agrees with ours again."""
        return self.is_odd(self.node)

    def is_odd(self, node: str) -> bool:
        """Return True if a majority has another table than this node, as far as we have heard."""
        return self._judged.get(node, (0, False))[1]

    def confirms(self, index: int, table_hash: int, sender: str) -> bool | None:
        """Return True if a snapshot of `sender` may be installed: another node has the same hash at its index.

        False if another has a different one, unless a majority has the same; None as long as nobody has said anything.
        """
        at = self._indices.get(index)
        said = {node: value for node, value in at.hashes.items() if node not in {sender, self.node}} if at else {}
        if not said:
            return None
        same = sum(value == table_hash for value in said.values())
        return same == len(said) or (same > 0 and 0 < len(self._members()) / 2 < same + 1)

    def alarms(self) -> list[str]:
        """What an operator must know."""
        members = set(self._members())
        alarms = [
            f"the table of {'this node' if node == self.node else node} differs from that of the majority at entry "
            f"{index}: it serves nobody until it has fetched theirs; if this comes again, test that machine's memory"
            for node, (index, odd) in sorted(self._judged.items())
            if odd and node in members
        ]
        index, camps = self._dispute
        if index:
            alarms.append(
                f"the tables differ at entry {index}, and no majority of the {len(members)} nodes agrees: {camps}; "
                "start the other nodes, or put a backup into a new cluster (siphactl restore)"
            )
        return alarms

    def _offer(self) -> None:
        """Speak of our latest index; while entries come, of one that the others will have when they hear of it."""
        index, table_hash = self._last
        if index == self._rests_at:
            if index:
                self._speak(index, table_hash)
            return
        self._rests_at = index
        index -= index % STEP
        if index in self._ours:
            self._speak(index, self._ours[index])

    def _keep(self, index: int, table_hash: int) -> None:
        ours = self._ours
        ours[index] = table_hash
        if len(ours) > 2 * KEPT:
            self._ours = dict(list(ours.items())[KEPT:])

    def _speak(self, index: int, table_hash: int) -> None:
        """Owe the others what we have at an index."""
        self._keep(index, table_hash)
        self._note(index, self.node, table_hash)

    def _note(self, index: int, node: str, table_hash: int) -> None:
        """A node has this hash at an index; if we have one there, the others are to hear of ours."""
        at = self._indices.get(index)
        if at is None:
            at = self._indices[index] = _Index()
            if len(self._indices) > MAX_INDICES:
                del self._indices[next(iter(self._indices))]
        at.hashes[node] = table_hash
        if self.node in at.hashes:
            self._owed.add(index)
        self._judge(index, at)

    def _judge(self, index: int, at: _Index) -> None:
        """Whoever differs from the majority is odd, until a majority agrees with it at this or a later index."""
        members = set(self._members())
        heard = at.hashes.keys() & members
        camps: defaultdict[int, list[str]] = defaultdict(list)
        for node in sorted(heard):
            camps[at.hashes[node]].append(node)
        largest = max(camps.values(), key=len, default=[])
        if len(largest) > len(members) / 2:
            for node in heard:
                if index >= self._judged.get(node, (0, False))[0]:
                    self._judged[node] = (index, node not in largest)
            if index >= self._dispute[0]:
                self._dispute = (0, "")
        elif len(camps) > 1 and index >= self._dispute[0]:
            said = (f"{' and '.join(nodes)} {value >> 96:08x}" for value, nodes in sorted(camps.items()))
            self._dispute = (index, "…, ".join(said) + "…")
