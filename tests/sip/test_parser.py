from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.errors import MalformedMessage
from sipha.sip import parser
from sipha.sip.message import Request, Response
from sipha.sip.parser import Keepalive, ParseError, StreamParser, parse

HEAD = (
    b"OPTIONS sip:bob@example.com SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1;rport\r\n"
    b"From: <sip:alice@example.com>;tag=1\r\n"
    b"To: <sip:bob@example.com>\r\n"
    b"Call-ID: a84b4c76e66710\r\n"
    b"CSeq: 1 OPTIONS\r\n"
)
PING = Keepalive(b"\r\n\r\n")
PONG = Keepalive(b"\r\n")


def without(name: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in HEAD.split(b"\r\n")[:-1] if not line.startswith(name)) + b"\r\n"


def refused(data: bytes) -> ParseError:
    with pytest.raises(ParseError) as caught:
        parse(data)
    return caught.value


# -- Datagrams -------------------------------------------------------------------------------------


def test_parse_reads_a_request() -> None:
    request = parse(HEAD + b"Content-Length: 3\r\n\r\nabc")
    assert isinstance(request, Request)
    assert (request.method, request.uri, request.body) == ("OPTIONS", "sip:bob@example.com", b"abc")
    assert request.cseq.number == 1


def test_parse_reads_a_response() -> None:
    response = parse(HEAD.replace(b"OPTIONS sip:bob@example.com SIP/2.0", "SIP/2.0 183 Ça va, no?".encode()) + b"\r\n")
    assert isinstance(response, Response)
    assert (response.status, response.reason) == (183, "Ça va, no?")


@pytest.mark.parametrize("line", [b"SIP/2.0 200", b"SIP/2.0 200 ", b"sip/2.0 200 OK"])
def test_parse_reads_status_lines(line: bytes) -> None:
    message = parse(HEAD.replace(b"OPTIONS sip:bob@example.com SIP/2.0", line) + b"\r\n")
    assert isinstance(message, Response)
    assert message.status == 200


def test_parse_takes_all_that_comes_as_body_without_a_length() -> None:
    assert parse(HEAD + b"\r\nabc\r\n\r\ndef").body == b"abc\r\n\r\ndef"


def test_parse_discards_what_is_beyond_the_length() -> None:
    assert parse(HEAD + b"Content-Length: 2\r\n\r\nabc").body == b"ab"


def test_parse_ignores_crlf_before_the_start_line() -> None:
    assert isinstance(parse(b"\r\n\r\n" + HEAD + b"\r\n"), Request)


def test_parse_reads_lines_that_end_in_lf_only() -> None:
    data = (HEAD + b"Subject: a\r\n b\r\nContent-Length: 5\r\n\r\n").replace(b"\r\n", b"\n")
    request = parse(data + b"a\n\nb\n")
    assert request.body == b"a\n\nb\n"
    assert request.headers.get("Subject") == "a b"
    assert request.call_id == "a84b4c76e66710"
    assert b"\n" not in request.render()[: -len(request.body)].replace(b"\r\n", b"")


def test_parse_ends_the_head_at_the_first_empty_line() -> None:
    request = parse(HEAD + b"\nRoute: <sip:evil>\r\n\r\nbody")
    assert "Route" not in request.headers
    assert request.body == b"Route: <sip:evil>\r\n\r\nbody"


def test_parse_reads_compact_folded_and_spaced_headers() -> None:
    request = parse(
        b"OPTIONS sip:bob@example.com SIP/2.0\r\nv:SIP/2.0/UDP a\r\n ;branch=z9hG4bK1\r\nf : <sip:a@b>\r\n"
        b"TO\t:\r\n sip:c@d ;\r\n   tag   =  1918181833n\r\ni:x\r\ncseq: 0009\r\n  OPTIONS\r\nl: 0\r\n\r\n"
    )
    assert request.via.branch == "z9hG4bK1"
    assert request.to.tag == "1918181833n"
    assert request.cseq.number == 9


def test_parse_keeps_bytes_that_are_not_utf8() -> None:
    request = parse(HEAD.replace(b"<sip:alice", b'"\xff\xc3\xa9\x00" <sip:alice') + b"X: \x80\r\n\r\n")
    assert request.from_.display.encode("utf-8", "surrogateescape") == b"\xff\xc3\xa9\x00"
    assert b'"\xff\xc3\xa9\x00" <sip:alice' in request.render()
    assert b"X: \x80\r\n" in request.render()


