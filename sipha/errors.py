"""The errors of sipha: each names the SIP status it becomes and tells an operator what to do.

SiphaError
├── ConfigError             the configuration file is wrong; the daemon does not start
├── NotClaimed              the virtual addresses can't be taken; phones hear nothing from this node
└── SipError                becomes a SIP response
    ├── MalformedMessage    400: the peer sent something that is not SIP
    └── Unavailable         503 with Retry-After
        ├── NotLeader       another node leads
        ├── NoQuorum        no majority answers
        ├── QueueFull       more proposals wait than the node accepts
        └── UnknownOutcome  the proposal's deadline passed: it may still be applied
"""

from __future__ import annotations

from typing import ClassVar


class SiphaError(Exception):
    """Something sipha reports to the one who asked, in one sentence."""


class ConfigError(SiphaError):
    """The configuration is wrong; the message names file, key, what is wrong and what would be right."""


class NotClaimed(SiphaError):
    """The virtual addresses can't be taken, or not be kept; the message says why, and what to do about it."""


class SipError(SiphaError):
    """A fault that becomes a SIP response with `status` and, where given, `reason` and header fields."""

    status: ClassVar[int] = 500

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        reason: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.response_status = self.status if status is None else status
        self.reason = reason
        self.headers = headers


class MalformedMessage(SipError):
    """The peer sent bytes that the grammar of RFC 3261 §25 does not allow."""

    status = 400


class Unavailable(SipError):
    """The node can't keep its promise now; the phone may try again after `retry_after` seconds (design §1.7)."""

    status = 503

    def __init__(self, detail: str, *, retry_after: int = 5) -> None:
        super().__init__(detail, headers=(("Retry-After", str(retry_after)),))
        self.retry_after = retry_after


class NotLeader(Unavailable):
    """Another node leads the cluster, or none does yet."""


class NoQuorum(Unavailable):
    """A majority of the nodes does not answer; start or reconnect them."""


class QueueFull(Unavailable):
    """More proposals wait for the log than the node accepts."""


class UnknownOutcome(Unavailable):
    """The proposal's deadline passed before it was applied; it may still be applied later."""
