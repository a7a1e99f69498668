from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sipha.errors import MalformedMessage, NotLeader, QueueFull, UnknownOutcome
from sipha.sip.flow import Flow
from sipha.sip.message import Request, Response
from sipha.sip.overload import SPREAD
from sipha.sip.parser import parse
from sipha.state.binding import BEHIND_NAT
from sipha.state.entries import Policy
from sipha.state.outcomes import Registered, Rejected
from tests.registrar.conftest import FLOW, Phone, Site

AOR = "sip:alice@sipha.test"


def contacts(response: Response) -> dict[str, int | None]:
    return {contact.uri: contact.expires for contact in response.contacts}


# RFC 3261 §10.3 steps 6 to 8


def test_registrar_binds_a_contact(site: Site, alice: Phone) -> None:
    response = alice.register(alice.contact(";q=0.5;expires=120"))
    assert response.status == 200
    assert contacts(response) == {"sip:alice@192.0.2.1:5060": 120}
    assert response.contacts[0].q == 500
    assert response.headers.get("Date") == "Sat, 13 Nov 2010 10:48:02 GMT"
    assert site.contacts() == ["sip:alice@192.0.2.1:5060"]


def test_registrar_counts_its_responses_and_measures_what_its_200_took(site: Site, alice: Phone) -> None:
    alice.register(alice.contact())
    site.replica.held = True
    assert alice.send(alice.contact()) is None
    site.replica.now += 0.003
    site.replica.commit()
    assert site.last.status == 200
    assert site.registrar.responses == {401: 1, 200: 2}
    counts = dict(site.registry.latencies.cumulative())
    assert (counts["0.0005"], counts["0.002"], counts["0.005"]) == (1, 1, 2)


def test_outcome_that_tells_nothing_keeps_no_other_phone_from_its_answer(site: Site, alice: Phone) -> None:
    bob = Phone(site, "bob", flow=FLOW._replace(remote=("192.0.2.3", 5062)))
    for phone in (alice, bob):
        phone.register(phone.contact())
    site.replica.held = True
    for phone in (alice, bob):
        phone.send(phone.contact())
    [(_, first, tell), (_, second, _)] = site.replica.proposed
    sent = len(site.sent)
    tell([(first, Registered(msgspec.Raw(b"\xc1"), 0)), (second, Rejected(500, "Invalid CSeq number"))])
    answers = {flow: parse(data) for data, flow in site.sent[sent:]}
    assert answers.keys() == {alice.flow, bob.flow}
    assert getattr(answers[alice.flow], "reason") == "Server Internal Error"  # noqa: B009
    assert getattr(answers[bob.flow], "reason") == "Invalid CSeq number"  # noqa: B009
    assert site.registry.pending == 0


def test_registrar_proposes_together_what_one_turn_has_brought(site: Site, alice: Phone) -> None:
    bob = Phone(site, "bob", flow=FLOW._replace(remote=("192.0.2.3", 5062)))
    for phone in (alice, bob):
        phone.register(phone.contact(port=5060))
    entries = site.replica.entries
    for phone in (alice, bob):
        site.read(phone.message(phone.contact(port=5070)), phone.flow)
        site.read(phone.last, phone.flow)
    assert (site.replica.entries, site.registry.pending) == (entries, 2)
    assert site.registrar.counters.absorbed == 2
    site.registry.propose()
    site.registry.propose()
    assert (site.replica.entries, site.together[-1], site.registry.pending) == (entries + 1, 2, 0)


def test_registrar_sends_together_what_it_has_to_say_of_one_entry(site: Site, alice: Phone) -> None:
    bob = Phone(site, "bob", flow=FLOW._replace(remote=("192.0.2.3", 5062)))
    for phone in (alice, bob):
        phone.register(phone.contact(port=5060))
    site.replica.held = True
    assert [phone.send(phone.contact(port=5060)) for phone in (alice, bob)] == [None, None]
    alice.cseq -= 2
    assert alice.send(alice.contact(port=5060)) is None
    site.replica.commit()
    assert site.together[-1] == 3
    assert [data.split()[1] for data, _ in site.sent[-3:]] == [b"200", b"200", b"500"]
    assert [flow for _, flow in site.sent[-3:]] == [FLOW, bob.flow, FLOW]


