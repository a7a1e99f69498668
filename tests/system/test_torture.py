"""RFC 4475 and RFC 5118 through three running nodes: what becomes of each message, over UDP and over TCP.

The sender is a trusted peer, so that what may be forwarded is, and the callee's answer comes back: 200. The manifests
beside the messages say what is acceptable; the verdicts here are what sipha does, and are held against them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.system.wire import (
    Callee,
    Datagrams,
    Message,
    Nodes,
    Stream,
    again,
    authorized,
    call_id,
    field_name,
    options,
    read,
    request,
    running_nodes,
)

pytestmark = pytest.mark.system

TORTURE = Path(__file__).parents[1] / "sip/torture"
PEER, CALLEE, STRANGER = 65, 66, 97
DOMAIN = "example.com"
CONFIG = """
[[domains]]
name = "example.com"
aliases = [
    "example.net", "example.org", "host.example.net", "chair-dnrc.example.com", "services.example.com",
    "registrar.example.com", "[2001:db8::10]", "[2001:db8::192.0.2.1]",
]

[[peers]]
name = "torture"
networks = ["127.0.22.64/28"]
"""
WEIRD = "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*"
ESCAPED = "sips%3Auser%40example.com"
SEMICOLON = "user;par=u%40example.net"
NUL = "null-%00-null"
USERS = ("user", "vivekg", "kumiko", "UserB", "watson", "j.user", "joe", WEIRD, ESCAPED, SEMICOLON, NUL)


class Verdict(NamedTuple):
    """The status of the final answer, 0 if none may come; the user whose phone gets the message; how TCP differs."""

    status: int
    user: str = ""
    stream: int | None = None


FORWARDED = Verdict(200, "user")
VERDICTS = {
    # RFC 4475 §3.1.1: valid messages
    "wsinv": Verdict(200, "vivekg"),
    "intmeth": Verdict(200, WEIRD),
    "esc01": Verdict(200, ESCAPED),
    "escnull": Verdict(401),
    "esc02": Verdict(405),  # it is for the proxy itself, and no REGISTER
    "lwsdisp": FORWARDED,
    "longreq": FORWARDED,
    "dblreq": Verdict(401),
    "semiuri": Verdict(200, SEMICOLON),
    "transports": FORWARDED,
    "mpart01": Verdict(200, "kumiko"),
    "unreason": Verdict(0),
    "noreason": Verdict(0),
    # §3.1.2: invalid messages
    "badinv01": Verdict(0),  # the Via is broken: nobody knows where an answer should go
    "clerr": Verdict(400, stream=0),  # a stream may bring the rest yet
    "ncl": Verdict(400),
    "scalar02": Verdict(400),
    "scalarlg": Verdict(0),
    "quotbal": Verdict(400),
    "ltgtruri": Verdict(400),
    "lwsruri": Verdict(400),
    "lwsstart": Verdict(400),
    "trws": Verdict(400),
    "escruri": FORWARDED,  # without the header, which the Request-URI of the callee's contact replaces
    "baddate": FORWARDED,  # a proxy doesn't look at the Date
    "regbadct": Verdict(401),
    "badaspec": Verdict(400),
    "baddn": Verdict(400, stream=0),  # the archive's file lacks the empty line: its head hasn't ended
    "badvers": Verdict(505),
    "mismatch01": Verdict(400),
    "mismatch02": Verdict(400),
    "bigcode": Verdict(0),
    # §3.2 to §3.4: transactions, applications and compatibility
    "badbranch": FORWARDED,
    "insuf": Verdict(0),  # without From, To and Call-ID there is nothing to make an answer of
    "unkscm": Verdict(416),
    "novelsc": Verdict(416),
    "unksm2": Verdict(401),
    "bext01": Verdict(420),
    "invut": FORWARDED,
    "regaut01": Verdict(401),
    "multi01": Verdict(400),
    "mcl01": Verdict(400),
    "bcast": Verdict(0),
    "zeromf": Verdict(483),
    "cparam01": Verdict(401),
    "cparam02": Verdict(401),
    "regescrt": Verdict(401),
    "sdp01": FORWARDED,
    "inv2543": Verdict(200, "UserB", stream=400),  # a stream needs a Content-Length (RFC 3261 §18.3)
    "test": Verdict(0),  # it has no version, no Via, and a line that is no header field
    # RFC 5118
    "ipv6-good": Verdict(401),
    "ipv6-bad": Verdict(400),
    "port-ambiguous": Verdict(403),  # [2001:db8::10:5070] is another host, and not ours
    "port-unambiguous": Verdict(401),
    "via-received-param-no-delim": Verdict(200),
    "via-received-param-with-delim": Verdict(481),  # a BYE for the proxy itself
    "ipv6-in-sdp": FORWARDED,
    "mult-ip-in-header": FORWARDED,
    "mult-ip-in-sdp": FORWARDED,
    "ipv4-mapped-ipv6": FORWARDED,
    # Three colons make no address, so it is the name of a host that can't be reached: the 503 of RFC 3261 §16.9, which
    # goes upstream as 500 (§16.7 step 6).
    "ipv6-bug-abnf-3-colons": Verdict(500),
    "ipv6-correct-abnf-2-colons": FORWARDED,
}
FRAMING_LOST = {"ncl", "mcl01", "inv2543"}
"""What nobody can say the end of; a stream is closed after it."""

UNREADABLE_TO = {b"quotbal", b"badaspec", b"baddn"}
"""What has no place for our tag; the Call-IDs of RFC 4475 begin with the name."""

REGISTERED = {
    "cparam01": (200, "watson", {"sip:+19725552222@gw1.example.net": ";unknownparam"}),
    "cparam02": (200, "watson", {"sip:+19725552222@gw1.example.net;unknownparam": ""}),
    "dblreq": (200, "j.user", {"sip:j.user@host.example.com": ""}),
    "escnull": (200, NUL, {"sip:%00@host5.example.com": "", "sip:%00%00@host5.example.com": ""}),
    "regaut01": (200, "j.user", {}),
    "regbadct": (400, "user", {}),
    "regescrt": (200, "user", {"sip:user@example.com?Route=%3Csip:sip.example.com%3E": ""}),
    "unksm2": (404, "user", {}),
    "ipv6-good": (200, "user", {"sip:caller@[2001:db8::1]": ""}),
    "port-unambiguous": (200, "user", {"sip:caller@[2001:db8::1]": ""}),
}
"""The REGISTERs again, with credentials: the status, whose, and the contacts that are bound, with their parameters."""


def archive() -> list[Path]:
    return sorted(TORTURE.glob("rfc*/*.dat"))


def manifest() -> dict[str, dict[str, Any]]:
    entries = (entry for path in TORTURE.glob("*/manifest.json") for entry in json.loads(path.read_text()))
    return {entry["name"]: entry for entry in entries}


def message(name: str) -> bytes:
    """A message of the archive; where mpart01's Route leads to a port of this host, it leads to the callee instead."""
    (path,) = TORTURE.glob(f"rfc*/{name}.dat")
    return path.read_bytes().replace(b"<sip:127.0.0.1:5080>", b"<sip:127.0.22.66:5060>")


