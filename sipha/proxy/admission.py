"""Who may have a request forwarded that no dialog of ours speaks for: the gate against toll fraud (§16.3 step 6).

| the request comes from                | to our users                    | elsewhere, or by a Route |
| ------------------------------------- | ------------------------------- | ------------------------ |
| a peer's address                      | yes                             | yes                      |
| ourselves (a spiral)                  | yes                             | 403                      |
| a From in our domains, or anonymous   | 407, then if the identity fits  | the same                 |
| anyone else                           | if `allow_inbound`, else 403    | 403                      |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from sipha.auth.authenticator import Authenticator, Challenge, Verified
from sipha.auth.domain import Domain
from sipha.errors import SipError
from sipha.proxy.responsibility import Responsibility
from sipha.sip.digest import Credentials
from sipha.sip.flow import Flow
from sipha.sip.headers import parse_name_addr
from sipha.sip.message import Request
from sipha.sip.uri import SipUri, Uri
from sipha.state.accounts import Account
from sipha.state.interfaces import ICredentials, ILog

IDENTITIES = ("P-Asserted-Identity", "P-Preferred-Identity", "Remote-Party-ID")
"""The header fields that say who calls, beside From (RFC 3325 §9): a gateway that trusts us believes them."""

_HEADER = "Proxy-Authorization"
_ANONYMOUS = "anonymous.invalid"
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What an operator decides about the proxy.

    `peers` are the networks of trusted proxies and gateways: they aren't challenged, what they assert is believed, and
    they may have requests forwarded anywhere. `allow_inbound` lets anyone call our users whose From isn't in one of our
    domains. `max_breadth` bounds the parallel forks of a request (RFC 5393 §5.3.3).
    """

    peers: tuple[IPv4Network | IPv6Network, ...] = ()
    allow_inbound: bool = False
    max_breadth: int = 60


class Peers:
    """The networks whose addresses are trusted."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._networks = tuple(networks)
        self._known: dict[str, bool] = {}

    def __contains__(self, host: str) -> bool:
        """Return True if an address is a peer's; remembered, since few addresses send most requests."""
        known = self._known.get(host)
        if known is None:
            address = ip_address(host.partition("%")[0])
            known = any(address in network for network in self._networks)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[host] = known
        return known


class Admission:
    """Lets requests pass, or raises the SipError that refuses them; keeps nothing."""

    def __init__(
        self,
        authenticator: Authenticator,
        credentials: ICredentials,
        ours: Responsibility,
        *,
        log: ILog,
        term: Callable[[], int],
        settings: ProxySettings,
    ) -> None:
        self._authenticator = authenticator
        self._credentials = credentials
        self._ours = ours
        self._log = log
        self._term = term
        self.adopt(settings)

    def adopt(self, settings: ProxySettings) -> None:
        """Decide by these from now on."""
        self._peers = Peers(settings.peers)
        self._allow_inbound = settings.allow_inbound

    def is_peer(self, flow: Flow) -> bool:
        """True if what comes by a flow is trusted."""
        return flow.remote[0] in self._peers

    def admit(self, received: Request, forwarded: Request, flow: Flow, *, local: bool, spiral: bool) -> Verified | None:
        """Let a request that is out of dialog pass, or raise SipError: 403, or 407 with challenges.

        `received` is the request as it came, which the credentials are for; `forwarded` the copy that goes on.
        `local` says that it is for a user of ours and follows no Route; `spiral` that we sent it ourselves. Returns
        whose credentials have let it pass, if any were needed: their nonce count has yet to be used up.
        """
        if self.is_peer(flow):
            return None
        if spiral:
            if not local:
                raise SipError("our own request came back, for someone else", status=403)
            return None
        caller = received.from_.parsed_uri
        domain = self._domain_of(caller)
        if domain is None:
            if not (self._allow_inbound and local):
                raise SipError(f"{received.from_.uri} is no user of ours", status=403)
            strip_identities(forwarded)
            return None
        outcome = self._authenticator.verify(received, _HEADER, domain, self._log.cluster_time(), self._term())
        if isinstance(outcome, Challenge):
            raise _unproved(outcome)
        self._check_identities(received, caller, outcome.account)
        return outcome

    def challenge(self, received: Request) -> SipError:
        """What refuses a request that was admitted, but whose nonce count had been used before."""
        domain = self._domain_of(received.from_.parsed_uri) or self._ours.domains.default
        now, term = self._log.cluster_time(), self._term()
        return _unproved(self._authenticator.challenge(_HEADER, domain, now, term, stale=True))

    def admit_caller(self, credentials: Credentials, domain: Domain, caller: str, now: float, method: str) -> Verified:
        """Let a user of a domain pass by its credentials, or raise SipError: 403, or 407 with challenges.

        `caller` is the AOR that the request says it is from, and all that it claims. Its Request-URI is the uri of the
        credentials. `now` is the cluster time in seconds. Returns what `admit` returns.
        """
        outcome = self._authenticator.verify_credentials(
            credentials, domain, now, self._term(), method=method, header=_HEADER
        )
        if isinstance(outcome, Challenge):
            raise _unproved(outcome)
        if self._ours.aor_of(outcome.account.aor) != caller:
            raise SipError("an identity that is not the account's", status=403)
        return outcome

    def _domain_of(self, uri: Uri) -> Domain | None:
        """The domain whose user says it calls; who wants to be anonymous (RFC 3323 §4.1.1.3) says so to the default."""
        if isinstance(uri, SipUri) and uri.host == _ANONYMOUS:
            return self._ours.domains.default
        if not isinstance(uri, SipUri):
            # A number says no domain; one of our users' is as good as the user's name.
            aor = self._ours.aor(uri)
            return self._ours.domains.default if aor is not None and self._credentials.known(aor) else None
        # Not "do we serve this URI": whoever reads the From sees our domain, whatever port, transport or maddr it has.
        return self._ours.domains.find(uri.host)

    def _check_identities(self, request: Request, uri: Uri, account: Account) -> None:
        """Refuse a caller who claims to be someone else (pitfalls-sip 7)."""
        own = self._ours.aor_of(account.aor)
        claimed = [] if isinstance(uri, SipUri) and uri.host == _ANONYMOUS else [request.from_.uri]
        for name in IDENTITIES:
            if name in request.headers:
                claimed += [parse_name_addr(value, name).uri for value in request.headers.values(name)]
        if own is None or any(self._ours.aor_of(identity) != own for identity in claimed):
            raise SipError("an identity that is not the account's", status=403)


def _unproved(challenge: Challenge) -> SipError:
    return SipError("no valid credentials", status=407, headers=challenge.headers)


def strip_identities(request: Request) -> None:
    """Remove what a caller asserts of itself whom nobody vouches for (RFC 3325 §5)."""
    for name in IDENTITIES:
        if name in request.headers:
            request.headers.remove(name)
