"""The REGISTERs of most phones, read at a glance: no message, header field or URI of them is made an object.

One pattern says what is plain. What it takes, `sipha.sip.parser` and `record.prepare` understand in the same way; what
it doesn't take is theirs to judge.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sipha.sip.digest import ALGORITHMS, MAX_CREDENTIALS, QOP, Credentials
from sipha.sip.flow import Flow
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
# What each line may be. Their groups are the fields of `Plain`, in that order.
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


class Plain(NamedTuple):
    """What a plain REGISTER says: the groups of the pattern, as they stand there.

    `via` is host and port of the only Via, `from_` and `to` are the values with `sender` and `aor` in them.
    `contact_expires` is the only contact's own expiry, `expires` that of the Expires header. A registrar does nothing
    with a Route.
    """

    uri: str
    via: str
    host: str
    port: str | None
    params: str
    from_: str
    sender: str
    to: str
    aor: str
    call_id: str
    cseq: str
    authorization: str | None
    username: str | None
    realm: str | None
    nonce: str | None
    digest_uri: str | None
    response: str | None
    algorithm: str | None
    qop: str | None
    cnonce: str | None
    nc: str | None
    contact: str
    contact_host: str
    contact_port: str | None
    contact_params: str
    contact_expires: str | None
    instance: str | None
    expires: str | None
    user_agent: str | None
    allow: str | None
    max_forwards: str | None
    supported: str | None
    allow_events: str | None
    route: str | None
    content_length: str | None

    @property
    def credentials(self) -> Credentials | None:
        """The credentials in Authorization, None if there is none."""
        if self.authorization is None:
            return None
        fields: tuple[str | None, ...] = self
        credentials = Credentials._make(fields[_CREDENTIAL_FIELDS])
        if self.algorithm and self.qop == QOP:
            return credentials
        return credentials._replace(algorithm=self.algorithm or "MD5", qop=QOP)

    @property
    def origin(self) -> Origin | None:
        """Where it says that it comes from; None if that takes a closer look."""
        if self.contact_port is None and self.contact_params:
            return None  # the default port is the transport's, which is among them
        contact = self.contact_host.lower(), int(self.contact_port or 5060)
        return Origin(self.host, int(self.port or 5060), rport=True, contacts=(contact,), direct=True, media=())

    def head(self, flow: Flow) -> str | None:
        """What each response to it repeats, as `response.head` has it; None if its Via doesn't ask for rport.

        The flow is the one that it came by, which is also where the response goes (RFC 3581 §4).
        """
        before, rport, after = self.params.partition(";rport")
        if not rport or (after and after[0] != ";") or "received" in self.params.lower():
            return None
        host, port = flow.remote
        return (
            f"Via: SIP/2.0/UDP {self.via}{before};rport={port}{after};received={host}\r\n"
            f"From: {self.from_}\r\nCall-ID: {self.call_id}\r\nCSeq: {self.cseq} REGISTER\r\n"
        )


# Of each header field the group that takes part if the field is there.
_FIRST = tuple(
    Plain._fields.index(name) + 1
    for name in (
        "via", "from_", "to", "call_id", "cseq", "authorization", "contact", "expires", "user_agent", "allow",
        "max_forwards", "supported", "allow_events", "route", "content_length",
    )
)  # fmt: skip
_NEEDED = slice(Plain._fields.index("params"), Plain._fields.index("authorization"))
_CONTACT = Plain._fields.index("contact")
_CREDENTIAL_FIELDS = slice(Plain._fields.index("username"), _CONTACT)
_ALGORITHM, _DIGEST_URI = Credentials._fields.index("algorithm"), Credentials._fields.index("uri")
_HIGHEST_PORT = 65535


def read(data: bytes) -> Plain | None:
    """Read a datagram; None if it is no plain REGISTER."""
    text = data.decode("utf-8", "surrogateescape")
    match = _PLAIN.match(text)
    if match is None:
        return None
    groups = match.groups()
    plain = Plain._make(groups)
    if (
        None in groups[_NEEDED]
        or groups[_CONTACT] is None
        # As many lines as fields that are there: none came twice.
        or text.count("\r\n") != 2 + len(_FIRST) - match.group(*_FIRST).count(None)
        or (plain.authorization is not None and not _are_whole(plain.authorization, groups[_CREDENTIAL_FIELDS]))
        or (plain.port is not None and int(plain.port) > _HIGHEST_PORT)
        or (plain.contact_port is not None and int(plain.contact_port) > _HIGHEST_PORT)
    ):
        return None
    return plain


def _are_whole(authorization: str, credentials: tuple[str | None, ...]) -> bool:
    """Return True if the credentials lack nothing, but perhaps the algorithm, and have nothing twice."""
    if len(authorization) > MAX_CREDENTIALS:
        return False
    if all(credentials):
        return credentials[_ALGORITHM] in ALGORITHMS
    others = credentials[:_ALGORITHM] + credentials[_ALGORITHM + 1 :]
    if credentials[_ALGORITHM] is not None or not all(others):
        return False
    # As many equals signs as parameters: there is no ninth that is one of the eight once more.
    return authorization.count("=") - (credentials[_DIGEST_URI] or "").count("=") == len(others)
