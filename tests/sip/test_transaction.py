from __future__ import annotations

from typing import NamedTuple

import pytest

from sipha.sip.flow import Flow
from sipha.sip.layer import TransactionLayer
from sipha.sip.message import Request, Response, response_to
from sipha.sip.parser import parse
from sipha.sip.timers import TimerName
from sipha.sip.transaction import (
    INVITE_CLIENT,
    INVITE_SERVER,
    NON_INVITE_CLIENT,
    NON_INVITE_SERVER,
    Input,
    Machine,
    State,
    Transaction,
    ack_for,
    client_key,
    server_key,
)

UDP = Flow("UDP", ("192.0.2.1", 5060), ("192.0.2.2", 5060))
TCP = Flow("TCP", ("192.0.2.1", 5060), ("192.0.2.2", 5060), 7)

MACHINES = {
    "INVITE client": INVITE_CLIENT,
    "non-INVITE client": NON_INVITE_CLIENT,
    "INVITE server": INVITE_SERVER,
    "non-INVITE server": NON_INVITE_SERVER,
}

STATES = {
    "INVITE client": ("Calling", "Proceeding", "Completed", "Accepted", "Terminated"),
    "non-INVITE client": ("Trying", "Proceeding", "Completed", "Terminated"),
    "INVITE server": ("Proceeding", "Completed", "Confirmed", "Accepted", "Terminated"),
    "non-INVITE server": ("Trying", "Proceeding", "Completed", "Terminated"),
}

# How each state is reached; Accepted and Completed go through Proceeding where that makes more difference.
WAYS: dict[tuple[str, str], tuple[Input | TimerName, ...]] = {
    ("INVITE client", "Calling"): (),
    ("INVITE client", "Proceeding"): (Input.RESPONSE_1XX,),
    ("INVITE client", "Completed"): (Input.RESPONSE_1XX, Input.RESPONSE_3XX_6XX),
    ("INVITE client", "Accepted"): (Input.RESPONSE_2XX,),
    ("INVITE client", "Terminated"): (Input.TERMINATE,),
    ("non-INVITE client", "Trying"): (),
    ("non-INVITE client", "Proceeding"): (Input.RESPONSE_1XX,),
    ("non-INVITE client", "Completed"): (Input.RESPONSE_1XX, Input.RESPONSE_2XX),
    ("non-INVITE client", "Terminated"): (Input.TERMINATE,),
    ("INVITE server", "Proceeding"): (Input.TU_1XX,),
    ("INVITE server", "Completed"): (Input.TU_1XX, Input.TU_3XX_6XX),
    ("INVITE server", "Confirmed"): (Input.TU_3XX_6XX, Input.ACK),
    ("INVITE server", "Accepted"): (Input.TU_1XX, Input.TU_2XX),
    ("INVITE server", "Terminated"): (Input.TERMINATE,),
    ("non-INVITE server", "Trying"): (),
    ("non-INVITE server", "Proceeding"): (TimerName.TRYING,),
    ("non-INVITE server", "Completed"): (Input.TU_2XX,),
    ("non-INVITE server", "Terminated"): (Input.TERMINATE,),
}

