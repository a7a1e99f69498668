"""Every keyed derivation: nonces, tags, branches, pings and Record-Route tokens, each under a subkey of its own.

The keys come from the log, so that what one leader made the next one verifies (design §5). A token names the key it
was made with; keys overlap for longer than the longest call.
"""

from __future__ import annotations

import hmac
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Mapping
from hashlib import blake2s
from ipaddress import IPv6Address
from struct import Struct
from typing import NamedTuple

from sipha.sip.flow import Flow

MAGIC_COOKIE = "z9hG4bK"
"""What every branch of RFC 3261 begins with (§8.1.1.7)."""

BRANCH_STEP = 256
"""Seconds to which the time in a branch is rounded down: another node gives a copy of a request the same branch."""

SERIALS = 1 << 20
"""Nonces that one maker may make in a second, so that no two of them are the same."""

MAKERS = 1 << 12
"""How many there may be who make nonces in one term."""

_MAC_SIZE = 12
_TRANSPORTS = ("UDP", "TCP", "TLS", "WS", "WSS")
_NONCE_HEAD = 26  # hexadecimal digits: key id, term, time, serial, of which the maker is the first three
_PING_HEAD = 26  # hexadecimal digits: key id, contact id, slot
_BRANCH = Struct("!BIBB")
_SIDE = Struct("!4sBH")
_TWO_SIDES = Struct("!B4sBH4B4sBH4B")  # of a token, both of them IPv4: no other is as short
NOBODY = bytes(4)
"""The user of a side of a dialog that is no phone of ours."""


Nonce = tuple[int, int]
"""What a nonce of ours says: the term and the cluster time (seconds) at which it was made."""


class BranchToken(NamedTuple):
    """What a branch of ours says: when it was made, as which of how many forks, and the digest that shows a loop.

    `issued_at` is a cluster time in seconds, rounded down to a BRANCH_STEP.
    """

    issued_at: int
    fork: int
    forks: int
    loop: str


class PingToken(NamedTuple):
    """What the token of a ping says: which binding, by its id, was pinged in which slot."""

    contact_id: int
    slot: int


class Hop(NamedTuple):
    """Where one side of a dialog is reached: a transport, and the address that the flow had; `user` tells whose."""

    transport: str
    host: str
    port: int
    user: bytes = NOBODY


class RouteToken(NamedTuple):
    """What a Record-Route token of ours says: where the two sides of the dialog are."""

    caller: Hop
    callee: Hop


class _Subkeys:
    """The subkeys of one key of the log, each as what makes MACs under it; `name` is what its tokens begin with."""

    __slots__ = ("branch", "name", "nonce", "ping", "read_nonce", "route", "tag")

    def __init__(self, key_id: int, secret: bytes) -> None:
        self.name = f"{key_id:02x}"
        self.branch = _keyed(_subkey(secret, b"branch"))
        self.nonce = _macs(_subkey(secret, b"nonce"))
        self.read_nonce = _nonces(_subkey(secret, b"nonce"))
        self.ping = _macs(_subkey(secret, b"ping"))
        self.route = _keyed(_subkey(secret, b"route"))
        self.tag = _macs(_subkey(secret, b"tag"))


