"""What the parts of a REGISTER's way cost, one by one: `make bench-micro`.

The messages are those of `bench.node`. Times are CPU time; the least is what the part costs, the rest is the machine's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro import MemoryLog
from bench.node import BATCH, DOMAIN, PASSWORD, register, user
from sipha.auth.authenticator import Authenticator, Verified
from sipha.auth.domain import Domain, Domains
from sipha.nat.detection import DEFAULT, make_detection
from sipha.registrar import plain as glance
from sipha.registrar import response
from sipha.registrar.record import Prepared, RegistrarSettings, prepare, prepare_plain
from sipha.registrar.registrar import Registrar
from sipha.sip import digest
from sipha.sip.flow import Flow
from sipha.sip.message import Request, mark_received
from sipha.sip.parser import parse
from sipha.sip.token import Tokens
from sipha.state.entries import SCHEMA, Batch, Contact, Policy, PutAccount, Register, decode, encode
from sipha.state.outcomes import Registered
from sipha.workers.registry import DistantRegistry

NOW = 1000.0
TERM = 1
CONTACTS = 24
FLOW = Flow("UDP", ("127.0.8.100", 5060), ("127.0.8.200", 5999))

INVITE = (
    f"INVITE sip:{user(1)}@{DOMAIN} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.8.200:5998;rport;branch=z9hG4bKi1.1\r\n"
    f"Max-Forwards: 70\r\nFrom: <sip:{user(2)}@{DOMAIN}>;tag=f1\r\nTo: <sip:{user(1)}@{DOMAIN}>\r\n"
    f"Call-ID: 1@phone\r\nCSeq: 1 INVITE\r\nContact: <sip:{user(2)}@127.0.8.200:5998>\r\n"
    "Content-Type: application/sdp\r\nContent-Length: 6\r\n\r\nv=0\r\n."
).encode()


class Site:
    """A registrar's tables, with the accounts of a batch of phones, who know a nonce."""

    def __init__(self) -> None:
        self.credentials = MemoryLog(None)
        self.machine = self.credentials.machine
        self.tokens = Tokens({1: bytes(32)})
        self.domain = Domain(DOMAIN, DOMAIN, algorithms=("MD5",))
        self.domains = Domains([self.domain])
        self.settings = RegistrarSettings()
        self.authenticator = Authenticator(self.credentials, lambda: self.tokens, self.domains)
        self.nonce = self.tokens.nonce(TERM, NOW, 1)
        hashes = [digest.ha1("MD5", user(number), DOMAIN, PASSWORD) for number in range(BATCH)]
        self._apply(
            PutAccount(user(number), DOMAIN, user(number), DOMAIN, {"MD5": each}) for number, each in enumerate(hashes)
        )

    def datagram(self, number: int = 0, cseq: int = 1) -> bytes:
        """A phone's REGISTER."""
        return register(number, cseq, self.nonce)

    def request(self) -> Request:
        """It, parsed, as the transaction layer hands it on."""
        request = parse(self.datagram())
        assert isinstance(request, Request)
        mark_received(request, FLOW)
        return request

    def prepare(self, plain: glance.Plain | None) -> Prepared:
        """What becomes of a plain REGISTER before it is proposed."""
        assert plain is not None
        prepared = prepare_plain(
            plain,
            FLOW,
            NOW,
            TERM,
            authenticator=self.authenticator,
            domains=self.domains,
            settings=self.settings,
            behind_nat=False,
        )
        assert isinstance(prepared, Prepared)
        return prepared

    def records(self, cseq: int) -> Sequence[Register]:
        """What a batch of phones proposes."""
        prepared = [
            self.prepare(glance.read(self.datagram(number, cseq), *FLOW.remote)).record for number in range(BATCH)
        ]
        return [record for record in prepared if record is not None]

    def _apply(self, records: Iterator[PutAccount]) -> None:
        self.machine.apply(self.machine.index + 1, entry(tuple(records)))


def entry(records: Sequence[PutAccount | Register]) -> bytes:
    return encode(Batch(SCHEMA, int(NOW * 1000), Policy(), tuple(records)))


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.mark.benchmark(group="parser")
def test_parser_parses_a_register(benchmark: BenchmarkFixture, site: Site) -> None:
    message = benchmark(parse, site.datagram())
    assert isinstance(message, Request)
    assert message.method == "REGISTER"


@pytest.mark.benchmark(group="parser")
def test_parser_parses_an_invite(benchmark: BenchmarkFixture) -> None:
    message = benchmark(parse, INVITE)
    assert isinstance(message, Request)
    assert message.method == "INVITE"


@pytest.mark.benchmark(group="parser")
def test_registrar_reads_a_plain_register_at_a_glance(benchmark: BenchmarkFixture, site: Site) -> None:
    plain = benchmark(glance.read, site.datagram(), *FLOW.remote)
    assert plain is not None
    assert plain.aor == f"sip:{user(0)}@{DOMAIN}"


@pytest.mark.benchmark(group=f"{BATCH} REGISTERs")
def test_registrar_hands_plain_registers_to_the_registry(benchmark: BenchmarkFixture, site: Site) -> None:
    datagrams = [site.datagram(number) for number in range(BATCH)]

    def make() -> tuple[tuple[Registrar, DistantRegistry], dict[str, object]]:
        registry = DistantRegistry(site.authenticator)
        registrar = Registrar(
            registry,
            site.credentials,
            site.authenticator,
            site.domains,
            cluster_time=lambda: NOW,
            term=lambda: TERM,
            send=lambda *_: None,
            is_behind_nat=make_detection(DEFAULT),
        )
        return (registrar, registry), {}

    def receive(registrar: Registrar, registry: DistantRegistry) -> int:
        for data in datagrams:
            registrar.datagram_received(data, FLOW, NOW)
        return len(registry.take())

    assert benchmark.pedantic(receive, setup=make, rounds=500, warmup_rounds=10) == BATCH