# The figures, written down a second time: what is sent, what the TU hears, which timers run then, and the next state.
# The timers are those of an unreliable transport. What isn't here must do nothing.
FIGURES = """
INVITE client | Calling | Timer A | INVITE | | A B | Calling
INVITE client | Calling | Timer B | | TimedOut Ended | | Terminated
INVITE client | Calling | transport error | | Failed Ended | | Terminated
INVITE client | Calling | 1xx | | Response 180 | | Proceeding
INVITE client | Calling | 2xx | | Response 200 | M | Accepted
INVITE client | Calling | 300-699 | ACK | Response 486 | D | Completed
INVITE client | Proceeding | transport error | | Failed Ended | | Terminated
INVITE client | Proceeding | 1xx | | Response 180 | | Proceeding
INVITE client | Proceeding | 2xx | | Response 200 | M | Accepted
INVITE client | Proceeding | 300-699 | ACK | Response 486 | D | Completed
INVITE client | Completed | 300-699 | ACK | | D | Completed
INVITE client | Completed | transport error | | Failed Ended | | Terminated
INVITE client | Completed | Timer D | | Ended | | Terminated
INVITE client | Accepted | 2xx | | Response 200 | M | Accepted
INVITE client | Accepted | Timer M | | Ended | | Terminated

non-INVITE client | Trying | Timer E | OPTIONS | | E F | Trying
non-INVITE client | Trying | Timer F | | TimedOut Ended | | Terminated
non-INVITE client | Trying | transport error | | Failed Ended | | Terminated
non-INVITE client | Trying | 1xx | | Response 180 | E F | Proceeding
non-INVITE client | Trying | 2xx | | Response 200 | K | Completed
non-INVITE client | Trying | 300-699 | | Response 486 | K | Completed
non-INVITE client | Proceeding | Timer E | OPTIONS | | E F | Proceeding
non-INVITE client | Proceeding | Timer F | | TimedOut Ended | | Terminated
non-INVITE client | Proceeding | transport error | | Failed Ended | | Terminated
non-INVITE client | Proceeding | 1xx | | Response 180 | E F | Proceeding
non-INVITE client | Proceeding | 2xx | | Response 200 | K | Completed
non-INVITE client | Proceeding | 300-699 | | Response 486 | K | Completed
non-INVITE client | Completed | Timer K | | Ended | | Terminated

INVITE server | Proceeding | request again | 180 | | | Proceeding
INVITE server | Proceeding | 1xx from TU | 180 | | | Proceeding
INVITE server | Proceeding | 2xx from TU | 200 | | L | Accepted
INVITE server | Proceeding | 300-699 from TU, but 408 | 486 | | G H | Completed
INVITE server | Proceeding | 408 from TU | 408 | | G H | Completed
INVITE server | Proceeding | transport error | | Failed | | Proceeding
INVITE server | Completed | request again | 486 | | G H | Completed
INVITE server | Completed | ACK | | | I | Confirmed
INVITE server | Completed | Timer G | 486 | | G H | Completed
INVITE server | Completed | Timer H | | TimedOut Ended | | Terminated
INVITE server | Completed | transport error | | Failed | G H | Completed
INVITE server | Confirmed | Timer I | | Ended | | Terminated
INVITE server | Accepted | ACK | | Ack | L | Accepted
INVITE server | Accepted | 2xx from TU | 200 | | L | Accepted
INVITE server | Accepted | transport error | | Failed | L | Accepted
INVITE server | Accepted | Timer L | | Ended | | Terminated

non-INVITE server | Trying | Trying | 100 | | | Proceeding
non-INVITE server | Trying | 2xx from TU | 200 | | J | Completed
non-INVITE server | Trying | 300-699 from TU, but 408 | 486 | | J | Completed
non-INVITE server | Trying | 408 from TU | | | J | Completed
non-INVITE server | Trying | transport error | | Failed | Trying | Trying
non-INVITE server | Proceeding | request again | 100 | | | Proceeding
non-INVITE server | Proceeding | 2xx from TU | 200 | | J | Completed
non-INVITE server | Proceeding | 300-699 from TU, but 408 | 486 | | J | Completed
non-INVITE server | Proceeding | 408 from TU | | | J | Completed
non-INVITE server | Proceeding | transport error | | Failed | | Proceeding
non-INVITE server | Completed | request again | 200 | | J | Completed
non-INVITE server | Completed | Timer J | | Ended | | Terminated
non-INVITE server | Completed | transport error | | Failed | J | Completed
"""


class Outcome(NamedTuple):
    """What an input did."""

    sent: tuple[str, ...]
    told: tuple[str, ...]
    timers: frozenset[str]
    state: str


def figures() -> dict[tuple[str, str, str], Outcome]:
    """Read the figures; a `Response 486` is one word of what the TU hears."""
    rows = {}
    for line in filter(None, FIGURES.splitlines()):
        machine, state, what, sent, told, timers, after = (part.strip() for part in line.split("|"))
        words = tuple(told.replace("Response ", "Response_").split())
        outcome = Outcome(tuple(sent.split()), words, frozenset(timers.split()), after)
        rows[machine, state, what] = outcome
    for machine, states in STATES.items():
        for state in set(states) - {"Terminated"}:
            rows[machine, state, "end from TU"] = Outcome((), ("Ended",), frozenset(), "Terminated")
    return rows


EXPECTED = figures()


