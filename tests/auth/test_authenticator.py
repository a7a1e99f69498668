from __future__ import annotations

from typing import NamedTuple

import pytest
from zope.interface import implementer

from sipha.auth.authenticator import Authenticator, Challenge, strip_credentials
from sipha.auth.domain import Domain, Domains
from sipha.errors import MalformedMessage, Unavailable
from sipha.sip import digest
from sipha.sip.digest import ALGORITHMS
from sipha.sip.headers import parse_auth_params
from sipha.sip.message import Request
from sipha.sip.token import Tokens
from sipha.state.accounts import Account
from sipha.state.interfaces import ICredentials

REALM = 'the "realm"'
DOMAIN = Domain("sipha.test", REALM, algorithms=tuple(ALGORITHMS))
DOMAINS = Domains([DOMAIN], ["192.0.2.10"])
HA1 = {algorithm: digest.ha1(algorithm, "alice", REALM, "secret") for algorithm in ("MD5", "SHA-256", "SHA-512-256")}
TOKENS = Tokens({1: b"k" * 32})
TERM = 3
NOW = 1000.5


@implementer(ICredentials)
class Accounts:
    """Accounts by what they authenticate as."""

    def __init__(self, **ha1: dict[str, str]) -> None:
        self.accounts = {
            (name, REALM): Account(name, "sipha.test", name, REALM, hashes) for name, hashes in ha1.items()
        }

    def credential(self, auth_name: str, realm: str) -> Account | None:
        return self.accounts.get((auth_name, realm))

    def known(self, aor: str) -> bool:
        return any(account.aor == aor for account in self.accounts.values())


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator(Accounts(alice=HA1, empty=dict.fromkeys(HA1, ""), none={}), lambda: TOKENS, DOMAINS)


def request(
    *authorizations: str, header: str = "Proxy-Authorization", method: str = "INVITE", uri: str = "sip:bob@sipha.test"
) -> Request:
    return Request(method, uri, [(header, value) for value in authorizations])


def authorization(
    *,
    algorithm: str | None = "MD5",
    qop: str | None = "auth",
    nc: str = "00000001",
    cnonce: str = "c",
    method: str = "INVITE",
    uri: str = "sip:bob@sipha.test",
    username: str = "alice",
    realm: str = REALM,
    nonce: str | None = None,
    password: str = "secret",
    ha1: str | None = None,
) -> str:
    nonce = TOKENS.nonce(TERM, NOW, 1) if nonce is None else nonce
    used = algorithm or "MD5"
    known = used if used in ALGORITHMS else "MD5"
    ha1 = digest.ha1(known, username, realm, password) if ha1 is None else ha1
    response = digest.response(known, ha1, digest.ha2(known, method, uri), nonce, nc=nc, cnonce=cnonce, qop=qop or "")
    value = (
        f'Digest username="{username}", realm="{digest.quote(realm)}", nonce="{nonce}", uri="{uri}", '
        f'response="{response}"'
    )
    if algorithm is not None:
        value += f", algorithm={algorithm}"
    if qop is not None:
        value += f', qop={qop}, nc={nc}, cnonce="{cnonce}"'
    elif used.endswith("-sess"):
        value += f', cnonce="{cnonce}"'
    return value


class Authenticated(NamedTuple):
    account: Account


def authenticated(
    authenticator: Authenticator, request: Request, domain: Domain, now: float, term: int
) -> Authenticated | Challenge:
    """Verify the credentials of a request and use them up."""
    header = "Proxy-Authorization"
    outcome = authenticator.verify(request, header, domain, now, term)
    if isinstance(outcome, Challenge):
        return outcome
    if not authenticator.use_up(outcome.claim, now):
        return authenticator.challenge(header, domain, now, term, stale=True)
    return Authenticated(outcome.account)


def authenticate(
    authenticator: Authenticator, value: str, *, now: float = NOW, term: int = TERM, uri: str = "sip:bob@sipha.test"
) -> Authenticated | Challenge:
    return authenticated(authenticator, request(value, uri=uri), DOMAIN, now, term)


