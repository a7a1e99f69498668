from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from sipha.admin.access import Access, Caller, Role, Token, check
from sipha.admin.messages import Refusal
from sipha.admin.route import Routes
from tests.admin.fakes import Console, FakeNode, Reply

TOKENS = {f"sipha_{role}": role for role in Role if role}

ROLES = {
    "GET /v1/status": Role.READ,
    "GET /v1/bindings": Role.READ,
    "GET /v1/bindings.jsonl": Role.READ,
    "GET /v1/bindings.csv": Role.READ,
    "GET /v1/bindings/<path:aor>": Role.READ,
    "DELETE /v1/bindings/<path:aor>": Role.OPERATE,
    "POST /v1/bindings": Role.ADMIN,
    "GET /v1/domains": Role.READ,
    "GET /v1/accounts": Role.READ,
    "POST /v1/accounts": Role.ADMIN,
    "GET /v1/accounts/<path:identity>": Role.READ,
    "PUT /v1/accounts/<path:identity>": Role.ADMIN,
    "DELETE /v1/accounts/<path:identity>": Role.ADMIN,
    "GET /v1/nodes": Role.READ,
    "POST /v1/nodes": Role.ADMIN,
    "DELETE /v1/nodes/<name>": Role.ADMIN,
    "POST /v1/nodes/<name>/standby": Role.OPERATE,
    "POST /v1/nodes/<name>/online": Role.OPERATE,
    "PUT /v1/prefer": Role.OPERATE,
    "POST /v1/transfer": Role.OPERATE,
    "GET /v1/log": Role.READ,
    "GET /v1/log/entries": Role.READ,
    "GET /v1/settings": Role.READ,
    "GET /v1/settings/<path:name>": Role.READ,
    "PUT /v1/settings/<path:name>": Role.OPERATE,
    "GET /v1/openapi.json": Role.READ,
    "GET /v1/pings": Role.READ,
    "PUT /v1/pings": Role.OPERATE,
    "GET /v1/backup": Role.ADMIN,
    "GET /v1/events": Role.READ,
    "GET /v1/history/<path:aor>": Role.READ,
    "POST /v1/reload": Role.ADMIN,
    "GET /v1/log-level": Role.READ,
    "PUT /v1/log-level": Role.OPERATE,
    "GET /v1/trace/<path:aor>": Role.ADMIN,
    "POST /mi": Role.READ,
    "GET /": Role.NONE,
    "GET /page/style.css": Role.NONE,
    "GET /page/icon.svg": Role.NONE,
    "GET /page/page.js": Role.NONE,
    "GET /page/api.js": Role.NONE,
    "GET /page/dom.js": Role.NONE,
    "GET /page/cluster.js": Role.NONE,
    "GET /page/timeline.js": Role.NONE,
    "GET /page/plot.js": Role.NONE,
    "GET /page/search.js": Role.NONE,
}
"""What each route is for; a route that isn't here is one that nobody has thought about."""


ENDLESS = {"GET /v1/events", "GET /v1/trace/<path:aor>"}
"""Routes whose answer has no end; the head of it has."""


def token(text: str, role: Role) -> Token:
    return Token(sha256(text.encode()).digest(), Caller(f"the {role}", role))


@pytest.fixture
def console() -> Console:
    return Console(FakeNode(), access=Access([token(text, role) for text, role in TOKENS.items()]))


def test_each_route_has_the_role_that_it_should_have(console: Console) -> None:
    served = {f"{route.method} {route.path}": route.role for group in console.api.groups for route in group.routes}
    assert served == ROLES
    assert len(served) == len(list(console.api._app.url_map.iter_rules()))


@pytest.mark.parametrize("route", [route for route, role in ROLES.items() if role])
def test_each_route_is_for_its_role_and_those_above(console: Console, route: str) -> None:
    method, path = route.split()
    path = (
        path.replace("<path:aor>", "a@sipha.test")
        .replace("<path:identity>", "a@sipha.test")
        .replace("<name>", "a")
        .replace("<path:name>", "a")
    )
    nobody = console.ask(method, path)
    assert nobody.status == 401
    assert nobody.headers.getRawHeaders("WWW-Authenticate") == ['Bearer realm="sipha"']
    assert console.node.records == []
    for text, role in TOKENS.items():
        replies: list[Reply] = []
        asked = "HEAD" if route in ENDLESS and role >= ROLES[route] else method
        console.start(asked, path, {}, authorization=f"Bearer {text}").addCallback(replies.append)
        while not replies:  # a backup takes several turns
            console.flush()
            console.clock.advance(0.1)
        (reply,) = replies
        if role < ROLES[route]:
            assert reply.status == 403
            assert reply.fault == f"this needs the role {ROLES[route]}, and the {role} has {role}"
            assert console.node.records == []
        else:
            assert reply.status not in {401, 403}