def test_parse_accepts_unknown_methods_and_schemes() -> None:
    odd = b"!interesting-Method0123456789_*+`.%indeed'~"
    request = parse(
        HEAD.replace(b"OPTIONS sip:bob@example.com", b"OPTIONS unknown:x").replace(b"OPTIONS", odd) + b"\r\n"
    )
    assert isinstance(request, Request)
    assert request.method == odd.decode()


@pytest.mark.parametrize("name", [b"Via", b"From", b"To", b"Call-ID", b"CSeq"])
def test_parse_refuses_a_message_without(name: bytes) -> None:
    error = refused(without(name))
    assert error.response_status == 400
    assert name.decode() in error.detail
    assert error.request is None


@pytest.mark.parametrize("name", [b"From", b"To", b"Call-ID", b"CSeq", b"Max-Forwards"])
def test_parse_refuses_a_single_header_twice(name: bytes) -> None:
    lines = {b"Max-Forwards": b"Max-Forwards: 1"} | {line.partition(b":")[0]: line for line in HEAD.split(b"\r\n")}
    error = refused(HEAD + b"Max-Forwards: 2\r\n" + lines[name] + b"\r\n\r\n")
    assert name.decode() in error.detail
    assert error.request is not None
    assert error.request.headers.count(name.decode()) == 1


@pytest.mark.parametrize(
    ("old", "new", "status", "detail"),
    [
        (b"SIP/2.0\r\nVia", b"SIP/3.0\r\nVia", 505, "version"),
        (b"SIP/2.0\r\nVia", b"HTTP/1.1\r\nVia", 400, "request line"),
        (b"OPTIONS sip", b"OPTIONS  sip", 400, "request line"),
        (b" SIP/2.0\r\nVia", b" SIP/2.0 \r\nVia", 400, "request line"),
        (b" SIP/2.0\r\nVia", b"\r\nVia", 400, "request line"),
        (b"bob@example.com SIP", b"bob@example.com; lr SIP", 400, "request line"),
        (b"sip:bob@example.com SIP", b"<sip:bob@example.com> SIP", 400, "URI"),
        (b"sip:bob@example.com SIP", b"sip:2001:db8::10 SIP", 400, "URI"),
        (b"<sip:alice@example.com>", b'"Alice <sip:alice@example.com>', 400, "From"),
        (b"To: <", b"To: Bell, Alexander <", 400, "To"),
        (b"CSeq: 1 OPTIONS", b"CSeq: 1 INVITE", 400, "CSeq"),
        (b"CSeq: 1 OPTIONS", b"CSeq: 1", 400, "CSeq"),
        (b"CSeq: 1 ", b"CSeq: 36893488147419103232 ", 400, "CSeq"),
        (b"Call-ID", b"Nonsense\r\nCall-ID", 400, "header field"),
        (b"Call-ID", b"Subject: a\rRoute: x\r\nCall-ID", 400, "CR"),
        (b"Call-ID", b"Content-Length: -999\r\nCall-ID", 400, "Content-Length"),
        (b"Call-ID", b"Content-Length: 1\r\nCall-ID", 400, "Content-Length"),
        (b"Call-ID", b"Content-Length: " + b"9" * 5000 + b"\r\nCall-ID", 400, "Content-Length"),
        (b"Call-ID", b"Content-Length: 0x0\r\nCall-ID", 400, "Content-Length"),
        (b"Call-ID", b"Content-Length: 0\r\nl: 1\r\nCall-ID", 400, "Content-Length"),
        (b"Call-ID", b"Content-Length: 0\r\nl: x\r\nCall-ID", 400, "Content-Length"),
    ],
)
def test_parse_refuses_and_can_answer(old: bytes, new: bytes, status: int, detail: str) -> None:
    error = refused(HEAD.replace(old, new) + b"\r\n")
    assert error.response_status == status
    assert detail in error.detail
    assert error.request is not None
    assert error.request.via.branch == "z9hG4bK1"


