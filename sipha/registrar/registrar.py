"""The registrar (RFC 3261 §10.3): a REGISTER comes in, its record goes to the registry, what it came to goes back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

from twisted.logger import Logger

from sipha.auth.authenticator import Authenticator, Challenge
from sipha.auth.domain import Domain, Domains
from sipha.errors import QueueFull, SipError, Unavailable
from sipha.registrar import response
from sipha.registrar.interfaces import IRegistry, Key, Verdict
from sipha.registrar.plain import read
from sipha.registrar.record import Prepared, RegistrarSettings, prepare, prepare_plain
from sipha.sip.flow import Flow
from sipha.sip.message import Request
from sipha.sip.origin import Origin, origin_of
from sipha.sip.overload import Overload, mark_of
from sipha.sip.token import Tokens
from sipha.state.interfaces import ICredentials

# The tag of a 503 that is sent before there is a key: each copy of a request gets the same, and nobody relies on it.
_KEYLESS = Tokens({255: bytes(32)})


class _Answer:
    """What the response to a REGISTER needs of it."""

    __slots__ = ("destination", "head", "key", "received")

    def __init__(self, key: Key, head: str, destination: Flow, received: float) -> None:
        self.key = key
        self.head = head
        self.destination = destination
        self.received = received


class Registrar:
    """Answers REGISTERs with `send`; `term` says in which term the leader makes its nonces.

    `overload` is told when too much waits for the log, and says when a phone may come again, on `clock`.
    `is_behind_nat` tells of a REGISTER's origin, and the flow that it came by, whether the phone is behind NAT.
    `wall_time` is for the Date header alone. Everything else goes by `cluster_time`, in seconds. `responses` are those
    sent, by status.
    """

    log: ClassVar = Logger()

    def __init__(
        self,
        registry: IRegistry,
        credentials: ICredentials,
        authenticator: Authenticator,
        domains: Domains,
        *,
        cluster_time: Callable[[], float],
        term: Callable[[], int],
        send: Callable[[list[tuple[bytes, Flow]]], object],
        overload: Overload | None = None,
        settings: RegistrarSettings | None = None,
        is_behind_nat: Callable[[Origin, Flow], bool] = lambda _origin, _flow: False,
        wall_time: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = registry.counters
        self.responses: Counter[int] = Counter()
        self._registry = registry
        self._cluster_time = cluster_time
        self._credentials = credentials
        self._authenticator = authenticator
        self._domains = domains
        self._term = term
        self._send = send
        self._overload = overload or Overload()
        self._settings = settings or RegistrarSettings()
        self._is_behind_nat = is_behind_nat
        self._wall_time = wall_time
        self._clock = clock
        self._second, self._dated = -1, ""

    def adopt(self, settings: RegistrarSettings, is_behind_nat: Callable[[Origin, Flow], bool]) -> None:
        """Decide by these from the next REGISTER on."""
        self._settings, self._is_behind_nat = settings, is_behind_nat

    def request_received(self, request: Request, flow: Flow, now: float) -> None:
        """Carry out a REGISTER whose top Via says where it came from (RFC 3261 §18.2.1), or refuse it.

        It came at `now` on the `clock`.
        """
        self.counters.requests += 1
        head = response.head(request)
        tag = self._tag(head)
        key = (tag, flow.remote)
        if self._registry.awaits(key):
            self.counters.absorbed += 1
            return
        answer = _Answer(key, head + response.to(request, tag), response.destination(request, flow), now)
        time, term = self._cluster_time(), self._term()
        try:
            prepared = prepare(
                request,
                flow,
                time,
                term,
                authenticator=self._authenticator,
                credentials=self._credentials,
                domains=self._domains,
                settings=self._settings,
                behind_nat=self._is_behind_nat(origin_of(request), flow),
            )
            self._carry_out(prepared, answer, time)
        except SipError as error:
            self._send([(self._refuse(answer, error), answer.destination)])

    def datagram_received(self, data: bytes, flow: Flow, now: float) -> bool:
        """Carry out a REGISTER that is plain as `request_received` does; False if that has to be given the message."""
        remote = flow.remote
        plain = read(data, *remote)
        if plain is None:
            return False
        tag = self._tag(plain.head)
        key = (tag, remote)
        if self._registry.awaits(key):
            self.counters.requests += 1
            self.counters.absorbed += 1
            return True
        answer = _Answer(key, f"{plain.head}To: {plain.to};tag={tag}\r\n", flow, now)
        time, term = self._cluster_time(), self._term()
        try:
            prepared = prepare_plain(
                plain,
                flow,
                time,
                term,
                authenticator=self._authenticator,
                domains=self._domains,
                settings=self._settings,
                behind_nat=self._is_behind_nat(plain.origin, flow),
            )
            if prepared is None:
                return False
            self._carry_out(prepared, answer, time)
        except SipError as error:
            self._send([(self._refuse(answer, error), answer.destination)])
        self.counters.requests += 1
        return True

    def _carry_out(self, prepared: Prepared | Challenge, answer: _Answer, now: float) -> None:
        if isinstance(prepared, Challenge):
            self._send([(self._challenge(answer, prepared), answer.destination)])
            return
        self._registry.carry_out(
            answer.key,
            prepared.aor,
            prepared.record,
            prepared.verified.claim,
            now,
            answer.received,
            self._answer,
            (answer, prepared.domain, prepared.extra),
        )

    def _answer(self, verdicts: list[tuple[tuple[_Answer, Domain, str], Verdict]]) -> None:
        """Answer REGISTERs with what they came to."""
        date = self._date()
        messages = []
        for (answer, domain, extra), verdict in verdicts:
            try:
                if isinstance(verdict, str):
                    message = response.ok(answer.head, verdict, extra, date)
                    self.responses[200] += 1
                else:
                    message = self._refuse(answer, verdict) if verdict is not None else self._renew(answer, domain)
            except Exception:  # noqa: BLE001 - our mistake about one message must not stop the others
                self.log.failure("a mistake of ours in answering a REGISTER")
            else:
                messages.append((message, answer.destination))
        self._send(messages)

    def _renew(self, answer: _Answer, domain: Domain) -> bytes:
        """The challenge to a REGISTER whose nonce count was used before."""
        now, term = self._cluster_time(), self._term()
        try:
            challenge = self._authenticator.challenge("Authorization", domain, now, term, stale=True)
        except SipError as error:
            return self._refuse(answer, error)
        return self._challenge(answer, challenge)

    def _challenge(self, answer: _Answer, challenge: Challenge) -> bytes:
        self.counters.challenged += 1
        self.responses[401] += 1
        return response.unauthorized(answer.head, challenge.headers)

    def _refuse(self, answer: _Answer, error: SipError) -> bytes:
        headers = error.headers
        if isinstance(error, Unavailable):
            self.counters.unavailable += 1
            now = self._clock()
            if isinstance(error, QueueFull):
                self._overload.log_is_behind(now)
            # A 503 with Retry-After would make an edge or a peer give up all its phones' registrar (RFC 3261 §21.5.4).
            if self._overload.trusts(answer.destination):
                headers = ()
            else:
                wait = self._overload.retry_after(mark_of(answer.key[0].encode()), now, error.retry_after)
                headers = (("Retry-After", str(wait)),)
        else:
            self.counters.refused += 1
        self.responses[error.response_status] += 1
        return response.refusal(answer.head, error, headers)

    def _tag(self, head: str) -> str:
        """The To tag of a response, the same for each copy of the request (§8.2.7)."""
        try:
            tokens = self._authenticator.tokens
        except Unavailable:
            tokens = _KEYLESS
        return tokens.text_tag(head)

    def _date(self) -> str:
        """The Date header field's value, made once a second."""
        now = int(self._wall_time())
        if now != self._second:
            self._second, self._dated = now, response.date(now)
        return self._dated
