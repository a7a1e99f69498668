"""What no sound client sends, to three running nodes: SIP, configuration, and HTTP to the admin.

The nodes answer with an error where one can be sent, and count the rest; they neither stop, nor grow, nor keep others
waiting, and their logs tell of no fault.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.system.wire import (
    Callee,
    Datagrams,
    Message,
    Nodes,
    again,
    authorized,
    call_id,
    options,
    request,
    running_nodes,
)

pytestmark = pytest.mark.system

TORTURE = Path(__file__).parents[1] / "sip/torture"
SAMPLES = sorted((Path(__file__).parents[2].parent / "shared/sip-torture/messages").glob("*.sip"))
needs_samples = pytest.mark.skipif(not SAMPLES, reason="the samples of real stacks are not part of the repository")

PEER, STRANGER = 65, 97
MAX_MESSAGE = 65536
MESSAGE_TIMEOUT = 2.0
SEED = 5060
CONFIG = """
[[domains]]
name = "example.com"
aliases = ["example.net", "example.org", "biloxi.com", "atlanta.com", "iptel.org", "company.com"]

[[peers]]
name = "torture"
networks = ["127.0.22.64/28"]
"""
REFUSALS = {400, 401, 403, 404, 405, 407, 416, 420, 423, 481, 482, 483, 505, 513}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    directory = tmp_path_factory.mktemp("bad-input")
    with running_nodes(directory, CONFIG, f"message_timeout = {MESSAGE_TIMEOUT}") as nodes:
        nodes.create("user", "example.com", "user", "secret")
        yield nodes


@pytest.fixture
def nodes(running: Nodes) -> Iterator[Nodes]:
    """Nodes that are as sound after the test as before: the leader leads still, and has not grown by much."""
    term, resident = running.term(), running.resident()
    yield running
    running.check()
    assert running.term() == term
    assert running.resident() - resident < 24 << 10


def counted(nodes: Nodes, before: dict[str, int]) -> Counter[str]:
    """What the leader has counted since `before`."""
    return Counter(nodes.counters()) - Counter(before)


def sound(nodes: Nodes, *fields: str) -> bytes:
    """An OPTIONS that a node answers itself."""
    return request("OPTIONS", f"sip:{nodes.address}", fields=fields)


# -- messages of real stacks -------------------------------------------------------------------------------------------


def sample(path: Path) -> bytes:
    """A real message; where a Via asks for the answer at another host, that is ours."""
    return re.sub(rb"(?i)(^via.*maddr=)[0-9.]+", rb"\g<1>127.0.22.97", path.read_bytes(), flags=re.MULTILINE)


@needs_samples
def test_samples_in_datagrams_are_answered_or_dropped(nodes: Nodes) -> None:
    assert len(SAMPLES) == 305
    statuses: Counter[int] = Counter()
    with nodes.datagrams(STRANGER, 5060) as stranger:
        for path in SAMPLES:
            stranger.send(sample(path))
            statuses.update(answer.status for answer in stranger.until_answered(options(nodes.address)))
    # Those with a port in their Via are answered elsewhere.
    assert statuses.keys() <= REFUSALS
    assert statuses.total() > 100


@needs_samples
def test_samples_from_a_peer_are_forwarded_or_refused(nodes: Nodes) -> None:
    before = nodes.counters()
    with nodes.datagrams(PEER, 5060) as peer:
        for path in SAMPLES:
            # All addresses are our own, so that nothing leaves this host.
            data = re.sub(rb"\b\d+\.\d+\.\d+\.\d+\b", b"127.0.22.65", path.read_bytes())
            peer.send(again(data))
            peer.until_answered(options(nodes.address))
    assert counted(nodes, before)["transaction_client_transactions"] > 20


@needs_samples
def test_samples_in_streams_are_answered_or_end_them(nodes: Nodes) -> None:
    statuses: Counter[int] = Counter()
    with ExitStack() as opened:
        for path in SAMPLES:
            stream = opened.enter_context(nodes.stream(STRANGER))
            stream.send(sample(path))
            stream.send(probe := options(nodes.address))
            # Where the body is longer than what came, the probe is part of it.
            while message := stream.receive(0.02):
                if message.all("Call-ID") == [call_id(probe)]:
                    break
                statuses[message.status] += 1
    assert statuses.keys() <= REFUSALS
    assert statuses.total() > 200


# -- noise -------------------------------------------------------------------------------------------------------------


def test_random_datagrams_are_dropped_and_counted(nodes: Nodes) -> None:
    chance, before = random.Random(SEED), nodes.counters()
    with nodes.datagrams(STRANGER) as stranger:
        for _ in range(100):
            for _ in range(20):
                stranger.send(b"\xff" + chance.randbytes(chance.randint(0, 1400)))
            assert stranger.until_answered(options(nodes.address)) == []
    assert counted(nodes, before)["transport_malformed"] == 2000


def test_datagrams_of_nul_and_line_ends_are_dropped(nodes: Nodes) -> None:
    before = nodes.counters()
    with nodes.datagrams(STRANGER) as stranger:
        for data in (b"\0" * 1500, b"\0", b"\r\n" * 700, b"\n", b"", b"\0\0\r\n\r\n", b" " * 60_000):
            stranger.send(data)
        assert stranger.until_answered(options(nodes.address)) == []
    happened = counted(nodes, before)
    assert happened["transport_malformed"] + happened["transport_udp_keepalive"] == 7


SPLINTERS = [
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n ",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\",
    b"%",
    b"%0",
    b" " * 300,
    b"9" * 300,
]
SPLINTERS += [bytes([byte]) for byte in b'"<>,;:@=?[]*'] + [b";tag=", b"\r\nVia:", b"\r\nTo: <sip:x>", b"SIP/2.0"]


def mutated(chance: random.Random, data: bytes) -> bytes:
    """A message cut, torn, doubled and sprinkled with what hurts."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.randint(0, 40))
        match chance.randrange(5):
            case 0:
                data = data[:start]
            case 1:
                data = data[:start] + data[end:]
            case 2:
                data = data[:end] + data[start:]
            case 3:
                data = data[:start] + chance.choice(SPLINTERS) + data[start:]
            case _:
                data = data[:start] + chance.randbytes(end - start) + data[end:]
    return data


