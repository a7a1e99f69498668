from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from sipha.admin.imports import DomainView
from sipha.migration.location import Expired, Locations
from sipha.migration.rows import Unusable
from sipha.migration.subscriber import by_name

NOW = 1_800_000_000.0
DOMAINS = by_name([DomainView("sipha.test", "sipha.test", ("alias.test",), ("MD5",))])
OPENSIPS = Locations("opensips", DOMAINS, NOW)
KAMAILIO = Locations("kamailio", DOMAINS, NOW, ZoneInfo("Europe/Prague"))
ROW: dict[str, str | None] = {
    "contact_id": "42",
    "username": "alice",
    "domain": "sipha.test",
    "contact": "sip:alice@10.0.0.5:5060;ob",
    "received": "sip:192.0.2.77:40000;transport=TCP",
    "path": "<sip:edge1.test;lr>,<sip:edge2.test;lr>",
    "expires": str(int(NOW) + 600),
    "q": "0.50",
    "callid": "abc@10.0.0.5",
    "cseq": "17",
    "last_modified": "2027-01-15 08:00:00",
    "flags": "3",
    "cflags": "NAT SIP_PING",
    "user_agent": "phone/1",
    "socket": "udp:192.0.2.10:5060",
    "methods": "35",
    "sip_instance": '"<urn:uuid:1>"',
    "kv_store": '{"a":1}',
    "attr": "x",
}


def test_a_row_of_opensips_has_all_that_a_binding_has() -> None:
    binding = OPENSIPS.binding(ROW)
    assert (binding.aor, binding.contact) == ("sip:alice@sipha.test", "sip:alice@10.0.0.5:5060;ob")
    assert (binding.expires, binding.q, binding.call_id, binding.cseq) == (600, 0.5, "abc@10.0.0.5", 17)
    assert (binding.received, binding.behind_nat) == ("sip:192.0.2.77:40000;transport=tcp", True)
    assert binding.path == ("<sip:edge1.test;lr>", "<sip:edge2.test;lr>")
    assert (binding.socket, binding.flags, binding.user_agent) == ("udp:192.0.2.10:5060", 3, "phone/1")
    assert (binding.methods, binding.instance, binding.reg_id) == ("INVITE,CANCEL,OPTIONS", "<urn:uuid:1>", 0)
    assert (binding.attr, binding.kv_store) == ("x", '{"a":1}')


def test_a_row_of_kamailio_has_dates_and_columns_of_its_own() -> None:
    row = {**ROW, "expires": "2027-01-15 09:10:00", "received": None, "path": None, "cflags": "64"}
    row |= {"instance": "<urn:uuid:2>", "sip_instance": None, "reg_id": "2", "methods": "35", "q": "-1.00"}
    binding = KAMAILIO.binding(row)
    assert binding.expires == 600  # 08:10:00 UTC
    assert (binding.received, binding.behind_nat, binding.path) == ("", False, ())
    assert (binding.methods, binding.instance, binding.reg_id) == ("INVITE,CANCEL,REGISTER", "<urn:uuid:2>", 2)
    assert binding.q is None


def test_kamailio_may_keep_where_a_phone_is_in_its_contact() -> None:
    binding = KAMAILIO.binding({**ROW, "received": None, "contact": "sip:alice@10.0.0.5;alias=192.0.2.7~4000~2;ob"})
    assert (binding.contact, binding.received) == ("sip:alice@10.0.0.5;ob", "sip:192.0.2.7:4000;transport=tcp")
    assert binding.behind_nat


def test_methods_are_left_out_where_the_phone_has_said_nothing() -> None:
    assert [OPENSIPS.binding({**ROW, "methods": methods}).methods for methods in (None, "16383", "4294967295")] == [
        "",
        "",
        "",
    ]


def test_what_has_run_out_is_no_fault_of_the_row() -> None:
    with pytest.raises(Expired):
        OPENSIPS.binding({**ROW, "expires": str(int(NOW))})
    with pytest.raises(Unusable, match="never expires"):
        OPENSIPS.binding({**ROW, "expires": "0"})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("username", ""),
        ("domain", "elsewhere.test"),
        ("expires", "soon"),
        ("expires", "9999-99-99 00:00:00"),
        ("cseq", "-1"),
        ("q", "much"),
        ("received", "sip:host.test"),
        ("received", "<>"),
        ("flags", "x"),
    ],
)
def test_a_row_that_is_no_binding_says_why(column: str, value: str) -> None:
    with pytest.raises(Unusable):
        OPENSIPS.binding({**ROW, column: value})
