"""The methods of OpenSIPS's module usrloc: the location table, as its scripts know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from sipha.admin import views
from sipha.admin.access import Role
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.admin.names import locate
from sipha.admin.outcomes import count, propose
from sipha.admin.route import Stream
from sipha.admin.rpc import INVALID_PARAMS, Methods, RpcError
from sipha.auth.domain import Domains
from sipha.errors import SipError
from sipha.sip.uri import parse_uri
from sipha.state.binding import BEHIND_NAT, PINGED, Binding
from sipha.state.entries import Contact, Register, RemoveBindings
from sipha.state.outcomes import NotFound, Registered, Rejected

TABLE = "location"
"""The only table that there is."""

OK = "OK"

_STEP = 200
"""The AORs and contacts that are written in one turn of the reactor: some 2 ms."""

_METHODS = (
    *("INVITE", "CANCEL", "ACK", "BYE", "INFO", "OPTIONS", "UPDATE", "REGISTER", "MESSAGE", "SUBSCRIBE", "NOTIFY"),
    *("PRACK", "REFER", "PUBLISH"),
)
"""The methods by their bits, from the lowest on; the one after them stands for all others."""

_ALL_METHODS = (1 << 32) - 1
"""What OpenSIPS says of a phone that hasn't said what methods it takes."""

_OWN_AGENT = "sipha MI"

_encode = msgspec.json.Encoder().encode


class LocationMethods:
    """The location table of a node."""

    methods = Methods()

    def __init__(self, node: INode, domains: Domains) -> None:
        self._node = node
        self._domains = domains

    @methods.add("ul_dump", "usrloc:dump", role=Role.READ)
    def dump(self, brief: str = "") -> Stream:
        """All AORs with their contacts, as they are at one moment; only the AORs if it is to be `brief`."""
        listing = self._node.listing()
        now = self._node.cluster_time()
        return Stream(_dumped(listing.bindings, now, brief=brief.lower() == "brief"), listing.close)

    @methods.add("ul_show_contact", "usrloc:show_contact", role=Role.READ)
    def show_contact(self, table_name: str, aor: str) -> dict[str, Any]:
        """The contacts of an AOR."""
        bindings = self._node.bindings(self._aor(table_name, aor))
        if not bindings:
            raise RpcError(404, "AOR not found")
        return _record(bindings, self._node.cluster_time())

    @methods.add("ul_add", "usrloc:add", role=Role.OPERATE)
    async def add(  # noqa: PLR0917  they have these places
        self,
        table_name: str,
        aor: str,
        contact: str,
        expires: int,
        q: str = "",
        unused: str = "",  # noqa: ARG002  OpenSIPS keeps it for scripts that are older still
        flags: int = 0,
        cflags: int = 0,  # noqa: ARG002  its bits are those of one OpenSIPS script
        methods: int = _ALL_METHODS,
    ) -> str:
        """Bind a contact as if a phone had registered it, under a Call-ID of its own; its expiry is bounded alike."""
        located = self._aor(table_name, aor)
        try:
            parse_uri(contact)
        except SipError as error:
            raise RpcError(400, f"contact: {error}") from error
        if expires <= 0:
            raise RpcError(400, "expires must be above 0: no contact is permanent here, and ul_rm_contact removes one")
        wanted = Contact(contact, expires=expires, q=_thousandths(q))
        record = Register(
            located,
            f"{uuid4().hex}@{self._node.status().node}",
            1,
            (wanted,),
            user_agent=_OWN_AGENT,
            methods=_named(methods),
            flags=flags,
        )
        outcome = await propose(self._node, record)
        match outcome:
            case Registered():
                return OK
            case Rejected(status, reason):
                raise RpcError(status, reason)
            case _:
                raise RpcError(400, f"the log doesn't take it: {outcome}")

    @methods.add("ul_rm", "usrloc:rm", role=Role.OPERATE)
    async def remove(self, table_name: str, aor: str) -> str:
        """Remove all contacts of an AOR; that there are none is all right, as it is in OpenSIPS."""
        outcome = await propose(self._node, RemoveBindings(self._aor(table_name, aor)))
        if not isinstance(outcome, NotFound):
            count(outcome)
        return OK

    @methods.add("ul_rm_contact", "usrloc:rm_contact", role=Role.OPERATE)
    async def remove_contact(self, table_name: str, aor: str, contact: str) -> str:
        """Remove one contact of an AOR."""
        located = self._aor(table_name, aor)
        if not contact:  # which a RemoveBindings takes for all of them
            raise RpcError(404, "Contact not found")
        outcome = await propose(self._node, RemoveBindings(located, contact))
        if isinstance(outcome, NotFound):
            raise RpcError(404, "Contact not found" if self._node.bindings(located) else "AOR not found")
        count(outcome)
        return OK

    @methods.add("ul_flush", "usrloc:flush", role=Role.OPERATE)
    def flush(self) -> str:
        """Nothing is to be done: what was acknowledged is in the log."""
        return OK

    @methods.add("ul_sync", "usrloc:sync", role=Role.OPERATE)
    def sync(self, table_name: str, aor: str = "") -> str:
        """Nothing is to be done, for there is no database beside the log."""
        _check_table(table_name)
        if aor and not self._node.bindings(self._aor(table_name, aor)):
            raise RpcError(404, "AOR not found")
        return OK

    @methods.add("ul_cluster_sync", "usrloc:cluster_sync", role=Role.OPERATE)
    def cluster_sync(self) -> str:
        """Nothing is to be done: the log keeps the nodes alike."""
        return OK

    def _aor(self, table: str, text: str) -> str:
        """The AOR of a table; raises RpcError."""
        _check_table(table)
        if "@" not in text:
            raise RpcError(400, "Domain missing in AOR")
        try:
            return locate(self._domains, text)[1]
        except Refusal as refusal:
            raise RpcError(404, refusal.fault.error.detail) from refusal


