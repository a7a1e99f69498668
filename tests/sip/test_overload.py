from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response, mark_received, response_to
from sipha.sip.overload import (
    ADMITTED,
    LATE,
    LONGEST_SPREAD,
    PATIENCE,
    QUIET,
    SPREAD,
    T1,
    Overload,
    Priority,
    Tally,
    Verdict,
    mark_of,
    priority_of,
    refusal,
)
from sipha.sip.parser import parse

SERVER = ("192.0.2.10", 5060)
PHONE = Flow("UDP", SERVER, ("192.0.2.1", 40000))
REGISTER = (
    b"REGISTER sip:sipha.test SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1:5060;rport;branch=z9hG4bK1\r\n"
    b"Max-Forwards: 70\r\nFrom: <sip:alice@sipha.test>;tag=1\r\nTo: <sip:alice@sipha.test>\r\nCall-ID: a\r\n"
    b"CSeq: 1 REGISTER\r\nContact: <sip:alice@10.0.0.1>\r\nContent-Length: 0\r\n\r\n"
)
KNOWN = REGISTER.replace(b"Contact:", b'Authorization: Digest username="alice"\r\nContact:')


def request(method: str, *, uri: str = "sip:bob@sipha.test", more: str = "", to_tag: str = "") -> bytes:
    text = REGISTER.decode().replace("REGISTER sip:sipha.test", f"{method} {uri}").replace("REGISTER", method)
    return text.replace("To: <sip:alice@sipha.test>", f"To: <sip:bob@sipha.test>{to_tag}\r\nX: y{more}").encode()


def serves(overload: Overload, data: bytes, flow: Flow = PHONE) -> bool:
    """Whether one request among many of its kind is served."""
    return [overload.judge(data, flow, 0.0) for _ in range(ADMITTED + 1)][-1] is Verdict.SERVED


@pytest.mark.parametrize(
    ("data", "priority"),
    [
        (REGISTER, "first register"),
        (KNOWN, "register"),
        (KNOWN.replace(b"Authorization:", b"authorization :"), "register"),
        (request("INVITE"), "invite"),
        (request("INVITE", to_tag=";tag=2"), None),
        (request("INVITE", to_tag="; TAG = 2").replace(b"To: ", b"t:"), None),
        (request("INVITE", more="\r\nPriority: emergency"), None),
        (request("INVITE", more="\r\nResource-Priority: esnet.1"), None),
        (request("SUBSCRIBE"), "other"),
        (request("SUBSCRIBE", to_tag=";tag=2"), None),
        (request("OPTIONS"), "other"),
        (request("NEW"), "other"),
        *((request(method), None) for method in ("ACK", "BYE", "CANCEL", "INFO", "NOTIFY", "PRACK", "UPDATE")),
        (b"SIP/2.0 200 OK\r\n\r\n", None),
        (b"sip/2.0 200 OK\r\n\r\n", None),
        (b"\r\n\r\nSIP/2.0 200 OK\r\n\r\n", None),
        (b"\r\n" + request("ACK"), None),
        (b"\r\n" + KNOWN, "register"),
    ],
)
def test_datagram_has_a_priority_at_a_glance(data: bytes, priority: Priority | None) -> None:
    assert priority_of(data) == priority


def test_least_urgent_requests_are_refused_first() -> None:
    overload = Overload()
    assert list(PATIENCE.values()) == sorted(PATIENCE.values())
    assert all(wait < T1 for wait in PATIENCE.values())
    datagrams = dict(zip(PATIENCE, (request("OPTIONS"), REGISTER, KNOWN, request("INVITE")), strict=True))
    for wait in PATIENCE.values():
        assert overload.waited(wait + 0.001, 0.0)
        refused = {name for name, data in datagrams.items() if not serves(overload, data)}
        assert refused == {name for name, other in PATIENCE.items() if other <= wait}
        assert serves(overload, request("BYE"))


def test_nothing_is_refused_while_little_waits() -> None:
    overload = Overload()
    assert not overload.waited(PATIENCE["other"], PATIENCE["other"] / T1)
    assert not overload.waited(0.0, 0.0)


def test_full_buffer_is_as_bad_as_a_wait() -> None:
    overload = Overload()
    assert overload.waited(0.0, 1.0)
    assert not serves(overload, request("INVITE"))


