"""Promise 3, decided by what nodes sent: never do two of them answer for, or send from, the virtual addresses."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from tests.system.capture import Capture, Frame

SILENT = 5
"""A node that has been asked so often and hasn't used an address has it no more."""

_SHOWN, _CONTEXT = 40, 0.05

BLIND = 1.0
"""For how long the capture may have asked nobody, in seconds: meanwhile a node's silence says nothing."""


class Tenure(NamedTuple):
    """A node has the virtual addresses: its first and its last use of them, and how many there were."""

    node: str
    begin: float
    end: float
    uses: int

    def overlaps(self, other: Tenure) -> bool:
        """True if both have them at the same time."""
        return self.begin <= other.end and other.begin <= self.end


def tenures(frames: Iterable[Frame], addresses: Sequence[str], asked: Sequence[float]) -> list[Tenure]:
    """Who has used one of the addresses, and when, in the order of their beginnings; `asked` is sorted."""
    current: dict[str, Tenure] = {}
    ended: list[Tenure] = []
    for frame in sorted((frame for frame in frames if frame.uses(addresses)), key=lambda frame: frame.time):
        tenure = current.get(frame.node)
        if tenure is None or bisect(asked, frame.time) - bisect(asked, tenure.end) > SILENT:
            if tenure is not None:
                ended.append(tenure)
            current[frame.node] = Tenure(frame.node, frame.time, frame.time, 1)
        else:
            current[frame.node] = tenure._replace(end=frame.time, uses=tenure.uses + 1)
    return sorted([*ended, *current.values()], key=lambda tenure: tenure.begin)


def overlaps(tenures: Iterable[Tenure]) -> list[tuple[Tenure, Tenure]]:
    """The pairs of tenures in which two nodes have the addresses at once."""
    return [(one, other) for one, other in combinations(tenures, 2) if one.node != other.node and one.overlaps(other)]


def uses_between(capture: Capture, node: str, begin: float, end: float) -> list[Frame]:
    """What a node has sent from one of the addresses in this time."""
    return [
        frame
        for frame in capture.frames
        if frame.node == node and begin < frame.time < end and frame.uses(capture.addresses)
    ]


def check_one_holder(capture: Capture) -> list[Tenure]:
    """Check that never two nodes had the addresses at once; return and print who had them, one tenure after the other.

    A capture that may have missed something proves nothing.
    """
    assert capture.dropped == 0, f"the capture lost {capture.dropped} frames"
    assert capture.blind < BLIND, f"the capture asked nobody for {capture.blind:.3f} s"
    found = tenures(capture.frames, capture.addresses, capture.asked)
    print(describe(found), f"asked at least every {capture.blind * 1000:.0f} ms", sep="\n")
    if both := overlaps(found):
        begin, end = max(tenure.begin for tenure in both[0]), min(tenure.end for tenure in both[0])
        nodes = {tenure.node for tenure in both[0]}
        frames = [frame for node in nodes for frame in uses_between(capture, node, begin - _CONTEXT, end + _CONTEXT)]
        frames.sort(key=lambda frame: frame.time)
        lines = "\n".join(f"{frame.time - found[0].begin:.4f} {frame}" for frame in frames[:_SHOWN])
        raise AssertionError(f"two nodes have the virtual addresses at once:\n{describe(found)}\n{lines}")
    return found


def describe(tenures: Sequence[Tenure]) -> str:
    """A line for each tenure, in seconds from the first."""
    start = tenures[0].begin if tenures else 0.0
    return "\n".join(
        f"{node} has the addresses from {begin - start:.4f} to {end - start:.4f} s: {uses} uses"
        for node, begin, end, uses in tenures
    )
