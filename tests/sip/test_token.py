from __future__ import annotations

from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.sip.flow import Flow
from sipha.sip.token import MAGIC_COOKIE, NOBODY, Hop, Tokens, _data, _text

OLD, NEW = b"o" * 32, b"n" * 32
IDENTITY = ("192.0.2.1:5060", "z9hG4bKabc", "call-1", "tag-1", "1", "sip:bob@192.0.2.7")
CALLER = Flow("UDP", ("192.0.2.10", 5060), ("192.0.2.1", 5062))
CALLEE = Flow("TLS", ("2001:db8::10", 5061), ("2001:db8::7", 49152), 3)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens({7: NEW})


def test_keyring_needs_a_key() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        Tokens({})


def test_last_key_of_the_ring_is_the_current_one() -> None:
    # Key ids begin again at 1 after 255.
    assert Tokens({255: OLD, 1: NEW}).nonce(1, 2, 3) == Tokens({1: NEW}).nonce(1, 2, 3)


def test_nonce_says_term_and_time(tokens: Tokens) -> None:
    assert tokens.read_nonce(tokens.nonce(3, 1000.9, 1)) == (3, 1000)
    assert tokens.read_nonce(tokens.nonce(2**32 + 5, 2**32 - 1, 2**40)) == (5, 2**32 - 1)


def test_nonces_of_one_second_differ(tokens: Tokens) -> None:
    assert tokens.nonce(3, 1000, 1) != tokens.nonce(3, 1000, 2)


def test_nonce_of_an_older_key_is_read_while_the_key_is_held() -> None:
    nonce = Tokens({6: OLD}).nonce(3, 1000, 1)
    assert Tokens({6: OLD, 7: NEW}).read_nonce(nonce) == (3, 1000)
    assert Tokens({7: NEW}).read_nonce(nonce) is None
    assert Tokens({6: NEW}).read_nonce(nonce) is None


def test_changed_nonce_is_not_ours(tokens: Tokens) -> None:
    nonce = tokens.nonce(3, 1000, 1)
    for place, character in enumerate(nonce):
        other = "0" if character != "0" else "1"
        assert tokens.read_nonce(nonce[:place] + other + nonce[place + 1 :]) is None
    assert tokens.read_nonce(nonce.upper()) is None
    assert tokens.read_nonce(nonce + " ") is None


@given(st.text(max_size=60))
def test_any_text_is_no_token(text: str) -> None:
    tokens = Tokens({7: NEW})
    assert tokens.read_nonce(text) is None
    assert tokens.read_ping(text) is None
    assert tokens.read_branch(text, IDENTITY) is None
    assert tokens.read_route(text, "call-1", "tag-1") is None
    assert not tokens.is_tag(text, "call-1", "tag-1", 1, "z9hG4bKabc")


def test_tag_is_the_same_for_each_copy_of_a_request(tokens: Tokens) -> None:
    tag = tokens.tag("call-1", "tag-1", 1, "z9hG4bKabc")
    assert tag == tokens.tag("call-1", "tag-1", 1, "z9hG4bKabc")
    assert tokens.is_tag(tag, "call-1", "tag-1", 1, "z9hG4bKabc")
    assert Tokens({7: NEW, 8: OLD}).is_tag(tag, "call-1", "tag-1", 1, "z9hG4bKabc")
    for fields in (
        ("call-2", "tag-1", 1, "z9hG4bKabc"),
        ("call-1", "tag-2", 1, "z9hG4bKabc"),
        ("call-1", "tag-1", 2, "z9hG4bKabc"),
        ("call-1", "tag-1", 1, "z9hG4bKabd"),
    ):
        assert tokens.tag(*fields) != tag
        assert not tokens.is_tag(tag, *fields)


def test_branch_says_which_fork_it_is(tokens: Tokens) -> None:
    branch = tokens.branch(IDENTITY, 1000.9, 2, 5, "feed")
    token = tokens.read_branch(branch, IDENTITY)
    assert branch.startswith(MAGIC_COOKIE)
    assert token is not None
    assert (token.issued_at, token.fork, token.forks, token.loop) == (768, 2, 5, "feed")


def test_branch_is_the_same_a_little_later_on_another_node() -> None:
    first, second = Tokens({1: bytes(32)}), Tokens({1: bytes(32)})
    assert first.branch(IDENTITY, 1000.9, 2, 5, "feed") == second.branch(IDENTITY, 1003.2, 2, 5, "feed")


