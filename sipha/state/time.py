"""Cluster time: the leader's CLOCK_BOOTTIME, carried by entries and heartbeats, so that no wall clock matters."""

from __future__ import annotations

_CLOCK_ERROR = 0.01
"""By how much two nodes' clocks may differ in rate (pitfalls-log-vip 9)."""


class ClusterTime:
    """One node's knowledge of the cluster time, in ms; `boottime` is that node's CLOCK_BOOTTIME in seconds.

    A leader reads `now`. A follower hears of the leader's time by `follow`, and of any time that was certainly reached
    by `advance` (applied headers, voters' estimates). A new leader goes on from the latest it knows plus what has
    elapsed (pitfalls-log-vip 12). `now` never goes back, whatever is heard, except when another leader `begin`s.
    """

    __slots__ = ("_at", "_given", "heard")

    def __init__(self, boottime: float, time: int = 0) -> None:
        self.heard = float(time)
        """The latest time heard of, without what has elapsed since."""
        self._at = boottime
        self._given = time

    def now(self, boottime: float) -> int:
        """The cluster time in ms: what was last heard plus what has elapsed since."""
        self._given = max(self._given, int(self._elapsed(boottime, 1.0)))
        return self._given

    def advance(self, time: int, boottime: float) -> None:
        """Take note that the cluster time has reached `time`."""
        if time > self._elapsed(boottime, 1.0):
            self.heard, self._at = float(time), boottime

    def begin(self, time: int, boottime: float) -> None:
        """Take over what a new leader says, even if it knows less: what it grants is granted by its time."""
        self.heard, self._at, self._given = float(time), boottime, time

    def follow(self, time: int, boottime: float) -> None:
        """Take over what the leader said just now: ahead of our estimate, or behind it because our clock is fast.

        A word that was long on its way doesn't hold us back by more than the clocks' error.
        """
        self.heard, self._at = max(time, self._elapsed(boottime, 1.0 - _CLOCK_ERROR)), max(boottime, self._at)

    def _elapsed(self, boottime: float, rate: float) -> float:
        return self.heard + max(boottime - self._at, 0.0) * 1000.0 * rate