def mutations(number: int) -> Iterator[bytes]:
    """Mutated messages of the archive, and mutated sound ones."""
    chance = random.Random(SEED)
    originals = [path.read_bytes() for path in sorted(TORTURE.glob("rfc*/*.dat"))]
    originals += [request("REGISTER", "sip:sipha.test", fields=("Contact: <sip:alice@127.0.22.97>", "Expires: 60"))] * 9
    for _ in range(number):
        yield mutated(chance, again(chance.choice(originals)))


def test_mutated_datagrams_hurt_nobody(nodes: Nodes) -> None:
    statuses: Counter[int] = Counter()
    with nodes.datagrams(STRANGER, 5060) as stranger:
        for number, data in enumerate(mutations(3000)):
            stranger.send(data)
            if number % 10 == 9:
                statuses.update(answer.status for answer in stranger.until_answered(options(nodes.address)))
    assert statuses.keys() <= REFUSALS | {200}
    assert statuses[400] > 200


def test_mutated_streams_hurt_nobody(nodes: Nodes) -> None:
    statuses: Counter[int] = Counter()
    with nodes.stream(STRANGER) as other, ExitStack() as opened:
        for number, data in enumerate(mutations(400)):
            stream = opened.enter_context(nodes.stream(STRANGER))
            stream.send(data)
            while message := stream.receive(0.005):
                statuses[message.status] += 1
            if number % 20 == 19:
                assert other.until_answered(options(nodes.address)) == []
    assert statuses.keys() <= REFUSALS | {200}
    assert statuses[400] > 20


def finals(phone: Datagrams) -> Iterator[Message]:
    """The final responses that come to a phone, until nothing does."""
    return (message for message in phone.messages() if message.status >= 200)


