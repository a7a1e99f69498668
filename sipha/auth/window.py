"""The window of nonce counts: each count of a nonce is good once, in any order within the window (RFC 7616 §3.4)."""

from __future__ import annotations

from sipha.sip.token import maker_of

WIDTH = 64
"""How far behind the highest count one may still come: requests sent at once overtake each other."""

_MASK = (1 << WIDTH) - 1
_CEDED = -1

_NOTHING: dict[int, int] = {}

Counts = tuple[int, int]
"""The highest count that was seen of a nonce and user, and a bit for each of the WIDTH counts up to it."""


class NonceWindow:
    """Remembers for each nonce and user which counts were seen, for as long as the nonce lives.

    `lifetime` is that of a nonce in seconds, and may be changed. `capacity` bounds the pairs of nonce and user: beyond
    it the oldest nonces are forgotten and refused from then on, so that nothing is ever accepted twice.

    There may be several windows, each of the nonces that one `maker` has made `since` a second of cluster time, and of
    those that others have ceded to it: a nonce and user are only ever in one. Without a maker it is of all nonces.
    """

    __slots__ = ("_capacity", "_seconds", "_since", "_size", "_term", "_valid_from", "lifetime", "maker")

    def __init__(
        self, lifetime: float = 300, capacity: int = 500_000, *, maker: int | None = None, since: int = 0
    ) -> None:
        self.lifetime = lifetime
        self.maker = maker
        self._since = since
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
        second = self._seconds.get(issued_at, _NOTHING)
        key = hash((nonce, username))
        seen = second.get(key)
        if seen is None:
            return self._is_made_here(nonce, issued_at) and self._note(key, count << WIDTH | 1, issued_at, now)
        if seen == _CEDED:
            return False
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

    def holds(self, nonce: str, username: str, issued_at: int) -> bool:
        """Return True if the counts of a nonce and user are for this window to accept, as far as they are good."""
        seen = self._seconds.get(issued_at, _NOTHING).get(hash((nonce, username)))
        return self._is_made_here(nonce, issued_at) if seen is None else seen != _CEDED

    def cede(self, nonce: str, username: str, issued_at: int, now: float) -> Counts | None:
        """Accept no count of a nonce and user any more; return what another window is to `take`.

        None if they aren't for this one.
        """
        if not self.is_valid(issued_at, now) or not self.holds(nonce, username, issued_at):
            return None
        key = hash((nonce, username))
        seen = self._seconds.get(issued_at, _NOTHING).get(key)
        if seen is None and not self._note(key, _CEDED, issued_at, now):
            return None
        self._seconds[issued_at][key] = _CEDED
        return (0, 0) if seen is None else (seen >> WIDTH, seen & _MASK)

    def take(self, nonce: str, username: str, issued_at: int, counts: Counts, now: float) -> None:
        """Accept the counts of a nonce and user that another window has ceded, but for those that it has seen."""
        if self.is_valid(issued_at, now):
            highest, bits = counts
            self._note(hash((nonce, username)), highest << WIDTH | bits, issued_at, now)

    def _is_made_here(self, nonce: str, issued_at: int) -> bool:
        return self.maker is None or (maker_of(nonce) == self.maker and issued_at >= self._since)

    def _note(self, key: int, seen: int, issued_at: int, now: float) -> bool:
        """Remember what was seen of a nonce and user that weren't known; False if there is no room."""
        second = self._seconds.get(issued_at)
        if second is None:
            self._forget(now)
            second = self._seconds[issued_at] = {}
        if self._size >= self._capacity and not self._make_room(issued_at):
            return False
        if key not in second:
            self._size += 1
            second[key] = seen
        return True

    def _forget(self, now: float) -> None:
        """Forget the nonces that have run out, and refuse them from now on, even if nonces come to live longer."""
        for issued_at in [issued_at for issued_at in self._seconds if now - issued_at > self.lifetime]:
            self._size -= len(self._seconds.pop(issued_at))
            self._valid_from = max(self._valid_from, issued_at + 1)

    def _make_room(self, issued_at: int) -> bool:
        """Forget the oldest nonces and refuse them from now on; False if the nonce in hand is one of them."""
        oldest = min(self._seconds)
        self._size -= len(self._seconds.pop(oldest))
        self._valid_from = oldest + 1
        return issued_at > oldest