class Tokens:
    """Makes and verifies tokens under a ring of keys: key id (1–255) to secret; the last one is the current one."""

    def __init__(self, keyring: Mapping[int, bytes]) -> None:
        if not keyring:
            msg = "a keyring needs at least one key"
            raise ValueError(msg)
        self._keys = {key_id: _Subkeys(key_id, secret) for key_id, secret in keyring.items()}
        self._keys_by_name = {keys.name: keys for keys in self._keys.values()}
        self._current_id = list(keyring)[-1]
        self._current = self._keys[self._current_id]

    def nonce(self, term: int, now: float, serial: int) -> str:
        """Make a nonce (RFC 7616 §3.3) in a term at a cluster time; `serial` tells those of one second apart.

        Those of the maker with number n are numbered from n * SERIALS on.
        """
        # Hexadecimal, unlike the others: a nonce is read for each REGISTER, and is never too long.
        head = f"{self._current.name}{term & 0xFFFFFFFF:08x}{int(now) & 0xFFFFFFFF:08x}{serial & 0xFFFFFFFF:08x}"
        return head + self._current.nonce(head)

    def read_nonce(self, nonce: str) -> Nonce | None:
        """Return what a nonce says, or None if it isn't ours."""
        keys = self._keys_by_name.get(nonce[:2])
        return None if keys is None else keys.read_nonce(nonce)

    def tag(self, call_id: str, from_tag: str, cseq: int, branch: str) -> str:
        """Make the To tag of a stateless response: the same for each copy of a request (RFC 3261 §8.2.7)."""
        return _tag(self._current, f"{call_id}\n{from_tag}\n{cseq}\n{branch}")

    def text_tag(self, text: str) -> str:
        """Make a To tag of a text that is the same for each copy of a request, for a request without ACK."""
        return _tag(self._current, text)

    def is_tag(self, tag: str, call_id: str, from_tag: str, cseq: int, branch: str) -> bool:
        """Return True if `tag` is the one that `tag` made of these, under any key still held."""
        keys = self._keys_by_name.get(tag[:2])
        if keys is None or not tag.isascii():
            return False
        return hmac.compare_digest(_tag(keys, f"{call_id}\n{from_tag}\n{cseq}\n{branch}"), tag)

    def branch(self, identity: tuple[str, ...], now: float, fork: int, forks: int, loop: str) -> str:
        """Make the branch of fork `fork` of `forks` (pitfalls-log-vip 4).

        `identity` is the next Via (sent-by, branch, received, rport), Call-ID, From tag, CSeq number and target:
        neither method nor credentials, so that CANCEL and ACK match. `loop` is the digest of `loop_digest`.
        """
        issued_at = int(now) // BRANCH_STEP * BRANCH_STEP
        head = _BRANCH.pack(self._current_id, issued_at & 0xFFFFFFFF, fork & 0xFF, forks & 0xFF)
        return MAGIC_COOKIE + _text(head + _branch_mac(self._current.branch, head, identity, loop)) + "." + loop

    def read_branch(self, branch: str, identity: tuple[str, ...]) -> BranchToken | None:
        """Return what a branch says, or None if it isn't ours or wasn't made for this identity."""
        token, _, loop = branch.removeprefix(MAGIC_COOKIE).partition(".")
        data = _data(token)
        if data is None or len(data) != _BRANCH.size + _MAC_SIZE:
            return None
        head = data[: _BRANCH.size]
        key_id, issued_at, fork, forks = _BRANCH.unpack(head)
        keys = self._keys.get(key_id)
        if keys is None or not hmac.compare_digest(
            _branch_mac(keys.branch, head, identity, loop), data[_BRANCH.size :]
        ):
            return None
        return BranchToken(issued_at, fork, forks, loop)

    def loop_digest(self, fields: tuple[str, ...]) -> str:
        """Make the part of a branch that shows a loop: a digest of all that routes the request (RFC 5393 §4.2)."""
        return _mac(self._current.branch, _join(fields)).hex()[:16]

    def ping(self, contact_id: int, slot: int) -> str:
        """Make the token of a ping for a binding, named by its id, in the slot in which it is sent."""
        # Hexadecimal, as nonces are: thousands are made and read each second.
        head = f"{self._current.name}{contact_id:016x}{slot & 0xFFFFFFFF:08x}"
        return head + self._current.ping(head)

    def read_ping(self, token: str) -> PingToken | None:
        """Return what the token of a ping says, or None if it isn't ours."""
        keys = self._keys_by_name.get(token[:2])
        if keys is None or not token.isascii():
            return None
        if not hmac.compare_digest(keys.ping(token[:_PING_HEAD]), token[_PING_HEAD:]):
            return None
        return PingToken(int(token[2:18], 16), int(token[18:_PING_HEAD], 16))

    def user(self, aor: str) -> bytes:
        """Make the mark of a user of ours in a token, from the AOR."""
        return _user(self._current, aor)

    def is_user(self, user: bytes, aor: str) -> bool:
        """Return True if `user` is the mark of this AOR, under any key still held."""
        return any(hmac.compare_digest(_user(keys, aor), user) for keys in self._keys.values())

    def route(
        self, call_id: str, caller_tag: str, caller: Flow, callee: Flow, users: tuple[bytes, bytes] = (NOBODY, NOBODY)
    ) -> str:
        """Make the token of our Record-Route: it proves the dialog and says where its sides are (design §5).

        `users` are the marks of the caller's and of the callee's AOR.
        """
        one, other = caller.remote[0], callee.remote[0]
        if ":" in one or ":" in other:
            body = bytes((self._current_id,)) + _side(caller, users[0]) + _side(callee, users[1])
        else:
            body = _TWO_SIDES.pack(
                self._current_id,
                *(users[0], _TRANSPORTS.index(caller.transport), caller.remote[1], *map(int, one.split("."))),
                *(users[1], _TRANSPORTS.index(callee.transport), callee.remote[1], *map(int, other.split("."))),
            )
        return _text(body + _mac(self._current.route, body + _pair(call_id, caller_tag)))

    def read_route(self, token: str, call_id: str, caller_tag: str) -> RouteToken | None:
        """Return what a Record-Route token says, or None unless it was made for this Call-ID and caller's tag."""
        data = _data(token)
        if data is None or len(data) <= _MAC_SIZE:
            return None
        body, mac = data[:-_MAC_SIZE], data[-_MAC_SIZE:]
        keys = self._keys.get(body[0])
        if keys is None or not hmac.compare_digest(_mac(keys.route, body + _pair(call_id, caller_tag)), mac):
            return None
        if len(body) == _TWO_SIDES.size:
            _, user, code, port, a, b, c, d, user_, code_, port_, a_, b_, c_, d_ = _TWO_SIDES.unpack(body)
            return RouteToken(
                Hop(_TRANSPORTS[code], f"{a}.{b}.{c}.{d}", port, user),
                Hop(_TRANSPORTS[code_], f"{a_}.{b_}.{c_}.{d_}", port_, user_),
            )
        caller, rest = _read_side(body[1:])
        callee, _ = _read_side(rest)
        return RouteToken(caller, callee)


