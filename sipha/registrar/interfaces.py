"""What the registrar asks of who carries out REGISTERs, and what it is told of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zope.interface import Attribute, Interface

from sipha.auth.claim import Claim
from sipha.errors import SipError
from sipha.sip.flow import Address
from sipha.state.entries import Register

Key = tuple[str, Address]
"""What each copy of a REGISTER has, and no other: the To tag of its response, and where it came from."""

Verdict = str | SipError | None
"""What a REGISTER has come to: the Contact lines of its 200, why it is refused, or None if its nonce count was used
before."""

Answer = Callable[[list[tuple[Any, Verdict]]], None]
"""What answers REGISTERs whose verdicts come together: by what it knows each, and its verdict."""


@dataclass(slots=True)
class Counters:
    """What the registrar has done since it was made."""

    requests: int = 0
    absorbed: int = 0
    challenged: int = 0
    repeated: int = 0
    queried: int = 0
    proposed: int = 0
    registered: int = 0
    refused: int = 0
    unavailable: int = 0


class IRegistry(Interface):
    """Where a registrar has REGISTERs carried out."""

    counters: Counters = Attribute("What was done.")

    def awaits(key: Key) -> bool:
        """Return True if a REGISTER with this key waits for its verdict."""

    def carry_out(  # noqa: PLR0917  who, what, and when
        key: Key,
        aor: str,
        record: Register | None,
        claim: Claim | None,
        now: float,
        received: float,
        answer: Answer,
        waiting: Any,
    ) -> None:
        """Carry out a REGISTER and tell `answer` once, perhaps before this returns; one without a record only asks.

        The claim is None if its count was used up. `now` is the cluster time in seconds, `received` when it came,
        `waiting` is what `answer` is to know it by.
        """