def test_emergency_calls_are_served_by_their_number() -> None:
    overload = Overload()
    overload.adopt(lambda _: False, ("112",))
    overload.waited(T1, 1.0)
    for uri in ("sip:112@sipha.test", "sips:112@sipha.test", "tel:112", "tel:112;phone-context=+49", "urn:service:sos"):
        assert serves(overload, request("INVITE", uri=uri)), uri
    for uri in ("sip:1120@sipha.test", "tel:1120", "sip:bob@112"):
        assert not serves(overload, request("INVITE", uri=uri)), uri


def test_peer_that_asks_whether_we_live_is_answered_and_so_are_we_ourselves() -> None:
    peer, own = PHONE._replace(remote=("192.0.2.99", 5060)), PHONE._replace(remote=SERVER)
    overload = Overload()
    overload.adopt(lambda flow: flow == peer, ())
    overload.waited(T1, 1.0)
    for flow in (peer, own):
        assert serves(overload, request("OPTIONS"), flow)
        assert not serves(overload, request("SUBSCRIBE"), flow)
        assert not serves(overload, request("INVITE"), flow)


def test_no_flood_keeps_phones_out() -> None:
    overload = Overload()
    overload.waited(10.0, 1.0)
    verdicts = [overload.judge(KNOWN, PHONE, 0.0) for _ in range(10 * LATE)]
    assert verdicts.count(Verdict.SERVED) == pytest.approx(10 * ADMITTED, abs=1)
    tally = overload.tallies["register"]
    assert (tally.late, tally.refused, tally.ignored) == (10 * LATE, verdicts.count(Verdict.REFUSED), 0)


