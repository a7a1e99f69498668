from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.nat.detection import Test, make_detection
from sipha.registrar.plain import Plain, read_by_pattern
from sipha.registrar.record import RegistrarSettings
from sipha.sip.digest import MAX_CREDENTIALS, Credentials
from sipha.sip.flow import Flow
from sipha.sip.origin import Origin
from sipha.sip.parser import ParseError, parse
from sipha.state.entries import Policy
from tests.kernels import kernel
from tests.registrar.conftest import FLOW, Phone, Site
from tests.sip.test_values import assert_linear

SAMPLES = sorted((Path(__file__).parents[2].parent / "shared/sip-torture/messages").glob("*.sip"))
NATED = Flow("UDP", ("192.0.2.10", 5060), ("198.51.100.7", 60001))
IPV6 = Flow("UDP", ("2001:db8::10", 5060), ("2001:db8::7", 5070))
SETTINGS = {
    "as it is delivered": RegistrarSettings(),
    "with jitter": RegistrarSettings(expires_jitter=10),
    "with one contact": RegistrarSettings(policy=Policy(max_contacts=1, full="refuse", one_per_instance=False)),
}

PLAIN = {
    "a desk phone": ("Contact: <sip:alice@192.0.2.1:5060>", "Allow: INVITE, ACK, BYE", "Expires: 3600"),
    "one behind NAT": (
        "Contact: <sip:alice@10.0.0.7:60000;transport=udp>;expires=600",
        "User-Agent: softphone 5.2 (x)",
    ),
    "one with an instance": (
        'Contact: "Alice" <sip:alice@192.0.2.1:5060;ob>;expires=300;+sip.instance="<urn:uuid:0-1>"',
        "Supported: path, gruu",
        "Allow-Events: presence",
    ),
    "one with an IPv6 address": ("Contact: <sip:alice@[2001:DB8::7]:5070>",),
    "one that leaves": ("Contact: <sip:alice@192.0.2.1:5060>", "Expires: 0"),
    "one that says nothing of an expiry": ("Contact: <sip:192.0.2.1>",),
    "one with a Route": ("Contact: <sip:alice@192.0.2.1:5060;ob>", "Route: <sip:192.0.2.10;transport=udp;lr>"),
}


read_by_kernel = kernel("sipha.registrar._glance").reader(Plain, Origin, Credentials)


def read(data: bytes, flow: Flow = FLOW) -> Plain | None:
    """What a datagram says, in which pattern and kernel agree."""
    plain = read_by_pattern(data, *flow.remote)
    by_kernel = read_by_kernel(data, *flow.remote)
    assert (by_kernel, hash(by_kernel)) == (plain, hash(plain))
    return plain


class Pair:
    """Two registrars that are told the same: one takes each message apart, one reads what is plain at a glance."""

    def __init__(self, settings: RegistrarSettings = SETTINGS["as it is delivered"]) -> None:
        self.sites = Site(settings=settings), Site(settings=settings, glances=True)
        for site in self.sites:
            site.start(is_behind_nat=make_detection(get_args(Test)))
        self.phone = Phone(self.sites[0])

    def receive(self, data: bytes, flow: Flow) -> None:
        """Let both hear a datagram, and compare what becomes of it."""
        plain = read(data, flow)
        try:
            parse(data)
        except ParseError:
            assert plain is None
            return
        for site in self.sites:
            site.receive(data, flow)
        one, other = self.sites
        assert other.sent == one.sent
        assert other.replica.machine.hash() == one.replica.machine.hash()
        assert other.registrar.counters == one.registrar.counters
        assert other.registrar.responses == one.registrar.responses

    def challenge(self, flow: Flow) -> None:
        """Let the phone have a nonce that is good for both."""
        data = self.phone.message(self.phone.contact())
        assert read(data) is not None
        self.receive(data, flow)
        self.phone.take_nonce(self.sites[0].last)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("lines", PLAIN.values(), ids=PLAIN)
def test_registrar_takes_at_a_glance_what_phones_send(lines: tuple[str, ...], settings: RegistrarSettings) -> None:
    pair = Pair(settings)
    pair.challenge(NATED)
    for _ in range(3):
        data = pair.phone.message(*lines)
        assert read(data) is not None
        pair.receive(data, NATED)
        pair.receive(data, NATED)  # a retransmission
        for site in pair.sites:
            site.replica.now += 100


