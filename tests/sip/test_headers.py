from __future__ import annotations

import time

import pytest

from sipha.sip.headers import Headers, split_first, split_values
from sipha.sip.values import (
    parse_name_addr,
    parse_via,
)


def read(*lines: str) -> Headers:
    headers = Headers()
    assert headers.read(list(lines)) is None
    return headers


# -- Headers ---------------------------------------------------------------------------------------


def test_headers_are_found_in_any_case_and_in_compact_form() -> None:
    headers = read("v: SIP/2.0/UDP a", "f: <sip:a@b>", "TO: <sip:c@d>", "X-Foo: bar", "cAlL-iD: x")
    assert headers.get("Via") == "SIP/2.0/UDP a"
    assert headers.get("from") == "<sip:a@b>"
    assert headers.get("t") == "<sip:c@d>"
    assert headers.get("x-foo") == headers.get("X-FOO") == "bar"
    assert headers.get("Call-ID") == headers.get("i") == "x"
    assert "V" in headers
    assert "Route" not in headers
    assert headers.get("Route") is None
    assert headers.names() == ["Via", "From", "To", "x-foo", "Call-ID"]


def test_headers_keep_lines_as_they_came() -> None:
    lines = ["v:SIP/2.0/UDP a", "Subject : lunch \r\n  today ", "X-Foo:", "UnknownHeader: ;;,,;;,;"]
    headers = read(*lines)
    assert headers.lines == lines
    assert headers.get("Subject") == "lunch today"
    assert headers.get("X-Foo") == ""
    assert headers.get("unknownheader") == ";;,,;;,;"


def test_headers_join_folds_of_raw_lines() -> None:
    headers = read("Subject: a", "\tb", "   c", "To: <sip:x@y>")
    assert headers.get("Subject") == "a b c"
    assert headers.lines == ["Subject: a\r\n\tb\r\n   c", "To: <sip:x@y>"]


def test_headers_keep_order_and_repeats() -> None:
    headers = read("Via: a, b", "Route: <sip:r>", "v: c")
    assert headers.all("Via") == ["a, b", "c"]
    assert headers.values("Via") == ["a", "b", "c"]
    assert headers.all("Path") == headers.values("Path") == []
    assert headers.count("Via") == 2
    assert headers.lines_of("Via") == ["Via: a, b", "v: c"]


@pytest.mark.parametrize(
    "line", ["nonsense", "", ": value", "Two Words: x", " To: x", "Süd: x", "To\x00: x", "=?: x", "\x1fTo: x"]
)
def test_headers_name_the_line_that_is_none(line: str) -> None:
    headers = Headers()
    defect = headers.read([line, "Call-ID: x"])
    assert defect is not None
    assert headers.get("Call-ID") == "x"


def test_headers_can_be_changed() -> None:
    headers = read("Via: a, b", "Max-Forwards: 70", "Via: c", "To: x")
    headers.prepend("Via", "top")
    headers.set("Max-Forwards", "69")
    headers.add("X-Foo", "bar")
    headers.set("Expires", "5")
    assert headers.lines == ["Via: top", "Via: a, b", "Max-Forwards: 69", "Via: c", "To: x", "X-Foo: bar", "Expires: 5"]
    assert headers.get("Via") == "top"
    assert headers.pop_value("Via") == "top"
    assert headers.pop_value("v") == "a"
    assert headers.get("Via") == "b"
    headers.replace_value("Via", "B")
    assert headers.values("Via") == ["B", "c"]
    headers.set("Via", "only")
    assert headers.all("Via") == ["only"]
    headers.remove("Via")
    assert "Via" not in headers
    with pytest.raises(KeyError):
        headers.pop_value("Via")
    with pytest.raises(KeyError):
        headers.replace_value("Via", "x")
    headers.remove("Via")
    assert headers.lines == ["Max-Forwards: 69", "To: x", "X-Foo: bar", "Expires: 5"]


def test_replace_value_leaves_the_other_values() -> None:
    headers = read("Via: a , b,c", "Via: d")
    headers.replace_value("Via", "A")
    assert headers.lines == ["Via: A, b,c", "Via: d"]


def test_remove_values_leaves_the_others_as_they_came() -> None:
    headers = read("a: x", "proxy-authorization:  one", "Proxy-Authorization: two", "To: y")
    headers.remove_values("Proxy-Authorization", lambda value: value == "one")
    assert headers.lines == ["a: x", "Proxy-Authorization: two", "To: y"]
    assert headers.get("Proxy-Authorization") == "two"
    headers.remove_values("Proxy-Authorization", lambda value: True)
    assert "Proxy-Authorization" not in headers


def test_a_copy_changes_alone() -> None:
    headers = read("Via: a", "To: x")
    copy = headers.copy()
    copy.prepend("Via", "top")
    copy.remove("To")
    assert headers.lines == ["Via: a", "To: x"]
    assert headers.get("Via") == "a"
    assert headers.get("To") == "x"


def test_parsed_values_follow_changes() -> None:
    headers = read("Via: SIP/2.0/UDP a", "Route: <sip:x>, <sip:y>")
    assert headers.parsed("Via", parse_via).host == "a"
    assert headers.parsed("Via", parse_via) is headers.parsed("Via", parse_via)
    headers.prepend("Via", "SIP/2.0/UDP b")
    assert headers.parsed("Via", parse_via).host == "b"
    headers.pop_value("Via")
    assert headers.parsed("Via", parse_via).host == "a"
    assert [route.uri for route in headers.parsed_values("Route", parse_name_addr)] == ["sip:x", "sip:y"]
    headers.pop_value("Route")
    assert [route.uri for route in headers.parsed_values("Route", parse_name_addr)] == ["sip:y"]


# -- Splitting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("", []),
        (" , ,, ", []),
        ("a", ["a"]),
        ("a,b , c", ["a", "b", "c"]),
        ('"a, b" <sip:x>, <sip:y,z;q=","> , c', ['"a, b" <sip:x>', '<sip:y,z;q=",">', "c"]),
        ('"a\\", b" <sip:x>, c', ['"a\\", b" <sip:x>', "c"]),
        ('"unterminated, a', ['"unterminated, a']),
        ("<unterminated, a", ["<unterminated, a"]),
        ('a, "\\', ["a", '"\\']),
    ],
)
def test_split_values_respects_quotes_and_brackets(field: str, values: list[str]) -> None:
    assert split_values(field) == values
    assert split_first(field)[0] == (values[0] if values else "")


def test_headers_take_linear_time() -> None:
    def seconds(lines: list[str]) -> float:
        start = time.process_time()
        headers = Headers()
        headers.read(lines)
        headers.get("Call-ID")
        headers.pop_value("Via")
        headers.copy().set("Via", "x")
        return time.process_time() - start

    for tail in (["Via: a"], [" fold"], ["x:"], ["", "  "], ["nonsense"]):
        few, many = ["Via: top, b", *tail * 1_000], ["Via: top, b", *tail * 16_000]
        # A collection of garbage may fall into one of them, not into all.
        shortest = min(seconds(many) for _ in range(3))
        assert shortest < max(100 * min(seconds(few) for _ in range(3)), 0.1), tail
