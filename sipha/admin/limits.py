"""How much one address may ask of the admin."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

MAX_ADDRESSES = 4096
"""The addresses that are remembered; of more, those are forgotten that have been silent for longest."""

BURST = 2.0
"""The seconds' worth that an address may use at once."""


class Rates:
    """A token bucket for each address: `rate` a second, and BURST seconds' worth at once. Times are in seconds.

    The addresses of one IPv6 network, /64, are one: whoever has one has all.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate * BURST)
        self._buckets: dict[str, tuple[float, float]] = {}  # how much there was, and when

    def take(self, address: str, now: float) -> float:
        """Take one; returns 0.0, or for how long none will be there yet."""
        source = _source(address)
        level, then = self._buckets.pop(source, (self._most, now))
        level = min(self._most, level + (now - then) * self._rate)
        self._buckets[source] = (level - 1.0 if level >= 1.0 else level, now)
        if len(self._buckets) > MAX_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        return 0.0 if level >= 1.0 else (1.0 - level) / self._rate


def _source(address: str) -> str:
    """The address, or its network if it is an IPv6 one."""
    if ":" not in address:
        return address
    literal = IPv6Address(address)
    mapped = literal.ipv4_mapped
    return str(IPv6Network((int(literal), 64), strict=False) if mapped is None else mapped)
