"""The story of a change of leadership, as the new leader's log tells it in five lines.

Each says how many seconds after the end of the former leader was noticed it happened.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger


class Succession:
    """What node `node` knows of the last change of leadership; times are seconds of `clock`."""

    def __init__(self, node: str, clock: Callable[[], float]) -> None:
        self._node = node
        self._clock = clock
        self._end: tuple[str, str] | None = None  # who led, and what became of it, once that was noticed
        self._noticed_at = 0.0
        self._silence = 0.0  # for how long it had not been heard then
        self._to_come: list[str] = []  # what the log has yet to tell of our own leadership
        self._yields: tuple[str, str] = ("", "")  # who has said last why it yields, and why
        self._log = Logger(namespace="sipha.cluster")

    def followed(self) -> None:
        """A leader is heard."""
        self._end = None

    def yielded(self, leader: str, reason: str) -> None:
        """A leader says why it is about to hand leadership on."""
        self._yields = leader, reason

    def noticed(self, leader: str | None, end: str, silence: float = 0.0) -> None:
        """The leader, as far as one was known, leads no more; what is noticed later of the same end tells no more.

        `end` is what became of it, `silence` for how many seconds it had not been heard.
        """
        if self._end is None and leader is not None:
            self._end, self._noticed_at, self._silence = (leader, end), self._clock(), silence

    def elected(self, term: int) -> None:
        """This node leads."""
        if self._end is None:
            self._noticed_at, self._silence = self._clock(), 0.0
            self._say(0.0, "no leader was known before")
        else:
            leader, end = self._end
            reason = self._yields[1] if self._yields[0] == leader else ""
            self._say(0.0, f"{leader} led before, and {end}" + (f": {reason}" if reason else ""))
        self._end, self._yields = None, ("", "")
        self._say(0.0, "noticed" + (f", {self._silence:.3f} s after it was last heard" if self._silence else ""))
        self._to_come = ["claimed", "served"]
        self._happened(f"elected in term {term}")

    def claimed(self, addresses: str) -> None:
        """The virtual addresses are this node's."""
        if "claimed" in self._to_come:
            self._to_come.remove("claimed")
            self._happened(f"{addresses} claimed")

    def served(self, method: str) -> None:
        """This node has served a request."""
        if "served" in self._to_come:
            self._to_come.remove("served")
            self._happened(f"first request served, {method}")

    def _happened(self, what: str) -> None:
        self._say(self._clock() - self._noticed_at, what)

    def _say(self, after: float, what: str) -> None:
        self._log.info("failover to {node}, +{after:.3f} s: {what}", node=self._node, after=after, what=what)
