"""A node whose admin talks TLS, and those who ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from treq.client import HTTPClient
from treq.testing import _SynchronousProducer
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from sipha.admin.client import Answer, Unreachable, exchange
from sipha.admin.tls import Verification
from sipha.cluster import authority
from sipha.cluster.authority import Issued
from sipha.config.texts import FilePath
from sipha.errors import ConfigError
from sipha.service.access import AdminAccess
from sipha.state.entries import Member
from tests.cluster.certificates import Pki, any_authority, any_certificate, replace, serial
from tests.cluster.world import World
from tests.service.alone import Alone, configuration, found

HOST = "127.0.0.51"
URL = f"https://{HOST}:8080"
WORD = {"Sipha-Forwarded-By": "n1", "Sipha-Forwarded-For": "alice", "Sipha-Forwarded-Role": "operate"}
"""What a node says that forwards a request."""

Ask = Callable[..., Answer]


class Site:
    """The files of node n1, of which `clients` are the authorities of operators, and those of who asks it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pki = Pki(directory / "pki")
        self.corporate = any_authority()
        self.install("cluster-ca", self.pki.authority)
        self.install("corporate", self.corporate)
        self.node = self.install("node", self.issue())
        self.clients = self.install("clients", Issued(self.corporate.certificate + self.pki.authority.certificate, b""))

    def issue(self, *, node: str = "n1", days: int = 100) -> Issued:
        return authority.issue(self.pki.authority, node, datetime.now(UTC), days, [ip_address(HOST)])

    def install(self, name: str, issued: Issued) -> tuple[Path, Path]:
        files = self.directory / f"{name}.pem", self.directory / f"{name}-key.pem"
        for path, data in zip(files, (issued.certificate, issued.key), strict=True):
            replace(path, data)
        return files

    def configure(self, who: str, listen: str = "", cluster: str = "") -> Any:
        ca = self.directory / "cluster-ca.pem"
        own = f'certificate = "{self.node[0]}"\nkey = "{self.node[1]}"\n'
        settings = configuration(
            self.directory, f'ca = "{ca}"\n{own}{cluster}', f'{own}ca = "{self.clients[0]}"\n{who}'
        )
        if listen:
            path = self.directory / "sipha.toml"
            path.write_text(path.read_text().replace(f"{HOST}:8080", listen))
        return settings


def token(text: str, role: str) -> str:
    return f'[[admin.tokens]]\nname = "{role}"\nrole = "{role}"\nsha256 = "{sha256(text.encode()).hexdigest()}"\n'


def client(name: str, role: str) -> str:
    return f'[[admin.clients]]\nname = "{name}"\nrole = "{role}"\n'


WHO = token("sipha_ro", "read") + client("alice.operators.sipha.sipha", "operate") + client("bob@sipha.test", "admin")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def secured(world: World, site: Site) -> Iterator[Alone]:
    settings = site.configure(WHO)
    found(settings)
    alone = Alone(world, settings, site.directory / "sipha.toml")
    world.until(lambda: alone.node.view.status().leading)
    yield alone
    alone.end()


@implementer(IStreamClientEndpoint)
class _Tls:
    """Puts TLS of a reactor of our own under what connects through an endpoint; Twisted's is of the global one."""

    def __init__(self, reactor: Any, creator: Any, plain: Any) -> None:
        self.reactor = reactor
        self.creator = creator
        self.plain = plain

    def connect(self, factory: Any) -> Deferred[Any]:
        tls = TLSMemoryBIOFactory(self.creator, True, factory, self.reactor)
        connected: Deferred[Any] = self.plain.connect(tls)
        return connected.addCallback(lambda protocol: protocol.wrappedProtocol)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Leads to the node, whatever the host of the URL; a reactor that doesn't run has no threads to look names up."""

    def __init__(self, reactor: Any, verification: Verification) -> None:
        self.reactor = reactor
        self.verification = verification

    def endpointForURI(self, uri: URI) -> Any:
        plain = TCP4ClientEndpoint(self.reactor, HOST, uri.port)
        if uri.scheme == b"http":
            return plain
        return _Tls(self.reactor, self.verification.creatorForNetloc(uri.host, uri.port), plain)