def test_mutated_answers_of_a_callee_hurt_nobody(nodes: Nodes) -> None:
    chance = random.Random(SEED)
    with Callee(nodes.host(66), nodes.address) as callee:
        callee.register("sip:user@example.com", "user", "secret")
        callee.spoil = lambda answer: [*(mutated(chance, answer) for _ in range(5)), answer]
        for number in range(300):
            method = ("MESSAGE", "INVITE", "SUBSCRIBE")[number % 3]
            with nodes.datagrams(PEER) as peer:
                peer.send(request(method, "sip:user@example.com"))
                # Whatever the callee has made of it, a final response.
                assert next(finals(peer), None)
        assert len(callee.requests()) >= 300


def test_sound_requests_among_noise_are_all_answered(nodes: Nodes) -> None:
    chance = random.Random(SEED)
    asked = [sound(nodes) for _ in range(300)]
    answered = set()
    with nodes.datagrams(STRANGER) as stranger:
        # In bursts, so that they and the noise come in one wake-up.
        for start in range(0, 300, 50):
            for data in asked[start : start + 50]:
                stranger.send(chance.randbytes(200))
                stranger.send(data)
                stranger.send(data[: chance.randrange(60)])
            answered |= {stranger.receive() for _ in range(50)}
    assert {answer and answer.get("Call-ID") for answer in answered} == {call_id(data) for data in asked}
    assert {answer and answer.status for answer in answered} == {200}


# -- what is large -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        "X: " + "x" * 60_000,
        "X:\r\n " + "\r\n ".join(["x"] * 12_000),
        "\r\n".join(["X: y"] * 10_000),
        "Contact: " + "<sip:a@b>," * 6_000,
        "Contact: " + "<" * 60_000,
        "Authorization: Digest " + 'a="b",' * 10_000,
        "Authorization: Digest " + 'a="' + "\\" * 60_000,
        "Route: " + '"' * 60_000,
        "Route: " + "," * 60_000,
        "Route: <sip:" + "%41" * 20_000 + "@x;lr>",
        "Max-Breadth: " + "9" * 60_000,
        "Subject: " + " \t" * 30_000,
    ],
    ids=lambda field: re.sub(r"[^\w<,:]", " ", field[:26]).strip(),
)
@pytest.mark.parametrize("method", ["OPTIONS", "REGISTER", "INVITE"])
def test_a_large_header_field_is_answered_at_once(nodes: Nodes, method: str, field: str) -> None:
    uri = f"sip:{nodes.address}" if method == "OPTIONS" else "sip:user@example.com"
    for host in (PEER, STRANGER):
        data = request(method, uri, sender="sip:user@example.com", fields=(field,))
        with nodes.datagrams(host) as sender:
            start = time.monotonic()
            sender.send(data)
            answer = sender.receive()
            assert time.monotonic() - start < 0.5
        assert answer is not None
        assert answer.get("Call-ID") == call_id(data)
        assert answer.status in REFUSALS | {100, 200, 480, 500}


@pytest.mark.parametrize("number", [100, 1000, 3000])
def test_many_vias_come_back(nodes: Nodes, number: int) -> None:
    vias = [f"SIP/2.0/UDP h{via}" for via in range(number)]
    for fields in ([f"v: {via}" for via in vias], [f"Via: {','.join(vias)}"]):
        data = sound(nodes, *fields)
        with nodes.datagrams(STRANGER) as udp, nodes.stream(STRANGER) as tcp:
            for answer in (udp.ask(data), tcp.ask(again(data))):
                assert answer.status == 200
                values = [value.strip() for field in answer.all("Via") for value in field.split(b",")]
                assert values[1:] == [via.encode() for via in vias]


