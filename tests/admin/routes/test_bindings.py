from __future__ import annotations

import csv
import json
from urllib.parse import quote

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from sipha.admin.api import MAX_STREAMS
from sipha.admin.outflow import PAUSE
from sipha.admin.routes.bindings import SCANNED, STEP
from sipha.admin.site import AdminSite
from sipha.state.binding import BEHIND_NAT
from tests.admin.fakes import NOW, Console, FakeNode, Reply


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def console(node: FakeNode) -> Console:
    return Console(node)


def wait(console: Console, path: str, method: str = "GET") -> Reply:
    """Ask for what takes several turns."""
    replies: list[Reply] = []
    console.start(method, path).addCallback(replies.append)
    for _ in range(1000):
        console.flush()
        if replies:
            return replies[0]
        console.clock.advance(PAUSE)
    raise AssertionError(f"{path} is never answered")


def aors(reply: Reply) -> list[str]:
    return [binding["aor"].removeprefix("sip:").partition("@")[0] for binding in reply.json["bindings"]]


class TestFilter:
    @pytest.fixture(autouse=True)
    def _phones(self, node: FakeNode) -> None:
        node.register(
            "sip:alice@sipha.test", "sip:alice@10.0.0.5:5060", received="sip:192.0.2.7:4711;transport=udp",
            socket="udp:198.51.100.1:5060", user_agent="Yealink SIP-T46S", cflags=BEHIND_NAT, call_id="one",
        )  # fmt: skip
        node.register(
            "sip:bob@sipha.test", "sip:bob@[2001:db8::7]:5060;transport=tcp", received="",
            socket="", user_agent="baresip", call_id="two",
        )  # fmt: skip
        node.register(
            "sip:carol@Lower", "sip:carol@phone.example", received="", socket="tls:198.51.100.1:5061",
            user_agent="", call_id="three",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("", ["carol", "alice", "bob"]),
            ("domain=sipha.test", ["alice", "bob"]),
            ("domain=ALIAS.test", ["alice", "bob"]),
            ("contact=10.0.0.5", ["alice"]),
            ("contact=SIP:BOB", ["bob"]),
            ("address=192.0.2.7", ["alice"]),
            ("address=192.0.2.0/24", ["alice"]),
            ("address=10.0.0.5", []),
            ("address=2001:db8::/32", ["bob"]),
            ("transport=udp", ["alice"]),
            ("transport=tcp", ["bob"]),
            ("transport=tls", ["carol"]),
            ("behind_nat=true", ["alice"]),
            ("behind_nat=false", ["carol", "bob"]),
            ("user_agent=yealink", ["alice"]),
            ("call_id=two", ["bob"]),
            ("call_id=tw", []),
            ("instance=urn", []),
            ("user_agent=yealink&behind_nat=false", []),
            ("prefix=al&transport=udp", ["alice"]),
            ("prefix=bo&transport=udp", []),
        ],
    )
    def test_operator_finds_what_matches_everything_said(self, console: Console, query: str, found: list[str]) -> None:
        assert sorted(aors(console.ask("GET", f"/v1/bindings?{query}"))) == sorted(found)
        lines = wait(console, f"/v1/bindings.jsonl?{query}").content.splitlines()
        assert len(lines) == len(found)
        assert len(wait(console, f"/v1/bindings.csv?{query}").content.splitlines()) == len(found) + 1


class TestAnswered:
    def test_leader_says_how_long_ago_a_phone_answered_and_others_do_not_know(self, console: Console) -> None:
        for user in ("alice", "bob"):
            console.node.register(f"sip:{user}@sipha.test")
        console.node.answered["sip:alice@sipha.test"] = int((NOW - 12.5) * 1000)
        for leads, known in ((True, [12, None]), (False, [None, None])):
            console.node.leads = leads
            assert [one["answered"] for one in console.ask("GET", "/v1/bindings").json["bindings"]] == known
            [alice] = console.ask("GET", "/v1/bindings/alice@sipha.test").json["bindings"]
            assert alice["answered"] == known[0]


