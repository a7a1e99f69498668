"""What the queries of the API may say: one Struct for each."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

MAX_PAGE = 1000
"""The bindings or accounts of one page."""

MAX_ENTRIES = 100
"""The entries of one page."""


Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="How many the page holds.")]
Cursor = Annotated[str, Meta(description="Where the page begins: the cursor of the one before it.")]
Answering = Annotated[
    str,
    Meta(description="Which node answers: its name, or leader for who leads; the one that is asked hands it on."),
]


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The parameters of a query, each with a default; here there are none."""

    def parameters(self) -> dict[str, str]:
        """The parameters as they are written, those left out that are as if nothing was said."""
        given = msgspec.to_builtins(self)
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


class At(Query, frozen=True, kw_only=True):
    """What a node knows."""

    node: Answering = ""


class Read(Query, frozen=True, kw_only=True):
    """A read of the replicated table."""

    consistency: Annotated[
        Literal["local", "linearizable"],
        Meta(
            description="local: the node's own table as it is. linearizable: with all that was acknowledged before; a "
            "node that doesn't lead asks the leader how far that is, and waits until it has it."
        ),
    ] = "local"


class Look(Read, frozen=True, kw_only=True):
    """A read of the table of a node."""

    node: Answering = ""


class Page(Read, frozen=True, kw_only=True):
    """One page of a list."""

    limit: Limit = MAX_PAGE
    cursor: Cursor = ""


class Filter(Read, frozen=True, kw_only=True):
    """What bindings must be like; all that is given must hold."""

    prefix: Annotated[str, Meta(description="The AOR begins so, with or without sip:.")] = ""
    domain: Annotated[str, Meta(description="The AOR is of this domain, or of the one with this alias.")] = ""
    contact: Annotated[str, Meta(description="The contact URI has this in it; upper and lower case are alike.")] = ""
    address: Annotated[
        str,
        Meta(description="The phone is at this IP address, or in this network: 192.0.2.7, 2001:db8::/32."),
    ] = ""
    transport: Annotated[
        Literal["", "udp", "tcp", "tls", "ws", "wss"], Meta(description="The phone has registered over this.")
    ] = ""
    behind_nat: Annotated[bool | UnsetType, Meta(description="Whether the phone was found behind NAT.")] = UNSET
    user_agent: Annotated[str, Meta(description="The User-Agent has this in it; case doesn't matter.")] = ""
    call_id: Annotated[str, Meta(description="The REGISTERs have this Call-ID.")] = ""
    instance: Annotated[str, Meta(description="The +sip.instance has this in it; case doesn't matter.")] = ""


class Search(Filter, frozen=True, kw_only=True):
    """A page of the bindings that match."""

    node: Answering = ""
    limit: Limit = MAX_PAGE
    cursor: Cursor = ""


class Removal(Query, frozen=True, kw_only=True):
    """Which bindings of an AOR are to be removed."""

    contact: (
        Annotated[str, Meta(min_length=1, description="The contact URI of the only one that is to be removed.")]
        | UnsetType
    ) = UNSET


class Pages(Query, frozen=True, kw_only=True):
    """One page of what isn't in the replicated table."""

    limit: Limit = MAX_PAGE
    cursor: Cursor = ""


class Follow(Query, frozen=True, kw_only=True):
    """Which events are told, and from where on."""

    since: (
        Annotated[str, Meta(description="The id of the last event that is known, or an index; the header counts more.")]
        | UnsetType
    ) = UNSET
    kinds: Annotated[str, Meta(description="Kinds of events, with commas between them; all but refreshes.")] = ""
    aor: Annotated[str, Meta(description="Only what concerns this AOR, or none.")] = ""


class Span(Query, frozen=True, kw_only=True):
    """Which entries are wanted."""

    limit: Annotated[int, Meta(ge=1, le=MAX_ENTRIES, description="How many entries the page holds.")] = 20
    cursor: (
        Annotated[int, Meta(ge=0, lt=1 << 62, description="Entries before this index: the cursor of another page.")]
        | UnsetType
    ) = UNSET


ANYWHERE = (At, Look, Search)
"""The queries that may name the node that is to answer."""