def test_as_many_vias_as_a_datagram_holds_do_no_harm(nodes: Nodes) -> None:
    with nodes.datagrams(STRANGER) as stranger:
        for via in (b"v:SIP/2.0/UDP a\r\n", b"v:a\r\n", b"v:\r\n"):
            head, _, _ = sound(nodes).partition(b"Content-Length")
            data = head + via * ((65_000 - len(head)) // len(via)) + b"l:0\r\n\r\n"
            stranger.send(data)
            # The answer with all of them may be more than a datagram holds.
            stranger.until_answered(options(nodes.address))


@pytest.mark.parametrize("large", [b"Via: SIP/2.0/UDP a.example.com\r\n" * 10_000, b"X: " + b"x" * 70_000 + b"\r\n"])
def test_a_message_beyond_the_limit_is_refused_and_ends_its_stream(nodes: Nodes, large: bytes) -> None:
    line, end, rest = sound(nodes).partition(b"\r\n")
    # What an answer is made of has come before the limit, or after it, when there can be none.
    for data, statuses in ((line + end + rest[:-2] + large, [513]), (line + end + large + rest, [])):
        with nodes.stream(STRANGER) as stream:
            # No more than is read: an answer that a reset overtakes would be lost.
            stream.send(data[: MAX_MESSAGE + 1])
            assert [answer.status for answer in stream.messages()] == statuses
            assert stream.ended
        with nodes.stream(STRANGER) as stream:
            stream.send(data)
            assert [answer.status for answer in stream.messages()] in ([], [513])
            assert stream.ended


@pytest.mark.parametrize("length", ["65536", "4294967296", "9" * 5000, "-1", "0x10", "1e3", "", "\u0661", "1, 2", "+5"])
def test_a_wrong_content_length_is_refused_and_ends_its_stream(nodes: Nodes, length: str) -> None:
    data = sound(nodes).replace(b"Content-Length: 0", f"Content-Length: {length}".encode())
    with nodes.stream(STRANGER) as stream, nodes.datagrams(STRANGER) as udp:
        stream.send(data + sound(nodes))
        answers = list(stream.messages())
        assert stream.ended
        udp.send(data)
        answers += [answer for answer in [udp.receive()] if answer is not None]
    assert [answer.status for answer in answers] in ([400, 400], [513, 400])
    assert {answer.get("Call-ID") for answer in answers} == {call_id(data)}


# -- ways that lead nowhere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hop",
    [
        "127.0.22.97:0",
        "127.0.22.97:65535",
        "127.0.22.97:65536",
        "127.0.22.97:99999",
        "255.255.255.255",
        "0.0.0.0",
        "127.0.22.10",
        "[::1]",
        "[::ffff:127.0.22.97]",
        "[fe80::1]:5060",
        "[:::]",
        "999.1.1.1",
        "0x7f.1",
        "a..b",
        "x" * 300,
        "127.0.22.97;maddr=255.255.255.255",
        "127.0.22.97;maddr=127.0.22.10",
        "127.0.22.97;maddr=[::1]",
        "127.0.22.97;maddr=nonsense",
        "127.0.22.97;transport=tcp",
        "127.0.22.97;transport=sctp",
        "127.0.22.97;transport=\u0661",
        "127.0.22.97;ttl=9999",
        "127.0.22.97;received=0.0.0.0;rport=0",
    ],
)
def test_ways_that_lead_nowhere_are_nobodys_trouble(nodes: Nodes, hop: str) -> None:
    """As where an answer is to go, as the target of a peer's request, and as its Route."""
    with nodes.datagrams(STRANGER) as stranger, nodes.datagrams(PEER) as peer:
        for method in ("OPTIONS", "INVITE"):
            stranger.send(request(method, f"sip:{nodes.address}").replace(b"tester.invalid;rport", hop.encode(), 1))
            stranger.until_answered(options(nodes.address))
            for data in (
                request(method, f"sip:x@{hop}"),
                request(method, "sip:x@h", fields=(f"Route: <sip:{hop};lr>",)),
            ):
                answer = peer.ask(data)
                assert answer.status in REFUSALS | {200, 480, 500}
                peer.send(data.replace(f" {method}".encode(), b" ACK").replace(method.encode(), b"ACK"))


# -- streams -----------------------------------------------------------------------------------------------------------


def test_stream_of_single_bytes_is_a_stream(nodes: Nodes) -> None:
    data = sound(nodes)
    with nodes.stream(STRANGER) as stream:
        for byte in data:
            stream.send(bytes([byte]))
        answer = stream.receive()
    assert answer is not None
    assert answer.status == 200