@pytest.mark.benchmark(group="digest")
def test_digest_parses_credentials(benchmark: BenchmarkFixture, site: Site) -> None:
    value = site.request().headers.get("Authorization")
    assert value is not None
    credentials = benchmark(digest.parse_credentials, value)
    assert credentials is not None
    assert credentials.nonce == site.nonce


@pytest.mark.benchmark(group="digest")
def test_digest_computes_a_response(benchmark: BenchmarkFixture, site: Site) -> None:
    credentials = glance.read(site.datagram(), *FLOW.remote).credentials  # type: ignore[union-attr]
    assert credentials is not None
    stored = digest.ha1("MD5", user(0), DOMAIN, PASSWORD)
    asked = digest.ha2("MD5", "REGISTER", f"sip:{DOMAIN}")
    computed = benchmark(
        digest.response,
        "MD5",
        stored,
        asked,
        site.nonce,
        nc=credentials.nc,
        cnonce=credentials.cnonce,
        qop=credentials.qop,
    )
    assert computed == credentials.response


@pytest.mark.benchmark(group="digest")
def test_authenticator_verifies_credentials(benchmark: BenchmarkFixture, site: Site) -> None:
    credentials = glance.read(site.datagram(), *FLOW.remote).credentials  # type: ignore[union-attr]
    verified = benchmark(
        site.authenticator.verify_credentials,
        credentials,
        site.domain,
        NOW,
        TERM,
        method="REGISTER",
        header="Authorization",
    )
    assert isinstance(verified, Verified)


@pytest.mark.benchmark(group="prepare")
def test_registrar_prepares_a_plain_register(benchmark: BenchmarkFixture, site: Site) -> None:
    prepared = benchmark(site.prepare, glance.read(site.datagram(), *FLOW.remote))
    assert prepared.record.aor == f"sip:{user(0)}@{DOMAIN}"


@pytest.mark.benchmark(group="prepare")
def test_registrar_prepares_a_parsed_register(benchmark: BenchmarkFixture, site: Site) -> None:
    prepared = benchmark.pedantic(
        lambda request: prepare(
            request,
            FLOW,
            NOW,
            TERM,
            authenticator=site.authenticator,
            credentials=site.credentials,
            domains=site.domains,
            settings=site.settings,
        ),
        # A message is taken apart once, as what is asked for is kept.
        setup=lambda: ((site.request(),), {}),
        rounds=5000,
        warmup_rounds=100,
    )
    assert isinstance(prepared, Prepared)


@pytest.mark.benchmark(group=f"apply, {BATCH} REGISTERs")
def test_entry_is_encoded(benchmark: BenchmarkFixture, site: Site) -> None:
    records = site.records(1)
    assert decode(benchmark(entry, records)).records == tuple(records)


@pytest.mark.benchmark(group=f"apply, {BATCH} REGISTERs")
def test_machine_applies_refreshes(benchmark: BenchmarkFixture, site: Site) -> None:
    cseqs = itertools.count(1)
    outcomes = benchmark.pedantic(
        lambda data: site.machine.apply(site.machine.index + 1, data),
        setup=lambda: ((entry(site.records(next(cseqs))),), {}),
        rounds=300,
        warmup_rounds=5,
    )
    assert len(outcomes) == BATCH
    assert all(isinstance(outcome, Registered) for outcome in outcomes)


@pytest.mark.benchmark(group=f"apply, a REGISTER of {CONTACTS} contacts")
def test_machine_applies_a_register_of_many_contacts(benchmark: BenchmarkFixture, site: Site) -> None:
    """Half of them take the places of what is there, the others are nowhere: each is compared with all the others."""
    numbers, half = itertools.count(), CONTACTS // 2

    def fresh() -> tuple[tuple[bytes], dict[str, object]]:
        number = next(numbers)
        contacts = [Contact(f"sip:phone?{number}.{place}", 3600 * (place < half)) for place in range(CONTACTS)]
        return (entry([Register(f"sip:{user(0)}@{DOMAIN}", str(number), 1, tuple(contacts))]),), {}

    (outcome,) = benchmark.pedantic(
        lambda data: site.machine.apply(site.machine.index + 1, data), setup=fresh, rounds=300, warmup_rounds=5
    )
    assert isinstance(outcome, Registered)
    assert len(outcome.bindings) == half


@pytest.mark.benchmark(group="render")
def test_registrar_renders_a_200(benchmark: BenchmarkFixture, site: Site) -> None:
    outcome, *_ = site.machine.apply(site.machine.index + 1, entry(site.records(1)))
    assert isinstance(outcome, Registered)
    head, date = response.head(site.request()), response.date(NOW)
    bindings, time = outcome.bindings, outcome.time
    data = benchmark(lambda: response.ok(head, response.contacts(bindings, time), "", date))
    assert data.startswith(b"SIP/2.0 200 OK\r\n")
    assert b"\r\nContact: <sip:" in data


@pytest.mark.benchmark(group="render")
def test_registrar_renders_a_401(benchmark: BenchmarkFixture, site: Site) -> None:
    challenge = site.authenticator.challenge("Authorization", site.domain, NOW, TERM, stale=False)
    data = benchmark(response.unauthorized, response.head(site.request()), challenge.headers)
    assert data.startswith(b"SIP/2.0 401 ")


@pytest.mark.benchmark(group="render")
def test_proxy_renders_an_invite(benchmark: BenchmarkFixture) -> None:
    request = parse(INVITE)
    assert benchmark(request.render) == INVITE