def test_parse_accepts_a_length_that_is_repeated() -> None:
    assert parse(HEAD + b"Content-Length: 0\r\nl: 00\r\n\r\n").body == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\r\n",
        b"hello",
        HEAD.replace(b"OPTIONS", b"ACK").replace(b"ACK\r\n\r\n", b"INVITE\r\n\r\n") + b"l: 9\r\n\r\n",
        HEAD.replace(b"OPTIONS sip:bob@example.com SIP/2.0", b"SIP/2.0 99 Low") + b"\r\n",
        HEAD.replace(b"OPTIONS sip:bob@example.com SIP/2.0", b"SIP/2.0 4294967301 Big") + b"\r\n",
        HEAD.replace(b"OPTIONS sip:bob@example.com SIP/2.0", "SIP/2.0 ٢٠٠ OK".encode()) + b"\r\n",
        HEAD.replace(b"OPTIONS sip:bob@example.com SIP/2.0", b"SIP/7.0 200 OK") + b"\r\n",
        HEAD.replace(b"192.0.2.1:5060", b"192.0.2.1:5060;;") + b"\r\n",
        HEAD.replace(b"OPTIONS sip", b"OPT{}IONS sip") + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
    ],
)
def test_parse_refuses_what_nobody_can_answer(data: bytes) -> None:
    assert refused(data).request is None


def test_parse_refuses_a_head_that_does_not_end() -> None:
    error = refused(HEAD)
    assert "empty line" in error.detail
    assert error.request is not None


# -- Streams ---------------------------------------------------------------------------------------

ONE = HEAD + b"Content-Length: 3\r\n\r\nabc"
TWO = HEAD.replace(b"a84b4c76e66710", b"second") + b"l: 0\r\n\r\n"


def drain(parser: StreamParser) -> list[bytes | Keepalive | str]:
    taken: list[bytes | Keepalive | str] = []
    while True:
        try:
            message = parser.next()
        except MalformedMessage as error:
            taken.append(error.detail)
            continue
        if message is None:
            return taken
        taken.append(message if isinstance(message, Keepalive) else message.render())


def test_stream_gives_each_message_once_it_is_complete() -> None:
    parser = StreamParser()
    parser.feed(ONE[:-1])
    assert drain(parser) == []
    assert parser.pending
    parser.feed(ONE[-1:] + TWO + ONE[:40])
    assert drain(parser) == [ONE, TWO]
    assert parser.pending
    parser.feed(ONE[40:])
    assert drain(parser) == [ONE]
    assert not parser.pending


def test_stream_tells_pings_and_pongs() -> None:
    parser = StreamParser()
    parser.feed(b"\r\n\r\n" + ONE + b"\r\n" + TWO + b"\r\n\r\n\r\n\r\n")
    assert drain(parser) == [PING, ONE, PONG, TWO, PING, PING]
    parser.feed(b"\r\n")
    assert drain(parser) == [PONG]
    assert PING.ping
    assert not PONG.ping


def test_stream_answers_a_ping_that_comes_in_pieces() -> None:
    parser = StreamParser()
    taken = []
    for byte in b"\r\n\r\n":
        parser.feed(bytes((byte,)))
        taken += drain(parser)
    assert [keepalive for keepalive in taken if keepalive == PING] == [PING]


def test_stream_goes_on_after_a_message_that_is_wrong() -> None:
    parser = StreamParser()
    parser.feed(ONE.replace(b"CSeq: 1 OPTIONS", b"CSeq: 1 INVITE") + TWO)
    with pytest.raises(ParseError, match="CSeq") as caught:
        parser.next()
    assert caught.value.request is not None
    assert not parser.fatal
    assert drain(parser) == [TWO]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD + b"\r\n", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nl: 2\r\n\r\n", 400),
        (HEAD + b"Content-Length: 65536\r\n\r\n", 513),
        (HEAD + b"Content-Length: 9999999999\r\n\r\n", 513),
    ],
)
def test_stream_is_lost_with_the_length_of_a_message(head: bytes, status: int) -> None:
    parser = StreamParser()
    parser.feed(head + TWO)
    with pytest.raises(ParseError) as caught:
        parser.next()
    assert caught.value.response_status == status
    assert caught.value.request is not None
    assert parser.fatal
    parser.feed(TWO)
    assert parser.next() is None
    assert not parser.pending