@pytest.fixture
def ask(world: World, site: Site) -> Ask:
    def ask(  # noqa: PLR0917
        path: str = "/v1/status",
        body: object = None,
        identity: tuple[Path, Path] | None = None,
        headers: Mapping[str, str] | None = None,
        authorities: tuple[Path, ...] = (site.directory / "cluster-ca.pem",),
        url: str = URL,
        verification: Verification | None = None,
        **more: str,
    ) -> Answer:
        endpoints = _Endpoints(world.reactor, verification or Verification(authorities, identity))
        agent = Agent.usingEndpointFactory(world.reactor, endpoints)
        http = HTTPClient(agent, data_to_body_producer=_SynchronousProducer)
        results: list[Any] = []
        method = "GET" if body is None else "POST"
        content = b"" if body is None else msgspec.json.encode(body)
        asked = exchange(
            http, world.reactor, method, url + path, deadline=10, content=content, headers={**(headers or {}), **more}
        )
        Deferred.fromCoroutine(asked).addBoth(results.append)
        world.until(lambda: results)
        (result,) = results
        if isinstance(result, Failure):
            result.raiseException()
        answer: Answer = result
        return answer

    return ask


def fault(answer: Answer) -> str:
    return str(msgspec.json.decode(answer.content)["error"]["detail"])


def test_who_has_a_token_is_served_in_its_role(secured: Alone, ask: Ask) -> None:
    assert ask().status == 401
    assert ask(Authorization="Bearer sipha_ro").status == 200
    refused = ask("/v1/transfer", {}, Authorization="Bearer sipha_ro")
    assert (refused.status, fault(refused)) == (403, "this needs the role operate, and read has read")
    counters = secured.node.view.status().counters
    assert (counters["admin_refused_unknown"], counters["admin_refused_forbidden"]) == (1, 1)


def test_operator_is_known_by_certificate(secured: Alone, ask: Ask, site: Site) -> None:
    alice = site.install("alice", authority.issue_operator(site.pki.authority, "alice", datetime.now(UTC)))
    assert ask(identity=alice).status == 200
    assert ask("/v1/transfer", {"to": "n1"}, identity=alice).status == 200
    refused = ask("/v1/accounts", [], identity=alice)
    assert fault(refused) == "this needs the role admin, and alice.operators.sipha.sipha has operate"
    # Even one of the cluster's authority has no role that isn't given to it, and a token that isn't one is no way out.
    mallory = site.install("mallory", authority.issue_operator(site.pki.authority, "mallory", datetime.now(UTC)))
    refused = ask(identity=mallory)
    assert (refused.status, fault(refused)) == (
        403,
        "the certificate of mallory.operators.sipha.sipha has no role here",
    )
    assert ask(identity=alice, Authorization="Bearer nonsense").status == 401


def test_operator_of_another_authority_is_known_if_that_is_trusted(secured: Alone, ask: Ask, site: Site) -> None:
    name = "alice.operators.sipha.sipha"
    assert ask(identity=site.install("corporate-alice", any_certificate(site.corporate, name))).status == 200
    others = Pki(site.directory / "others", "others").authority
    for stranger in (any_certificate(any_authority(), name), any_certificate(others, name)):
        with pytest.raises(Unreachable, match="our certificate is from no authority that is trusted there"):
            ask(identity=site.install("stranger", stranger))


def test_authority_of_the_nodes_names_no_operators_unless_it_is_told_to(secured: Alone, ask: Ask, site: Site) -> None:
    alice = site.install("alice", authority.issue_operator(site.pki.authority, "alice", datetime.now(UTC)))
    site.install("clients", Issued(site.corporate.certificate, b""))
    refused = ask(identity=alice)
    assert (refused.status, fault(refused)) == (403, "the certificate of alice.operators.sipha.sipha has no role here")


def test_word_of_a_member_is_taken(secured: Alone, ask: Ask, site: Site) -> None:
    done = ask("/v1/transfer", {"to": "n1"}, identity=site.node, headers=WORD)
    assert done.status == 200
    refused = ask("/v1/accounts", [], identity=site.node, headers=WORD)
    assert (refused.status, fault(refused)) == (403, "this needs the role admin, and alice has operate")


def test_where_nodes_ask_each_other_they_are_heard_and_nobody_else(world: World, ask: Ask, site: Site) -> None:
    settings = site.configure(WHO, cluster="admin_port = 7001\n")
    found(settings)
    alone = Alone(world, settings, site.directory / "sipha.toml")
    world.until(lambda: alone.node.view.status().leading)
    alice = site.install("alice", authority.issue_operator(site.pki.authority, "alice", datetime.now(UTC)))
    here = f"https://{HOST}:7001"
    try:
        assert ask("/v1/transfer", {"to": "n1"}, identity=site.node, headers=WORD, url=here).status == 200
        for refused in (
            ask(url=here),
            ask("/", url=here),
            ask(url=here, Authorization="Bearer sipha_ro"),
            ask(url=here, identity=alice),
            ask(url=here, identity=alice, headers=WORD),
        ):
            assert (refused.status, fault(refused)) == (403, "only the other nodes of the cluster are served here")
        assert alone.node.view.status().counters["admin_refused_forbidden"] == 5
        alone.node.reconfigure(site.configure(WHO, f"{HOST}:8081", cluster="admin_port = 7001\n"))
        alone.node.settle()
        assert ask("/v1/transfer", {"to": "n1"}, identity=site.node, headers=WORD, url=here).status == 200
    finally:
        alone.end()