def test_registrar_stores_all_that_it_learned(site: Site, alice: Phone) -> None:
    alice.register(
        'Contact: "A" <sip:alice@10.0.0.1;ob>;+sip.instance="<urn:uuid:1>";expires=90;Audio;x="a;b"',
        "User-Agent: Phone/1.0 \x1b[2J\xe9\udcff",
        "Allow: INVITE, ACK",
        "Allow: BYE",
    )
    (binding,) = site.replica.bindings(AOR)
    assert binding.contact == "sip:alice@10.0.0.1;ob"
    assert binding.received == "sip:192.0.2.1:5060;transport=udp"
    assert binding.socket == "udp:192.0.2.10:5060"
    assert binding.flow == ""
    assert binding.instance == "<urn:uuid:1>"
    assert binding.params == ';Audio;x="a;b"'
    assert binding.user_agent == "Phone/1.0 ?[2J\xe9?"
    assert binding.methods == "INVITE,ACK,BYE"
    assert (binding.call_id, binding.cseq) == ("call-alice", 2)
    assert binding.expires_at == 1_000_000 + 90_000
    assert binding.last_modified == 1_000_000


def test_registrar_stores_that_a_phone_is_behind_nat_as_long_as_it_is(site: Site, alice: Phone) -> None:
    nated = True
    site.start(is_behind_nat=lambda origin, flow: nated and origin.host == "192.0.2.1" and flow == alice.flow)
    alice.register("Contact: <sip:alice@10.0.0.1:5060>")
    [binding] = site.replica.bindings(AOR)
    assert (binding.cflags, binding.behind_nat) == (BEHIND_NAT, True)
    assert (binding.contact, binding.received) == ("sip:alice@10.0.0.1:5060", "sip:192.0.2.1:5060;transport=udp")
    nated = False
    alice.register("Contact: <sip:alice@10.0.0.1:5060>")
    [binding] = site.replica.bindings(AOR)
    assert (binding.cflags, binding.behind_nat) == (0, False)


def test_registrar_stores_the_connection_and_ipv6_source(site: Site, alice: Phone) -> None:
    alice.flow = Flow("TCP", ("2001:db8::10", 5060), ("2001:db8::1", 40000), 7)
    assert alice.register(alice.contact()).status == 200
    (binding,) = site.replica.bindings(AOR)
    assert binding.received == "sip:[2001:db8::1]:40000;transport=tcp"
    assert binding.socket == "tcp:[2001:db8::10]:5060"
    assert binding.flow == "7"


@pytest.mark.parametrize(
    ("lines", "granted"),
    [
        (("Contact: <sip:a@192.0.2.1>;expires=100", "Expires: 200"), 100),
        (("Contact: <sip:a@192.0.2.1>", "Expires: 200"), 200),
        (("Contact: <sip:a@192.0.2.1>",), 3600),
        (("Contact: <sip:a@192.0.2.1>;expires=99999999999999999999999",), 7200),
        (("Contact: <sip:a@192.0.2.1>;expires=soon",), 3600),
        (("m: sip:a@192.0.2.1;expires=100",), 100),
        (('Contact: <sip:a@192.0.2.1>;EXPIRES="100"',), 100),
    ],
)
def test_registrar_takes_the_expiry_that_is_nearest_to_the_contact(
    alice: Phone, lines: tuple[str, ...], granted: int
) -> None:
    assert contacts(alice.register(*lines)) == {"sip:a@192.0.2.1": granted}


def test_registrar_binds_several_contacts_each_with_its_expiry(alice: Phone) -> None:
    response = alice.register(
        "Contact: <sip:a@192.0.2.1>;expires=100, <sip:b@192.0.2.1>;q=1.0", "Contact: sip:c@192.0.2.1", "Expires: 300"
    )
    assert contacts(response) == {"sip:a@192.0.2.1": 100, "sip:b@192.0.2.1": 300, "sip:c@192.0.2.1": 300}