def test_branch_is_bound_to_its_identity_and_loop(tokens: Tokens) -> None:
    branch = tokens.branch(IDENTITY, 1000, 2, 5, "feed")
    for place in range(len(IDENTITY)):
        changed = (*IDENTITY[:place], IDENTITY[place] + "x", *IDENTITY[place + 1 :])
        assert tokens.read_branch(branch, changed) is None
    assert tokens.read_branch(branch.replace("feed", "food"), IDENTITY) is None
    assert tokens.read_branch(branch, (*IDENTITY[:-2], IDENTITY[-2] + IDENTITY[-1])) is None


def test_loop_digest_depends_on_where_fields_end(tokens: Tokens) -> None:
    assert tokens.loop_digest(("ab", "c")) != tokens.loop_digest(("a", "bc"))


def test_route_token_leads_to_both_sides(tokens: Tokens) -> None:
    token = tokens.route("call-1", "tag-1", CALLER, CALLEE)
    route = tokens.read_route(token, "call-1", "tag-1")
    assert route is not None
    assert route.caller == Hop("UDP", "192.0.2.1", 5062)
    assert route.callee == Hop("TLS", "2001:db8::7", 49152)


def test_route_token_says_whose_phones_the_sides_are(tokens: Tokens) -> None:
    users = tokens.user("sip:alice@sipha.test"), tokens.user("sip:bob@sipha.test")
    route = tokens.read_route(tokens.route("call-1", "tag-1", CALLER, CALLEE, users), "call-1", "tag-1")
    assert route is not None
    assert (route.caller.user, route.callee.user) == users
    assert tokens.is_user(users[1], "sip:bob@sipha.test")
    assert not tokens.is_user(users[1], "sip:alice@sipha.test")
    assert not tokens.is_user(NOBODY, "sip:bob@sipha.test")


def test_mark_of_a_user_outlives_the_current_key(tokens: Tokens) -> None:
    mark = Tokens({1: bytes(32)}).user("sip:bob@sipha.test")
    assert Tokens({1: bytes(32), 2: bytes([2]) * 32}).is_user(mark, "sip:bob@sipha.test")
    assert not Tokens({2: bytes([2]) * 32}).is_user(mark, "sip:bob@sipha.test")


def test_route_token_proves_one_dialog_only(tokens: Tokens) -> None:
    token = tokens.route("call-1", "tag-1", CALLER, CALLEE)
    assert tokens.read_route(token, "call-2", "tag-1") is None
    assert tokens.read_route(token, "call-1", "tag-2") is None
    assert tokens.read_route(token + "A", "call-1", "tag-1") is None


@given(contact_id=st.integers(0, 2**64 - 1), slot=st.integers(0, 2**40))
def test_ping_names_its_binding_and_slot_and_is_known_while_its_key_is_held(contact_id: int, slot: int) -> None:
    token = Tokens({1: OLD, 7: NEW}).ping(contact_id, slot)
    assert token.startswith(f"07{contact_id:016x}{slot % 2**32:08x}")
    assert Tokens({7: NEW, 8: OLD}).read_ping(token) == (contact_id, slot & 0xFFFFFFFF)
    assert Tokens({7: OLD}).read_ping(token) is None
    assert Tokens({8: NEW}).read_ping(token) is None


def test_changed_ping_is_not_ours(tokens: Tokens) -> None:
    token = tokens.ping(5 << 20, 12345)
    for place, character in enumerate(token):
        other = "A" if character != "A" else "B"
        assert tokens.read_ping(token[:place] + other + token[place + 1 :]) is None


def test_subkeys_keep_tokens_apart(tokens: Tokens) -> None:
    nonce = tokens.nonce(3, 1000, 1)
    assert tokens.read_branch(MAGIC_COOKIE + nonce, IDENTITY) is None
    assert tokens.read_route(nonce, "call-1", "tag-1") is None


@given(st.binary(max_size=40))
def test_bytes_have_one_spelling(data: bytes) -> None:
    text = urlsafe_b64encode(data).rstrip(b"=").decode()
    assert _text(data) == text
    assert _data(text) == data


@given(st.text(alphabet="AEQgwZaz09-_+/= \n\u00e9", max_size=9))
def test_no_other_spelling_is_read(text: str) -> None:
    data = _data(text)
    assert data is None or _text(data) == text
