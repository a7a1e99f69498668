"""The lease: for how long a leader may act as the only one, and what its followers promise for it.

A heartbeat states the lease's duration. A follower that accepts it promises neither to vote nor to stand until that
long after its receipt, and a tenth more for clocks that run apart. The leader counts from when it *sent* the heartbeat
that a majority acknowledged, which is earlier; so no other can be elected while the lease lasts.

A leader may end its claim to the lease early, to hand leadership on. Each claim has a secret, and its heartbeats carry
the secret's hash. Ended, a claim is finished for good, and only then is its secret told: whoever knows it is released
from the promise, unless a later claim was heard of meanwhile (pitfalls-log-vip 1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from hashlib import sha256

from sipha.cluster.disk import Disk
from sipha.cluster.seal import seal, unseal
from sipha.cluster.sealed import Longest
from sipha.cluster.wire import MAX_LEASE, SECRET

MARGIN = 1.1
"""What a follower adds to the stated duration, as a factor."""

_FILE = "promise"


def commit_to(secret: bytes) -> bytes:
    """What the heartbeats of a claim tell of its secret."""
    return sha256(secret).digest()


class Lease:
    """The leader's side. Times are seconds of one clock that never goes back.

    `until` is its end as far as it is known, `claim` the number of the present claim, `usable` is for the owner to set
    once the state holds all that was committed before the term.
    """

    def __init__(self, duration: float) -> None:
        self.duration = duration
        self.until = 0.0
        self.usable = False
        self.claim = 0
        self.secret = b""
        self.commitment = b""
        self._others: frozenset[str] = frozenset()
        self._acknowledged: dict[str, float] = {}

    @property
    def held(self) -> bool:
        """True while a claim lasts, acknowledged or not."""
        return bool(self.secret)

    def begin(self) -> None:
        """Begin a claim: nothing that was acknowledged before counts."""
        self.claim += 1
        self.usable = False
        self.secret = os.urandom(SECRET)
        self.commitment = commit_to(self.secret)
        self._acknowledged = {}
        self.until = 0.0
        self._count()

    def end(self) -> bytes:
        """End the claim for good, and return its secret; empty if there is none."""
        secret, self.secret, self.commitment = self.secret, b"", b""
        self.usable = False
        self.until = 0.0
        return secret

    def set_others(self, others: Collection[str], now: float) -> None:
        """Need a majority of these voters and ourselves from now on."""
        self._others = frozenset(others)
        self.lapse(now)
        before = self.until
        self._count()
        if self.until <= now < before:
            self.begin()  # more are needed than have promised

    def acknowledge(self, node: str, claim: int, sent: float, now: float) -> None:
        """A follower has given its promise for the heartbeat that we sent at `sent`."""
        self.lapse(now)
        if claim == self.claim and self.held and sent > self._acknowledged.get(node, -math.inf):
            self._acknowledged[node] = sent
            self._count()

    def heard_by(self, node: str) -> bool:
        """True if a follower has acknowledged the present claim."""
        return node in self._acknowledged

    def valid(self, now: float) -> bool:
        """True while no other node can be elected."""
        return now < self.until

    def lapse(self, now: float) -> None:
        """If the lease has run out, begin another claim.

        This one stays ended: who guards our address may have told its secret meanwhile.
        """
        if self.held and 0.0 < self.until <= now:
            self.begin()

    def _count(self) -> None:
        """Find the end that a majority supports; it includes ourselves, so one voter alone has a lease without end."""
        if not self.held:
            return
        needed = (len(self._others) + 1) // 2
        if not needed:
            self.until = math.inf
            return
        sent = sorted((self._acknowledged.get(node, -math.inf) for node in self._others), reverse=True)
        self.until = max(sent[needed - 1] + self.duration, 0.0)


class Promise:
    """The follower's side: neither vote nor stand before `until`.

    The longest duration ever promised stands in a file, because a node that restarts doesn't know to whom it
    promised, and keeps still for that long. An unreadable file counts as the longest duration there is, and is written
    anew when that has passed.
    """

    def __init__(self, disk: Disk, now: float) -> None:
        self._disk = disk
        self._readable = True
        self._longest = self._read()
        self._quiet_until = self.until = now + self._longest * MARGIN
        self.secret = b""
        """That of the claim for which the last promise was given, once it is known to have ended."""
        self._commitment = b""
        self._claim = (0, 0)

    def give(self, duration: float, now: float, claim: tuple[int, int], commitment: bytes) -> bool:
        """Promise the leader whose heartbeat was accepted; `claim` is its term and the number of the claim.

        False if that claim is known to have ended, and nothing is promised.
        """
        if not commitment or claim < self._claim or (claim == self._claim and self.secret):
            return False
        if duration > self._longest or (not self._readable and now >= self._quiet_until):
            self._disk.replace(_FILE, seal(Longest(duration)))  # durably: it is acknowledged only after this
            self._longest, self._readable = duration, True
        if claim != self._claim:
            self._claim, self._commitment, self.secret = claim, commitment, b""
        self.until = max(self.until, now + duration * MARGIN)
        return True

    def release(self, secret: bytes) -> bool:
        """End the promise if this is the secret of the latest claim that we heard of; False if not."""
        if not secret or not self._commitment or commit_to(secret) != self._commitment:
            return False
        self.secret = secret
        self.until = 0.0
        return True

    def binds(self, now: float) -> bool:
        """True while we may neither vote nor stand."""
        return now < self.until

    def _read(self) -> float:
        try:
            return unseal(self._disk.read(_FILE), Longest).duration
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError):
            self._readable = False
            return MAX_LEASE / 1000