def sent_by_port(data: bytes) -> int:
    """The port that the answer to a datagram goes to (RFC 3261 §18.2.2)."""
    via = re.search(rb"(?i)(?:via|v)\s*:\s*SIP\s*/\s*\d\.\d\s*/\s*(\w+)\s+(?:\[[^]]*\]|[\w.-]+)(?::(\d+))?", data)
    if via is None:
        return 5060
    return int(via[2] or (5061 if via[1] == b"TLS" else 5060))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with running_nodes(tmp_path_factory.mktemp("torture"), CONFIG) as nodes:
        for user in USERS:
            nodes.create(user, DOMAIN, user, "secret")
        yield nodes


@pytest.fixture
def nodes(running: Nodes) -> Iterator[Nodes]:
    """Nodes without bindings in the domain, which are as sound after the test as before."""
    yield running
    for user in USERS:
        running.remove_bindings(f"{user}@{DOMAIN}")
    running.check()


@pytest.fixture(scope="module")
def listening_callee(running: Nodes) -> Iterator[Callee]:
    with Callee(running.host(CALLEE), running.address) as callee:
        yield callee


@pytest.fixture
def callee(listening_callee: Callee) -> Callee:
    """A callee to whom nothing has come yet."""
    listening_callee.requests()
    return listening_callee