def test_registrar_refuses_too_brief_an_interval(site: Site, alice: Phone) -> None:
    response = alice.register("Contact: <sip:a@192.0.2.1>", "Contact: <sip:b@192.0.2.1>;expires=59")
    assert response.status == 423
    assert response.headers.get("Min-Expires") == "60"
    assert site.contacts() == []


def test_registrar_never_refuses_an_hour_as_too_brief(site: Site, alice: Phone) -> None:
    site.start(policy=Policy(min_expires=7000))
    assert alice.register("Contact: <sip:a@192.0.2.1>;expires=3599").status == 423
    assert contacts(alice.register("Contact: <sip:a@192.0.2.1>;expires=3600")) == {"sip:a@192.0.2.1": 7000}


def test_registrar_raises_too_brief_an_interval_if_told_so(site: Site, alice: Phone) -> None:
    site.start(min_expires_policy="raise")
    assert contacts(alice.register("Contact: <sip:a@192.0.2.1>;expires=1")) == {"sip:a@192.0.2.1": 60}


def test_registrar_takes_jitter_off_but_never_below_the_minimum(site: Site, alice: Phone) -> None:
    site.start(expires_jitter=50)
    granted = set()
    for _ in range(20):
        (seconds,) = contacts(alice.register("Contact: <sip:a@192.0.2.1>;expires=1000")).values()
        assert seconds is not None
        assert 500 <= seconds <= 1000
        granted.add(seconds)
    assert len(granted) > 5
    assert contacts(alice.register("Contact: <sip:a@192.0.2.1>;expires=60")) == {"sip:a@192.0.2.1": 60}


def test_registrar_refreshes(site: Site, alice: Phone) -> None:
    alice.register(alice.contact(";expires=100"))
    site.replica.now += 90
    response = alice.register(alice.contact(";expires=100"))
    assert contacts(response) == {"sip:alice@192.0.2.1:5060": 100}
    site.replica.now += 90
    assert len(site.contacts()) == 1


def test_registrar_unregisters_one_contact(site: Site, alice: Phone) -> None:
    alice.register(alice.contact(port=5060), alice.contact(port=5070))
    response = alice.register(alice.contact(port=5060), "Expires: 0")
    assert contacts(response) == {"sip:alice@192.0.2.1:5070": 3600}


def test_registrar_unregisters_all(site: Site, alice: Phone) -> None:
    alice.register(alice.contact(port=5060), alice.contact(port=5070))
    response = alice.register("Contact: *", "Expires: 0")
    assert response.status == 200
    assert contacts(response) == {}
    assert site.contacts() == []


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("Contact: *",), "* used in contact and expires is not zero"),
        (("Contact: *", "Expires: 1"), "* used in contact and expires is not zero"),
        (("Contact: *, <sip:a@192.0.2.1>", "Expires: 0"), "* used in contact and more than 1 contact"),
        (("Contact: *", "Contact: *", "Expires: 0"), "* used in contact and more than 1 contact"),
    ],
)
def test_registrar_refuses_a_wildcard_that_is_not_alone_with_expires_0(
    site: Site, alice: Phone, lines: tuple[str, ...], reason: str
) -> None:
    alice.register(alice.contact())
    response = alice.register(*lines)
    assert (response.status, response.reason) == (400, reason)
    assert len(site.contacts()) == 1


def test_registrar_answers_a_query_without_an_entry(site: Site, alice: Phone) -> None:
    alice.register(alice.contact(";expires=100"))
    before = site.replica.entries
    site.replica.now += 30
    assert contacts(alice.register()) == {"sip:alice@192.0.2.1:5060": 70}
    assert site.replica.entries == before
    assert site.registrar.counters.queried == 1


def test_registrar_refuses_a_cseq_that_is_not_higher(site: Site, alice: Phone) -> None:
    alice.register(alice.contact())
    alice.cseq -= 2
    response = alice.register(alice.contact(port=5070), alice.contact())
    assert (response.status, response.reason) == (500, "Invalid CSeq number")
    assert site.contacts() == ["sip:alice@192.0.2.1:5060"]