@pytest.mark.parametrize("uri", ["sip:sipha.test:5060", "sip:sipha.test;transport=udp"])
@pytest.mark.parametrize("length", [b"Content-Length: 0", b"Content-Length:  0"], ids=["", "as PJSIP writes it"])
def test_registrar_takes_at_a_glance_what_is_the_way_of_a_stack(uri: str, length: bytes) -> None:
    pair = Pair()
    pair.phone.uri = uri
    pair.challenge(FLOW)
    data = pair.phone.message(pair.phone.contact()).replace(b"Content-Length: 0", length)
    assert read(data) is not None
    pair.receive(data, FLOW)
    assert pair.sites[1].last.status == 200


def test_registrar_refuses_at_a_glance_as_otherwise() -> None:
    pair = Pair()
    pair.challenge(FLOW)
    contact = pair.phone.contact()
    stolen = pair.phone.authorization(username="bob")
    stale = pair.phone.authorization(nonce=pair.phone.nonce[::-1])
    for authorization in (
        stolen,
        stale,
        pair.phone.authorization(nc="00000000"),
    ):
        data = pair.phone.message(contact, authorization=authorization)
        assert read(data) is not None
        pair.receive(data, FLOW)
    pair.receive(pair.phone.message(contact, "Expires: 59"), FLOW)
    assert pair.sites[1].last.status == 423


def test_registrar_leaves_to_a_closer_look_who_registers_for_another() -> None:
    pair = Pair()
    pair.challenge(FLOW)
    elsewhere = pair.phone.message(pair.phone.contact(), authorization=pair.phone.authorization(uri="sip:x"))
    pair.phone.to = "<sip:bob@sipha.test>"
    for data, status in ((elsewhere, 400), (pair.phone.message(pair.phone.contact()), 403)):
        assert read(data) is None
        pair.receive(data, FLOW)
        assert pair.sites[1].last.status == status


def test_credentials_of_any_length_mean_the_same_at_a_glance() -> None:
    pair = Pair()
    pair.challenge(FLOW)
    usual = len(pair.phone.authorization(cnonce=""))
    for length in (MAX_CREDENTIALS - usual, MAX_CREDENTIALS - usual + 1):
        authorization = pair.phone.authorization(cnonce="c" * length)
        pair.receive(pair.phone.message(pair.phone.contact(), authorization=authorization), FLOW)
    assert [pair.sites[1].last.status, len(authorization)] == [400, MAX_CREDENTIALS + 1]


@pytest.mark.parametrize(
    ("whole", "broken"),
    [
        (b";branch=", b";;branch="),
        (b"z9hG4bKalice1", b"z9hG4bKalice1;"),
        (b"5060>", b"5060;>"),
        (b"5060>", b"5060;ob=>"),
        (b"\r\n\r\n", b"\r\nTo: \r\n"),
        (b"\r\n\r\n", b"\r\nExpires: 60;\r\n\r\n"),
    ],
)
def test_what_breaks_off_is_not_plain(whole: bytes, broken: bytes) -> None:
    phone = Phone(Site())
    data = phone.message(phone.contact())
    assert read(data) is not None
    assert whole in data
    assert read(data.replace(whole, broken)) is None


@pytest.mark.parametrize(
    "line",
    ["{}", "Via: SIP/2.0/UDP a{}", 'From: "{}', "To: <sip:{}", "Contact: <sip:a{}>", "Authorization: Digest {}"],
)
def test_what_is_plain_is_found_out_in_linear_time(line: str) -> None:
    assert_linear(lambda text: read(text.encode()), f"REGISTER sip:a SIP/2.0\r\n{line}\r\n\r\n")


@pytest.mark.parametrize("uri", ["sip:sipha.test", "sip:sipha.test;transport=udp"])
def test_credentials_in_quotes_or_half_in_quotes_mean_the_same_at_a_glance(uri: str) -> None:
    pair = Pair()
    pair.phone.uri = uri
    pair.challenge(FLOW)
    for name in ("algorithm", "qop", "nc"):
        for form in (r'\1="\2', r'\1=\2"', r'\1="\2"', r'\1=""\2"'):
            authorization, count = re.subn(rf"\b({name})=([A-Za-z0-9]+)", form, pair.phone.authorization())
            assert count == 1
            pair.receive(pair.phone.message(pair.phone.contact(), authorization=authorization), FLOW)


