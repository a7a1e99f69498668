"""Who sent a request: digest challenges and their verification for registrar and proxy alike (RFC 3261 §22)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import NamedTuple

from sipha.auth.claim import Claim
from sipha.auth.domain import Domain, Domains
from sipha.auth.window import Counts, NonceWindow
from sipha.errors import MalformedMessage, Unavailable
from sipha.sip.digest import QOP, Credentials, base, challenge, parse_credentials, proves
from sipha.sip.message import Request
from sipha.sip.token import SERIALS, Tokens
from sipha.sip.uri import SipUri, parse_uri
from sipha.state.accounts import Account
from sipha.state.interfaces import ICredentials

_MOST_CREDENTIALS = 16

_CHALLENGES = {"Authorization": "WWW-Authenticate", "Proxy-Authorization": "Proxy-Authenticate"}


Ceded = tuple[str, str, int, Counts]
"""A nonce and a user whose counts are another window's now, when the nonce was made, and what was seen of them."""


class Challenge(NamedTuple):
    """The request does not prove who sent it: answer 401 or 407 with these `headers`, one for each algorithm.

    `stale` says that only the nonce was wrong, so that the phone tries again without asking its user.
    """

    headers: tuple[tuple[str, str], ...]
    stale: bool


class Verified:
    """The credentials are those of an account, but their nonce count has not been used up yet."""

    __slots__ = ("account", "claim")

    def __init__(self, account: Account, claim: Claim) -> None:
        self.account = account
        self.claim = claim


