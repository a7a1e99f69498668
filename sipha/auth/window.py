"""The window of nonce counts: each count of a nonce is good once, in any order within the window (RFC 7616 §3.4)."""

from __future__ import annotations

WIDTH = 64
"""How far behind the highest count one may still come: requests sent at once overtake each other."""

_MASK = (1 << WIDTH) - 1


class NonceWindow:
    """Remembers for each nonce and user which counts were seen, for as long as the nonce lives.

    `lifetime` is that of a nonce in seconds, and may be changed. `capacity` bounds the pairs of nonce and user: beyond
    it the oldest nonces are forgotten and refused from then on, so that nothing is ever accepted twice.
    """

    __slots__ = ("_capacity", "_seconds", "_size", "_term", "_valid_from", "lifetime")

    def __init__(self, lifetime: float = 300, capacity: int = 500_000) -> None:
        self.lifetime = lifetime
        self._term = 0
        self._capacity = capacity
        # By the second in which the nonces were made: forgotten as a whole, never searched. The value is the highest
        # count, and below it a bit for each of the WIDTH counts up to it.
        # The key is the hash of nonce and user, a quarter of their size; should those of two phones ever be equal, one
        # of them may be challenged once more.
        self._seconds: dict[int, dict[int, int]] = {}
        self._size = 0
        self._valid_from = 0

    def __len__(self) -> int:
        """How many pairs of nonce and user are remembered."""
        return self._size

    def begin(self, term: int) -> None:
        """Be the window of the nonces of a term: what is known of them if it goes on, nothing if it is another one."""
        if term != self._term:
            self._term = term
            self._seconds.clear()
            self._size = self._valid_from = 0

    def is_valid(self, issued_at: int, now: float) -> bool:
        """Return True if a nonce made at `issued_at` may still be used."""
        return issued_at >= self._valid_from and 0 <= now - issued_at <= self.lifetime

    def accept(self, nonce: str, username: str, count: int, issued_at: int, now: float) -> bool:
        """Take note of a count and return True, or return False if it came before or the nonce is too old."""
        if not self.is_valid(issued_at, now):
            return False
        second = self._seconds.get(issued_at)
        if second is None:
            self._forget(now)
            second = self._seconds[issued_at] = {}
        key = hash((nonce, username))
        seen = second.get(key)
        if seen is None:
            if self._size >= self._capacity and not self._make_room(issued_at):
                return False
            self._size += 1
            second[key] = count << WIDTH | 1
            return True
        highest, bits = seen >> WIDTH, seen & _MASK
        ahead = count - highest
        if ahead > 0:
            bits = (bits << ahead | 1) & _MASK if ahead < WIDTH else 1
            second[key] = count << WIDTH | bits
            return True
        if -ahead >= WIDTH or bits >> -ahead & 1:
            return False
        second[key] = seen | 1 << -ahead
        return True

    def _forget(self, now: float) -> None:
        """Forget the nonces that have run out."""
        for issued_at in [issued_at for issued_at in self._seconds if now - issued_at > self.lifetime]:
            self._size -= len(self._seconds.pop(issued_at))

    def _make_room(self, issued_at: int) -> bool:
        """Forget the oldest nonces and refuse them from now on; False if the nonce in hand is one of them."""
        oldest = min(self._seconds)
        self._size -= len(self._seconds.pop(oldest))
        self._valid_from = oldest + 1
        return issued_at > oldest