def test_node_knows_where_another_one_takes_what_is_handed_on(site: Site) -> None:
    members = [
        Member("n1", f"{HOST}:7000", "voter"),
        Member("n2", "192.0.2.12:7000", "voter"),
        Member("n3", "[2001:db8::13]:7000", "learner"),
    ]
    asks = AdminAccess(site.configure(WHO, cluster="admin_port = 7001\n"), lambda: members)
    assert [asks.url(name) for name in ("n1", "n2", "n3", "n4")] == [
        None, "https://192.0.2.12:7001", "https://[2001:db8::13]:7001", None,
    ]  # fmt: skip
    assert AdminAccess(site.configure(WHO), lambda: members).url("n2") is None


def test_node_takes_the_word_of_the_clusters_authority_alone_for_which_node_it_asks(
    world: World, ask: Ask, site: Site
) -> None:
    members = [Member("n2", f"{HOST}:7000", "voter")]
    asking = AdminAccess(site.configure(WHO, cluster="admin_port = 7001\n"), lambda: members).verification
    settings, file = site.configure(WHO, f"{HOST}:7001"), site.directory / "sipha.toml"
    found(settings)
    cluster, admin = file.read_text().split("[admin]")
    for own, shown in zip(site.node, site.install("shown", site.issue(node="n2")), strict=True):
        admin = admin.replace(str(own), str(shown))
    file.write_text(f"{cluster}[admin]{admin}")
    other = Alone(world, settings)
    there = f"https://{HOST}:7001"
    try:
        world.until(lambda: other.node.view.status().leading)
        assert ask(verification=asking, url=there).status == 403
        site.install("shown", any_certificate(site.corporate, "n2.sipha.sipha"))
        with pytest.raises(Unreachable, match="its certificate is from no authority that is trusted here"):
            ask(verification=asking, url=there)
    finally:
        other.end()


def test_node_asks_by_a_name_at_the_port_of_the_nodes(site: Site) -> None:
    members = [Member("n2", "192.0.2.12:7000", "voter")]
    asking = AdminAccess(site.configure(WHO, cluster="admin_port = 7001\n"), lambda: members)
    assert asking.verification.creatorForNetloc(b"n2.example", 7001)


@pytest.mark.parametrize("role", ["", "root", "ADMIN;", "3"])
def test_member_without_a_word_has_no_role(secured: Alone, ask: Ask, site: Site, role: str) -> None:
    refused = ask(identity=site.node, headers={**WORD, "Sipha-Forwarded-Role": role})
    assert refused.status == 403
    assert fault(refused).startswith("a node must say for whom it speaks")


def test_word_of_others_is_not_taken(secured: Alone, ask: Ask, site: Site) -> None:
    stranger = site.install("n2", site.issue(node="n2"))
    operator = site.install("mallory", authority.issue_operator(site.pki.authority, "mallory", datetime.now(UTC)))
    # Who may name operators mustn't be able to name nodes.
    forged = site.install("forged", any_certificate(site.corporate, "n1.sipha.sipha"))
    for identity in (stranger, operator, forged):
        for node in ("n1", "n2", "mallory", ""):
            refused = ask("/v1/transfer", {}, identity=identity, headers={**WORD, "Sipha-Forwarded-By": node})
            assert refused.status == 403
            assert "has no role here" in fault(refused)
    reply = ask("/v1/transfer", {}, headers={**WORD, "Authorization": "Bearer sipha_ro"})
    assert fault(reply) == "this needs the role operate, and read has read"


def test_operator_is_told_why_the_node_cant_be_talked_to(secured: Alone, ask: Ask, site: Site) -> None:
    with pytest.raises(Unreachable, match="its certificate is from no authority that is trusted here"):
        ask(authorities=(site.directory / "corporate.pem",))
    with pytest.raises(Unreachable, match="shows a certificate that isn't for this host"):
        ask(url="https://localhost:8080")
    with pytest.raises(Unreachable, match="hung up before it had answered; perhaps it wants https://"):
        ask(url=URL.replace("https", "http"))