def request(method: str = "INVITE", branch: str = "z9hG4bK1", *, extra: str = "", to_tag: str = "") -> Request:
    message = parse(
        (
            f"{method} sip:bob@192.0.2.2 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch={branch}\r\n"
            f"Max-Forwards: 70\r\nFrom: <sip:alice@example.com>;tag=a\r\nTo: <sip:bob@example.com>{to_tag}\r\n"
            f"Call-ID: c1\r\nCSeq: 7 {method}\r\n{extra}Content-Length: 0\r\n\r\n"
        ).encode()
    )
    assert isinstance(message, Request)
    return message


def first_word(data: bytes) -> str:
    words = data.decode().split(" ")
    return words[1] if words[0] == "SIP/2.0" else words[0]


class Bench:
    """One transaction in a layer of its own."""

    def __init__(self, machine: str, flow: Flow = UDP) -> None:
        self.layer = TransactionLayer()
        self.request = request("INVITE" if machine.startswith("INVITE") else "OPTIONS")
        self.transaction: Transaction
        if machine.endswith("client"):
            self.transaction = self.layer.start(self.request, flow, 0.0)
        else:
            self.transaction = self.layer.accept(self.request, flow, 0.0)
        assert self.transaction.machine is MACHINES[machine]

    def message(self, what: Input | TimerName) -> Request | Response | None:
        status = {
            Input.RESPONSE_1XX: 180,
            Input.RESPONSE_2XX: 200,
            Input.RESPONSE_3XX_6XX: 486,
            Input.TU_1XX: 180,
            Input.TU_2XX: 200,
            Input.TU_3XX_6XX: 486,
            Input.TU_408: 408,
        }
        if isinstance(what, Input) and what in status:
            return response_to(self.request, status[what], to_tag="b")
        return request("ACK") if what is Input.ACK else self.request if what is Input.REQUEST else None

    def feed(self, what: Input | TimerName) -> Outcome:
        for timer in (self.transaction.retransmission, self.transaction.ending):
            if timer is not None and timer.name == what:
                self.layer._queue.stop(timer)  # A timer that fires runs no longer.
        self.layer._feed(self.transaction, what, 1.0, self.message(what))
        return self.outcome()

    def outcome(self) -> Outcome:
        told = []
        while event := self.layer.next_event():
            name = type(event).__name__.replace("Transaction", "").replace("Received", "")
            response = getattr(event, "response", None)
            told.append(name if response is None else f"{name}_{response.status}")
        timers = (self.transaction.retransmission, self.transaction.ending)
        names = frozenset(str(timer.name)[-1] for timer in timers if timer and timer.running and timer.name != "Trying")
        if any(timer and timer.running and timer.name == "Trying" for timer in timers):
            names |= {"Trying"}
        sent = tuple(first_word(data) for data, _ in self.layer.messages_to_send())
        return Outcome(sent, tuple(told), names, self.transaction.state)


@pytest.mark.parametrize("what", [*Input, *TimerName], ids=str)
@pytest.mark.parametrize(("machine", "state"), [(m, s) for m, states in STATES.items() for s in states])
def test_transaction_does_what_the_figures_say(machine: str, state: str, what: Input | TimerName) -> None:
    bench = Bench(machine)
    before = bench.outcome()
    for step in WAYS[machine, state]:
        before = bench.feed(step)
    assert before.state == state
    expected = EXPECTED.get((machine, state, what), Outcome((), (), before.timers, state))
    assert bench.feed(what) == expected
    # And it is known exactly as long as it isn't Terminated.
    assert bench.layer.transactions == (bench.transaction.state != "Terminated")


@pytest.mark.parametrize("machine", MACHINES)
def test_every_row_of_a_table_is_in_the_figures(machine: str) -> None:
    rows = {(machine, str(state), str(what)) for state, what in MACHINES[machine].table}
    assert rows == {key for key in EXPECTED if key[0] == machine}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_state_but_terminated_is_reached_and_left(machine: str) -> None:
    def reachable(of: Machine) -> set[State]:
        return {of.begin[1], *(after for _, after in of.table.values())}

    assert {str(state) for state in reachable(MACHINES[machine])} == set(STATES[machine])
    assert {str(state) for state, _ in MACHINES[machine].table} == set(STATES[machine]) - {"Terminated"}


