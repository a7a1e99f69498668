from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError as Refusal
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from twisted.web.iweb import IAgent
from twisted.web.resource import Resource
from zope.interface import implementer

from sipha.admin.client import AdminClient, AdminError, Refused, Unreachable
from sipha.admin.limits import Rates
from sipha.admin.queries import Search
from sipha.admin.views import NewAccount, Secret
from tests.admin.fakes import Console, FakeNode

T = TypeVar("T")


def result(coroutine: Coroutine[Deferred[Any], Any, T]) -> T:
    """What the coroutine returned; it must not wait."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    (value,) = results
    if isinstance(value, Failure):
        value.raiseException()
    return value  # type: ignore[no-any-return]


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def client(node: FakeNode) -> AdminClient:
    return AdminClient(Console(node).http, Clock(), "http://127.0.0.1:8080/")


def test_client_shows_status(client: AdminClient, node: FakeNode) -> None:
    assert result(client.status()) == node.status()


def test_client_removes_bindings(client: AdminClient, node: FakeNode) -> None:
    contact = "sip:x@127.0.0.1;a=b&c=%20"
    for user in ("alice", "a?b", "a%25b", "a/b", "%C3%A9"):
        node.register(f"sip:{user}@sipha.test", contact)
    aors = [binding.aor for binding in result(client.page_of_bindings()).bindings]
    assert len(aors) == 5
    for aor in aors:
        assert [binding.contact for binding in result(client.bindings(aor)).bindings] == [contact]
        assert result(client.remove_bindings(aor, contact)).removed == 1
    assert result(client.page_of_bindings()).bindings == ()


def test_client_pages(client: AdminClient, node: FakeNode) -> None:
    node.register("sip:alice@sipha.test")
    node.register("sip:bob@sipha.test")
    page = result(client.page_of_bindings(Search(limit=1)))
    assert page.cursor is not None
    assert [binding.aor for binding in result(client.page_of_bindings(Search(cursor=page.cursor))).bindings] == [
        "sip:bob@sipha.test"
    ]


def test_client_creates_changes_and_deletes_accounts(client: AdminClient) -> None:
    result(client.create_account(NewAccount(username="alice", domain="sipha.test", password="x")))
    changed = result(client.change_account("alice@sipha.test", Secret(password="y", auth_name="ally")))
    assert changed.auth_name == "ally"
    assert [account.identity for account in result(client.page_of_accounts()).accounts] == ["alice@sipha.test"]
    assert result(client.delete_account("alice@sipha.test")).removed == 1


def test_client_says_what_the_node_said(client: AdminClient) -> None:
    with pytest.raises(Refused, match=r"there is no account alice@sipha\.test") as caught:
        result(client.delete_account("alice@sipha.test"))
    assert caught.value.status == 404


class _Page(Resource):
    """Some other server's page."""

    isLeaf = True

    def render(self, request: object) -> bytes:
        return b"<html>"


def test_client_knows_another_server(node: FakeNode) -> None:
    client = AdminClient(HTTPClient(RequestTraversalAgent(_Page())), Clock(), "http://127.0.0.1:8080")
    with pytest.raises(AdminError, match=r"answered 200, but not as sipha's admin does"):
        result(client.status())


@implementer(IAgent)
class _Agent:
    """Answers every request with one Deferred."""

    def __init__(self, answer: Deferred[Any]) -> None:
        self.answer = answer

    def request(self, method: bytes, uri: bytes, headers: object = None, bodyProducer: object = None) -> Deferred[Any]:
        return self.answer


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (Refusal(), "can't be reached: Connection was refused"),
        (ResponseNeverReceived([]), "hung up before it had answered"),
    ],
)
def test_client_says_why_no_answer_came(error: Exception, wanted: str) -> None:
    client = AdminClient(HTTPClient(_Agent(fail(error))), Clock(), "http://127.0.0.1:8080")
    with pytest.raises(Unreachable, match=wanted):
        result(client.status())


def _hang_up(answer: Deferred[Any]) -> None:
    answer.errback(ResponseNeverReceived([]))


@pytest.mark.parametrize("canceller", [None, _hang_up])
def test_client_waits_no_longer_than_its_deadline(canceller: Callable[[Deferred[Any]], None] | None) -> None:
    clock = Clock()
    client = AdminClient(HTTPClient(_Agent(Deferred(canceller))), clock, "http://127.0.0.1:8080", deadline=3)
    failures: list[Failure] = []
    Deferred.fromCoroutine(client.status()).addErrback(failures.append)
    clock.advance(2.9)
    assert failures == []
    clock.advance(0.2)
    assert failures[0].check(Unreachable)
    assert failures[0].getErrorMessage() == "http://127.0.0.1:8080/v1/status didn't answer within 3 s"
    assert clock.getDelayedCalls() == []


def test_client_waits_as_it_is_told(node: FakeNode) -> None:
    console = Console(node)
    console.front._rates = Rates(1.0)
    while not console.front._rates.take("127.0.0.1", 0.0):
        pass
    clock = Clock()
    results: list[Any] = []
    Deferred.fromCoroutine(AdminClient(console.http, clock, "http://127.0.0.1:8080").status()).addBoth(results.append)
    assert results == []
    for waiting in (console.clock, clock):
        waiting.advance(1)
    assert results == [node.status()]


def test_client_does_not_wait_for_ever(node: FakeNode) -> None:
    console = Console(node)
    console.front._rates = Rates(1.0)
    while not console.front._rates.take("127.0.0.1", 0.0):
        pass
    clock = Clock()
    results: list[Any] = []
    Deferred.fromCoroutine(AdminClient(console.http, clock, "http://127.0.0.1:8080").status()).addBoth(results.append)
    clock.pump([1.0] * 20)
    assert results[0].check(Refused)
    assert results[0].value.status == 429
