from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sipha.errors import MalformedMessage
from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response, mark_received, response_destination, response_to
from sipha.sip.parser import Keepalive, ParseError, StreamParser, parse
from sipha.sip.uri import SipUri, parse_uri

ARCHIVE = [path.read_bytes() for path in sorted((Path(__file__).parent / "torture").glob("rfc*/*.dat"))]
PIECES = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b",", b";", b"=", b'"', b"\\", b"<", b">", b"%", b"@", b":", b"[", b"]",
    b"\x00",
    b"\xff", b"\xc3\xa9", "\u00a0".encode(), "\u2028".encode(), "\u0663".encode(),
    b"z9hG4bK", b"SIP/2.0", b"Via: ",
    b"Content-Length: 5\r\n", b"l: -1\r\n", b"Contact: *\r\n", b"99999999999999999999", b";tag=", b"\r\n ", b"\r\n\r\n",
]  # fmt: skip
FLOW = Flow("UDP", ("192.0.2.10", 5060), ("203.0.113.9", 40123))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = draw(st.sampled_from(ARCHIVE))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 30)))
        data = data[:start] + draw(st.sampled_from(PIECES) | st.binary(max_size=8)) + data[end:]
    return data


def touch(message: Request | Response) -> None:
    """Do with a message what an element does; nothing but MalformedMessage may come of it."""
    # parse promises these.
    assert message.via.host
    assert message.from_.uri
    assert message.to.uri
    assert message.call_id
    assert 0 <= message.cseq.number < 2**31
    for name in ("vias", "contacts", "routes", "record_routes", "paths", "max_forwards", "expires"):
        with suppress(MalformedMessage):
            getattr(message, name)
    with suppress(MalformedMessage):
        for contact in message.contacts:
            assert contact.star or contact.uri
            _ = contact.q, contact.expires, contact.parsed_uri
    if isinstance(message, Request):
        _ = message.parsed_uri
        mark_received(message, FLOW)
        assert response_destination(message.via, FLOW).transport == "UDP"
        response = parse(response_to(message, 404, to_tag="t").render())
        assert isinstance(response, Response)
        assert response.to.tag is not None


def check(data: bytes) -> None:
    refusal = None
    try:
        message = parse(data)
    except ParseError as error:
        refusal = error
    if refusal is not None:
        assert refusal.response_status in {400, 505}
        if refusal.request is not None:
            assert refusal.request.via.host
            assert response_to(refusal.request, 400, to_tag="t").render().startswith(b"SIP/2.0 400 ")
        return
    again = parse(message.render())
    assert again.start_line == message.start_line
    assert again.headers.lines == message.headers.lines
    assert again.body == message.body
    touch(message)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_and_nothing_else(data: bytes) -> None:
    check(data)


@given(mutated())
def test_mutated_messages_are_parsed_or_refused(data: bytes) -> None:
    check(data)


@given(st.text(max_size=60) | st.text(alphabet='sip:s@%[]:;=?&.a1 <>"', max_size=60).map("sip:".__add__))
def test_uris_are_parsed_or_refused(text: str) -> None:
    try:
        uri = parse_uri(text)
    except MalformedMessage:
        return
    assert parse_uri(str(uri)) == uri
    assert uri.comparable.equivalent(uri.comparable)
    if isinstance(uri, SipUri):
        aor = parse_uri(uri.aor())
        assert isinstance(aor, SipUri)
        assert aor.aor() == uri.aor()
        assert uri.address is None or uri.address[1]


def taken(parser: StreamParser) -> list[tuple[str, list[str], bytes] | str]:
    """Return what can be taken, save pongs: the first half of a ping looks like one."""
    messages: list[tuple[str, list[str], bytes] | str] = []
    while True:
        try:
            message = parser.next()
        except ParseError as error:
            messages.append(error.detail)
            if parser.fatal:
                return messages
            continue
        if message is None:
            return messages
        if not isinstance(message, Keepalive):
            messages.append((message.start_line, message.headers.lines, message.body))
        elif message.ping:
            messages.append("ping")


@given(st.lists(st.sampled_from([*ARCHIVE, b"\r\n\r\n", b"\r\n"]) | mutated(), max_size=4), st.data())
def test_a_stream_gives_the_same_however_it_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    whole = StreamParser()
    whole.feed(stream)
    expected = taken(whole)
    parser = StreamParser()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        parser.feed(stream[start:end])
        got += taken(parser)
    assert got == expected
    assert parser.fatal == whole.fatal


@given(st.lists(st.binary(max_size=3000) | mutated(), max_size=10))
def test_a_stream_never_holds_more_than_a_message(parts: list[bytes]) -> None:
    parser = StreamParser(max_message=4096)
    for part in parts:
        parser.feed(part)
        taken(parser)
        assert len(parser._buffer) <= 4096