@pytest.mark.parametrize(
    ("machine", "way"),
    [
        ("INVITE client", (Input.RESPONSE_3XX_6XX,)),
        ("non-INVITE client", (Input.RESPONSE_2XX,)),
        ("INVITE server", (Input.TU_3XX_6XX, Input.ACK)),
        ("non-INVITE server", (Input.TU_2XX,)),
        ("non-INVITE server", (Input.TU_408,)),
    ],
)
def test_timers_d_i_j_and_k_take_no_time_on_a_connection(machine: str, way: tuple[Input, ...]) -> None:
    bench = Bench(machine, TCP)
    outcome = [bench.feed(step) for step in way][-1]
    assert outcome.state == "Terminated"
    assert outcome.told[-1] == "Ended"
    assert bench.layer.transactions == 0
    assert bench.layer.next_timer() is None


@pytest.mark.parametrize(
    ("machine", "way", "running"),
    [
        ("INVITE client", (), {"B"}),
        ("INVITE client", (Input.RESPONSE_2XX,), {"M"}),
        ("non-INVITE client", (), {"F"}),
        ("INVITE server", (Input.TU_3XX_6XX,), {"H"}),
        ("INVITE server", (Input.TU_2XX,), {"L"}),
        ("non-INVITE server", (), {"Trying"}),
    ],
)
def test_nothing_is_retransmitted_on_a_connection(machine: str, way: tuple[Input, ...], running: set[str]) -> None:
    bench = Bench(machine, TCP)
    outcome = bench.outcome()
    for step in way:
        outcome = bench.feed(step)
    assert outcome.timers == running


def test_ack_is_made_of_the_invite_and_the_response() -> None:
    invite = request(
        extra="Route: <sip:p1.example.com;lr>, <sip:p2.example.com;lr>\r\nRoute: <sip:p3.example.com;lr>\r\n"
    )
    invite.headers.add("Via", "SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKupstream")
    ack = parse(ack_for(invite, response_to(invite, 486, to_tag="b9")).render())
    assert isinstance(ack, Request)
    assert (ack.method, ack.uri) == ("ACK", invite.uri)
    assert ack.headers.values("Via") == ["SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1"]
    assert ack.headers.values("Route") == invite.headers.values("Route")
    assert ack.to.tag == "b9"
    assert ack.headers.get("From") == invite.headers.get("From")
    assert ack.call_id == invite.call_id
    assert (ack.cseq.number, ack.cseq.method) == (7, "ACK")
    assert ack.max_forwards == 70
    assert ack.body == b""


class TestKeys:
    def test_response_matches_by_branch_and_cseq_method(self) -> None:
        invite, cancel = request(), request("CANCEL")
        assert client_key(invite) == client_key(response_to(invite, 200))
        assert client_key(invite) != client_key(cancel)
        assert client_key(cancel) == client_key(response_to(cancel, 200))

    def test_request_matches_by_branch_sent_by_and_method(self) -> None:
        invite = request()
        other = request()
        other.headers.set("Via", "SIP/2.0/UDP 192.0.2.7:5060;branch=z9hG4bK1")
        assert server_key(invite, "INVITE") == server_key(request(extra="Subject: again\r\n"), "INVITE")
        assert server_key(invite, "INVITE") != server_key(other, "INVITE")
        assert server_key(invite, "INVITE") != server_key(invite, "CANCEL")

    @pytest.mark.parametrize("branch", ["1", "z9hG4bK"])
    def test_request_without_a_branch_that_identifies_matches_as_in_rfc_2543(self, branch: str) -> None:
        first = server_key(request(branch=branch), "INVITE")
        assert first[0] is None
        assert first == server_key(request(branch=branch), "INVITE")
        assert first == server_key(request("ACK", branch=branch), "INVITE")
        for header, value in (
            ("From", "<sip:alice@example.com>;tag=z"),
            ("Call-ID", "c2"),
            ("CSeq", "8 INVITE"),
            ("Via", f"SIP/2.0/UDP 192.0.2.1:5062;branch={branch}"),
        ):
            other = request(branch=branch)
            other.headers.set(header, value)
            assert server_key(other, "INVITE") != first
        other = request(branch=branch)
        other.uri = "sip:carol@192.0.2.2"
        assert server_key(other, "INVITE") != first
