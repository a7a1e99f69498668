"""The binding of an address-of-record to a contact."""

from __future__ import annotations

import msgspec

from sipha.errors import MalformedMessage
from sipha.sip.uri import SipUri, parse_uri

BEHIND_NAT = 1
"""The bit of `cflags` that the registrar sets for a phone behind NAT: it is reached where it registered from."""

PINGED = 2
"""The bit of `cflags` for a contact that is kept reachable by pings, wherever it is."""


class Binding(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One binding of an AOR to a contact (RFC 3261 §10), with all that the registrar learned of it.

    `contact_id` is the binding's own for its life, `version` is the log index that last refreshed it. Times are
    cluster time in ms. `q` is in thousandths, None if the phone gave none. `reg_id` is 0 unless outbound applies
    (RFC 5626 §6). The other fields are as in `sipha.state.entries.Register` and `Contact`.
    """

    aor: str
    contact: str
    contact_id: int
    version: int
    expires_at: int
    call_id: str
    cseq: int
    q: int | None
    instance: str
    reg_id: int
    params: str
    received: str
    socket: str
    flow: str
    path: tuple[str, ...]
    user_agent: str
    methods: str
    flags: int
    cflags: int
    attr: str
    last_modified: int
    kv_store: str = ""

    @property
    def preference(self) -> int:
        """The q value in thousandths; a contact without one counts as 1, as in HTTP, whose qvalue SIP took over."""
        return 1000 if self.q is None else self.q

    @property
    def behind_nat(self) -> bool:
        """True if the phone was found behind NAT when it registered."""
        return bool(self.cflags & BEHIND_NAT)

    @property
    def request_uri(self) -> str:
        """The contact as a Request-URI: as written, save what may not stand in one (§19.1.1 Table 1)."""
        contact = self.contact
        if "?" not in contact and "method" not in contact.lower():
            return contact
        try:
            uri = parse_uri(contact)
        except MalformedMessage:
            return contact
        # "If the URI contains any parameters not allowed in a Request-URI, they MUST be removed."
        return str(uri.without_params("method")._replace(headers="")) if isinstance(uri, SipUri) else contact

    def remaining(self, now: int) -> int:
        """The seconds until the binding expires, for the `expires` parameter: rounded down, but at least 1."""
        return max((self.expires_at - now) // 1000, 1)


decode = msgspec.msgpack.Decoder(tuple[Binding, ...]).decode
"""The bindings of an AOR, of what is hashed of them and stands in a snapshot; raises one of UNDECODABLE."""