def test_verdicts_are_those_of_the_manifests() -> None:
    entries = manifest()
    assert VERDICTS.keys() == entries.keys() == {path.stem for path in archive()}
    assert {name: entry["accept"] for name, entry in entries.items() if not accepts(entry, VERDICTS[name])} == {}


def accepts(entry: dict[str, Any], verdict: Verdict) -> bool:
    """Return True if a manifest's text allows a verdict."""
    accept = entry.get("accept")
    if accept is None:  # RFC 5118's says no more
        return entry["valid"] != "valid" or verdict.status not in {0, 400}
    if accept == "any":
        return True
    text = re.sub(r"never[^;]*|[^;]*not expected", "", accept)
    if verdict.user:
        return re.search("relay|proxied|well-formed|WF|liberal|handle|200", text) is not None
    if verdict.status == 0:
        return "no response" in text
    return str(verdict.status) in re.findall(r"\b\d{3}\b", text)


@pytest.mark.parametrize("name", VERDICTS)
def test_datagram_gets_its_verdict(nodes: Nodes, callee: Callee, name: str) -> None:
    verdict = VERDICTS[name]
    if verdict.user:
        callee.register(f"sip:{verdict.user}@{DOMAIN}", verdict.user, "secret")
    # Those of RFC 4475 go as they are; those of RFC 5118 share their branches.
    data = message(name) if "section" in manifest()[name] and manifest()[name].get("file") else again(message(name))
    with nodes.datagrams(PEER, sent_by_port(data)) as peer:
        check_answers(peer, data, verdict.status, nodes)
    check_forwarded(callee, data, verdict)


@pytest.mark.parametrize("name", VERDICTS)
def test_message_of_a_stream_gets_its_verdict(nodes: Nodes, callee: Callee, name: str) -> None:
    verdict = VERDICTS[name]
    status = verdict.status if verdict.stream is None else verdict.stream
    if verdict.user:
        callee.register(f"sip:{verdict.user}@{DOMAIN}", verdict.user, "secret")
    data = again(message(name))
    with nodes.stream(PEER) as peer:
        if name == "dblreq":
            check_two_requests(peer, data)
        elif name in {"clerr", "baddn"}:
            # What comes of those is in test_bad_input: the node waits for the rest, but not for long.
            peer.send(data)
            assert peer.receive(0.2) is None
            assert not peer.ended
        else:
            check_answers(peer, data, status, None if name in FRAMING_LOST else nodes)
        if name in FRAMING_LOST:
            assert peer.receive() is None
            assert peer.ended
    check_forwarded(callee, data, verdict if status == verdict.status else Verdict(status))


def check_answers(peer: Datagrams | Stream, data: bytes, status: int, nodes: Nodes | None) -> None:
    """Send a message, and assert which final answer comes, and that no other does, the nodes being given."""
    peer.send(data)
    answers: list[Message] = []
    while status and not [answer for answer in answers if answer.status >= 200]:
        answer = peer.receive()
        assert answer is not None, f"{answers}, and then nothing"
        answers.append(answer)
    if nodes is not None:
        answers += peer.until_answered(options(nodes.address))
    assert [answer.status for answer in answers if answer.status != 100] == ([status] if status else [])
    for answer in answers:
        check_answer(data, answer)