def test_streams_that_never_end_a_message_are_closed(nodes: Nodes) -> None:
    endless = {
        "clerr": (TORTURE / "rfc4475/clerr.dat").read_bytes(),
        "baddn": (TORTURE / "rfc4475/baddn.dat").read_bytes(),
        "no line": b"INVITE sip:",
        "head": sound(nodes)[:-2],
        "body": sound(nodes).replace(b"Content-Length: 0", b"Content-Length: 50000") + b"x" * 49_999,
        "nul": b"\0" * 1000,
        "after a sound one": sound(nodes) + sound(nodes)[:40],
        "dripping": b"I",
    }
    before = nodes.counters()
    with ExitStack() as opened:
        start = time.monotonic()
        streams = {name: opened.enter_context(nodes.stream(STRANGER)) for name in endless}
        for name, stream in streams.items():
            stream.send(endless[name])
        while not all(stream.ended for stream in streams.values()):
            # Progress a byte at a time doesn't buy more time; and others are served meanwhile.
            streams["dripping"].send(b"I")
            with nodes.stream(STRANGER) as other:
                assert other.until_answered(options(nodes.address)) == []
            for name, stream in streams.items():
                answer = stream.receive(0.02)
                assert answer is None or (name == "after a sound one" and answer.status == 200)
            assert time.monotonic() - start < MESSAGE_TIMEOUT + 3, [n for n, s in streams.items() if not s.ended]
        assert time.monotonic() - start > MESSAGE_TIMEOUT / 2
    assert counted(nodes, before)["transport_tcp_unfinished"] == len(endless)


def test_stream_without_end_is_closed_at_the_limit(nodes: Nodes) -> None:
    for chunk in (b"x" * 4096, b"X: y\r\n" * 500, b"\0" * 4096, b"\r" * 4096, b"\n" * 4096):
        with nodes.stream(STRANGER) as stream:
            stream.send(b"OPTIONS")
            sent = 0
            while not stream.ended and sent < 32 << 20:
                stream.send(chunk)
                sent += len(chunk)
                stream.receive(0)
            assert stream.ended
        # The rest was in the sockets' buffers.
        assert sent < 8 << 20


def test_stream_of_line_ends_costs_nothing(nodes: Nodes) -> None:
    with nodes.stream(STRANGER) as stream:
        for _ in range(50):
            stream.send(b"\r\n" * 2000)
        assert stream.until_answered(options(nodes.address)) == []


def test_framing_survives_a_malformed_request(nodes: Nodes) -> None:
    malformed = sound(nodes).replace(b" OPTIONS\r\n", b" INVITE\r\n")
    parts = [sound(nodes), malformed, sound(nodes), malformed.replace(b"OPTIONS", b"ACK", 1), sound(nodes)]
    with nodes.stream(STRANGER) as stream:
        stream.send(b"".join(parts))
        answers = [answer for answer in [stream.receive() for _ in range(4)] if answer is not None]
        assert stream.until_answered(options(nodes.address)) == []
    assert {answer.get("Call-ID"): answer.status for answer in answers} == {
        call_id(parts[0]): 200,
        call_id(malformed): 400,
        call_id(parts[2]): 200,
        call_id(parts[4]): 200,
    }


def test_garbage_ends_its_stream_and_no_other(nodes: Nodes) -> None:
    chance, before = random.Random(SEED), nodes.counters()
    garbage = (
        b"\x01garbage",
        b"GET / HTTP/1.1\r\nHost: x",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"SIP/2.0 200 OK",
        b"\0\n\0",
    )
    with nodes.stream(STRANGER) as other, ExitStack() as opened:
        streams = [opened.enter_context(nodes.stream(STRANGER)) for _ in range(300)]
        for stream in streams:
            stream.send(sound(nodes) + chance.choice(garbage) + b"\r\n\r\n" + sound(nodes))
        assert other.until_answered(options(nodes.address)) == []
        for stream in streams:
            assert [answer.status for answer in stream.messages()] == [200]
            assert stream.ended
        assert other.until_answered(options(nodes.address)) == []
    assert counted(nodes, before)["transport_malformed"] == 300