def maker_of(nonce: str) -> int:
    """Who has made a nonce of ours."""
    return int(nonce[18:21], 16)


def _tag(keys: _Subkeys, fields: str) -> str:
    # No header field has a line feed in its value, so that one between the fields keeps them apart.
    return keys.name + keys.tag(fields)


def _subkey(secret: bytes, purpose: bytes) -> bytes:
    return blake2s(key=secret, person=purpose).digest()


def _keyed(key: bytes) -> blake2s:
    """A MAC that has taken in its key, and is copied for use."""
    return blake2s(key=key, digest_size=_MAC_SIZE)


def macs_by_hashlib(key: bytes) -> Callable[[str], str]:
    """Return what makes the MAC of a text under this key, in hexadecimal digits."""
    keyed = _keyed(key)

    def mac(text: str) -> str:
        made = keyed.copy()
        made.update(text.encode("utf-8", "surrogateescape"))
        return made.hexdigest()

    return mac


def nonces_by_hashlib(key: bytes) -> Callable[[str], Nonce | None]:
    """Return what reads a nonce whose MAC is made under this key, and returns None if it isn't."""
    mac = macs_by_hashlib(key)

    def read(nonce: str) -> Nonce | None:
        if not nonce.isascii() or not hmac.compare_digest(mac(nonce[:_NONCE_HEAD]), nonce[_NONCE_HEAD:]):
            return None
        return int(nonce[2:10], 16), int(nonce[10:18], 16)

    return read


def _makers() -> tuple[Callable[[bytes], Callable[[str], str]], Callable[[bytes], Callable[[str], Nonce | None]]]:
    try:
        from sipha.sip import _hashes  # noqa: PLC0415  if it has been built
    except ImportError:
        return macs_by_hashlib, nonces_by_hashlib
    return _hashes.macs, _hashes.nonces


_macs, _nonces = _makers()


def _mac(key: blake2s, data: bytes) -> bytes:
    mac = key.copy()
    mac.update(data)
    return mac.digest()


def _branch_mac(key: blake2s, head: bytes, identity: tuple[str, ...], loop: str) -> bytes:
    if len(identity) != 8:
        return _mac(key, head + _join((*identity, loop)))
    # As `_join` does, in one step: each message that is forwarded needs one or two.
    a, b, c, d, e, f, g, h = identity
    text = (
        f"{len(a)}:{a}{len(b)}:{b}{len(c)}:{c}{len(d)}:{d}{len(e)}:{e}{len(f)}:{f}{len(g)}:{g}{len(h)}:{h}"
        f"{len(loop)}:{loop}"
    )
    return _mac(key, head + (text.encode() if text.isascii() else _join((*identity, loop))))


def _join(fields: tuple[str, ...]) -> bytes:
    """Join fields so that no two different tuples give the same bytes: each behind its length."""
    text = "".join([f"{len(field)}:{field}" for field in fields])
    if text.isascii():
        return text.encode()
    parts = [field.encode("utf-8", "surrogateescape") for field in fields]
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _pair(one: str, other: str) -> bytes:
    """Join two fields as `_join` does."""
    text = f"{len(one)}:{one}{len(other)}:{other}"
    return text.encode() if text.isascii() else _join((one, other))


def _user(keys: _Subkeys, aor: str) -> bytes:
    # No token begins with a zero: there is no such key id.
    return _mac(keys.route, b"\0" + aor.encode("utf-8", "surrogateescape"))[: len(NOBODY)]


def _side(flow: Flow, user: bytes) -> bytes:
    host, port = flow.remote
    packed = _packed(host.partition("%")[0])
    code = _TRANSPORTS.index(flow.transport) | (0x80 if len(packed) == 16 else 0)
    return _SIDE.pack(user, code, port) + packed


def _read_side(data: bytes) -> tuple[Hop, bytes]:
    user, code, port = _SIDE.unpack_from(data)
    end = _SIDE.size + (16 if code & 0x80 else 4)
    return Hop(_TRANSPORTS[code & 0x7F], _unpacked(data[_SIDE.size : end]), port, user), data[end:]


def _packed(host: str) -> bytes:
    return IPv6Address(host).packed if ":" in host else bytes(map(int, host.split(".")))


def _unpacked(data: bytes) -> str:
    if len(data) == 16:
        return str(IPv6Address(data))
    return f"{data[0]}.{data[1]}.{data[2]}.{data[3]}"


def _text(data: bytes) -> str:
    """Base64 for URLs, without padding (RFC 4648 §5)."""
    return b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def _data(text: str) -> bytes | None:
    """What `_text` has made the text of; None if that is nothing: no other spelling of it is ours."""
    over = len(text) % 4
    if text[-1:] not in _LAST[over]:
        return None
    try:
        return a2b_base64(text.encode().translate(_FROM_URL) + b"===="[over or 4 :], strict_mode=True)
    except ValueError:
        return None


_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/!!!")
# Of the last character some bits are left over, by the number of characters: they are none.
_LAST = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
    "",
    "AQgw",
    "AEIMQUYcgkosw048",
)
