from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response, mark_received, response_to
from sipha.sip.overload import (
    ADMITTED,
    EARNED,
    LATE,
    LEAST_SHARE,
    LONGEST_SPREAD,
    PATIENCE,
    QUIET,
    SHARE,
    SPREAD,
    T1,
    Overload,
    Priority,
    Tally,
    Verdict,
    mark_of,
    priority_of,
    refusal,
    refusals_by_pattern,
    sift_by_pattern,
)
from sipha.sip.parser import parse
from tests.kernels import kernel

KERNEL = kernel("sipha.sip._overload")
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


def decide(overload: Overload, data: bytes, flow: Flow = PHONE, now: float = 0.0) -> Verdict:
    """What becomes of a datagram that comes alone."""
    rest, refused = overload.sift([(data, flow)], now)
    assert len(rest) + len(refused) <= 1
    if refused:
        return Verdict.REFUSED
    return overload.judge(data, flow, now) if rest else Verdict.IGNORED


def serves(overload: Overload, data: bytes, flow: Flow = PHONE) -> bool:
    """Whether one request among many of its kind is served."""
    return [decide(overload, data, flow) for _ in range(ADMITTED + 1)][-1] is Verdict.SERVED


@pytest.mark.parametrize(
    ("data", "priority"),
    [
        (REGISTER, "first register"),
        (KNOWN, "register"),
        (KNOWN.replace(b"Authorization:", b"authorization :"), "register"),
        (request("INVITE"), "invite"),
        (request("INVITE", to_tag=";tag=2"), "urgent"),
        (request("INVITE", to_tag="; TAG = 2").replace(b"To: ", b"t:"), "urgent"),
        (request("INVITE", more="\r\nPriority: emergency"), "urgent"),
        (request("INVITE", more="\r\nResource-Priority: esnet.1"), "urgent"),
        (request("SUBSCRIBE"), "other"),
        (request("SUBSCRIBE", to_tag=";tag=2"), "urgent"),
        (request("OPTIONS"), "other"),
        (request("NEW"), "other"),
        *((request(method), "urgent") for method in ("ACK", "BYE", "CANCEL", "INFO", "NOTIFY", "PRACK", "UPDATE")),
        (b"SIP/2.0 200 OK\r\n\r\n", "urgent"),
        (b"sip/2.0 200 OK\r\n\r\n", "urgent"),
        (b"\r\n\r\nSIP/2.0 200 OK\r\n\r\n", "urgent"),
        (b"\r\n" + request("ACK"), "urgent"),
        (b"\r\n" + KNOWN, "register"),
    ],
)
def test_datagram_has_a_priority_at_a_glance(data: bytes, priority: Priority) -> None:
    assert priority_of(data) == priority


def test_least_urgent_requests_are_refused_first() -> None:
    overload = Overload()
    assert list(PATIENCE.values()) == sorted(PATIENCE.values())
    assert all(wait < T1 for wait in PATIENCE.values())
    datagrams = dict(zip(PATIENCE, (request("OPTIONS"), REGISTER, KNOWN, request("INVITE")), strict=False))
    assert PATIENCE.keys() - datagrams.keys() == {"urgent"}
    for wait in PATIENCE.values():
        assert overload.waited(wait + 0.001, 0.0)
        refused = {name for name, data in datagrams.items() if not serves(overload, data)}
        assert refused == {name for name in datagrams if PATIENCE[name] <= wait}
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


def urgent(count: int, *, wait: float = 10.0, trusted: bool = False, now: float = 0.0) -> Overload:
    """What has judged so many urgent datagrams of a phone."""
    overload = Overload()
    overload.adopt(lambda _: trusted, ())
    overload.waited(wait, 0.0)
    for _ in range(count):
        overload.judge(request("BYE"), PHONE, now)
    return overload