def test_stream_is_lost_when_a_head_never_ends() -> None:
    parser = StreamParser(max_message=5000)
    parser.feed(HEAD)
    for _ in range(4):
        assert parser.next() is None
        parser.feed(b"X: " + b"y" * 995 + b"\r\n")
    parser.feed(b"X: " + b"y" * 995 + b"\r\n")
    with pytest.raises(ParseError) as caught:
        parser.next()
    assert caught.value.response_status == 513
    assert caught.value.request is not None
    assert caught.value.request.call_id == "a84b4c76e66710"
    assert parser.fatal


@pytest.mark.parametrize(
    "data", [HEAD[:-9] + b"\0" * 5000, b"x" * 5001, b"\n" + b"x" * 5001, b"ACK" + HEAD[7:] + b"x" * 5001]
)
def test_what_never_becomes_a_head_is_not_answered(data: bytes) -> None:
    parser = StreamParser(max_message=5000)
    parser.feed(data)
    with pytest.raises(ParseError) as caught:
        parser.next()
    assert caught.value.request is None
    assert parser.fatal


# -- Time ------------------------------------------------------------------------------------------


def seconds(data: bytes) -> float:
    start = time.process_time()
    try:
        message = parse(data)
    except MalformedMessage:
        pass
    else:
        message.headers.pop_value("Via")
        message.copy().render()
    return time.process_time() - start


@pytest.mark.parametrize(
    "line",
    [
        b"Via: SIP/2.0/UDP 192.0.2.7:5060;branch=z9hG4bK",
        b" ,SIP/2.0/UDP 192.0.2.7:5060;branch=z9hG4bK",
        b" folded",
        b"  ",
        b"X-Foo: bar",
        b"nonsense",
        b"Content-Length: 0",
        b"From: <sip:a@b>",
    ],
)
def test_parse_takes_linear_time(line: bytes) -> None:
    start, end = HEAD.split(b"\r\n", 2)[:2], HEAD.split(b"\r\n", 2)[2]

    def message(lines: int) -> bytes:
        return b"\r\n".join([*start, *[line] * lines, end]) + b"\r\n"

    few = min(seconds(message(600)) for _ in range(3))
    many = min(seconds(message(10_000)) for _ in range(2))
    # 17 times the lines would take 278 times as long if it were quadratic.
    assert many < max(100 * few, 0.1)


def test_parse_reads_ten_thousand_vias_in_a_field() -> None:
    vias = b",".join([b"SIP/2.0/UDP h;branch=z9hG4bK1"] * 10_000)
    message = parse(HEAD.replace(b"Via: ", b"Via: " + vias + b",") + b"\r\n")
    assert len(message.vias) == 10_001
    assert message.via.branch == "z9hG4bK1"


def test_stream_takes_linear_time_byte_by_byte() -> None:
    def fed(size: int) -> float:
        parser = StreamParser()
        start = time.process_time()
        for _ in range(size):
            parser.feed(b"x")
            assert parser.next() is None
        return time.process_time() - start

    assert min(fed(64_000) for _ in range(2)) < 100 * fed(4_000)


# -- Plain responses -------------------------------------------------------------------------------