def check_answer(data: bytes, answer: Message) -> None:
    """Assert that an answer repeats what RFC 3261 §8.2.6 says."""
    asked = read(data if b"\r\n\r\n" in data else data + b"\r\n")
    vias, answered = values(asked, "Via"), values(answer, "Via")
    assert re.sub(rb";rport=\d+|;received=127.0.22.65", b"", answered[0]) == re.sub(
        # What the sender claims to be received from gives way; of the version nothing is kept but its being understood.
        rb";rport|;received=[^;]*",
        b"",
        vias[0].replace(b"SIP/7.0", b"SIP/2.0"),
    )
    assert answered[1:] == vias[1:]
    for name in ("From", "Call-ID", "CSeq"):
        assert values(answer, name) == values(asked, name)[:1]
    to = values(asked, "To")[0]
    if answer.status == 100 or b";tag=" in to or call_id(data).partition(b".")[0] in UNREADABLE_TO:
        assert values(answer, "To") == [to]
    else:
        assert re.fullmatch(re.escape(to) + rb";tag=[^;]+", values(answer, "To")[0])


def values(message: Message, name: str) -> list[bytes]:
    """The values of a header, without white space; those of Via one by one."""
    bare = [re.sub(rb"\s", b"", value) for value in message.all(name)]
    return [value for field in bare for value in field.split(b",")] if name == "Via" else bare


def check_forwarded(callee: Callee, data: bytes, verdict: Verdict) -> None:
    """Assert that a message came to the callee, and that it is the same but for what a proxy changes (§16.6)."""
    came = [message for message in callee.requests() if not message.start_line.startswith(b"ACK ")]
    if not verdict.user:
        assert came == []
        return
    (forwarded,) = came
    asked = read(data)
    method = asked.start_line.partition(b" ")[0]
    routes = asked.all("Route") if b"<sip:127.0.22.66:5060>" in data else []
    if routes:  # a strict router (§16.6 step 6): it gets its own address, and the callee's as the last Route
        assert forwarded.start_line == method + b" sip:127.0.22.66:5060 SIP/2.0"
        assert forwarded.all("Route") == [b"<sip:callee@127.0.22.66>"]
    else:
        assert forwarded.start_line == method + b" sip:callee@127.0.22.66 SIP/2.0"
        assert forwarded.all("Route") == []
    hops = [int(value) for value in asked.all("Max-Forwards")]
    assert [int(value) for value in forwarded.all("Max-Forwards")] == [hops[0] - 1 if hops else 70]
    assert forwarded.fields[0].startswith(b"Via: SIP/2.0/UDP 127.0.22.10:5060;branch=z9hG4bK")
    kept, others = unchanged(forwarded.fields[1:]), unchanged(asked.fields)
    number = [field_name(field) for field in others].index(b"via")
    assert values(Message(b"", (kept[number],), b""), "Via")[0].startswith(
        re.sub(rb";received=.*", b"", values(asked, "Via")[0])
    )
    del kept[number], others[number]
    assert kept == others
    assert forwarded.body == asked.body
    assert int(forwarded.get("Content-Length")) == len(asked.body)


def unchanged(fields: tuple[bytes, ...]) -> list[bytes]:
    """The header fields that a proxy may not change; its own Record-Route isn't among them."""
    return [
        field
        for field in fields
        if field_name(field) not in {b"max-forwards", b"route", b"max-breadth", b"content-length"}
        and not (field_name(field) == b"record-route" and b"@127.0.22.10:5060" in field)
    ]


