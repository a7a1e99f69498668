from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sipha.nat.detection import Test, make_detection
from sipha.sip.flow import Flow
from sipha.sip.overload import ADMITTED, LATE
from sipha.state.entries import Policy
from sipha.workers.messages import Ceded, Datagrams, Failed, Registers
from tests.registrar.conftest import FLOW, Phone, Site
from tests.workers.conftest import WorkerSite, masked

NATED = Flow("UDP", FLOW.local, ("198.51.100.7", 60001))
IPV6 = Flow("UDP", ("2001:db8::10", 5060), ("2001:db8::7", 5070))
CONTACTS = (
    ("Contact: <sip:alice@192.0.2.1:5060>", "Expires: 3600"),
    ("Contact: <sip:alice@10.0.0.7:60000;transport=udp>;expires=600", "User-Agent: softphone"),
    ('Contact: <sip:alice@192.0.2.1:5060>;expires=300;+sip.instance="<urn:uuid:0-1>"',),
    ("Contact: <sip:alice@192.0.2.1:5060>", "Expires: 0"),
    ("Contact: <sip:alice@192.0.2.1:5060>", "Expires: 5"),
    ("Contact: <sip:alice@192.0.2.1:5060>, <sip:alice@192.0.2.2:5060>;q=0.5",),  # this, and what follows, isn't plain
    ("Contact: *", "Expires: 0"),
    (),
    ("Contact: <sip:alice@192.0.2.1:5060>", "Require: gruu"),
)


@pytest.fixture
def site() -> WorkerSite:
    return WorkerSite()


@pytest.fixture
def alice(site: WorkerSite) -> Phone:
    return Phone(site)


class Both:
    """A registrar in one process and one behind a worker, which are told the same by the same phones."""

    def __init__(self, **options: object) -> None:
        self.one, self.other = Site(glances=True), WorkerSite()
        for each in (self.one, self.other):
            each.start(make_detection(get_args(Test)), **options)
        self.phones = [
            Phone(self.one, user, flow=flow) for user in ("alice", "bob", "nobody") for flow in (FLOW, NATED)
        ]
        self.sent: list[tuple[bytes, Flow]] = []

    def receive(self, data: bytes, flow: Flow) -> None:
        """Let both hear a datagram, and compare what becomes of it."""
        self.sent.append((data, flow))
        for each in (self.one, self.other):
            each.receive(data, flow)
        assert [(masked(data), flow) for data, flow in self.other.sent] == [
            (masked(data), flow) for data, flow in self.one.sent
        ]
        assert self.other.replica.machine.hash() == self.one.replica.machine.hash()


class Scene:
    """What phones may do, one after the other."""

    @staticmethod
    def register(both: Both, phone: Phone, lines: tuple[str, ...]) -> None:
        before = len(both.one.sent)
        both.receive(phone.message(*lines), phone.flow)
        if len(both.one.sent) > before and both.one.last.status == 401:
            phone.take_nonce(both.one.last)

    @staticmethod
    def mistype(both: Both, phone: Phone, lines: tuple[str, ...]) -> None:
        right, phone.password = phone.password, "wrong"
        both.receive(phone.message(*lines), phone.flow)
        phone.password = right

    @staticmethod
    def repeat(both: Both, phone: Phone, lines: tuple[str, ...]) -> None:
        if both.sent:
            both.receive(*both.sent[-1])

    @staticmethod
    def replay_from_elsewhere(both: Both, phone: Phone, lines: tuple[str, ...]) -> None:
        """With the credentials of another REGISTER, from another port: what a thief would do."""
        if both.sent:
            data, flow = both.sent[-1]
            stolen = data.replace(b"Call-ID: ", b"Call-ID: x").replace(b"Contact: <sip:alice@", b"Contact: <sip:thief@")
            both.receive(stolen, flow._replace(remote=(flow.remote[0], flow.remote[1] + 1)))

    @staticmethod
    def wait(both: Both, phone: Phone, lines: tuple[str, ...]) -> None:
        for each in (both.one, both.other):
            each.replica.now += 200