def test_registrar_answers_a_late_cseq_with_the_bindings_if_told_so(site: Site, alice: Phone) -> None:
    site.start(out_of_order=200)
    alice.register(alice.contact())
    alice.cseq -= 2
    response = alice.register(alice.contact(";expires=77"))
    assert response.status == 200
    assert contacts(response) == {"sip:alice@192.0.2.1:5060": 3600}


def test_registrar_refuses_beyond_max_contacts_with_a_status_of_the_operators(site: Site, alice: Phone) -> None:
    policy = Policy(max_contacts=1, full="refuse")
    site.start(policy=policy)
    alice.register(alice.contact(port=5060))
    response = alice.register(alice.contact(port=5070))
    assert (response.status, response.reason) == (403, "Too many registered contacts")
    site.start(policy=policy, full_status=503)
    response = alice.register(alice.contact(port=5070))
    assert response.status == 503
    assert "Retry-After" in response.headers


# Repeats, of which nothing is remembered


def test_registrar_absorbs_copies_while_the_log_is_awaited(site: Site, alice: Phone) -> None:
    alice.take_nonce(site.receive(alice.message()) or site.last)
    site.replica.held = True
    assert alice.send(alice.contact()) is None
    assert site.receive(alice.last) is None
    assert site.registry.pending == 1
    sent = len(site.sent)
    site.replica.commit()
    assert len(site.sent) == sent + 1
    assert site.last.status == 200
    assert site.registry.pending == 0
    assert site.registrar.counters.absorbed == 1


@pytest.mark.parametrize("qop", ["auth", ""])
def test_registrar_answers_a_repeat_from_the_binding(site: Site, alice: Phone, qop: str) -> None:
    alice.qop = qop
    first = alice.register(alice.contact(port=5060), alice.contact(port=5070))
    before = site.replica.entries
    site.replica.now += 2
    again = site.receive(alice.last)
    assert again is not None
    assert again.status == 200
    assert contacts(again) == {"sip:alice@192.0.2.1:5060": 3598, "sip:alice@192.0.2.1:5070": 3598}
    assert again.to.tag == first.to.tag
    assert site.replica.entries == before
    assert site.registrar.counters.repeated == 1


def test_captured_credentials_are_good_for_nothing_but_the_repeat(site: Site, alice: Phone) -> None:
    alice.register(alice.contact())
    changed = alice.last.replace(b"sip:alice@192.0.2.1:5060", b"sip:evil@198.51.100.1")
    for data in (
        changed,
        changed.replace(b"Call-ID: call-alice", b"Call-ID: other"),
        changed.replace(b"CSeq: 2", b"CSeq: 3"),
        alice.last.replace(b"Content-Length", b"Expires: 0\r\nContent-Length"),
    ):
        response = site.receive(data)
        assert response is not None
        assert response.status == 401
        assert "stale=true" in (response.headers.get("WWW-Authenticate") or "")
    assert site.contacts() == ["sip:alice@192.0.2.1:5060"]


def test_registrar_after_a_failover_asks_once_more(site: Site, alice: Phone) -> None:
    alice.register(alice.contact())
    site.replica.term += 1
    site.start()
    response = alice.send(alice.contact())
    assert response is not None
    assert response.status == 401
    assert all("stale=true" in value for value in response.headers.all("WWW-Authenticate"))
    alice.take_nonce(response)
    assert alice.register(alice.contact()).status == 200


def test_challenge_of_each_copy_has_the_same_tag(site: Site, alice: Phone) -> None:
    first = alice.send(alice.contact())
    again = site.receive(alice.last)
    assert first is not None
    assert again is not None
    assert first.to.tag is not None
    assert first.to.tag == again.to.tag
    assert site.registry.pending == 0


# What the node can't do


def test_registrar_without_a_key_says_unavailable(site: Site, alice: Phone) -> None:
    site.tokens = None
    response = alice.send(alice.contact())
    assert response is not None
    assert response.status == 503
    assert 5 <= int(response.headers.get("Retry-After") or 0) < 5 + SPREAD
    assert response.to.tag is not None