def check_two_requests(peer: Stream, data: bytes) -> None:
    """Assert that a stream's bytes after a REGISTER are the next request: its INVITE is for joe, who isn't there."""
    peer.send(data)
    answers = [answer for answer in (peer.receive(), peer.receive(), peer.receive()) if answer is not None]
    assert sorted((answer.status, answer.get("CSeq")) for answer in answers) == [
        (100, b"8 INVITE"),
        (401, b"8 REGISTER"),
        (480, b"8 INVITE"),
    ]
    # The body is longer than it says, and nobody can tell where what follows begins.
    assert peer.receive() is None
    assert peer.ended


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("name", REGISTERED)
def test_register_with_credentials_binds_its_contacts(nodes: Nodes, callee: Callee, name: str, transport: str) -> None:
    status, user, contacts = REGISTERED[name]
    data = again(message(name))
    if transport == "tcp":
        data = data[: data.index(b"\r\n\r\n") + 4]  # what follows dblreq is another message there
    phone = callee if transport == "udp" else nodes.stream(CALLEE)
    with ExitStack() as stack:
        if phone is not callee:
            stack.enter_context(phone)
        challenge = phone.ask(data)
        assert challenge.status == 401
        assert phone.ask(authorized(again(data), challenge, user, "secret")).status == status
        bound = nodes.bindings(f"{user}@{DOMAIN}")
        assert {binding["contact"]: binding["params"] for binding in bound} == contacts
    assert callee.requests() == []
    for other in ("null-", "", "resource", "%00"):
        assert nodes.bindings(f"{other}@{DOMAIN}") == []


@pytest.mark.parametrize(
    ("name", "uris"),
    [
        ("escnull", {b"sip:%00@host5.example.com", b"sip:%00%00@host5.example.com"}),
        ("cparam01", {b"sip:+19725552222@gw1.example.net"}),
        ("cparam02", {b"sip:+19725552222@gw1.example.net;unknownparam"}),
        ("regescrt", {b"sip:user@example.com"}),  # §19.1.1: no headers in a Request-URI
    ],
)
def test_call_to_a_registered_contact_bears_its_uri(nodes: Nodes, callee: Callee, name: str, uris: set[bytes]) -> None:
    user, data = REGISTERED[name][1], message(name)
    assert callee.ask(authorized(again(data), callee.ask(again(data)), user, "secret")).status == 200
    with nodes.datagrams(PEER) as peer:
        assert peer.ask(request("OPTIONS", f"sip:{user}@{DOMAIN}")).status == 200
    came = callee.wait_for_requests(len(uris))
    assert {forwarded.start_line.split(b" ")[1] for forwarded in came} == uris
    assert [forwarded.all("Route") for forwarded in came] == [[] for _ in uris]


def test_requests_without_a_unique_branch_are_told_apart(nodes: Nodes, callee: Callee) -> None:
    callee.register(f"sip:user@{DOMAIN}", "user", "secret")
    first, second = again(message("badbranch")), again(message("badbranch"))
    with nodes.datagrams(PEER, 5060) as peer:
        for data in (first, second, first):
            assert peer.ask(data).status == 200
    # The third was a copy of the first: answered, and not forwarded again.
    assert [forwarded.get("Call-ID") for forwarded in callee.requests()] == [call_id(first), call_id(second)]


def test_bext01_is_told_what_a_proxy_lacks(nodes: Nodes) -> None:
    with nodes.datagrams(PEER, 5061) as peer:
        answer = peer.ask(again(message("bext01")))
    assert answer.get("Unsupported") == b"noProxiesSupportThis, norDoAnyProxiesSupportThis"


def test_stranger_has_nothing_forwarded(nodes: Nodes, callee: Callee) -> None:
    for user in USERS:
        callee.register(f"sip:{user}@{DOMAIN}", user, "secret")
    for path in archive():
        data = again(message(path.stem))
        with nodes.datagrams(STRANGER, sent_by_port(data)) as stranger:
            stranger.send(data)
            statuses = {answer.status for answer in stranger.until_answered(options(nodes.address))}
        refusal = VERDICTS[path.stem].status
        allowed = {403, 407} if VERDICTS[path.stem].user or refusal == 500 else {refusal} - {0}
        assert statuses <= allowed, path.stem
        assert bool(statuses) == bool(allowed), path.stem
    assert callee.requests() == []