class Authenticator:
    """Challenges and verifies; keeps nothing but the window of nonce counts, which a new leader does without.

    `tokens` returns the tokens under the log's current keys, or None while it holds no key. `window` is that of its
    term's nonces, a new one if there is none yet; its maker is who makes nonces here.
    """

    def __init__(
        self,
        credentials: ICredentials,
        tokens: Callable[[], Tokens | None],
        domains: Domains,
        *,
        window: NonceWindow | None = None,
    ) -> None:
        self._credentials = credentials
        self._tokens = tokens
        self._domains = domains
        self._window = window = NonceWindow(maker=0) if window is None else window
        self._first = (window.maker or 0) * SERIALS
        self._made = 0

    def let_nonces_live(self, seconds: float) -> None:
        """Let nonces be good for this long, those that were made already, too."""
        self._window.lifetime = seconds

    @property
    def tokens(self) -> Tokens:
        """The tokens under the current keys; raises Unavailable while the log holds no key."""
        tokens = self._tokens()
        if tokens is None:
            raise Unavailable("The log holds no key yet")
        return tokens

    def verify(self, request: Request, header: str, domain: Domain, now: float, term: int) -> Verified | Challenge:
        """Verify the credentials in `header` (Authorization, Proxy-Authorization) for a domain's realm.

        Their nonce count is left to `use_up`, which is to be asked once for each request. `now` is the cluster time in
        seconds, `term` the leader's. Raises MalformedMessage for credentials that no correct client sends.
        """
        credentials = credentials_for(request, header, domain.realm)
        if credentials is None:
            return self.challenge(header, domain, now, term, stale=False)
        outcome = self.verify_credentials(credentials, domain, now, term, method=request.method, header=header)
        if isinstance(outcome, Challenge):
            return outcome
        if credentials.uri != request.uri and not self._is_target(credentials.uri, request):
            # RFC 7616 §3.4.6: "If not, the server SHOULD return 400": the credentials were meant for something else.
            raise MalformedMessage("Digest uri is not the Request-URI")
        return outcome

    def verify_credentials(
        self, credentials: Credentials, domain: Domain, now: float, term: int, *, method: str, header: str
    ) -> Verified | Challenge:
        """Verify credentials for the domain's realm, from this header of a request with this method.

        Whether their uri means the request is for the caller to see.
        """
        algorithm = credentials.algorithm
        # The -sess form of what is offered rests on the same hash; some clients use it unasked.
        stored = base(algorithm)
        offered = algorithm in domain.algorithms or stored in domain.algorithms
        if not offered or credentials.qop not in ("", QOP):
            return self.challenge(header, domain, now, term, stale=False)
        made_in, issued_at = self.tokens.read_nonce(credentials.nonce) or (None, 0)
        # Another leader's nonces are not ours to accept: only that leader knows which counts it has seen.
        if made_in != term & 0xFFFFFFFF or not self._window.is_valid(issued_at, now):
            return self.challenge(header, domain, now, term, stale=True)
        account = self._credentials.credential(credentials.username, domain.realm)
        known = None if account is None else account.ha1.get(stored)
        # An unknown user costs what a wrong password costs, and gets the same answer.
        if not proves(known or "unknown", method, credentials) or account is None or not known:
            return self.challenge(header, domain, now, term, stale=False)
        count = credentials.nonce_count if credentials.qop else None
        return Verified(account, Claim(credentials.nonce, credentials.username, count, issued_at))

    def _is_target(self, uri: str, request: Request) -> bool:
        """True if a digest uri means the Request-URI, whose port and parameters phones leave out, or this server."""
        try:
            given, target = parse_uri(uri), request.parsed_uri
        except MalformedMessage:
            return False
        if not isinstance(given, SipUri) or not isinstance(target, SipUri):
            return given == target
        if not given.user and self._domains.find(given.host) is not None:
            return True
        return (given.scheme, given.user, given.host) == (target.scheme, target.user, target.host)

    def use_up(self, claim: Claim, now: float) -> bool:
        """Use up the nonce count of verified credentials; False if it was used before."""
        return claim.count is None or self._window.accept(
            claim.nonce, claim.username, claim.count, claim.issued_at, now
        )

    def decides(self, claim: Claim) -> bool:
        """Return True if it is `use_up` of this process that says whether a claim is good."""
        return claim.count is None or self._window.holds(claim.nonce, claim.username, claim.issued_at)

    def cede(self, request: Request, now: float, term: int) -> list[Ceded]:
        """Use up nothing any more of what proves who sends a request, since it is somebody else who will act on it.

        What is returned is for him to `take`. Raises SipError.
        """
        ceded: list[Ceded] = []
        for header in _CHALLENGES:
            for domain in self._domains.all:
                credentials = credentials_for(request, header, domain.realm)
                if credentials is None or (made := self.tokens.read_nonce(credentials.nonce)) is None:
                    continue
                nonce, username, issued_at = credentials.nonce, credentials.username, made[1]
                if not self._window.holds(nonce, username, issued_at):
                    continue
                # Nobody fills a window but with what is proved.
                outcome = self.verify_credentials(credentials, domain, now, term, method=request.method, header=header)
                if isinstance(outcome, Verified) and (counts := self._window.cede(nonce, username, issued_at, now)):
                    ceded.append((nonce, username, issued_at, counts))
        return ceded

    def take(self, ceded: Iterable[Ceded], now: float) -> None:
        """Use up from now on what somebody else has ceded."""
        for nonce, username, issued_at, counts in ceded:
            self._window.take(nonce, username, issued_at, counts, now)

    def challenge(self, header: str, domain: Domain, now: float, term: int, *, stale: bool) -> Challenge:
        """Make a challenge with a fresh nonce, to be answered in `header`."""
        self._made += 1
        nonce = self.tokens.nonce(term, now, self._first + self._made % SERIALS)
        name = _CHALLENGES[header]
        return Challenge(
            tuple([(name, challenge(domain.realm, nonce, algorithm, stale=stale)) for algorithm in domain.algorithms]),
            stale,
        )


# A proxied request's are read twice: to verify them, and to know which of them are for us.
_credentials = lru_cache(maxsize=16)(parse_credentials)


def credentials_for(request: Request, header: str, realm: str) -> Credentials | None:
    """The first digest credentials of a request for a realm, or None; those for other realms are not ours to judge."""
    for value in request.headers.all(header)[:_MOST_CREDENTIALS]:
        credentials = _credentials(value)
        if credentials is not None and credentials.realm == realm:
            return credentials
    return None


def strip_credentials(request: Request, realms: Collection[str]) -> None:
    """Remove the Proxy-Authorization for our realms before a request is forwarded; others stay (RFC 3261 §22.3).

    Nobody downstream has a use for them but an attacker.
    """

    def ours(value: str) -> bool:
        try:
            credentials = _credentials(value)
        except MalformedMessage:
            return False
        return credentials is not None and credentials.realm in realms

    if "Proxy-Authorization" in request.headers:
        request.headers.remove_values("Proxy-Authorization", ours)