def test_credentials_without_an_algorithm_mean_the_same_at_a_glance() -> None:
    pair = Pair()
    pair.challenge(FLOW)
    for doubled in (
        "",
        ', nc=00000001, nc="1"',
        ', qop=auth, qop="auth"',
        ', uri="sip:x;y=z"',
        ', uri="sip:sipha.test"',
    ):
        authorization = pair.phone.authorization().replace("algorithm=MD5, ", "") + doubled
        data = pair.phone.message(pair.phone.contact(), authorization=authorization)
        assert (read(data) is None) is bool(doubled)
        pair.receive(data, FLOW)
        assert pair.sites[1].last.status == (400 if doubled else 200)


USUAL = {
    "Via": ";rport",
    "From": "<sip:alice@sipha.test>",
    "To": "<sip:alice@sipha.test>",
    "Contact": "<sip:alice@192.0.2.1:5060>",
    "Expires": "3600",
    "User-Agent": "phone",
    "Request-URI": "sip:sipha.test",
}
ELSEWHERE = ("Via", "From", "To", "Request-URI")
ODD = {
    "Via": (
        ";RPORT", ";rport=", ";rport=1", ";rport;received=192.0.2.9", "", ";rport;rport", ";xrport;rport",
        ";rport;a=[b]",
    ),
    "From": (
        '"Alice" <sip:alice@sipha.test>', '"a\\"b" <sip:alice@sipha.test>', "Alice <sip:alice@sipha.test>",
        "<sip:bob@sipha.test>",
    ),
    "To": (
        '"Alice" <sip:alice@sipha.test>', " <sip:alice@sipha.test> ", "<sip:alice@alias.test>",
        "<sip:bob@sipha.test>",
    ),
    "Contact": (
        "<sip:192.0.2.1>", "<sip:alice@192.0.2.1:65535>", "<sip:alice@192.0.2.1:65536>", "<sip:alice@192.0.2.1:0>",
        "<sip:alice@192.0.2.1;transport=tls>", "<sip:alice@192.0.2.1:05060>", "<sip:alice@10.0.0.1:60000>;expires=70",
        "<sips:alice@192.0.2.1>", "<sip:alice@HOST.Invalid:5060>", "<sip:alice@192.0.2.1>;q=0.5", "sip:alice@192.0.2.1",
        "<sip:a@192.0.2.1>;expires=5000000000", "<sip:a@192.0.2.1>, <sip:b@192.0.2.1>", "*", "", "<tel:+1234>",
        "<sip:alice@[2001:db8::7]:5070>", "<sip:[2001:DB8::7]>", "<sip:alice@[::7>", "<sip:alice@[xyz]>", "<sip:a@[]>",
        '<sip:alice@192.0.2.1:5060>;+sip.instance="<urn:uuid:1>"', '<sip:a@192.0.2.1>;+sip.instance="";expires=60',
        '<sip:alice@192.0.2.1:5060>;expires=60;+sip.instance="<urn:uuid:1>"', f"<sip:{'a' * 510}@192.0.2.1>",
        f"<sip:{'a' * 300}@192.0.2.1>;+sip.instance=\"{'b' * 300}\"",
    ),
    "Expires": ("0", "30", "soon", "123456789", "0123456789"),
    "User-Agent": (" phone ", "a\tb", "x" * 300, "ü"),
    "Allow": ("INVITE, ACK", "", " , ", "INVITE,ACK "),
    "Supported": ("path, outbound",),
    "Require": ("outbound",),
    "Path": ("<sip:192.0.2.8;lr>",),
    "Route": ("<sip:192.0.2.10;lr>", "<sip:192.0.2.8;transport=udp;lr>, <sip:a>", "nonsense", ""),
    "Request-URI": (
        "sip:sipha.test:5060", "sip:sipha.test:05060", "sip:sipha.test:70000", "sip:sipha.test;transport=udp",
        "sip:SIPHA.test:5060;transport=TCP", "sip:192.0.2.10", "sip:sipha.test;transport=", "sip:sipha.test;lr",
        "sip:alice@sipha.test", "sips:sipha.test", "sip:other.test", "sip:nowhere.test",
    ),
}  # fmt: skip