@pytest.mark.parametrize("route", [route for route, role in ROLES.items() if not role])
def test_what_is_for_everybody_is_read_by_whoever_asks_and_by_nothing_but_its_own_path(
    console: Console, route: str
) -> None:
    _, path = route.split()
    for authorization in ("Bearer sipha_read", "Bearer sipha_wrong", ""):
        reply = console.ask("GET", path, authorization=authorization)
        assert (reply.status, bool(reply.content)) == (200, True)
    assert console.ask("HEAD", path).status == 200
    assert console.ask("POST", path, {}).status == 401
    for other in (f"{path}/../v1/status", f"{path}%2f..", f"{path}x", f"/{path}"):
        assert console.ask("GET", other).status == 401, other


def test_route_without_a_role_can_not_be_written() -> None:
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'role'"):
        Routes("new").get("/v1/new")


def test_route_that_nobody_stands_before_serves_nobody() -> None:
    class Request:
        def getComponent(self, _: object) -> None:
            return None

    request: Any = Request()
    with pytest.raises(Refusal, match="nobody has asked who you are"):
        check(request, Role.READ)


@pytest.mark.parametrize(
    ("authorization", "problem"),
    [
        ("Bearer sipha_", "the token is none of this node's"),
        ("Bearer sipha_readx", "the token is none of this node's"),
        ("Bearer sipha_read x", "the token is none of this node's"),
        ("Bearer", "send Authorization: Bearer and a token"),
        ("Bearer ", "send Authorization: Bearer and a token"),
        ("", "send Authorization: Bearer and a token"),
        ("sipha_read", "send Authorization: Bearer and a token"),
        ("Basic c2lwaGFfcmVhZDo=", "send Authorization: Bearer and a token; no other scheme is known"),
        ("Bearer \xff", "the token is none of this node's"),
    ],
)
def test_who_shows_no_token_of_this_node_is_unknown(console: Console, authorization: str, problem: str) -> None:
    reply = console.ask("GET", "/v1/status", authorization=authorization)
    assert reply.status == 401
    assert reply.fault.startswith(problem)
    assert reply.headers.getRawHeaders("WWW-Authenticate", [""])[0].startswith('Bearer realm="sipha"')


def test_unknown_caller_is_not_told_which_routes_there_are(console: Console) -> None:
    assert console.ask("GET", "/v1/nothing").status == 401


def test_empty_token_is_none_even_if_its_hash_is_known() -> None:
    console = Console(FakeNode(), access=Access([token("", Role.ADMIN)]))
    assert console.ask("GET", "/v1/status", authorization="Bearer ").status == 401


@pytest.mark.parametrize("authorization", ["Bearer sipha_read", "bearer sipha_read", "BEARER  sipha_read "])
def test_scheme_may_be_written_in_any_case(console: Console, authorization: str) -> None:
    assert console.ask("GET", "/v1/status", authorization=authorization).status == 200


def test_word_of_a_node_counts_for_nothing_without_its_certificate(console: Console) -> None:
    headers = {"sipha_forwarded_by": "a", "sipha_forwarded_for": "root", "sipha_forwarded_role": "admin"}
    assert console.ask("POST", "/v1/transfer", {}, **headers).status == 401
    reply = console.ask("POST", "/v1/transfer", {}, authorization="Bearer sipha_read", **headers)
    assert (reply.status, reply.fault) == (403, "this needs the role operate, and the read has read")


def test_tokens_may_be_replaced_at_any_time(console: Console) -> None:
    access = Access([token("old", Role.READ)])
    console = Console(FakeNode(), access=access)
    assert console.ask("GET", "/v1/status", authorization="Bearer old").status == 200
    access.tokens = (token("new", Role.READ),)
    assert console.ask("GET", "/v1/status", authorization="Bearer old").status == 401
    assert console.ask("GET", "/v1/status", authorization="Bearer new").status == 200


def test_follower_whose_word_the_leader_doesnt_take_says_so() -> None:
    node, leader = FakeNode("a"), FakeNode("b")
    node.leads, node.leader, node.leader_url = False, leader, "http://127.0.0.12:8080"
    access = Access([token("sipha_admin", Role.ADMIN)])
    follower = Console(node, Console(leader, access=access).front, access=access)
    reply = follower.ask("POST", "/v1/transfer", {}, authorization="Bearer sipha_admin")
    assert reply.status == 409
    assert reply.fault.startswith("b leads, and doesn't know this node by a certificate")


def test_log_tells_of_unknown_callers_but_not_of_each(console: Console) -> None:
    events = _Events()
    globalLogPublisher.addObserver(events)
    for _ in range(5):
        console.ask("GET", "/v1/status", authorization="Bearer sipha_wrong")
    console.clock.advance(61)
    console.ask("GET", "/v1/status")
    console.ask("GET", "/v1/status", authorization="Bearer sipha_read")
    globalLogPublisher.removeObserver(events)
    assert events.lines("sipha.admin") == [
        "who asks from 127.0.0.1 isn't known (1 so far)",
        "who asks from 127.0.0.1 isn't known (6 so far)",
    ]
    assert "sipha_" not in repr(events.events)


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