def is_stale(outcome: Authenticated | Challenge) -> bool:
    assert isinstance(outcome, Challenge)
    for name, value in outcome.headers:
        assert name == "Proxy-Authenticate"
        assert ("stale=true" in value) == outcome.stale
    return outcome.stale


def test_request_without_credentials_is_challenged_strongest_first(authenticator: Authenticator) -> None:
    outcome = authenticated(authenticator, request(), DOMAIN, NOW, TERM)
    assert isinstance(outcome, Challenge)
    assert not is_stale(outcome)
    params = [parse_auth_params(value)[1] for _, value in outcome.headers]
    assert [p["algorithm"] for p in params] == list(ALGORITHMS)
    assert {p["realm"] for p in params} == {REALM}
    assert {p["qop"] for p in params} == {"auth"}
    assert len({p["nonce"] for p in params}) == 1


def test_registrar_challenges_with_www_authenticate(authenticator: Authenticator) -> None:
    outcome = authenticator.challenge("Authorization", DOMAIN, NOW, TERM, stale=False)
    assert {name for name, _ in outcome.headers} == {"WWW-Authenticate"}


@pytest.mark.parametrize("qop", ["auth", None])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, None])
def test_each_algorithm_authenticates(authenticator: Authenticator, algorithm: str | None, qop: str | None) -> None:
    outcome = authenticate(authenticator, authorization(algorithm=algorithm, qop=qop))
    assert isinstance(outcome, Authenticated)
    assert outcome.account.aor == "sip:alice@sipha.test"


def test_nonce_is_good_for_many_counts_but_each_once(authenticator: Authenticator) -> None:
    for count in (1, 3, 2, 200):
        assert isinstance(authenticate(authenticator, authorization(nc=f"{count:08x}")), Authenticated)
    for count in (1, 2, 3, 200):
        assert is_stale(authenticate(authenticator, authorization(nc=f"{count:08x}")))
        assert is_stale(authenticate(authenticator, authorization(nc=f"{count:x}", cnonce="other")))


def test_wrong_credentials_use_up_no_count(authenticator: Authenticator) -> None:
    assert not is_stale(authenticate(authenticator, authorization(password="wrong")))
    assert isinstance(authenticate(authenticator, authorization()), Authenticated)


def test_without_qop_a_nonce_is_good_for_its_lifetime(authenticator: Authenticator) -> None:
    for now in (NOW, NOW + 1, NOW + 299):
        assert isinstance(authenticate(authenticator, authorization(qop=None), now=now), Authenticated)
    assert is_stale(authenticate(authenticator, authorization(qop=None), now=NOW + 301))


@pytest.mark.parametrize(
    ("nonce", "now", "term"),
    [
        (TOKENS.nonce(TERM, NOW, 1), NOW + 301, TERM),
        (TOKENS.nonce(TERM, NOW + 10, 1), NOW, TERM),
        (TOKENS.nonce(TERM, NOW, 1), NOW, TERM + 1),
        (Tokens({1: b"x" * 32}).nonce(TERM, NOW, 1), NOW, TERM),
        ("", NOW, TERM),
        ("invented", NOW, TERM),
        ("\udcff", NOW, TERM),
    ],
)
def test_nonce_that_is_not_of_now_is_stale(authenticator: Authenticator, nonce: str, now: float, term: int) -> None:
    assert is_stale(authenticate(authenticator, authorization(nonce=nonce), now=now, term=term))