@pytest.mark.parametrize("failure", [NotLeader("b leads", retry_after=1), UnknownOutcome("too late")])
def test_registrar_says_unavailable_when_the_log_does(site: Site, alice: Phone, failure: NotLeader) -> None:
    site.replica.failure = failure
    response = alice.register(alice.contact())
    assert response.status == 503
    assert failure.retry_after <= int(response.headers.get("Retry-After") or 0) < failure.retry_after + SPREAD
    assert site.registry.pending == 0


def test_registrar_says_unavailable_to_who_writes_no_utf8(site: Site, alice: Phone) -> None:
    alice.from_ = '"Ren\udce9e" <sip:alice@sipha.test>'
    site.replica.failure = NotLeader("b leads")
    response = alice.register(alice.contact())
    assert response.status == 503
    assert b'From: "Ren\xe9e" <' in site.sent[-1][0]


def test_overload_knows_when_too_much_waits_for_the_log(site: Site, alice: Phone) -> None:
    site.replica.failure = QueueFull("others have waited too long")
    alice.register(alice.contact())
    assert site.registrar._overload.behind == 1
    assert site.registrar._overload.lasts(site.replica.now)
    site.replica.failure = UnknownOutcome("too late")
    alice.register(alice.contact())
    assert site.registrar._overload.behind == 1


def test_edge_or_peer_gets_no_retry_after(site: Site, alice: Phone) -> None:
    site.registrar._overload.adopt(lambda flow: ip_address(flow.remote[0]) in ip_network("192.0.2.0/24"), ())
    site.replica.failure = NotLeader("b leads")
    response = alice.register(alice.contact())
    assert response.status == 503
    assert "Retry-After" not in response.headers


def test_registrar_bounds_what_waits(site: Site, alice: Phone) -> None:
    site.start(max_pending=1)
    site.replica.held = True
    alice.take_nonce(alice.send() or site.last)
    assert alice.send(alice.contact()) is None
    response = alice.send(alice.contact(port=5070))
    assert response is not None
    assert response.status == 503
    site.replica.commit()
    assert site.last.status == 200


# Whose registration it is


def test_registrar_serves_several_domains(site: Site, alice: Phone) -> None:
    carol = type(alice)(site, "carol", site.domains.all[1])
    assert carol.register(carol.contact()).status == 200
    assert site.contacts("sip:carol@other.test") == ["sip:carol@192.0.2.1:5060"]


@pytest.mark.parametrize("uri", ["sip:alias.test", "sip:192.0.2.10:5060;transport=udp", "sip:SIPHA.test"])
def test_alias_and_address_mean_the_domain(site: Site, alice: Phone, uri: str) -> None:
    alice.uri = uri
    alice.to = alice.from_ = "<sip:alice@alias.test>"
    assert alice.register(alice.contact()).status == 200
    assert len(site.contacts(AOR)) == 1


def test_registrar_refuses_a_domain_that_it_does_not_serve(alice: Phone) -> None:
    alice.uri = "sip:third.test"
    assert alice.register(alice.contact()).status == 403


@pytest.mark.parametrize("to", ["<sip:alice@third.test>", "<sip:alice@other.test>", "<tel:+1555>", "<isbn:29837>"])
def test_registrar_does_not_find_an_aor_of_another_domain(alice: Phone, to: str) -> None:
    alice.to = to
    assert alice.register(alice.contact()).status == 404


def test_registrar_wants_a_username_in_to(alice: Phone) -> None:
    alice.to = alice.from_ = "<sip:sipha.test>"
    response = alice.register(alice.contact())
    assert (response.status, response.reason) == (400, "No username in To URI")


