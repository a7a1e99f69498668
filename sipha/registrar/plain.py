"""The REGISTERs of most phones, read at a glance: no message, header field or URI of them is made an object.

One pattern says what is plain. What it takes, `sipha.sip.parser` and `record.prepare` understand in the same way; what
it doesn't take is theirs to judge. `_glance.c` does the same without the interpreter, where it has been built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from sipha.sip.digest import ALGORITHMS, MAX_CREDENTIALS, QOP, Credentials
from sipha.sip.origin import Origin

_TOKEN = r"[A-Za-z0-9\-.!%*_+`'~]++"  # noqa: S105 - the grammar's word
_URI = r"(sip:[A-Za-z0-9.\-]{1,250}(?::[1-9][0-9]{0,3})?(?:;transport=[A-Za-z]{1,8})?)"
_AOR = r"(sip:[A-Za-z0-9\-_.+]++@[A-Za-z0-9.\-]++)"
_HOST_PORT = r"([A-Za-z0-9.\-]++|\[[0-9A-Fa-f:.]++\])(?::([1-9][0-9]{0,4}))?"
_DISPLAY = r'(?:"[^"\\\r\n]*+" ?)?'
_QUOTED = r'"([^"\\\r\n]*+)"'
_CREDENTIALS = (
    rf'username={_QUOTED}|realm={_QUOTED}|nonce={_QUOTED}|uri={_QUOTED}|response="([0-9a-f]*+)"'
    rf'|algorithm=([A-Za-z0-9-]++)|qop=("auth"|auth)|cnonce={_QUOTED}|nc=([0-9a-f]{{1,8}})'
)
_PLAIN_PARAMS = r"(?:;[A-Za-z0-9\-_.]++(?:=[A-Za-z0-9\-_.]++)?){0,16}"
_CONTACT_PARAMS = r'(?:;expires=([0-9]{1,9}))?(?:;\+sip\.instance="([ !#-\[\]-~]*+)")?'
# What each line may be.
_FIELDS = (
    rf'Via: SIP/2\.0/UDP ({_HOST_PORT})((?:;{_TOKEN}(?:=[^\s;,"<>]*+)?){{0,16}})',
    rf"From: ({_DISPLAY}<{_AOR}>;tag={_TOKEN})",
    rf"To: ({_DISPLAY}<{_AOR}>)",
    r"Call-ID: ([!-~]{1,256})",
    r"CSeq: ([0-9]{1,9}) REGISTER",
    rf"Authorization: (Digest (?:(?:{_CREDENTIALS})(?:, ?|(?=\r))){{8,9}})",
    rf"Contact: {_DISPLAY}<(sip:(?:[A-Za-z0-9\-_.+]++@)?{_HOST_PORT}({_PLAIN_PARAMS}))>{_CONTACT_PARAMS}",
    r"Expires: ([0-9]{1,9})",
    r"User-Agent: ([ -~]*+)",
    r"Allow: ([ -~]*+)",
    r"Max-Forwards: ([0-9]++)",
    r"Supported: ([ -~]*+)",
    r"Allow-Events: ([ -~]*+)",
    r"Route: ([ -~]*+)",
    r"Content-Length:  ?(0)",
)
# Only the group of lines is possessive, for speed. Python before 3.11.5 goes on where the last try of such a group
# failed: that must have been at the beginning of a line.
_PLAIN = re.compile(rf"REGISTER {_URI} SIP/2\.0\r\n(?:(?:{'|'.join(_FIELDS)})\r\n)*+(?<=\n)\r\n\Z", re.ASCII)


# Of each line the group that takes part if it is there: the first of its own, behind that of the URI.
_LINES = tuple(accumulate([re.compile(field).groups for field in _FIELDS[:-1]], initial=2))
_ALGORITHM, _DIGEST_URI = Credentials._fields.index("algorithm"), Credentials._fields.index("uri")
_HIGHEST_PORT = 65535
_DEFAULT_PORT = 5060


class Plain(NamedTuple):
    """What a plain REGISTER says.

    `head` is what each response to it repeats, as `response.head` has it, `to` the value of To, and `aor` the URI in
    that and in From. `expires` is that of the only contact, else that of the Expires header. `methods` are those of
    Allow, without spaces. The uri of its `credentials` is its own.
    """

    uri: str
    head: str
    to: str
    aor: str
    call_id: str
    cseq: int
    contact: str
    expires: int | None
    instance: str
    user_agent: str
    methods: str
    origin: Origin
    credentials: Credentials | None


def read_by_pattern(data: bytes, host: str, port: int) -> Plain | None:
    """Read a datagram that came from this address; None if it is no plain REGISTER."""
    if len(data) >= MAX_CREDENTIALS:
        return None  # so no credentials are too long
    text = data.decode("utf-8", "surrogateescape")
    match = _PLAIN.match(text)
    if match is None:
        return None
    (
        uri, via, via_host, via_port, params, from_, sender, to, aor, call_id, cseq,
        authorization, username, realm, nonce, digest_uri, response, algorithm, qop, cnonce, nc,
        contact, contact_host, contact_port, contact_params, contact_expires, instance,
        expires, user_agent, allow, *_,
    ) = match.groups()  # fmt: skip
    before, rport, after = (params or "").partition(";rport")
    if (
        None in (via, from_, to, call_id, cseq, contact)
        # As many lines as fields that are there: none came twice.
        or text.count("\r\n") != 2 + len(_LINES) - match.group(*_LINES).count(None)
        or sender != aor
        or (via_port is not None and int(via_port) > _HIGHEST_PORT)
        or (contact_port is not None and int(contact_port) > _HIGHEST_PORT)
        or (contact_port is None and contact_params)  # the default port is the transport's, which is among them
        # The response goes where the request came from only if the Via asks for that (RFC 3581 §4).
        or not rport
        or (after and after[0] != ";")
        or "received" in params.lower()
    ):
        return None
    credentials = None
    if authorization is not None:
        given = (username, realm, nonce, digest_uri, response, algorithm, qop, cnonce, nc)
        if digest_uri != uri or not _are_whole(authorization, given):
            return None
        credentials = Credentials(username, realm, nonce, uri, response, algorithm or "MD5", QOP, cnonce, nc)
    seconds = contact_expires or expires
    return Plain(
        uri,
        f"Via: SIP/2.0/UDP {via}{before};rport={port}{after};received={host}\r\n"
        f"From: {from_}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} REGISTER\r\n",
        to,
        aor,
        call_id,
        int(cseq),
        contact,
        None if seconds is None else int(seconds),
        instance or "",
        (user_agent or "").strip(" "),
        (allow or "").replace(" ", ""),
        Origin(
            via_host,
            int(via_port or _DEFAULT_PORT),
            rport=True,
            contacts=((contact_host.lower(), int(contact_port or _DEFAULT_PORT)),),
            direct=True,
            media=(),
        ),
        credentials,
    )


def _are_whole(authorization: str, credentials: tuple[str | None, ...]) -> bool:
    """Return True if the credentials lack nothing, but perhaps the algorithm, and have nothing twice."""
    if all(credentials):
        return credentials[_ALGORITHM] in ALGORITHMS
    others = credentials[:_ALGORITHM] + credentials[_ALGORITHM + 1 :]
    if credentials[_ALGORITHM] is not None or not all(others):
        return False
    # As many equals signs as parameters: there is no ninth that is one of the eight once more.
    return authorization.count("=") - (credentials[_DIGEST_URI] or "").count("=") == len(others)


def _reader() -> Callable[[bytes, str, int], Plain | None]:
    try:
        from sipha.registrar._glance import reader  # noqa: PLC0415  if it has been built
    except ImportError:
        return read_by_pattern
    return reader(Plain, Origin, Credentials)


read = _reader()
"""Does what `read_by_pattern` does."""