class TestPages:
    def test_page_has_whole_aors(self, console: Console) -> None:
        for user in ("alice", "bob"):
            for number in range(3):
                console.node.register(f"sip:{user}@sipha.test", f"sip:{number}@127.0.0.1")
        page = console.ask("GET", "/v1/bindings?limit=2").json
        assert [binding["aor"] for binding in page["bindings"]] == ["sip:alice@sipha.test"] * 3
        page = console.ask("GET", f"/v1/bindings?limit=2&cursor={page['cursor']}").json
        assert [binding["aor"] for binding in page["bindings"]] == ["sip:bob@sipha.test"] * 3

    def test_pages_together_have_all_that_match(self, console: Console) -> None:
        for number in range(3 * STEP):
            agent = "yes" if number % 7 == 0 else "no"
            console.node.register(f"sip:user{number:05}@sipha.test", user_agent=agent)
        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = wait(console, f"/v1/bindings?user_agent=yes&limit=10&cursor={quote(cursor)}")
            assert len(page.json["bindings"]) <= 10
            found += aors(page)
            cursor = page.json["cursor"]
        assert found == [f"user{number:05}" for number in range(0, 3 * STEP, 7)]

    def test_page_takes_bounded_work_however_few_match(self, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = 0

        def endless(after: str, limit: int) -> list[str]:
            nonlocal asked
            asked += limit
            first = int(after.removeprefix("sip:user") or 0) if after.startswith("sip:user") else 0
            return [f"sip:user{number:09}" for number in range(first + 1, first + 1 + limit)]

        monkeypatch.setattr(console.node, "aors", endless)
        page = wait(console, "/v1/bindings?user_agent=nobody").json
        assert page == {"bindings": [], "cursor": f"sip:user{SCANNED:09}"}
        assert asked == SCANNED


class TestExport:
    @pytest.fixture
    def node(self) -> FakeNode:
        node = FakeNode()
        for number in range(4 * STEP):
            node.register(f"sip:user{number:05}@sipha.test", user_agent='a "phone", 1')
        return node

    def test_export_has_each_binding_in_a_line(self, console: Console) -> None:
        reply = wait(console, "/v1/bindings.jsonl")
        assert reply.headers.getRawHeaders("Content-Type") == ["application/x-ndjson"]
        lines = [json.loads(line) for line in reply.content.splitlines()]
        assert [line["aor"] for line in lines] == [f"sip:user{number:05}@sipha.test" for number in range(4 * STEP)]
        (shown,) = console.ask("GET", "/v1/bindings/user00003@sipha.test").json["bindings"]
        assert lines[3] == shown
        assert console.node.freed == 1

    def test_spreadsheet_reads_the_export(self, console: Console) -> None:
        console.node.register("sip:path@sipha.test", path=("<sip:a;lr>", "<sip:b;lr>"), cflags=BEHIND_NAT)
        reply = wait(console, "/v1/bindings.csv")
        assert reply.headers.getRawHeaders("Content-Type") == ["text/csv; charset=utf-8"]
        rows = list(csv.DictReader(reply.content.decode().splitlines()))
        assert len(rows) == 4 * STEP + 1
        by_aor = {row["aor"]: row for row in rows}
        assert by_aor["sip:user00003@sipha.test"]["user_agent"] == 'a "phone", 1'
        assert by_aor["sip:user00003@sipha.test"]["behind_nat"] == "false"
        assert by_aor["sip:path@sipha.test"]["path"] == "<sip:a;lr>,<sip:b;lr>"
        assert by_aor["sip:path@sipha.test"]["behind_nat"] == "true"
        assert by_aor["sip:path@sipha.test"]["q"] == "0.5"

    def test_export_is_of_one_moment(self, console: Console) -> None:
        index = console.node.machine.index
        replies: list[Reply] = []
        console.start("GET", "/v1/bindings.jsonl").addCallback(replies.append)
        for number in range(50):
            console.flush()
            console.clock.advance(PAUSE)
            console.node.register(f"sip:aaa{number}@sipha.test")
            console.node.register(f"sip:user{4 * STEP - 1 - number:05}@sipha.test", "sip:elsewhere@127.0.0.1")
        (reply,) = replies
        assert reply.headers.getRawHeaders("Sipha-Index") == [str(index)]
        lines = [json.loads(line) for line in reply.content.splitlines()]
        assert len(lines) == 4 * STEP
        assert {line["contact"] for line in lines} == {"sip:phone@127.0.0.1:5070"}

    def test_head_exports_nothing(self, console: Console) -> None:
        reply = console.ask("HEAD", "/v1/bindings.csv")
        assert (reply.status, reply.content) == (200, b"")
        assert console.node.freed == 1

    def test_wrong_filter_freezes_nothing(self, console: Console) -> None:
        assert console.ask("GET", "/v1/bindings.csv?domain=elsewhere.test").status == 400
        assert console.node.freed == 0

    def test_so_many_exports_at_a_time_are_enough(self, console: Console) -> None:
        replies: list[Reply] = []
        for _ in range(MAX_STREAMS):
            console.start("GET", "/v1/bindings.csv").addCallback(replies.append)
        refused = console.ask("GET", "/v1/bindings.csv")
        assert (refused.status, refused.headers.getRawHeaders("Retry-After")) == (503, ["5"])
        assert console.node.freed == 1
        for _ in range(20):
            console.flush()
            console.clock.advance(PAUSE)
        assert [reply.status for reply in replies] == [200] * MAX_STREAMS
        assert wait(console, "/v1/bindings.csv").status == 200

    def test_export_ends_with_its_client(self, console: Console) -> None:
        site = AdminSite(console.clock, console.site, "127.0.0.11")
        channel = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(b"GET /v1/bindings.jsonl HTTP/1.1\r\nHost: localhost\r\n\r\n")
        console.clock.advance(PAUSE)
        console.clock.advance(PAUSE)
        channel.connectionLost(Failure(ConnectionDone()))
        assert console.node.freed == 1
        taken = len(transport.value())
        console.clock.advance(PAUSE)
        assert len(transport.value()) == taken > 0