def message(phone: Phone, fields: dict[str, str]) -> bytes:
    """A REGISTER with these fields, what is in "Via" being parameters."""
    phone.from_, phone.to, phone.uri = fields["From"], fields["To"], fields["Request-URI"]
    data = phone.message(*[f"{name}: {text}" for name, text in fields.items() if name not in ELSEWHERE])
    return data.replace(b";rport", fields["Via"].encode(), 1)


@pytest.mark.parametrize("flow", [FLOW, NATED, IPV6], ids=["direct", "behind NAT", "IPv6"])
def test_what_is_odd_means_the_same_at_a_glance(flow: Flow) -> None:
    for name, texts in ODD.items():
        for text in texts:
            pair = Pair()
            pair.challenge(flow)
            pair.receive(message(pair.phone, USUAL | {name: text}), flow)


@given(data=st.data())
def test_what_registrar_does_at_a_glance_is_what_it_does_with_the_message(data: st.DataObject) -> None:
    pair = Pair(data.draw(st.sampled_from(list(SETTINGS.values()))))
    flow = data.draw(st.sampled_from([FLOW, NATED, IPV6]))
    pair.challenge(flow)
    for _ in range(3):
        odd = data.draw(st.sets(st.sampled_from(list(ODD)), max_size=2))
        datagram = message(pair.phone, USUAL | {name: data.draw(st.sampled_from(ODD[name])) for name in odd})
        start, *lines = datagram.decode("utf-8", "surrogateescape").split("\r\n")[:-2]
        if data.draw(st.booleans()):
            lines = data.draw(st.permutations(lines))
        if data.draw(st.integers(0, 5)) == 5:
            lines.append(data.draw(st.sampled_from(lines)))
        changed = bytearray("\r\n".join([start, *lines, "", ""]).encode("utf-8", "surrogateescape"))
        if data.draw(st.integers(0, 3)) == 3:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(
                st.sampled_from(b' \t\r\n:;,"<>=@a0\x00\xff')
            )
        pair.receive(bytes(changed), flow)


EVERYTHING = (
    'Contact: "Alice" <sip:alice@Host.Test:5060;ob;a=b>;expires=300;+sip.instance="<urn:uuid:0-1>"',
    "Expires: 60",
    "User-Agent:  a phone ",
    "Allow: INVITE, ACK",
    "Supported: path",
    "Allow-Events: presence",
    "Route: <sip:192.0.2.10;lr>",
)
PIECES = [
    b" ", b"\t", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\r\n ", b"\0", b"\x7f", b"\x80", b"\xff", b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80", "ü".encode(), "\u2028".encode(), "\u0663".encode(), "\u0130".encode(), "\u212a".encode(),
    b":", b";", b";a", b";a=", b",", b", ", b"=", b'"', b'""', b"\\", b"<", b">", b"@", b"[", b"]", b"-", b"_", b"/",
    b"0", b"1", b"9", b"A", b"a", b"g", b"F", b"z", b"~", b"99999999", b"65535", b"65536",
    b";rport", b";rport=", b";ReCeived=1", b";tag=", b";expires=1", b"nc=1, ", b'nonce="=", ', b"algorithm=MD5, ",
    b"algorithm=SHA-256", b'qop="auth", ', b"qop=auth-int", b"To: ", b"To: \r\n", b"Expires: 0\r\n", b"Route: \r\n",
    b"Content-Length:  0\r\n", b"Via: SIP/2.0/UDP a;rport\r\n",
]  # fmt: skip


def everything() -> list[bytes]:
    """Datagrams that have whatever a plain one may have."""
    phone = Phone(Site())
    phone.nonce, phone.uri, phone.from_ = "c0ffee", "sip:sipha.test:5060;transport=udp", '"Zoë" <sip:alice@sipha.test>'
    phone.to = f"{phone.from_}"
    whole = phone.message(*EVERYTHING)
    unnamed = phone.message(*EVERYTHING, authorization=phone.authorization().replace("algorithm=MD5, ", ""))
    assert all(read(data) is not None for data in (whole, unnamed))
    return [whole, unnamed]


def test_kernel_breaks_off_where_the_pattern_does() -> None:
    for data in everything():
        for end in range(len(data)):
            assert read(data[:end]) is None
            read(data[:end] + data[end + 1 :])