def test_of_a_load_that_lasts_half_as_many_are_answered_as_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipha.sip.overload.CREDIT", 100)
    overload = Overload()
    overload.waited(T1, 1.0)
    verdicts = [overload.judge(REGISTER, PHONE, 0.0) for _ in range(LATE // 2)]
    assert verdicts.count(Verdict.REFUSED) == 100
    assert verdicts[-1] is Verdict.IGNORED
    for _ in range(6):
        assert overload.judge(request("BYE"), PHONE, 0.0) is Verdict.SERVED
    again = [overload.judge(REGISTER, PHONE, 0.0) for _ in range(10)]
    assert again == [*[Verdict.REFUSED] * 3, *[Verdict.IGNORED] * 7]
    assert overload.tallies["first register"].ignored == verdicts.count(Verdict.IGNORED) + 7
    storm = [overload.judge(REGISTER, PHONE, T1) for _ in range(200)]
    assert storm.count(Verdict.REFUSED) == 100


def test_overload_is_told_when_it_begins_and_lasts_until_nothing_is_refused_for_some_time() -> None:
    begun: list[float] = []
    overload = Overload(begun.append)
    overload.waited(0.45, 0.0)
    assert not overload.lasts(0.0)
    for now in (5.0, 6.0, 15.0):
        for _ in range(LATE):
            overload.judge(REGISTER, PHONE, now)
    assert begun == [0.45]
    assert overload.lasts(15.0 + QUIET - 0.1)
    assert not overload.lasts(15.0 + QUIET)
    overload.log_is_behind(40.0)
    assert len(begun) == 2
    assert overload.behind == 1


def test_what_another_process_has_refused_counts_as_if_it_were_refused_here() -> None:
    begun: list[float] = []
    overload = Overload(begun.append)
    overload.add({}, 0, 0.3, 1.0)
    assert not begun
    overload.add({"register": Tally(0, 3, 2)}, 0, 0.3, 2.0)
    overload.add({"register": Tally(0, 1, 0)}, 4, 0.4, 2.1)
    assert begun == [0.3]
    assert (overload.tallies["register"].refused, overload.tallies["register"].ignored, overload.behind) == (4, 2, 4)
    assert overload.lasts(2.1 + QUIET - 0.1)


def test_phones_come_back_one_after_the_other() -> None:
    overload = Overload()
    requests = [REGISTER.replace(b"Call-ID: a", b"Call-ID: %d" % number) for number in range(2000)]
    assert {overload.retry_after(mark_of(data), 0.0) for data in requests} == set(range(1, SPREAD + 1))
    assert overload.retry_after(7, 0.0, 5) == 4 + overload.retry_after(7, 0.0)


def test_phones_come_back_within_the_time_that_it_takes_to_serve_them() -> None:
    overload = Overload()
    overload.waited(PATIENCE["first register"] + 0.01, 0.0)

    def second(begin: int, served: int) -> None:
        """Let a second pass in which so many are served."""
        for number in range(served):
            overload.judge(KNOWN, PHONE, begin + number / served)

    def waits(now: float, count: int) -> set[int]:
        return {overload.retry_after(mark, now) for mark in range(count)}

    assert not serves(overload, REGISTER)
    second(0, 100)
    second(1, 50)
    second(2, 1)
    longest = max(waits(2.0, 4000))
    assert longest == pytest.approx(4000 / 100, rel=0.2)
    assert max(waits(2.0, 100_000)) == LONGEST_SPREAD
    assert max(waits(2.0 + LONGEST_SPREAD, 100)) == SPREAD, "whom a flood kept away is back by then"


names = st.text(st.characters(exclude_characters='"<>\\,;', exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(
    data=st.sampled_from([REGISTER, KNOWN, request("INVITE"), request("INVITE", to_tag=";tag=x")]),
    params=st.sampled_from([";rport;branch=z9hG4bK1", ";branch=z9hG4bK1;rport", ";rport", ";rport;x=y;branch=1"]),
    name=names,
    retry_after=st.one_of(st.none(), st.integers(1, 100)),
    host=st.sampled_from(["192.0.2.1", "2001:db8::1"]),
)
def test_refusal_at_a_glance_is_the_one_that_would_be_made_of_the_parsed_request(
    data: bytes, params: str, name: str, retry_after: int | None, host: str
) -> None:
    data = data.replace(b";rport;branch=z9hG4bK1", params.encode())
    data = data.replace(b"From: <", f'From: "{name}" <'.encode())
    flow = PHONE._replace(remote=(host, 40000))
    made = refusal(data, flow, mark_of(data), retry_after)
    assert made is not None
    assert made == refusal(data, flow, mark_of(data), retry_after)
    response, parsed = parse(made), parse(data)
    assert isinstance(response, Response)
    assert isinstance(parsed, Request)
    mark_received(parsed, flow)
    headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
    right = response_to(parsed, 503, to_tag=response.to.tag, headers=headers)
    right.render()
    assert sorted(response.headers.lines) == sorted(right.headers.lines)
    assert (response.status, response.reason) == (right.status, right.reason)


@pytest.mark.parametrize(
    ("usual", "unusual"),
    [
        (b"Via: ", b"v: "),
        (b"Via: ", b"Via: SIP/2.0/UDP 10.0.0.2;branch=z9hG4bK2\r\nVia: "),
        (b";rport", b""),
        (b";rport", b";rport=5060"),
        (b";rport", b";rportal"),
        (b";rport", b";received=1.2.3.4;rport"),
        (b";rport", b";rport;received=1.2.3.4"),
        (b"z9hG4bK1", b"z9hG4bK1, SIP/2.0/UDP 10.0.0.2;branch=z9hG4bK2"),
        (b"/UDP", b"/TCP"),
        (b"To: ", b"To:"),
        (b"Call-ID: a\r\n", b""),
        (b"Call-ID: a", b"Call-ID: a\r\nCall-ID: b"),
        (b"Call-ID: a", b"Call-ID: a\nTo: b"),
        (b"alice@sipha.test>;tag", b"alice@sipha.test>\r\n ;tag"),
        (b"\r\n\r\n", b"\r\n"),
    ],
)
def test_request_that_is_written_otherwise_is_left_to_the_parser(usual: bytes, unusual: bytes) -> None:
    assert usual in REGISTER
    assert refusal(REGISTER.replace(usual, unusual, 1), PHONE, 1, 1) is None


@given(st.binary(max_size=300))
def test_any_bytes_can_be_judged(data: bytes) -> None:
    overload = Overload()
    overload.waited(T1, 1.0)
    overload.judge(data, PHONE, 0.0)
    refusal(data, PHONE, 1, 1)