def test_page_of_another_origin_can_not_write(secured: Alone, ask: Ask, site: Site) -> None:
    alice = site.install("alice", authority.issue_operator(site.pki.authority, "alice", datetime.now(UTC)))
    for origin, status in ((URL, 200), (URL.replace("https", "http"), 403), ("https://evil.test", 403)):
        assert ask("/v1/transfer", {"to": "n1"}, identity=alice, Origin=origin).status == status


def test_renewed_certificate_is_shown_to_the_next_who_asks(secured: Alone, ask: Ask, site: Site) -> None:
    assert secured.node.access.certificates is not None
    before = secured.node.access.certificates.expires
    renewed = site.issue(days=300)
    site.install("node", renewed)
    assert ask(Authorization="Bearer sipha_ro").status == 200
    assert secured.node.access.certificates.expires > before + timedelta(days=150)
    assert serial(renewed.certificate)


@implementer(ILogObserver)
class _Events:
    """Keeps what is logged; not a list, which the publisher would take for any other that is empty."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)

    def lines(self, namespace: str) -> list[str]:
        """What was logged under a namespace."""
        return [formatEvent(event) for event in self.events if event["log_namespace"] == namespace]


@pytest.fixture
def log() -> Iterator[_Events]:
    """What is logged meanwhile."""
    log = _Events()
    globalLogPublisher.addObserver(log)
    yield log
    globalLogPublisher.removeObserver(log)


def test_other_settings_take_and_withdraw_tokens_and_clients(secured: Alone, ask: Ask, site: Site) -> None:
    alice = site.install("alice", authority.issue_operator(site.pki.authority, "alice", datetime.now(UTC)))
    secured.node.reconfigure(site.configure(token("sipha_new", "operate")))
    assert ask(Authorization="Bearer sipha_ro").status == 401
    assert ask("/v1/transfer", {"to": "n1"}, Authorization="Bearer sipha_new").status == 200
    assert ask(identity=alice).status == 403


def test_certificates_that_are_not_sound_are_refused_and_nothing_is_changed(
    secured: Alone, ask: Ask, site: Site
) -> None:
    (site.directory / "node-key.pem").write_bytes(b"")
    with pytest.raises(ConfigError, match="holds no private key in PEM"):
        secured.node.reconfigure(site.configure(token("sipha_new", "operate")))
    assert ask(Authorization="Bearer sipha_ro").status == 200
    assert ask(Authorization="Bearer sipha_new").status == 401


def test_other_settings_never_open_what_strangers_reach(site: Site) -> None:
    """Whatever the file says by then of the address: the one that is listened on stays."""
    settings = site.configure(WHO)
    admin = msgspec.structs.replace(settings.admin, listen=type(settings.admin.listen).parse("192.0.2.1:8080"))
    access = AdminAccess(msgspec.structs.replace(settings, admin=admin), tuple)
    open_to_all = site.configure("").admin  # on a loopback address that is a good configuration
    with pytest.raises(ConfigError, match="nobody is asked who he is"):
        access.check(open_to_all)
    assert [known.caller.name for known in access.access.tokens] == ["read"]
    assert len(access.access.clients) == 2


@pytest.mark.parametrize(("days", "alarms"), [(29, 1), (31, 0)])
def test_node_says_that_the_admins_certificate_ends_soon(site: Site, days: int, alarms: int) -> None:
    settings = site.configure(WHO)
    other = site.install("other", site.issue(days=days))
    admin = msgspec.structs.replace(
        settings.admin, certificate=FilePath.parse(str(other[0])), key=FilePath.parse(str(other[1]))
    )
    access = AdminAccess(msgspec.structs.replace(settings, admin=admin), tuple)
    assert len(list(access.alarms())) == alarms


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("node.pem", b"", "node.pem holds no certificate in PEM"),
        ("node-key.pem", b"", "node-key.pem holds no private key in PEM"),
        ("clients.pem", b"x", "clients.pem holds no certificate in PEM"),
    ],
)
def test_files_that_can_not_be_used_are_refused(site: Site, file: str, content: bytes, problem: str) -> None:
    settings = site.configure(WHO)
    (site.directory / file).write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        AdminAccess(settings, tuple)


def test_no_token_is_in_the_log(secured: Alone, ask: Ask, log: _Events) -> None:
    ask(Authorization="Bearer sipha_ro")
    ask(Authorization="Bearer sipha_wrong")
    ask("/v1/transfer", {"to": "nobody"}, Authorization="Bearer sipha_ro")
    assert log.lines("sipha.admin") == ["who asks from 127.0.0.1 isn't known (1 so far)"]
    assert "sipha_" not in repr(log.events)