def test_a_client_that_does_not_read_is_left_behind(nodes: Nodes) -> None:
    # Answers of 60 kB, for nobody who takes them: the node stops to read, and keeps no more than its limit.
    resident = nodes.resident()
    data = sound(nodes, *["v: SIP/2.0/UDP a.example.com"] * 2000)
    with nodes.stream(STRANGER) as deaf:
        deaf._socket.settimeout(0.3)
        with suppress(OSError):
            for _ in range(400):
                deaf._socket.sendall(data)
        with nodes.stream(STRANGER) as other:
            assert other.until_answered(options(nodes.address)) == []
    assert nodes.resident() - resident < 16 << 10


# -- memory ------------------------------------------------------------------------------------------------------------


def test_refused_requests_leave_nothing_behind(nodes: Nodes) -> None:
    """Ten thousand requests, all different, that a stranger may send: memory does not grow with them."""
    kinds = ("INVITE", "REGISTER", "MESSAGE", "SUBSCRIBE", "CANCEL", "ACK", "BYE", "NOSUCH")

    def flood(datagrams: Datagrams) -> None:
        for _ in range(625):
            for kind in kinds:
                datagrams.send(request(kind, "sip:user@example.com", sender="sip:user@example.com"))
            datagrams.until_answered(options(nodes.address))

    with nodes.datagrams(STRANGER) as stranger:
        flood(stranger)
        resident = nodes.resident()
        flood(stranger)
    assert nodes.resident() - resident < 2 << 10


# -- credentials -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line.replace("nc=00000001", "nc=zzzz"),
        lambda line: line.replace('nonce="', 'nonce="\x00'),
        lambda line: line.replace('nonce="', 'nonce="' + "0" * 3000),
        lambda line: line.replace('response="', 'response="\u00e9'),
        lambda line: line.replace('username="', 'username="\udcff'),
        lambda line: line.replace("algorithm=MD5", "algorithm=ROT13"),
        lambda line: line.replace('uri="sip:', 'uri="<>'),
        lambda line: line.replace("Digest", "Basic"),
        lambda line: line[: len(line) // 2],
        lambda line: line + ', username="bob"',
    ],
)
def test_spoilt_credentials_are_refused(nodes: Nodes, spoil: object) -> None:
    aor, uri = "sip:alice@sipha.test", "sip:sipha.test"
    data = request("REGISTER", uri, sender=aor, to=aor, fields=("Contact: <sip:alice@127.0.22.97>",))
    assert callable(spoil)
    with nodes.datagrams(STRANGER) as stranger:
        text = authorized(again(data), stranger.ask(data), "alice", "alice-secret").decode()
        line = next(line for line in text.split("\r\n") if line.startswith("Authorization"))
        answer = stranger.ask(text.replace(line, spoil(line)).encode("utf-8", "surrogateescape"))
    assert answer.status in {400, 401}


# -- configuration -----------------------------------------------------------------------------------------------------

MINIMAL = '[node]\nname = "a"\n\n[[domains]]\nname = "sipha.test"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[node\n", "line 1, column 6: not TOML: "),
        ("", "node: is missing; add a table [node]"),
        (MINIMAL + "[sip]\nprot = 5060\n", "sip.prot: is not a known key; did you mean port?"),
        (MINIMAL + '[sip]\nport = "5060"\n', 'sip.port: "5060" is a string; write an integer'),
        (
            MINIMAL + '[sip]\ntransports = ["tcp"]\n',
            'sip.transports: must contain "udp" (RFC 3261 §18); write ["udp", "tcp"]',
        ),
        (MINIMAL + '[[peers]]\nname = "p"\nnetworks = ["10.0.0.1/8"]\n', 'the network is "10.0.0.0/8"'),
        (MINIMAL + '[admin]\nlisten = "0.0.0.0:8080"\n', "admin.listen: '0.0.0.0:8080' is not a loopback address"),
    ],
)
def test_wrong_configuration_ends_the_command_with_one_message(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "sipha.toml"
    file.write_text(text)
    status, output = run(file)
    assert status == 1
    (line,) = output.strip().splitlines()
    assert line.startswith(f"sipha: {file}: ")
    assert message in line


def test_missing_configuration_ends_the_command_with_one_message(tmp_path: Path) -> None:
    file = tmp_path / "sipha.toml"
    assert run(file) == (1, f"sipha: {file}: can't be read: No such file or directory\n")


def test_data_directory_that_is_a_file_ends_the_command_with_one_message(tmp_path: Path) -> None:
    file, data = tmp_path / "sipha.toml", tmp_path / "data"
    data.touch()
    file.write_text(MINIMAL.replace('name = "a"', f'name = "a"\ndata_dir = "{data}"'))
    status, output = run(file)
    assert status == 1
    assert "Traceback" not in output
    assert str(data) in output.strip().splitlines()[-1]


def run(file: Path) -> tuple[int, str]:
    """Run a node with a configuration that it can't run with; its exit status, and all that it says."""
    twistd = str(Path(sys.executable).with_name("twistd"))
    command = [twistd, "--nodaemon", "--pidfile=", "sipha", "run", "--config", str(file)]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20, cwd=file.parent
    )
    return done.returncode, done.stdout