def test_host_that_says_all_is_urgent_is_ignored_beyond_its_share() -> None:
    overload = urgent(2 * LATE)
    tally = overload.tallies["urgent"]
    assert tally.refused == 0
    assert tally.ignored == pytest.approx((2 * LATE - LEAST_SHARE) * (1 - ADMITTED / LATE), abs=ADMITTED)
    assert overload.lasts(0.0)
    assert overload.judge(request("BYE"), PHONE, 0.0) is Verdict.IGNORED
    other = PHONE._replace(remote=("192.0.2.2", 40000))
    assert serves(overload, request("BYE"), other)
    assert serves(urgent(2 * LATE, trusted=True), request("BYE"))
    assert serves(urgent(2 * LATE, wait=PATIENCE["urgent"]), request("BYE"))


def test_share_of_a_host_is_that_of_a_second_and_of_what_is_served_in_one() -> None:
    overload = urgent(LEAST_SHARE + ADMITTED + 1)
    assert overload.judge(request("BYE"), PHONE, 0.9) is Verdict.IGNORED
    assert overload.judge(request("BYE"), PHONE, 1.0) is Verdict.SERVED
    busy = Overload()
    busy.waited(0.2, 0.0)
    for number in range(8001):
        decide(busy, KNOWN, PHONE, number / 4000)
    busy.waited(10.0, 0.0)
    verdicts = [busy.judge(request("BYE"), PHONE, 2.0) for _ in range(4000)]
    assert verdicts.index(Verdict.IGNORED) == pytest.approx(4000 / SHARE, abs=2 * ADMITTED)


def test_no_flood_keeps_phones_out() -> None:
    overload = Overload()
    overload.waited(10.0, 1.0)
    verdicts = [decide(overload, KNOWN) for _ in range(10 * LATE)]
    assert verdicts.count(Verdict.SERVED) == pytest.approx(10 * ADMITTED, abs=1)
    tally = overload.tallies["register"]
    assert (tally.late, tally.refused, tally.ignored) == (10 * LATE, verdicts.count(Verdict.REFUSED), 0)