RESPONSE = (
    "SIP/2.0 180 Ringing\r\nVia: SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKours.0123\r\n"
    "Record-Route: <sip:token@192.0.2.10:5060;lr>\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;rport=5060;branch=z9hG4bK1\r\n"
    'From: "Alice" <sip:alice@example.com>;tag=1\r\nTo: <sip:bob@example.com>;tag=2\r\nCall-ID: a84b4c76e66710@x\r\n'
    "CSeq: 1 INVITE\r\nContact: <sip:bob@192.0.2.2>\r\nX-Text: \r\nContent-Length: 3\r\n\r\nabcd"
)
PLAIN = (
    ("", ""),
    ("180 Ringing", "200 "),
    ("180 Ringing", "486 Ça va, no?"),
    (":5060;branch=z9hG4bKours.0123", ";received=192.0.2.2;branch=z9hG4bKours.0123;rport=7;x"),
    ("Record-Route: <sip:token@192.0.2.10:5060;lr>\r\n", ""),
    ("Via: SIP/2.0/UDP 192.0.2.1:5060;rport=5060;branch=z9hG4bK1\r\n", ""),
    ("To: <sip:bob@example.com>;tag=2", "To: <sip:bob@example.com>"),
    ("To: <sip:bob@example.com>;tag=2", 'To: "Bob, B." <sip:bob@example.com;x=y>;a=b;TAG=2;c'),
    ("X-Text: ", "X-Text: \udcff"),
    ("Content-Length: 3", "Content-Length: 03"),
)
OTHER = (
    ("180 Ringing", "180"),
    ("180 Ringing", "700 x"),
    ("SIP/2.0 ", "sip/2.0 "),
    ("Via: ", "v: "),
    ("Via: ", "Via:"),
    (":5060;branch=z9hG4bKours", ":05060;branch=z9hG4bKours"),
    ("z9hG4bKours.0123", "z9hG4bKours.0123, SIP/2.0/UDP 192.0.2.3"),
    ("From: ", "f: "),
    ("From: ", "FROM: <sip:eve@example.com>;tag=1\r\nFrom: "),
    ("From: ", "From: <sip:eve@example.com>;tag=1\r\nFrom: "),
    ("To: ", "To: <sip:eve@example.com>;tag=2\r\nTo: "),
    ("Call-ID: ", "Call-ID: other\r\nCall-ID: "),
    ("CSeq: ", "CSeq: 1 INVITE\r\nCSeq: "),
    ("To: <sip:bob@example.com>", "To: sip:bob@example.com"),
    (";branch=z9hG4bKours.0123", ";branch=z9hG4bKours.0123;"),
    (";branch=z9hG4bKours.0123", ";branch=z9hG4bKours.0123;x=;"),
    ("To: <sip:bob@example.com>;tag=2", "To: <sip:bob@example.com>;tag=2;"),
    ("Call-ID: a84b4c76e66710@x", "Call-ID: "),
    ("Call-ID: a84b4c76e66710@x\r\n", ""),
    ("CSeq: 1 INVITE", "CSeq: 1\r\n INVITE"),
    ("CSeq: 1 INVITE", "CSeq: 4294967296 INVITE"),
    ("Content-Length: 3", "Content-Length: 5"),
    ("Content-Length: 3", "l: 3"),
    ("Content-Length: 3", "L: 2\r\nContent-Length: 3"),
    ("Content-Length: 3\r\n", ""),
    ("Content-Length: 3", "Content-Length: 3\r\nContent-Length: 3"),
    ("X-Text: ", "X-Text: \r"),
    ("X-Text: ", "X-Text: \n"),
    ("X-Text: ", "X-Text : "),
    ("X-Text: ", "Max-Forwards: 3\r\nX-Text: "),
)


def edited(*edits: tuple[str, str]) -> bytes:
    text = RESPONSE
    for old, new in edits:
        text = text.replace(old, new, 1)
    return text.encode("utf-8", "surrogateescape")


def properties(data: bytes) -> object:
    """All that a response says, and what becomes of it when it is forwarded."""
    try:
        response = parse(data)
    except ParseError as error:
        return error.detail, error.response_status
    assert isinstance(response, Response)
    values = response.status, response.reason, response.via, response.to, response.cseq, response.body
    forwarded = response.copy()
    assert parse(data).render() == response.render()
    assert forwarded.render() == response.render()
    more, bare = response.pop_via(), parse(data)
    assert isinstance(bare, Response)
    assert bare.pop_via() is more
    return values, more, response.render(), bare.from_, bare.call_id, bare.headers.lines, bare.headers.names()


@given(st.lists(st.sampled_from((*PLAIN, *OTHER)), max_size=3))
def test_response_says_the_same_whether_it_is_plain_or_not(edits: list[tuple[str, str]]) -> None:
    data = edited(*edits)
    seen = properties(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "_plain_response", lambda _data, _body_at: None)
        assert properties(data) == seen


@pytest.mark.parametrize("edit", PLAIN)
def test_response_as_most_are_is_plain(edit: tuple[str, str]) -> None:
    data = edited(edit)
    assert parser._plain_response(data, data.index(b"\r\n\r\n") + 2) is not None


@pytest.mark.parametrize("edit", OTHER)
def test_response_that_needs_a_closer_look_is_not_plain(edit: tuple[str, str]) -> None:
    data = edited(edit)
    assert data != edited()
    assert parser._plain_response(data, data.index(b"\r\n\r\n") + 2) is None