@pytest.mark.parametrize(
    "value",
    [
        authorization(password="wrong"),
        authorization(username="nobody"),
        authorization(username="empty"),
        authorization(username="none"),
        authorization(username="empty", ha1=""),
        authorization(username="none", ha1=""),
        authorization(username="nobody", ha1=""),
        authorization(username="nobody", ha1="unknown"),
        authorization(username="empty", ha1="unknown"),
        authorization(username="Alice"),
        authorization(realm="another realm"),
        authorization(realm=REALM.upper()),
        authorization(method="REGISTER"),
        authorization(algorithm="SHA-1"),
        authorization(qop="auth-int"),
        authorization(qop="none"),
        authorization(ha1=HA1["SHA-256"]),
        authorization(algorithm="SHA-256", ha1=HA1["MD5"]),
        authorization().replace('response="', 'response="0'),
        authorization().replace("nc=00000001", "nc=00000002"),
        authorization().replace('cnonce="c"', 'cnonce="d"'),
        authorization().replace(", qop=auth", ""),
        authorization(username="alice\udcff"),
        authorization().replace('response="', 'response="\xe9'),
        "Basic YWxpY2U6c2VjcmV0",
    ],
)
def test_refused_credentials_all_get_the_same_answer(authenticator: Authenticator, value: str) -> None:
    outcome = authenticate(authenticator, value)
    assert not is_stale(outcome)
    plain = authenticator.challenge("Proxy-Authorization", DOMAIN, NOW, TERM, stale=False)
    assert isinstance(outcome, Challenge)
    serial = len(plain.headers[0][1])
    assert [len(text) - serial for _, text in outcome.headers] == [len(text) - serial for _, text in plain.headers]


def test_algorithm_that_the_domain_does_not_offer_is_refused(authenticator: Authenticator) -> None:
    strong = Domain("sipha.test", REALM, algorithms=("SHA-256",))
    for algorithm in ("MD5", None, "MD5-sess", "SHA-512-256"):
        value = request(authorization(algorithm=algorithm))
        outcome = authenticated(authenticator, value, strong, NOW, TERM)
        assert isinstance(outcome, Challenge)
        assert len(outcome.headers) == 1


def test_session_form_of_an_offered_algorithm_is_accepted(authenticator: Authenticator) -> None:
    strong = Domain("sipha.test", REALM, algorithms=("SHA-256",))
    value = request(authorization(algorithm="SHA-256-sess"))
    assert isinstance(authenticated(authenticator, value, strong, NOW, TERM), Authenticated)


@pytest.mark.parametrize(
    ("digest_uri", "uri"),
    [
        ("sip:bob@sipha.test", "sip:bob@sipha.test;transport=tcp"),
        ("sip:bob@SIPHA.test:5060", "sip:bob@sipha.test"),
        ("sip:bob@sipha.test;x=y", "sip:bob@sipha.test"),
        # sipp and some phones write the server's address or domain, whatever they ask for.
        ("sip:192.0.2.10:5060", "sip:bob@sipha.test"),
        ("sip:sipha.test", "sip:bob@sipha.test"),
    ],
)
def test_digest_uri_may_be_spelt_otherwise(authenticator: Authenticator, digest_uri: str, uri: str) -> None:
    assert isinstance(authenticate(authenticator, authorization(uri=digest_uri), uri=uri), Authenticated)


@pytest.mark.parametrize(
    "digest_uri",
    ["sip:carol@sipha.test", "sip:bob@other.test", "sip:other.test", "sip:192.0.2.99:5060", "", "*", "tel:1"],
)
def test_digest_uri_must_mean_the_request_uri(authenticator: Authenticator, digest_uri: str) -> None:
    with pytest.raises(MalformedMessage):
        authenticate(authenticator, authorization(uri=digest_uri))


def test_credentials_for_another_realm_are_passed_over(authenticator: Authenticator) -> None:
    value = request(authorization(realm="elsewhere"), authorization())
    outcome = authenticated(authenticator, value, DOMAIN, NOW, TERM)
    assert isinstance(outcome, Authenticated)


def test_authorization_is_no_proxy_authorization(authenticator: Authenticator) -> None:
    value = request(authorization(), header="Authorization")
    assert isinstance(authenticated(authenticator, value, DOMAIN, NOW, TERM), Challenge)


def test_without_a_key_nobody_is_authenticated() -> None:
    authenticator = Authenticator(Accounts(alice=HA1), lambda: None, DOMAINS)
    for value in (request(), request(authorization())):
        with pytest.raises(Unavailable):
            authenticated(authenticator, value, DOMAIN, NOW, TERM)


def test_own_credentials_are_stripped_and_others_stay() -> None:
    theirs = authorization(realm="elsewhere")
    message = request(authorization(), theirs, "Digest broken", "Basic eA==")
    strip_credentials(message, REALM)
    assert message.headers.all("Proxy-Authorization") == [theirs, "Digest broken", "Basic eA=="]