def test_of_a_load_that_lasts_few_are_answered_for_those_that_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipha.sip.overload.CREDIT", 100)
    overload = Overload()
    overload.waited(T1, 1.0)
    verdicts = [decide(overload, REGISTER) for _ in range(LATE // 2)]
    assert verdicts.count(Verdict.REFUSED) == 100
    assert verdicts[-1] is Verdict.IGNORED
    for data in int(1.5 / EARNED) * (request("BYE"), KNOWN):
        assert decide(overload, data) is Verdict.SERVED
    again = [decide(overload, REGISTER) for _ in range(10)]
    assert again == [*[Verdict.REFUSED] * 3, *[Verdict.IGNORED] * 7]
    assert overload.tallies["first register"].ignored == verdicts.count(Verdict.IGNORED) + 7
    storm = [decide(overload, REGISTER, PHONE, T1) for _ in range(200)]
    assert storm.count(Verdict.REFUSED) == 100
    asked = [decide(overload, request("OPTIONS"), PHONE, 2 * T1) for _ in range(300)]
    assert asked.count(Verdict.REFUSED) == 100


@pytest.mark.parametrize("other", ["log", "worker"])
def test_what_others_refuse_first_takes_no_credit_from_a_storm(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    monkeypatch.setattr("sipha.sip.overload.CREDIT", 100)
    overload = Overload()
    overload.waited(T1, 1.0)
    storm = [decide(overload, REGISTER) for _ in range(LATE // 2)]
    if other == "log":
        overload.log_is_behind(QUIET)
    else:
        overload.add({"register": Tally(0, 1, 0)}, 0, T1, QUIET)
    again = [decide(overload, REGISTER, PHONE, QUIET + T1 / 2) for _ in range(LATE // 2)]
    assert (storm.count(Verdict.REFUSED), again.count(Verdict.REFUSED)) == (100, 100)


def test_overload_is_told_when_it_begins_and_lasts_until_nothing_is_refused_for_some_time() -> None:
    begun: list[float] = []
    overload = Overload(begun.append)
    overload.waited(0.45, 0.0)
    assert not overload.lasts(0.0)
    for now in (5.0, 6.0, 15.0):
        for _ in range(LATE):
            decide(overload, REGISTER, PHONE, now)
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
            decide(overload, KNOWN, PHONE, begin + number / served)

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
    data=st.sampled_from([REGISTER, KNOWN, b"\r\n\r\n" + KNOWN, KNOWN.replace(b"@sipha.test>", b"@sipha.test>;tag=x")]),
    params=st.sampled_from([";rport;branch=z9hG4bK1", ";branch=z9hG4bK1;rport", ";rport", ";rport;x=y;branch=1"]),
    name=names,
    retry=st.sampled_from([(1, 0), (1, 1), (1, 8), (5, 120)]),
    host=st.sampled_from(["192.0.2.1", "2001:db8::1"]),
)
def test_refusal_at_a_glance_is_the_one_that_would_be_made_of_the_parsed_request(
    data: bytes, params: str, name: str, retry: tuple[int, int], host: str
) -> None:
    data = data.replace(b";rport;branch=z9hG4bK1", params.encode())
    data = data.replace(b"From: <", f'From: "{name}" <'.encode())
    flow = PHONE._replace(remote=(host, 40000))
    made = refusal(data, flow, *retry)
    assert made is not None
    response, parsed = parse(made), parse(data.lstrip())
    assert isinstance(response, Response)
    assert isinstance(parsed, Request)
    mark_received(parsed, flow)
    least, spread = retry
    wait = response.headers.all("Retry-After")
    assert [least <= int(value) < least + spread for value in wait] == [True][: bool(spread)]
    right = response_to(parsed, 503, to_tag=response.to.tag, headers=[("Retry-After", value) for value in wait])
    right.render()
    assert sorted(response.headers.lines) == sorted(right.headers.lines)
    assert (response.status, response.reason) == (right.status, right.reason)


def test_each_copy_is_refused_alike_and_another_request_of_the_phone_otherwise() -> None:
    assert refusal(KNOWN, PHONE, 1, 100) == refusal(KNOWN, PHONE, 1, 100)
    others = {refusal(KNOWN.replace(b"CSeq: 1", b"CSeq: %d" % cseq), PHONE, 1, 100) for cseq in range(1, 50)}
    assert len({made.partition(b"Retry-After: ")[2] for made in others if made is not None}) > 20


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
        (b"REGISTER ", b"OPTIONS "),
    ],
)
def test_request_that_is_written_otherwise_is_left_to_the_parser(usual: bytes, unusual: bytes) -> None:
    assert usual in REGISTER
    written = REGISTER.replace(usual, unusual, 1)
    assert refusal(written, PHONE, 1, 1) is None
    assert KERNEL.refusals([(written, PHONE)], 1, 1) == [None]


@given(st.binary(max_size=300))
def test_any_bytes_can_be_judged(data: bytes) -> None:
    overload = Overload()
    overload.waited(T1, 1.0)
    decide(overload, data)
    refusal(data, PHONE, 1, 1)


pieces = st.sampled_from(
    [
        *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b",", b"\0", b"\xff", b"x", b""),
        *(b"\nAuthorization", b"\naUTHORIZATION \t:", b"\nTo: <sip:a@b>;TAG=1", b"\nt: c", b"\nCSeq: 9", b"REGISTER "),
        *(b";rport", b";rport=1", b"Received", b"\nVia: SIP/2.0/UDP h;rport", b"\nCall-ID: ", b"\nFrom:", b"INVITE "),
    ]
)


@st.composite
def datagrams(draw: st.DrawFn) -> list[tuple[bytes, Flow]]:
    """REGISTERs, in which some bytes are replaced by some pieces, and whatever else comes."""
    made = []
    for _ in range(draw(st.integers(0, 12))):
        data = draw(st.sampled_from([REGISTER, KNOWN, request("INVITE"), b"\r\n" + KNOWN, b""]))
        for _ in range(draw(st.integers(0, 3))):
            place, gone = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
            data = data[:place] + draw(pieces) + data[place + gone :]
        remote = draw(st.sampled_from([("192.0.2.1", 40000), ("2001:db8::1", 1), ("fe80::1%2", 65535)]))
        made.append((data, PHONE._replace(remote=remote)))
    return made


@given(
    datagrams(),
    st.tuples(st.integers(-1, 5), st.integers(-1, 5)),
    st.floats(0, 10),
    st.tuples(st.sampled_from([0.0, EARNED, 1.0]), st.floats(0, 12)),
    st.tuples(st.integers(0, 5), st.integers(1, 5)),
)
def test_kernel_sifts_as_the_pattern_does(
    given: list[tuple[bytes, Flow]],
    before: tuple[int, int],
    credit: float,
    earning: tuple[float, float],
    admission: tuple[int, int],
) -> None:
    arguments = (given, *before, credit, earning, admission)
    assert KERNEL.sift(*arguments) == sift_by_pattern(*arguments)


@given(datagrams(), st.integers(0, 10), st.sampled_from([0, 1, 7, 120]))
def test_kernel_refuses_as_the_pattern_does(given: list[tuple[bytes, Flow]], least: int, spread: int) -> None:
    assert KERNEL.refusals(given, least, spread) == refusals_by_pattern(given, least, spread)


@pytest.mark.parametrize(
    "wrong",
    [None, (), [None], [()], [(b"",)], [("", PHONE)], [(bytearray(REGISTER), PHONE)], [[REGISTER, PHONE]]],
)
def test_kernel_takes_nothing_but_datagrams(wrong: object) -> None:
    for call in (
        lambda: KERNEL.sift(wrong, 0, 0, 0.0, (0.5, 1.0), (0, 1)),
        lambda: KERNEL.refusals(wrong, 1, 1),
    ):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("flow", [None, (), ("UDP", (), ()), ("UDP", (), (1, 2)), ("UDP", (), ("a", "b")), ["UDP"] * 4])
def test_kernel_refuses_nobody_without_an_address(flow: object) -> None:
    with pytest.raises(TypeError):
        KERNEL.refusals([(REGISTER, flow)], 1, 1)


def test_kernel_leaves_no_references() -> None:
    given = [(REGISTER, PHONE), (KNOWN, PHONE), (request("INVITE"), PHONE), (REGISTER.replace(b"To: ", b"t: "), PHONE)]
    wrong = [*given, None]
    watched = (given, *given, wrong, REGISTER, PHONE, PHONE.remote, PHONE.remote[0])
    before = list(map(sys.getrefcount, watched))
    for _ in range(50):
        KERNEL.sift(given, 0, 0, 2.0, (EARNED, 10.0), (0, 1))
        KERNEL.refusals(given, 1, 8)
        for call in (
            partial(KERNEL.sift, wrong, 0, 0, 2.0, (EARNED, 10.0), (0, 1)),
            partial(KERNEL.refusals, wrong, 1, 8),
        ):
            with suppress(TypeError):
                call()
    del call  # it refers to what is watched
    assert list(map(sys.getrefcount, watched)) == before


def test_peers_and_edges_are_not_told_when_to_come_back() -> None:
    edge = PHONE._replace(remote=("192.0.2.99", 5060))
    overload = Overload()
    overload.adopt(lambda flow: flow == edge, ())
    answers = overload.refusals([(REGISTER, PHONE), (REGISTER, edge), (request("INVITE"), PHONE)], 0.0)
    assert [answer is not None and b"Retry-After" in answer for answer in answers] == [True, False, False]
    assert answers[2] is None


def test_peers_and_edges_do_not_have_others_come_back_later() -> None:
    edge = PHONE._replace(remote=("192.0.2.99", 5060))
    overload = Overload()
    overload.adopt(lambda flow: flow == edge, ())
    overload.waited(T1, 1.0)
    for number in range(2 * LATE):
        decide(overload, REGISTER, PHONE, number / LATE)
    overload.refusals([(REGISTER, edge)] * 100 * ADMITTED, 2.0)
    assert max(overload.retry_after(mark, 2.0) for mark in range(LONGEST_SPREAD)) == SPREAD