@pytest.mark.parametrize(
    ("from_", "to"),
    [
        ("<sip:bob@sipha.test>", "<sip:bob@sipha.test>"),
        ("<sip:alice@sipha.test>", "<sip:bob@sipha.test>"),
        ("<sip:bob@sipha.test>", "<sip:alice@sipha.test>"),
        ("<sip:alice@elsewhere.test>", "<sip:alice@sipha.test>"),
        ("<tel:+1555>", "<sip:alice@sipha.test>"),
        ("<sip:ALICE@sipha.test>", "<sip:ALICE@sipha.test>"),
    ],
)
def test_registrar_refuses_what_is_not_the_accounts_own(site: Site, alice: Phone, from_: str, to: str) -> None:
    alice.from_, alice.to = from_, to
    assert alice.register(alice.contact()).status == 403
    assert len(site.replica.machine.location) == 0


def test_domain_may_allow_third_party_registration(site: Site, alice: Phone) -> None:
    carol = type(alice)(site, "carol", site.domains.all[1])
    carol.to = "<sip:dave@other.test>"
    assert carol.register(carol.contact()).status == 200
    assert len(site.contacts("sip:dave@other.test")) == 1
    carol.to = "<sip:nobody@other.test>"
    assert carol.register(carol.contact()).status == 404
    carol.from_ = "<sip:dave@other.test>"
    assert carol.register(carol.contact()).status == 403


def test_auth_name_may_differ_from_the_aor_and_contain_a_domain(site: Site, alice: Phone) -> None:
    site.replica.put_account("erin", auth_name="4711@pbx")
    erin = type(alice)(site, "erin")
    erin.auth_name = "4711@pbx"
    assert erin.register(erin.contact()).status == 200
    erin.from_ = erin.to = "<sip:4711@sipha.test>"
    assert erin.register(erin.contact()).status == 403


# Extensions


def test_registrar_refuses_required_extensions_that_it_lacks(alice: Phone) -> None:
    response = alice.register(alice.contact(), "Require: path, 100rel", "Require: gruu")
    assert response.status == 420
    assert response.headers.get("Unsupported") == "100rel, gruu"


def test_registrar_refuses_a_require_that_is_no_list_of_option_tags(alice: Phone) -> None:
    assert alice.register(alice.contact(), 'Require: "x"').status == 400
    assert alice.register(alice.contact(), "Require: " + ", ".join(["x"] * 99)).status == 400


def test_registrar_refuses_more_contacts_than_a_record_may_have(alice: Phone) -> None:
    response = alice.register(*[alice.contact(port=port) for port in range(1, 40)])
    assert (response.status, response.reason) == (403, "Too many registered contacts")


def test_path_from_anyone_is_ignored(site: Site, alice: Phone) -> None:
    response = alice.register(alice.contact(), "Path: <sip:victim@198.51.100.1;lr>", "Supported: path")
    assert response.status == 200
    assert "Path" not in response.headers
    assert site.replica.bindings(AOR)[0].path == ()


def test_path_from_an_edge_is_stored_and_said_back_to_who_supports_it(site: Site, alice: Phone) -> None:
    site.start(edges=(ip_network("192.0.2.0/24"),))
    path = ("<sip:edge2@192.0.2.8;lr>", "<sip:edge1@192.0.2.9;lr;ob>")
    response = alice.register(alice.contact(), f"Path: {path[0]}", f"Path: {path[1]}", "Supported: gruu, PATH")
    assert tuple(response.headers.values("Path")) == path
    assert response.headers.get("Supported") == "path"
    assert site.replica.bindings(AOR)[0].path == path
    response = alice.register(alice.contact(), f"Path: {path[0]}")
    assert response.status == 200
    assert "Path" not in response.headers
    assert site.replica.bindings(AOR)[0].path == path[:1]


@pytest.mark.parametrize("path", ["edge", "<sip:x", "<sip:[::1:5060>", "<sip:e@192.0.2.9;lr;x=" + "y" * 1024 + ">"])
def test_path_that_is_none_is_refused(site: Site, alice: Phone, path: str) -> None:
    site.start(edges=(ip_network("192.0.2.0/24"),))
    response = alice.register(alice.contact(), f"Path: {path}")
    assert (response.status, response.reason) == (400, "Path parse error")


