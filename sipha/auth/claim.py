"""What credentials use up, as it goes from who verifies them to who has the window of nonce counts."""

from __future__ import annotations

import msgspec


class Claim(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is used up by credentials: a count of a nonce, which was made at `issued_at`, by a user.

    None is the count of credentials without qop, whose nonce is good for its lifetime (RFC 2069).
    """

    nonce: str
    username: str
    count: int | None
    issued_at: int
