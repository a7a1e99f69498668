"""The bindings: those of an AOR, pages of all that match, and all of them as one stream."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from sipha.admin import views
from sipha.admin.access import Role
from sipha.admin.filter import Choice
from sipha.admin.imports import SCHEMA, BroughtAll, NewBinding, brought, import_of
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.admin.names import locate
from sipha.admin.outcomes import count, outcomes_of, propose
from sipha.admin.outflow import PAUSE
from sipha.admin.queries import Filter, Look, Removal, Search
from sipha.admin.route import Routes, Stream
from sipha.auth.domain import Domains
from sipha.state.binding import Binding
from sipha.state.entries import RemoveBindings
from sipha.state.outcomes import NotFound

STEP = 200
"""The AORs, or in an export AORs and bindings, that are looked at in one turn of the reactor: some 2 ms."""

SCANNED = 20_000
"""The AORs that are looked at for one page."""

_COLUMNS = views.BindingView.__struct_fields__
_BEHIND_NAT, _PATH = _COLUMNS.index("behind_nat"), _COLUMNS.index("path")

_encode = msgspec.json.Encoder().encode


class BindingRoutes:
    """The bindings of a node's table."""

    routes = Routes("bindings")

    def __init__(self, reactor: IReactorTime, node: INode, domains: Domains) -> None:
        self._reactor = reactor
        self._node = node
        self._domains = domains

    @routes.get("/v1/bindings", role=Role.READ)
    async def list_bindings(self, query: Search) -> views.Bindings:
        """The bindings that match, by the order of their AORs.

        A page holds whole AORs and ends with the one that makes `limit` bindings full. It looks at 20,000 AORs at most,
        so it may be short or even empty while there is a cursor for the next.
        """
        choice = Choice(query, self._domains)
        found: list[views.BindingView] = []
        cursor, scanned = max(query.cursor, _before(choice.prefix)), 0
        while True:
            now = self._node.cluster_time()
            aors = self._node.aors(cursor, STEP)
            for aor in aors:
                if not aor.startswith(choice.prefix):
                    return views.Bindings(tuple(found))
                cursor = aor
                bindings = self._node.bindings(aor)
                found += [self._view(binding, now) for binding in bindings if choice.matches(binding)]
                if len(found) >= query.limit:
                    return views.Bindings(tuple(found), cursor)
            if len(aors) < STEP:
                return views.Bindings(tuple(found))
            scanned += STEP
            if scanned >= SCANNED:
                return views.Bindings(tuple(found), cursor)
            await deferLater(self._reactor, PAUSE)

    @routes.get("/v1/bindings.jsonl", role=Role.READ, media="application/x-ndjson", errors=(409,))
    def export_jsonl(self, query: Filter) -> Stream:
        """All bindings that match, as they are at one moment: a JSON object in each line, by the order of the AORs."""
        return self._export(query, _lines)

    @routes.get("/v1/bindings.csv", role=Role.READ, media="text/csv; charset=utf-8", errors=(409,))
    def export_csv(self, query: Filter) -> Stream:
        """All bindings that match, as they are at one moment: RFC 4180, with a line of names first."""
        return self._export(query, _rows, _csv([_COLUMNS]))

    @routes.get("/v1/bindings/<path:aor>", role=Role.READ, query=Look, errors=(404,))
    def get_bindings(self, aor: str) -> views.Bindings:
        """The bindings of one AOR: `alice@sipha.test`, or `sip:alice@sipha.test`."""
        aor = locate(self._domains, aor)[1]
        now = self._node.cluster_time()
        bindings = tuple(self._view(binding, now) for binding in self._node.bindings(aor))
        if not bindings:
            raise Refusal(404, f"{aor} has no bindings")
        return views.Bindings(bindings)

    @routes.post("/v1/bindings", role=Role.ADMIN, errors=(409, 503))
    async def import_bindings(self, body: list[NewBinding]) -> BroughtAll:
        """Take over bindings that another registrar has granted: 200 with a result for each.

        The array is checked as a whole before any comes.
        """
        records = [import_of(binding, self._domains) for binding in body]
        if (schema := self._node.status().schema) < SCHEMA:
            raise Refusal(409, f"the log is of schema {schema} yet: upgrade all nodes before you import bindings")
        return BroughtAll(tuple(map(brought, records, await outcomes_of(self._node, records))))

    @routes.delete("/v1/bindings/<path:aor>", role=Role.OPERATE, errors=(404, 503))
    async def remove_bindings(self, aor: str, query: Removal) -> views.Removed:
        """Remove all bindings of an AOR, or the one to `contact`."""
        contact = query.contact or ""
        aor = locate(self._domains, aor)[1]
        outcome = await propose(self._node, RemoveBindings(aor, contact))
        if isinstance(outcome, NotFound):
            raise Refusal(404, f"{aor} has no binding {contact}" if contact else f"{aor} has no bindings")
        return views.Removed(count(outcome))

    def _view(self, binding: Binding, now: float) -> views.BindingView:
        return views.binding_view(binding, now, self._node.last_answered(binding))

    def _export(
        self, query: Filter, encode: Callable[[Iterable[views.BindingView]], bytes], head: bytes = b""
    ) -> Stream:
        choice = Choice(query, self._domains)
        listing = self._node.listing()
        now = self._node.cluster_time()

        def chunks() -> Iterator[bytes]:
            yield head
            for bindings in _in_steps(listing.bindings):
                yield encode(
                    self._view(binding, now)
                    for binding in bindings
                    if binding.aor.startswith(choice.prefix) and choice.matches(binding)
                )

        return Stream(chunks(), listing.close)


def _in_steps(aors: Iterable[Sequence[Binding]]) -> Iterator[list[Binding]]:
    """The bindings of all AORs, as many at a time as one turn of the reactor is for."""
    step: list[Binding] = []
    cost = 0
    for bindings in aors:
        step += bindings
        cost += 1 + len(bindings)
        if cost >= STEP:
            yield step
            step, cost = [], 0
    yield step


def _lines(found: Iterable[views.BindingView]) -> bytes:
    return b"".join([_encode(view) + b"\n" for view in found])


def _rows(found: Iterable[views.BindingView]) -> bytes:
    return _csv(map(_row, found))


def _row(view: views.BindingView) -> Sequence[object]:
    values = list(msgspec.structs.astuple(view))
    values[_BEHIND_NAT] = "true" if view.behind_nat else "false"
    values[_PATH] = ",".join(view.path)
    return values


def _csv(rows: Iterable[Sequence[object]]) -> bytes:
    text = StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _before(prefix: str) -> str:
    """A text that sorts just before all that begin with the prefix."""
    last = ord(prefix[-1])
    return prefix[:-1] + chr(last - 1) + "\U0010ffff" if last else prefix[:-1]