def test_outbound_flows_of_a_device_stand_side_by_side(site: Site, alice: Phone) -> None:
    for reg_id in (1, 2):
        line = f'Contact: <sip:alice@10.0.0.1:{5060 + reg_id}>;+sip.instance="<urn:uuid:1>";reg-id={reg_id}'
        response = alice.register(line, "Supported: outbound, path")
        assert response.headers.get("Require") == "outbound"
    assert [(c.param("+sip.instance"), c.param("reg-id")) for c in response.contacts] == [
        ("<urn:uuid:1>", "1"),
        ("<urn:uuid:1>", "2"),
    ]


def test_reg_id_without_outbound_means_nothing(site: Site, alice: Phone) -> None:
    for reg_id in (1, 2):
        line = f'Contact: <sip:alice@10.0.0.1:{5060 + reg_id}>;+sip.instance="<urn:uuid:1>";reg-id={reg_id}'
        response = alice.register(line)
    assert "Require" not in response.headers
    assert len(response.contacts) == 1
    assert response.contacts[0].param("reg-id") is None


def test_required_outbound_needs_a_first_hop_that_supports_it(site: Site, alice: Phone) -> None:
    line = 'Contact: <sip:alice@10.0.0.1>;+sip.instance="<urn:uuid:1>";reg-id=1'
    far = ("Via: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bKfar", "Supported: outbound", "Require: outbound")
    assert alice.register(line, *far).status == 439
    site.start(edges=(ip_network("192.0.2.0/24"),))
    assert alice.register(line, *far, "Path: <sip:x@192.0.2.1;lr;ob>").status == 200


# Bad input


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Contact: <sip:a@192.0.2.1>;q=2", "Invalid q param in contact"),
        ("Contact: <sip:a@192.0.2.1>;q=high", "Invalid q param in contact"),
        ('Contact: <sip:a@192.0.2.1>;+sip.instance="<x>";reg-id=0', "Invalid reg-id param in contact"),
        ("Contact: <sip:a@192.0.2.1>;expires=60;Expires=0", "Contact has a parameter twice"),
        (f"Contact: <sip:{'a' * 513}@192.0.2.1>", "Contact/received too long"),
        (f"Contact: <sip:a@192.0.2.1>;x={'a' * 513}", "Contact/received too long"),
        ("Contact: <sip:2001:db8::9>", "Bad Request"),
        ("Contact: sip:user@example.com?Route=%3Csip:sip.example.com%3E", "Bad Request"),
        ("Contact: <sip:a@192.0.2.1", "Bad Request"),
        ("Contact: <sip:\xe9@192.0.2.1>", "Contact is not printable ASCII"),
        ("Contact: <sip:a@192.0.2.1;x=\x1b[2J>", "Contact is not printable ASCII"),
        ('Contact: <sip:a@192.0.2.1>;x="\0"', "Contact is not printable ASCII"),
        ("Contact: <sip:a@192.0.2.1>;x=\udcff", "Contact is not printable ASCII"),
    ],
)
def test_registrar_refuses_a_bad_contact_and_the_good_one_beside_it(
    site: Site, alice: Phone, line: str, reason: str
) -> None:
    alice.register(alice.contact())
    response = alice.register("Contact: <sip:good@192.0.2.1>", line)
    assert (response.status, response.reason) == (400, reason)
    assert site.contacts() == ["sip:alice@192.0.2.1:5060"]


def test_instance_and_parameters_are_said_back_as_they_were_quoted(alice: Phone) -> None:
    response = alice.register('Contact: <sip:a@192.0.2.1>;+sip.instance="<x\\"y\\"";z="\\"", <sip:b@192.0.2.1>')
    assert [contact.uri for contact in response.contacts] == ["sip:a@192.0.2.1", "sip:b@192.0.2.1"]
    assert response.contacts[0].param("+sip.instance") == '<x"y"'
    assert response.contacts[0].param("z") == '"'


def test_registrar_refuses_an_empty_contact(alice: Phone) -> None:
    assert alice.register("Contact:").status == 400