@pytest.mark.timeout(300)
def test_kernel_knows_each_character_as_the_pattern_does() -> None:
    characters = [bytes((code,)) for code in range(256)]
    for data in everything():
        for place in range(len(data)):
            for piece in (*characters[place % 7 :: 7], *PIECES):
                read(data[:place] + piece + data[place + 1 :])
                read(data[:place] + piece + data[place:])


@given(data=st.data())
def test_kernel_reads_what_is_spoilt_as_the_pattern_does(data: st.DataObject) -> None:
    spoilt = data.draw(st.sampled_from(everything()))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(spoilt)))
        end = data.draw(st.integers(start, min(len(spoilt), start + 30)))
        spoilt = spoilt[:start] + data.draw(st.sampled_from(PIECES) | st.binary(max_size=8)) + spoilt[end:]
    read(spoilt, data.draw(st.sampled_from([FLOW, NATED, IPV6])))


@given(counts=st.lists(st.integers(0, 18), min_size=6, max_size=6))
def test_kernel_counts_as_the_pattern_does(counts: list[int]) -> None:
    params, options, digits, blanks, port, host = counts
    phone = Phone(Site())
    data = phone.message(
        f"Contact: <sip:alice@192.0.2.1:{'1' * min(port, 6)}{';a=b' * options}>;expires={'9' * digits}",
        f"Expires: {'0' * digits}",
        f"User-Agent: {' ' * blanks}{'x' * 20 * blanks}",
    )
    data = data.replace(b";rport", b";rport" + b";a" * params, 1).replace(b"CSeq: ", b"CSeq: " + b"0" * digits, 1)
    read(data.replace(b"REGISTER sip:", b"REGISTER sip:" + b"h" * (230 + host), 1))


@pytest.mark.parametrize("size", [MAX_CREDENTIALS - 1, MAX_CREDENTIALS, 65_507])
def test_what_is_long_is_not_plain(size: int) -> None:
    phone = Phone(Site())
    empty = len(phone.message(phone.contact(), "Supported: "))
    data = phone.message(phone.contact(), "Supported: " + "x" * (size - empty))
    assert len(data) == size
    assert (read(data) is None) is (size >= MAX_CREDENTIALS)


def test_kernel_refuses_what_it_is_not_made_for() -> None:
    reader = kernel("sipha.registrar._glance").reader
    for types in ((), (Plain, Origin), (Plain, Origin, tuple), (Credentials, Origin, Plain), (1, 2, 3)):
        with pytest.raises(TypeError):
            reader(*types)
    for arguments in ((), (b"",), ("", "", 1), (b"", b"", 1), (b"", "", "")):
        with pytest.raises(TypeError):
            read_by_kernel(*arguments)
    for host, port in (("a", -1), ("a", 65536), ("a" * 65, 1)):
        with pytest.raises(ValueError, match="comes from there"):
            read_by_kernel(b"", host, port)
    with pytest.raises(OverflowError):
        read_by_kernel(b"", "a", 1 << 80)
    with pytest.raises(UnicodeEncodeError):
        read_by_kernel(b"", "\udcff", 1)


def test_kernel_keeps_nothing_of_what_it_has_read() -> None:
    whole, spoilt = everything()[0], everything()[1][:-1]
    flow = Flow("UDP", ("192.0.2.10", 5060), (NATED.remote[0] + "7", NATED.remote[1] + 1))
    watched = (whole, spoilt, *flow.remote, Plain, Origin, Credentials)

    def references() -> list[int]:
        return list(map(sys.getrefcount, watched))

    before = references()
    for _ in range(1000):
        read_by_kernel(whole, *flow.remote)
        read_by_kernel(spoilt, *flow.remote)
    assert references() == before
    sizes = []
    for _ in range(3):
        gc.collect()
        sizes.append(sys.getallocatedblocks())
        for _ in range(1000):
            read_by_kernel(whole, *flow.remote)
    assert sizes[2] - sizes[1] < 100


@pytest.mark.skipif(not SAMPLES, reason="the samples are not part of the repository")
def test_registrar_takes_at_a_glance_what_it_takes_of_phones_and_torturers() -> None:
    pair = Pair()
    for sample in SAMPLES:
        data = sample.read_bytes()
        if data.startswith(b"REGISTER "):
            pair.receive(data, FLOW)
            pair.receive(data.replace(b"example.com", b"sipha.test"), FLOW)
        else:
            assert read(data) is None