# -- the admin ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/page", None, 404),
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/%ff", None, 400),
        ("GET", "/v1/status?x=1", None, 400),
        ("GET", "/v1/bindings?limit=0", None, 400),
        ("GET", "/v1/bindings?limit=" + "9" * 5000, None, 400),
        ("GET", "/v1/bindings?limit=1&limit=2", None, 400),
        ("GET", "/v1/bindings/nobody@sipha.test", None, 404),
        ("GET", "/v1/bindings/%00%00", None, 404),
        ("GET", "/v1/accounts/@@@", None, 404),
        ("DELETE", "/v1/status", None, 405),
        ("DELETE", "/v1/bindings/nobody@sipha.test", None, 404),
        ("DELETE", "/v1/accounts/nobody@sipha.test", None, 404),
        ("POST", "/v1/accounts", b"", 400),
        ("POST", "/v1/accounts", b"{", 400),
        ("POST", "/v1/accounts", b'"\xff"', 422),
        ("POST", "/v1/accounts", b"[" * 100_000, 422),
        ("POST", "/v1/accounts", b"{}", 422),
        ("POST", "/v1/accounts", b"17", 422),
        ("POST", "/v1/accounts", b'{"username": "x", "domain": "sipha.test", "password": 1}', 422),
        ("POST", "/v1/accounts", b'{"username": "x", "domain": "sipha.test", "pasword": "x"}', 422),
        ("POST", "/v1/accounts", b'{"username": "x", "domain": "elsewhere.test", "password": "x"}', 422),
        ("POST", "/v1/accounts", b'{"username": "a@b", "domain": "sipha.test", "password": "x"}', 422),
        ("POST", "/v1/accounts", b'{"username": "\\ud800", "domain": "sipha.test", "password": "x"}', 400),
        ("POST", "/v1/accounts", b'{"username": "alice", "domain": "sipha.test", "password": "x"}', 409),
        ("PUT", "/v1/accounts/alice@sipha.test", b'{"ha1": {"MD5": "x"}}', 422),
        ("PUT", "/v1/accounts/nobody@sipha.test", b'{"password": "x"}', 404),
        ("POST", "/v1/accounts", b" " * (1024 * 1024 + 1), 413),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, bytes | str) else None,
)
def test_bad_admin_request_is_told_why(nodes: Nodes, method: str, path: str, body: bytes | None, status: int) -> None:
    for node in nodes.sandbox.nodes:
        connection = http.client.HTTPConnection(node.host, 8080, timeout=5)
        connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
        response = connection.getresponse()
        assert response.status == status
        assert response.getheader("Content-Type") == "application/json"
        error = json.load(response)["error"]
        assert error["status"] == status
        assert len(error["detail"]) > 10
        connection.close()


@pytest.mark.parametrize(
    "data",
    [b"\0" * 100, b"GET\r\n", b"OPTIONS sip:x SIP/2.0\r\nVia: x\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 99_999],
    ids=["nul", "no path", "sip", "long"],
)
def test_what_is_not_http_ends_at_the_admin(nodes: Nodes, data: bytes) -> None:
    with socket.create_connection((nodes.sandbox.nodes[0].host, 8080), timeout=5) as connection:
        connection.sendall(data + b"\r\n\r\n")
        answer = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    assert answer == b"" or re.match(rb"HTTP/1\.[01] 4\d\d ", answer)