def test_registrar_refuses_what_is_too_long(site: Site, alice: Phone) -> None:
    alice.call_id = "c" * 257
    response = alice.register(alice.contact())
    assert (response.status, response.reason) == (400, "Callid too long")
    alice.to = f"<sip:{'a' * 257}@sipha.test>"
    response = alice.register()
    assert (response.status, response.reason) == (400, "Address Of Record too long")


@pytest.mark.parametrize("call_id", ["call\udcff", "call\xe9", "call\0"])
def test_registrar_refuses_a_call_id_that_is_not_ascii(alice: Phone, call_id: str) -> None:
    alice.call_id = call_id
    response = alice.register(alice.contact())
    assert (response.status, response.reason) == (400, "Callid is not printable ASCII")


def test_escaped_nuls_are_two_contacts(site: Site, alice: Phone) -> None:
    site.replica.put_account("null-%00-null", auth_name="null")
    phone = type(alice)(site, "null")
    phone.to = phone.from_ = "sip:null-%00-null@sipha.test"
    phone.password = "null-%00-null-secret"
    response = phone.register("Contact: <sip:%00@host5.example.com>", "Contact: <sip:%00%00@host5.example.com>")
    assert list(contacts(response)) == ["sip:%00@host5.example.com", "sip:%00%00@host5.example.com"]


def test_bad_register_does_not_disturb_the_one_that_waits(site: Site, alice: Phone) -> None:
    bob = type(alice)(site, "bob")
    alice.take_nonce(alice.send() or site.last)
    bob.take_nonce(bob.send() or site.last)
    site.replica.held = True
    assert alice.send(alice.contact()) is None
    bad = bob.send("Contact: <sip:bob@192.0.2.1>;q=9")
    assert bad is not None
    assert bad.status == 400
    assert bob.send(bob.contact()) is None
    site.replica.commit()
    assert site.contacts() == ["sip:alice@192.0.2.1:5060"]
    assert site.contacts("sip:bob@sipha.test") == ["sip:bob@192.0.2.1:5060"]


def test_response_repeats_the_request_and_goes_where_it_came_from(site: Site, alice: Phone) -> None:
    flow = alice.flow._replace(remote=("203.0.113.5", 1024))
    data = alice.message("Via: SIP/2.0/UDP far.test;branch=z9hG4bKfar", alice.contact())
    response = site.receive(data.replace(b"To: <", b'To: "A \\" B" <'), flow)
    assert response is not None
    assert site.sent[-1][1].remote == ("203.0.113.5", 1024)
    assert response.via.received == "203.0.113.5"
    assert response.via.rport == 1024
    assert len(response.vias) == 2
    assert str(response.from_) == "<sip:alice@sipha.test>;tag=from-alice"
    assert (response.headers.get("To") or "").startswith('"A \\" B" <sip:alice@sipha.test>;tag=')
    assert response.cseq.method == "REGISTER"
    assert response.headers.get("Content-Length") == "0"


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 700),
        st.sampled_from([b"", b'"', b"\\", b"<", b">", b";", b",", b"*", b"\0", b"\xff", b"\n", b"="]),
    ),
    min_size=1,
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES)
def test_changed_register_harms_nothing(site: Site, alice: Phone, changes: list[tuple[int, bytes]]) -> None:
    alice.register(alice.contact())
    before = site.contacts("sip:bob@sipha.test")
    data = bytearray(
        alice.message(
            'Contact: "A" <sip:alice@192.0.2.1:5060;x=y>;q=0.5;expires=100;+sip.instance="<urn:uuid:1>";reg-id=1',
            "Supported: outbound, path",
            "Require: path",
            "Expires: 100",
            "User-Agent: x",
        )
    )
    for place, change in changes:
        data[place : place + 1] = change
    sent = len(site.sent)
    try:
        request = parse(bytes(data))
    except MalformedMessage:
        return
    if isinstance(request, Request) and request.method == "REGISTER":
        site.receive(bytes(data))
        assert len(site.sent) == sent + 1
        assert site.last.status in {200, 400, 401, 403, 404, 420, 423, 439, 500}
    assert site.contacts("sip:bob@sipha.test") == before
    assert site.registry.pending == 0
