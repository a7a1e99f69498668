from __future__ import annotations

import hashlib
from urllib.parse import quote

import msgspec
import pytest
from twisted.logger import LogEvent
from twisted.web.resource import Resource
from twisted.web.server import Request

from sipha.errors import ConfigError, NoQuorum, SiphaError, UnknownOutcome
from sipha.state.entries import PutAccount
from tests.admin.fakes import Console, FakeNode, serve

ALICE = {"username": "alice", "domain": "sipha.test", "password": "alice-secret"}


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def console(node: FakeNode) -> Console:
    return Console(node)


def test_status_shows_the_node(console: Console) -> None:
    status = console.ask("GET", "/v1/status").json
    assert (status["node"], status["role"], status["leading"], status["term"]) == ("a", "leader", True, 3)
    assert status["hash"] == console.node.machine.hash_hex()
    assert status["counters"] == {"received": 7}


class TestBindings:
    def test_binding_shows_all_that_is_stored(self, console: Console) -> None:
        console.node.register(
            "sip:alice@sipha.test", "sip:alice@127.0.0.1:5070", methods="INVITE,ACK", socket="udp:127.0.0.10:5060",
            path=("<sip:edge;lr>",), attr="x", kv_store="{}", flags=1, cflags=2,
        )  # fmt: skip
        (binding,) = console.ask("GET", "/v1/bindings/alice@sipha.test").json["bindings"]
        assert len(binding.pop("contact_id")) == 16
        assert binding == {
            "aor": "sip:alice@sipha.test",
            "contact": "sip:alice@127.0.0.1:5070",
            "expires": 600,
            "q": 0.5,
            "call_id": "call-sip:alice@127.0.0.1:5070",
            "cseq": 7,
            "user_agent": "phone/1",
            "received": "sip:127.0.0.1:5070",
            "behind_nat": False,
            "socket": "udp:127.0.0.10:5060",
            "path": ["<sip:edge;lr>"],
            "methods": "INVITE,ACK",
            "instance": "",
            "reg_id": 0,
            "params": ";x=1",
            "flow": "",
            "flags": 1,
            "cflags": 2,
            "attr": "x",
            "kv_store": "{}",
            "last_modified": 1_000_000,
            "answered": None,
        }

    @pytest.mark.parametrize(
        "name",
        [
            "alice@sipha.test",
            "sip:alice@sipha.test",
            "sip%3Aalice%40sipha.test",
            "SIP:alice@SIPHA.test",
            "alice@alias.test",
            "alice@sipha.test:5060;transport=tcp",
            "%2561lice@sipha.test",
        ],
    )
    def test_aor_is_found_however_it_is_written(self, console: Console, name: str) -> None:
        console.node.register("sip:alice@sipha.test")
        assert len(console.ask("GET", f"/v1/bindings/{name}").json["bindings"]) == 1

    @pytest.mark.parametrize("user", ["a/b", "a//b", "a?b", "a%25b", "%C3%A9", "a;b=c", "a+b", "%40"])
    def test_aor_with_odd_characters_is_found(self, console: Console, user: str) -> None:
        console.node.register(f"sip:{user}@sipha.test")
        shown = console.ask("GET", "/v1/bindings").json["bindings"]
        assert console.ask("GET", f"/v1/bindings/{quote(shown[0]['aor'], safe='')}").json["bindings"] == shown

    def test_aor_without_bindings_is_not_found(self, console: Console) -> None:
        assert console.ask("GET", "/v1/bindings/bob@sipha.test").status == 404

    @pytest.mark.parametrize("name", ["alice@elsewhere.test", "alice", "tel:1", "%20", "sips:"])
    def test_what_is_no_aor_of_ours_is_not_found(self, console: Console, name: str) -> None:
        reply = console.ask("GET", f"/v1/bindings/{name}")
        assert reply.status == 404
        assert "is not user@domain in a domain of this node" in reply.fault

    def test_pages_hold_each_aor_once(self, console: Console) -> None:
        aors = sorted(f"sip:user{number}@sipha.test" for number in range(7))
        for aor in aors:
            console.node.register(aor)
        seen: list[str] = []
        cursor = ""
        while cursor is not None:
            page = console.ask("GET", f"/v1/bindings?limit=3&cursor={quote(cursor)}").json
            assert len(page["bindings"]) <= 3
            seen += [binding["aor"] for binding in page["bindings"]]
            cursor = page["cursor"]
        assert seen == aors

    @pytest.mark.parametrize("prefix", ["%00", "al%00", "%ee%80%80", "%f4%8f%bf%bf"])
    def test_prefix_may_be_anything(self, console: Console, prefix: str) -> None:
        reply = console.ask("GET", f"/v1/bindings?prefix={prefix}")
        assert reply.status == 200
        assert reply.json["bindings"] == []

    @pytest.mark.parametrize("prefix", ["al", "sip:al", "alice@sipha.test", "alice"])
    def test_prefix_chooses(self, console: Console, prefix: str) -> None:
        for user in ("aa", "alice", "bob", "al"):
            console.node.register(f"sip:{user}@sipha.test")
        reply = console.ask("GET", f"/v1/bindings?prefix={prefix}&limit=1").json
        user = "al" if prefix.endswith("al") else "alice"
        # "@" sorts before letters, so "al@" comes before "alice@".
        assert [binding["aor"] for binding in reply["bindings"]] == [f"sip:{user}@sipha.test"]
        cursor = quote(reply["cursor"])
        following = console.ask("GET", f"/v1/bindings?prefix={prefix}&cursor={cursor}").json
        assert [binding["aor"] for binding in following["bindings"]] == (
            ["sip:alice@sipha.test"] if user == "al" else []
        )
        assert following["cursor"] is None

    @pytest.mark.parametrize(
        ("query", "detail"),
        [
            ("limit=0", "Expected `int` >= 1 - at `$.limit`"),
            ("limit=1001", "Expected `int` <= 1000 - at `$.limit`"),
            ("limit=ten", "Expected `int`, got `str` - at `$.limit`"),
            ("limit=0000100000", "Expected `int`, got `str` - at `$.limit`"),
            ("limit=" + "9" * 5000, "Integer value out of range - at `$.limit`"),
            ("behind_nat=perhaps", "Expected `bool`, got `str` - at `$.behind_nat`"),
            ("consistency=strong", "Invalid enum value 'strong' - at `$.consistency`"),
            ("domain=elsewhere.test", "'elsewhere.test' is not a domain of this node"),
            ("address=here", "'here' is not an IP address or network"),
            ("limit=1&limit=2", "limit must be given once"),
            ("cursor=%ff", "cursor must be given once, in UTF-8"),
            ("colour=red", "'colour' is not a query parameter of this resource; it has consistency, prefix"),
        ],
    )
    def test_wrong_query_is_refused(self, console: Console, query: str, detail: str) -> None:
        reply = console.ask("GET", f"/v1/bindings?{query}")
        assert reply.status == 400
        assert detail in reply.fault

    def test_bytes_that_are_not_utf8_are_shown_all_the_same(
        self, console: Console, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        console.node.register("sip:alice@sipha.test")
        (binding,) = console.node.bindings("sip:alice@sipha.test")
        odd = msgspec.structs.replace(binding, user_agent="\udcff\x1b")
        monkeypatch.setattr(console.node, "bindings", lambda _: (odd,))
        (shown,) = console.ask("GET", "/v1/bindings/alice@sipha.test").json["bindings"]
        assert shown["user_agent"] == "\ufffd\x1b"

    def test_removal_removes_all_bindings(self, console: Console) -> None:
        console.node.register("sip:alice@sipha.test", "sip:one@127.0.0.1")
        console.node.register("sip:alice@sipha.test", "sip:two@127.0.0.1")
        assert console.ask("DELETE", "/v1/bindings/alice@sipha.test").json == {"removed": 2}
        assert console.node.bindings("sip:alice@sipha.test") == ()

    def test_removal_of_one_contact_leaves_the_other(self, console: Console) -> None:
        console.node.register("sip:alice@sipha.test", "sip:one@127.0.0.1")
        console.node.register("sip:alice@sipha.test", "sip:two@127.0.0.1")
        path = "/v1/bindings/alice@sipha.test?contact=" + quote("sip:one@127.0.0.1", safe="")
        assert console.ask("DELETE", path).json == {"removed": 1}
        assert [binding.contact for binding in console.node.bindings("sip:alice@sipha.test")] == ["sip:two@127.0.0.1"]
        assert console.ask("DELETE", path).fault == "sip:alice@sipha.test has no binding sip:one@127.0.0.1"

    def test_removal_with_an_empty_contact_removes_nothing(self, console: Console) -> None:
        console.node.register("sip:alice@sipha.test")
        assert console.ask("DELETE", "/v1/bindings/alice@sipha.test?contact=").status == 400
        assert len(console.node.bindings("sip:alice@sipha.test")) == 1

    def test_removal_from_an_aor_without_bindings_is_not_found(self, console: Console) -> None:
        assert console.ask("DELETE", "/v1/bindings/alice@sipha.test").status == 404


class TestAccounts:
    def test_created_account_authenticates_with_each_algorithm(self, console: Console) -> None:
        reply = console.ask("POST", "/v1/accounts", ALICE)
        assert reply.status == 201
        assert reply.json == {
            "username": "alice",
            "domain": "sipha.test",
            "auth_name": "alice",
            "realm": "sipha.test",
            "algorithms": ["MD5", "SHA-256", "SHA-512-256"],
        }
        account = console.node.account("alice", "sipha.test")
        assert account is not None
        secret = b"alice:sipha.test:alice-secret"
        assert account.ha1 == {
            "MD5": hashlib.md5(secret).hexdigest(),
            "SHA-256": hashlib.sha256(secret).hexdigest(),
            "SHA-512-256": hashlib.new("sha512_256", secret).hexdigest(),
        }

    def test_password_is_nowhere_in_the_log(self, console: Console) -> None:
        console.ask("POST", "/v1/accounts", ALICE)
        assert "alice-secret" not in repr(console.node.records)

    def test_auth_name_and_realm_are_in_the_hash(self, console: Console) -> None:
        body = {"username": "Bob", "domain": "lower.test", "password": "x", "auth_name": "bob@home"}
        assert console.ask("POST", "/v1/accounts", body).status == 201
        account = console.node.account("bob", "lower.test")
        assert account is not None
        assert account.auth_name == "bob@home"
        assert account.ha1["MD5"] == hashlib.md5(b"bob@home:Lower:x").hexdigest()

    def test_account_of_an_alias_is_one_of_the_domain(self, console: Console) -> None:
        console.ask("POST", "/v1/accounts", ALICE | {"domain": "ALIAS.test"})
        assert console.node.account("alice", "sipha.test") is not None

    def test_escaped_username_is_the_user_of_the_aor(self, console: Console) -> None:
        console.ask("POST", "/v1/accounts", ALICE | {"username": "%61l%40ice"})
        account = console.node.account("al%40ice", "sipha.test")
        assert account is not None
        assert account.auth_name == "al@ice"

    def test_ready_hashes_are_stored_as_they_are(self, console: Console) -> None:
        body = {"username": "alice", "domain": "sipha.test", "ha1": {"MD5": "0" * 32}}
        assert console.ask("POST", "/v1/accounts", body).json["algorithms"] == ["MD5"]

    def test_second_account_of_that_name_is_a_conflict(self, console: Console) -> None:
        console.ask("POST", "/v1/accounts", ALICE)
        before = console.node.machine.hash
        reply = console.ask("POST", "/v1/accounts", ALICE | {"password": "other"})
        assert reply.status == 409
        assert "alice@sipha.test exists" in reply.fault
        assert console.node.machine.hash == before

    def test_several_are_created_and_each_is_answered(self, console: Console) -> None:
        console.ask("POST", "/v1/accounts", ALICE)
        bodies = [ALICE, ALICE | {"username": "bob"}, ALICE | {"username": "carol"}]
        assert console.ask("POST", "/v1/accounts", bodies).json["results"] == [
            {"account": "alice@sipha.test", "status": 409, "detail": "account alice@sipha.test exists"},
            {"account": "bob@sipha.test", "status": 201, "detail": ""},
            {"account": "carol@sipha.test", "status": 201, "detail": ""},
        ]

    def test_more_than_are_proposed_at_once_are_all_created(self, console: Console) -> None:
        bodies = [ALICE | {"username": f"user{number}"} for number in range(600)]
        results = console.ask("POST", "/v1/accounts", bodies).json["results"]
        assert {result["status"] for result in results} == {201}
        assert len(console.node.machine.accounts) == 600

    def test_one_wrong_account_of_several_creates_none(self, console: Console) -> None:
        reply = console.ask("POST", "/v1/accounts", [ALICE, {"username": "bob", "domain": "sipha.test"}])
        assert reply.status == 422
        assert "$[1]" in reply.fault
        assert len(console.node.machine.accounts) == 0

    @pytest.mark.parametrize(
        ("body", "status", "detail"),
        [
            (b"{", 400, "truncated"),
            (b"\xff", 400, ""),
            (b"", 400, "truncated"),
            (b'{"username": "\xff"}', 400, ""),
            (b"[" * 100_000, 422, "Expected `object`"),
            (b"3", 422, "Expected `object | array`, got `int`"),
            (b"{}", 422, "missing required field `username`"),
            ({**ALICE, "colour": 1}, 422, "unknown field `colour`"),
            ({**ALICE, "password": 1}, 422, "Expected `str`, got `int` - at `$.password`"),
            ({**ALICE, "password": ""}, 422, "write either password or ha1"),
            ({**ALICE, "ha1": {"MD5": "0" * 32}}, 422, "write either password or ha1"),
            ({"username": "alice", "domain": "sipha.test", "ha1": {"MD5": "0" * 31}}, 422, "32 lower-case hex digits"),
            ({"username": "alice", "domain": "sipha.test", "ha1": {"SHA-1": "0" * 40}}, 422, "not an algorithm"),
            ({**ALICE, "domain": "elsewhere.test"}, 422, "not a domain of this node"),
            ({**ALICE, "username": ""}, 422, "not the user of a SIP URI"),
            ({**ALICE, "username": "a b"}, 422, "not the user of a SIP URI"),
            ({**ALICE, "username": "a@b"}, 422, "not the user of a SIP URI"),
            ({**ALICE, "username": "a" * 256}, 422, "not the user of a SIP URI"),
            ({**ALICE, "username": "a\nb"}, 422, "not the user of a SIP URI"),
            ({**ALICE, "auth_name": "a:b"}, 422, "without a colon"),
            ({**ALICE, "auth_name": "a\r\nb"}, 422, "printable"),
            (b'{"username": "\\ud800", "domain": "sipha.test", "password": "x"}', 400, ""),
        ],
    )
    def test_wrong_body_is_refused(self, console: Console, body: object, status: int, detail: str) -> None:
        reply = console.ask("POST", "/v1/accounts", body)
        assert reply.status == status
        assert detail in reply.fault
        assert console.node.records == []

    def test_list_shows_no_hashes(self, console: Console) -> None:
        for user in ("bob", "alice"):
            console.ask("POST", "/v1/accounts", ALICE | {"username": user})
        reply = console.ask("GET", "/v1/accounts?limit=1")
        assert [account["username"] for account in reply.json["accounts"]] == ["alice"]
        following = console.ask("GET", f"/v1/accounts?cursor={reply.json['cursor']}")
        assert [account["username"] for account in following.json["accounts"]] == ["bob"]
        assert following.json["cursor"] is None
        assert b"ha1" not in reply.content

    def test_one_account_is_shown(self, console: Console) -> None:
        console.ask("POST", "/v1/accounts", ALICE)
        assert console.ask("GET", "/v1/accounts/alice@sipha.test").json["auth_name"] == "alice"
        assert console.ask("GET", "/v1/accounts/bob@sipha.test").status == 404

    def test_new_password_keeps_the_auth_name(self, console: Console) -> None:
        console.ask("POST", "/v1/accounts", ALICE | {"auth_name": "ally"})
        assert console.ask("PUT", "/v1/accounts/alice@sipha.test", {"password": "new"}).json["auth_name"] == "ally"
        account = console.node.account("alice", "sipha.test")
        assert account is not None
        assert account.ha1["MD5"] == hashlib.md5(b"ally:sipha.test:new").hexdigest()

    def test_new_auth_name_needs_the_password(self, console: Console) -> None:
        console.ask("POST", "/v1/accounts", ALICE)
        assert console.ask("PUT", "/v1/accounts/alice@sipha.test", {"auth_name": "ally"}).status == 422
        reply = console.ask("PUT", "/v1/accounts/alice@sipha.test", {"auth_name": "ally", "password": "x"})
        assert reply.json["auth_name"] == "ally"

    def test_auth_name_of_another_is_a_conflict(self, console: Console) -> None:
        for user in ("bob", "alice"):
            console.ask("POST", "/v1/accounts", ALICE | {"username": user})
        reply = console.ask("PUT", "/v1/accounts/alice@sipha.test", {"auth_name": "bob", "password": "x"})
        assert reply.status == 409

    def test_password_of_no_account_is_not_changed(self, console: Console) -> None:
        assert console.ask("PUT", "/v1/accounts/alice@sipha.test", {"password": "x"}).status == 404
        assert len(console.node.machine.accounts) == 0

    def test_deleted_account_is_gone(self, console: Console) -> None:
        console.ask("POST", "/v1/accounts", ALICE)
        assert console.ask("DELETE", "/v1/accounts/alice@sipha.test").json == {"removed": 1}
        assert console.ask("DELETE", "/v1/accounts/alice@sipha.test").status == 404


class TestRoutes:
    @pytest.mark.parametrize(
        "path", ["/page", "/page/", "/v1", "/v2/status", "/v1/status/", "/v1//status", "/v1/accounts/", "/%00"]
    )
    def test_unknown_route_is_not_found(self, console: Console, path: str) -> None:
        assert console.ask("GET", path).status == 404
        assert "/v1/status" in console.ask("GET", path).fault

    def test_wrong_method_is_told_the_right_ones(self, console: Console) -> None:
        reply = console.ask("PATCH", "/v1/accounts/alice@sipha.test", {})
        assert reply.status == 405
        assert reply.headers.getRawHeaders("Allow") == ["DELETE, GET, HEAD, PUT"]
        assert "DELETE, GET, HEAD, PUT" in reply.fault

    def test_head_has_no_body(self, console: Console) -> None:
        reply = console.ask("HEAD", "/v1/status")
        assert (reply.status, reply.content) == (200, b"")

    def test_bug_is_told_and_logged(
        self, console: Console, failures: list[LogEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(console.node, "status", fail)
        reply = console.ask("GET", "/v1/status")
        assert (reply.status, reply.fault) == (500, "sipha has failed here, which is a bug; its log says how")
        failure = failures.pop()
        assert failure["log_failure"].check(ZeroDivisionError)
        assert failure["path"] == b"/v1/status"


class TestUnavailable:
    def test_write_waits_until_it_is_applied(self, console: Console) -> None:
        console.node.held = []
        replies: list[object] = []
        console.start("POST", "/v1/accounts", ALICE).addCallback(replies.append)
        console.flush()
        assert replies == []
        console.node.held.pop()()
        console.flush()
        assert len(replies) == 1

    def test_write_without_a_majority_may_be_tried_again(self, console: Console) -> None:
        console.node.trouble = NoQuorum("no majority answers", retry_after=3)
        for reply in (
            console.ask("POST", "/v1/accounts", ALICE),
            console.ask("PUT", "/v1/accounts/alice@sipha.test", {"password": "x"}),
            console.ask("DELETE", "/v1/accounts/alice@sipha.test"),
            console.ask("DELETE", "/v1/bindings/alice@sipha.test"),
        ):
            assert reply.status == 503
            assert reply.headers.getRawHeaders("Retry-After") == ["3"]
            assert reply.fault == "no majority answers"

    def test_each_of_several_says_that_no_majority_answers(self, console: Console) -> None:
        console.node.trouble = NoQuorum("no majority answers")
        results = console.ask("POST", "/v1/accounts", [ALICE]).json["results"]
        assert results == [{"account": "alice@sipha.test", "status": 503, "detail": "no majority answers"}]


class _Spy(Resource):
    """Keeps what comes, and hands it on to the leader."""

    isLeaf = True

    def __init__(self, leader: FakeNode) -> None:
        super().__init__()
        self._behind = serve(leader)
        self.bodies: list[bytes] = []
        self.forwarded_by: list[str | None] = []

    def render(self, request: Request) -> object:
        assert request.content is not None
        self.bodies.append(request.content.read())
        request.content.seek(0)
        self.forwarded_by.append(request.getHeader("Sipha-Forwarded-By"))
        return self._behind.render(request)


@pytest.fixture
def leader() -> FakeNode:
    return FakeNode("b")


@pytest.fixture
def spy(leader: FakeNode) -> _Spy:
    return _Spy(leader)


@pytest.fixture
def follower(leader: FakeNode, spy: _Spy) -> Console:
    node = FakeNode("a")
    node.leads = False
    node.leader = leader
    node.leader_url = "http://127.0.0.12:8080"
    return Console(node, spy)


class TestFollower:
    def test_follower_hands_records_to_the_leader(self, follower: Console, leader: FakeNode, spy: _Spy) -> None:
        assert follower.ask("POST", "/v1/accounts", ALICE).status == 201
        assert follower.ask("POST", "/v1/accounts", [ALICE]).json["results"][0]["status"] == 409
        assert follower.ask("PUT", "/v1/accounts/alice@sipha.test", {"password": "new"}).status == 200
        account = leader.account("alice", "sipha.test")
        assert account is not None
        assert account.ha1["MD5"] == hashlib.md5(b"alice:sipha.test:new").hexdigest()
        assert follower.ask("DELETE", "/v1/accounts/alice@sipha.test").json == {"removed": 1}
        assert follower.ask("DELETE", "/v1/accounts/alice@sipha.test").status == 404
        assert follower.node.records == []
        assert spy.bodies == []

    def test_follower_hands_the_leaders_trouble_on(self, follower: Console, leader: FakeNode) -> None:
        leader.trouble = NoQuorum("no majority answers", retry_after=3)
        reply = follower.ask("POST", "/v1/accounts", ALICE)
        assert (reply.status, reply.fault) == (503, "no majority answers")
        assert reply.headers.getRawHeaders("Retry-After") == ["3"]

    def test_follower_that_knows_no_leader_says_so(self, follower: Console) -> None:
        follower.node.leader = None
        reply = follower.ask("POST", "/v1/accounts", ALICE)
        assert (reply.status, reply.fault) == (503, "no node leads the cluster yet")
        assert reply.headers.getRawHeaders("Retry-After") == ["1"]

    def test_follower_reads_its_own_table(self, follower: Console) -> None:
        follower.node.apply(PutAccount("alice", "sipha.test", "alice", "sipha.test", {"MD5": "0" * 32}))
        assert len(follower.ask("GET", "/v1/accounts").json["accounts"]) == 1


N4 = {"name": "n4", "address": "192.0.2.4:7000"}


class TestNodes:
    def test_operator_adds_lists_and_removes_a_node(self, console: Console) -> None:
        reply = console.ask("POST", "/v1/nodes", N4)
        assert (reply.status, reply.json) == (201, N4)
        assert console.ask("GET", "/v1/nodes").json["nodes"] == [
            {
                "name": "a", "address": "a.test:7000", "role": "voter", "leads": False, "connected": True, "behind": 0,
                "standby": False, "preferred": False, "obstacle": None,
            },
            {
                **N4, "role": "learner", "leads": False, "connected": False, "behind": None,
                "standby": False, "preferred": False, "obstacle": None,
            },
        ]  # fmt: skip
        assert console.ask("DELETE", "/v1/nodes/n4").json == {"removed": 1}
        assert [node["name"] for node in console.ask("GET", "/v1/nodes").json["nodes"]] == ["a"]

    def test_operator_hands_leadership_on(self, console: Console) -> None:
        assert console.ask("POST", "/v1/transfer", {"to": "b"}).json == {"leader": "b"}
        assert console.ask("POST", "/v1/transfer", {}).json == {"leader": "z"}

    def test_operator_turns_pings_off_and_on(self, console: Console) -> None:
        assert console.ask("GET", "/v1/pings").json == {"on": True}
        for on in (False, False, True):
            assert console.ask("PUT", "/v1/pings", {"on": on}).json == {"on": on}
            assert console.ask("GET", "/v1/pings").json == {"on": on}
            assert console.ask("GET", "/v1/status").json["pings"] == ("on" if on else "off")

    def test_pings_are_not_turned_while_no_majority_answers(self, console: Console) -> None:
        console.node.trouble = UnknownOutcome("nobody knows")
        assert console.ask("PUT", "/v1/pings", {"on": False}).status == 503

    def test_operator_puts_a_node_in_standby_and_back(self, console: Console) -> None:
        console.ask("POST", "/v1/nodes", N4)
        console.node.next_leader = "b"
        assert console.ask("POST", "/v1/nodes/n4/standby", {}).json == {"name": "n4", "standby": True, "leader": "a"}
        assert console.ask("POST", "/v1/nodes/a/standby", {"force": True}).json["leader"] == "b"
        nodes = console.ask("GET", "/v1/nodes").json
        assert [node["standby"] for node in nodes["nodes"]] == [True, True]
        assert nodes["successor"] == "b"
        assert console.ask("GET", "/v1/status").json["standby"]
        assert console.ask("POST", "/v1/nodes/n4/online", {}).json == {"name": "n4", "standby": False, "leader": "a"}
        assert [node["standby"] for node in console.ask("GET", "/v1/nodes").json["nodes"]] == [True, False]

    def test_leader_that_serves_nobody_is_brought_online(self, console: Console) -> None:
        console.ask("POST", "/v1/nodes/a/standby", {"force": True})
        console.node.leads, console.node.leads_without_phones = False, True
        assert console.ask("POST", "/v1/nodes/a/online", {}).status == 200

    def test_operator_prefers_a_node(self, console: Console) -> None:
        assert console.ask("PUT", "/v1/prefer", {"node": "a"}).json == {"node": "a"}
        assert console.ask("GET", "/v1/nodes").json["nodes"][0]["preferred"]
        assert console.ask("PUT", "/v1/prefer", {"node": None}).json == {"node": None}
        assert not console.ask("GET", "/v1/nodes").json["nodes"][0]["preferred"]

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", "/v1/nodes", N4),
            ("DELETE", "/v1/nodes/n4", None),
            ("POST", "/v1/transfer", {}),
            ("POST", "/v1/nodes/a/standby", {}),
            ("POST", "/v1/nodes/a/online", {}),
            ("PUT", "/v1/prefer", {"node": "a"}),
        ],
    )
    def test_what_the_cluster_refuses_is_a_conflict(
        self, console: Console, method: str, path: str, body: object
    ) -> None:
        console.node.refusal = SiphaError("that would endanger the cluster")
        reply = console.ask(method, path, body)
        assert (reply.status, reply.fault) == (409, "that would endanger the cluster")

    def test_change_without_a_majority_may_be_made_later(self, console: Console) -> None:
        console.node.trouble = UnknownOutcome("no majority has agreed yet; the change may still be made")
        reply = console.ask("POST", "/v1/nodes", N4)
        assert (reply.status, reply.fault) == (503, "no majority has agreed yet; the change may still be made")

    @pytest.mark.parametrize(
        ("path", "body", "detail"),
        [
            ("/v1/nodes", {"name": "n4"}, "missing required field `address`"),
            ("/v1/nodes", {**N4, "role": "voter"}, "unknown field `role`"),
            ("/v1/nodes", {**N4, "address": "nowhere"}, "'nowhere' is no address"),
            ("/v1/transfer", {"to": 3}, "Expected `str | null`"),
            ("/v1/transfer", {"node": "b"}, "unknown field `node`"),
            ("/v1/nodes/a/standby", {"force": "yes"}, "Expected `bool`"),
            ("/v1/nodes/a/online", {"force": True}, "unknown field `force`"),
        ],
    )
    def test_wrong_body_is_refused(self, console: Console, path: str, body: object, detail: str) -> None:
        reply = console.ask("POST", path, body)
        assert reply.status == 422
        assert detail in reply.fault

    def test_follower_forwards_what_only_the_leader_can_do(
        self, follower: Console, leader: FakeNode, spy: _Spy
    ) -> None:
        assert follower.ask("POST", "/v1/nodes", N4).status == 201
        assert set(leader.members) == {"b", "n4"}
        assert follower.ask("POST", "/v1/transfer", {"to": "a"}).json == {"leader": "a"}
        assert follower.ask("POST", "/v1/nodes/n4/standby", {"force": True}).json["leader"] == "b"
        assert leader.members["n4"].standby
        assert follower.ask("POST", "/v1/nodes/n4/online", {}).json["leader"] == "b"
        assert follower.ask("PUT", "/v1/prefer", {"node": "n4"}).json == {"node": "n4"}
        assert leader.members["n4"].preferred
        assert follower.ask("DELETE", "/v1/nodes/n4").json == {"removed": 1}
        assert set(follower.node.members) == {"a"}
        assert set(spy.forwarded_by) == {"a"}

    def test_follower_hands_the_leaders_refusal_on(self, follower: Console, leader: FakeNode) -> None:
        leader.refusal = SiphaError("n4 is a member already")
        reply = follower.ask("POST", "/v1/nodes", N4)
        assert (reply.status, reply.fault) == (409, "n4 is a member already")

    def test_request_is_forwarded_once(self, follower: Console, leader: FakeNode) -> None:
        leader.leads = False
        leader.leader, leader.leader_url = follower.node, "http://127.0.0.11:8080"
        reply = follower.ask("POST", "/v1/nodes", N4)
        assert (reply.status, reply.fault) == (503, "the leader has just changed")

    def test_follower_without_a_leader_says_so(self, follower: Console) -> None:
        follower.node.leader = follower.node.leader_url = None
        reply = follower.ask("POST", "/v1/transfer", {})
        assert (reply.status, reply.fault) == (503, "no node leads at present")
        assert reply.headers.getRawHeaders("Retry-After") == ["1"]

    def test_follower_that_doesnt_know_the_leaders_admin_says_who_leads(self, follower: Console) -> None:
        follower.node.leader_url = None
        reply = follower.ask("POST", "/v1/transfer", {})
        assert reply.status == 409
        assert reply.fault.startswith(
            "b leads, and neither cluster.admin_port nor its admin in [[cluster.peers]] says here"
        )

    def test_follower_refuses_wrong_bodies_itself(self, follower: Console, spy: _Spy) -> None:
        assert follower.ask("POST", "/v1/nodes", {"name": "n4"}).status == 422
        assert spy.bodies == []


def test_level_of_the_log_is_shown_and_set(console: Console) -> None:
    assert console.ask("GET", "/v1/log-level").json == {"level": "info"}
    assert console.ask("PUT", "/v1/log-level", {"level": "debug"}).json == {"level": "debug"}
    assert console.node.level == "debug"
    assert console.ask("PUT", "/v1/log-level", {"level": "verbose"}).status == 422


def test_reload_says_what_has_changed_or_why_it_was_refused(console: Console) -> None:
    loaded = {"file": "/etc/sipha/sipha.toml", "generation": 2, "changed": ["sip.port", "domains"]}
    assert console.ask("POST", "/v1/reload", {}).json == loaded
    console.node.refusal = ConfigError("sip.t1 can't change while the node runs")
    reply = console.ask("POST", "/v1/reload", {})
    assert (reply.status, reply.fault) == (409, "sip.t1 can't change while the node runs")