@settings(max_examples=150, deadline=None)
@given(
    scenes=st.lists(
        st.tuples(
            st.sampled_from(
                [Scene.register, Scene.register, Scene.mistype, Scene.repeat, Scene.replay_from_elsewhere, Scene.wait]
            ),
            st.integers(0, 5),
            st.sampled_from(CONTACTS),
        ),
        max_size=12,
    ),
    options=st.sampled_from([{}, {"policy": Policy(max_contacts=1, full="refuse")}, {"out_of_order": 200}]),
)
def test_phones_hear_from_a_worker_what_they_hear_from_one_process(
    scenes: list[tuple[object, int, tuple[str, ...]]], options: dict[str, object]
) -> None:
    both = Both(**options)
    for scene, phone, lines in scenes:
        scene(both, both.phones[phone], lines)  # type: ignore[operator]
    assert both.other.responses() == both.one.registrar.responses


def test_register_is_handed_over_with_what_its_credentials_use_up(site: WorkerSite, alice: Phone) -> None:
    assert alice.register(alice.contact()).status == 200
    [word] = site.said
    assert isinstance(word, Registers)
    [(tag, host, port, record, claim)] = word.registers
    assert (host, port, record.aor, record.cseq) == (*FLOW.remote, "sip:alice@sipha.test", 2)
    assert claim is None  # it is used up already
    assert f";tag={tag}\r\n".encode() in site.sent[-1][0]


def test_copy_is_absorbed_while_the_first_waits(site: WorkerSite, alice: Phone) -> None:
    alice.register(alice.contact())
    site.held = True
    data = alice.message(alice.contact())
    said = len(site.said)
    assert site.receive(data) is None
    assert site.receive(data) is None
    assert len(site.said) == said + 1
    site.settle()
    assert site.last.status == 200


def test_answer_that_cant_be_rendered_keeps_no_other_from_being_sent(site: WorkerSite, alice: Phone) -> None:
    bob = Phone(site, "bob", flow=FLOW._replace(remote=("192.0.2.3", 5062)))
    for phone in (alice, bob):
        phone.register(phone.contact())
    site.held = True
    for phone in (alice, bob):
        assert phone.send(phone.contact()) is None
    sent = len(site.sent)
    [(first, _), (second, verdict)] = site.verdicts
    site.front.registry.settle([(first, "\ud800"), (second, verdict)])
    assert [flow for _, flow in site.sent[sent:]] == [bob.flow]
    assert site.last.status == 200


def test_worker_hears_nobody_once_its_lease_has_ended(site: WorkerSite, alice: Phone) -> None:
    site.front.lease(site.replica.now + 0.4)
    assert alice.send(alice.contact()) is not None
    site.replica.now += 0.4
    sent, said = len(site.sent), len(site.said)
    for data in (alice.message(alice.contact()), b"\r\n\r\n", b"OPTIONS sip:sipha.test SIP/2.0\r\n\r\n"):
        site.receive(data)
    assert (len(site.sent), len(site.said)) == (sent, said)
    assert site.front.report().counts["transport/withheld"] == 3


def test_verdict_that_comes_after_the_end_of_the_lease_is_not_sent(site: WorkerSite, alice: Phone) -> None:
    alice.register(alice.contact())
    site.held = True
    alice.send(alice.contact())
    sent = len(site.sent)
    site.front.lease(0.0)
    site.settle()
    assert len(site.sent) == sent


@pytest.mark.parametrize(
    "data",
    [b"OPTIONS sip:sipha.test SIP/2.0\r\n\r\n", b"SIP/2.0 200 OK\r\n\r\n", b"REGISTER nonsense", b"\xff\xfe" * 20],
)
def test_all_else_is_passed_on_as_it_came(site: WorkerSite, data: bytes) -> None:
    said: list[object] = []
    site.front._say = said.append
    site.front.datagrams_received([(data, IPV6)], 0.0, 0.0)
    assert said == [Datagrams([(data, 1, *IPV6.remote)])]


def test_keepalives_and_stun_are_answered_by_the_worker(site: WorkerSite) -> None:
    binding = b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12)
    for data in (b"\r\n\r\n", bytes(4), b"", binding):
        site.front.datagrams_received([(data, NATED)], 0.0, 0.0)
    assert [data[:2] for data, _ in site.sent] == [b"\r\n", b"\x01\x01"]
    assert {flow for _, flow in site.sent} == {NATED}
    assert site.said == []


def test_worker_passes_registers_on_while_somebody_looks_on(site: WorkerSite, alice: Phone) -> None:
    site.front.watching = True
    assert alice.register(alice.contact()).status == 200
    assert [type(word) for word in site.said] == [Datagrams, Datagrams]