def _check_table(name: str) -> None:
    if name != TABLE:
        raise RpcError(404, "Table not found")


def _dumped(aors: Iterator[Sequence[Binding]], now: float, *, brief: bool) -> Iterator[bytes]:
    """The JSON of a dump, as much of it at a time as one turn of the reactor is for."""
    yield b'{"Domains":[{"name":"location","hash_size":1,"AORs":['
    step: list[bytes] = []
    cost, comma = 0, b""
    for bindings in aors:
        shown = {"AOR": _name(bindings[0].aor)} if brief else _record(bindings, now)
        step.append(comma + _encode(shown))
        comma = b","
        cost += 1 + len(bindings)
        if cost >= _STEP:
            yield b"".join(step)
            step, cost = [], 0
    yield b"".join(step) + b"]}]}"


def _record(bindings: Sequence[Binding], now: float) -> dict[str, Any]:
    return {"AOR": _name(bindings[0].aor), "Contacts": [_contact(binding, now) for binding in bindings]}


def _name(aor: str) -> str:
    return aor.removeprefix("sip:")


def _contact(binding: Binding, now: float) -> dict[str, Any]:
    """A contact under OpenSIPS's names, which leaves out what is empty."""
    view = views.binding_view(binding, now)
    shown: dict[str, Any] = {
        "Contact": view.contact,
        "ContactID": str(binding.contact_id),
        "Expires": view.expires,
        "Q": "" if view.q is None else f"{view.q:g}",
        "Callid": view.call_id,
        "Cseq": view.cseq,
        "User-agent": view.user_agent,
        "Received": view.received,
        "Path": ",".join(view.path),
        "State": "CS_SYNC",
        "Flags": view.flags,
        "Cflags": " ".join(name for bit, name in ((BEHIND_NAT, "NAT"), (PINGED, "PINGED")) if view.cflags & bit),
        "Socket": view.socket,
        "Methods": _mask(view.methods),
        "Attr": view.attr,
        "SIP_instance": view.instance,
        "KV-Store": view.kv_store,
    }
    always = {"Q", "Cflags"}
    return {name: value for name, value in shown.items() if value != "" or name in always}


def _mask(methods: str) -> int:
    """The bits of the methods in an Allow."""
    if not methods:
        return _ALL_METHODS
    named = {method.strip() for method in methods.split(",")}
    mask = sum(1 << place for place, method in enumerate(_METHODS) if method in named)
    return mask | (1 << len(_METHODS) if named - set(_METHODS) else 0)


def _named(mask: int) -> str:
    """The methods of these bits; none are named where all are meant."""
    every = (1 << len(_METHODS)) - 1
    if mask & every == every:
        return ""
    return ",".join(method for place, method in enumerate(_METHODS) if mask >> place & 1)


def _thousandths(q: str) -> int | None:
    """A q value, of which OpenSIPS's scripts write `-1` or nothing for none."""
    if q in {"", "-1"}:
        return None
    try:
        value = float(q)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise RpcError(INVALID_PARAMS, f"Invalid params: q is from 0 to 1, not {q[:20]!r}")
    return round(value * 1000)