def test_dead_flows_are_told(site: WorkerSite) -> None:
    site.front.flows_failed([IPV6])
    assert site.said == [Failed([(1, *IPV6.remote)])]


def test_what_has_waited_too_long_is_refused_at_a_glance(site: WorkerSite, alice: Phone) -> None:
    late = [(alice.message(alice.contact()), FLOW) for _ in range(ADMITTED + 6)]
    site.front.datagrams_received(late, 0.25, 0.1)
    statuses = [data.split(b" ")[1] for data, _ in site.sent]
    assert statuses == [b"401"] * (ADMITTED - 1) + [b"503"] * 7
    report = site.front.report()
    assert (report.shed["first register"].refused, report.wait) == (7, 0.25)
    assert report.counts["turned away/REGISTER"] == 7
    assert (site.front.report().shed, site.front.report().counts) == ({}, {})


@pytest.mark.parametrize("watching", [False, True])
def test_what_takes_the_daemon_to_refuse_is_passed_on_as_late(
    site: WorkerSite, alice: Phone, *, watching: bool
) -> None:
    said: list[object] = []
    site.front._say = said.append
    options = b"OPTIONS sip:sipha.test SIP/2.0\r\n\r\n"
    site.front.datagrams_received([(options, FLOW)] * LATE, 0.15, 0.1)
    site.front.watching = watching
    site.front.datagrams_received([(alice.message(alice.contact()), FLOW)] * LATE, 0.25, 0.1)
    [early, late, *others] = said
    assert early == Datagrams([(options, 0, *FLOW.remote)] * ADMITTED)
    assert late == Datagrams([(options, 0, *FLOW.remote)] * (LATE - ADMITTED), late=True)
    assert [len(word.datagrams) for word in others if isinstance(word, Datagrams)] == (
        [ADMITTED, LATE - ADMITTED] if watching else []
    )


def test_other_settings_are_gone_by_at_once(site: WorkerSite, alice: Phone) -> None:
    alice.register(alice.contact())
    brief = replace(site.worker_settings.registrar, policy=Policy(min_expires=600))
    site.front.adopt(replace(site.worker_settings, registrar=brief))
    response = alice.send(alice.contact(), "Expires: 300")
    assert response is not None
    assert (response.status, response.headers.get("Min-Expires")) == (423, "600")


def test_nonces_of_two_workers_differ() -> None:
    nonces = set()
    for number in (1, 2):
        site = WorkerSite()
        site.begin(number)
        phone = Phone(site)
        response = phone.send(phone.contact())
        assert response is not None
        phone.take_nonce(response)
        nonces.add(phone.nonce)
    assert len(nonces) == 2


def test_nonce_goes_to_the_daemon_with_the_first_register_that_is_not_plain(site: WorkerSite, alice: Phone) -> None:
    contact = alice.contact()
    assert alice.register(contact).status == 200
    plain = alice.message(contact)
    for lines in (
        ("Contact: <sip:alice@192.0.2.1:5060>, <sip:alice@192.0.2.2:5060>",),
        (contact,),
        ("Contact: *", "Expires: 0"),
    ):
        response = alice.send(*lines)
        assert response is not None
        assert response.status == 200
    kinds = [type(word) for word in site.said]
    assert kinds == [Registers, Ceded, Datagrams, Registers, Datagrams]
    stolen = [plain.replace(b"Call-ID: ", b"Call-ID: " + thief) for thief in (b"x", b"y")]
    statuses = [site.receive(data).status for data in stolen]  # type: ignore[union-attr]
    assert statuses == [200, 401]  # the daemon knows what was used with the worker, and what wasn't


def test_nothing_is_kept_of_nonces_that_prove_nothing(site: WorkerSite, alice: Phone) -> None:
    assert alice.register(alice.contact()).status == 200
    alice.password = "wrong"
    alice.send("Contact: <sip:alice@192.0.2.1:5060>, <sip:alice@192.0.2.2:5060>")
    assert [type(word) for word in site.said] == [Registers, Datagrams]
    assert len(site.authenticator._window) == 0


def test_register_by_a_nonce_of_another_worker_is_challenged_unless_it_is_a_repeat(
    site: WorkerSite, alice: Phone
) -> None:
    assert alice.register(alice.contact()).status == 200
    repeat = alice.last
    site.begin(2)
    assert site.receive(repeat).status == 200  # type: ignore[union-attr]
    assert site.receive(alice.message(alice.contact())).status == 401  # type: ignore[union-attr]
