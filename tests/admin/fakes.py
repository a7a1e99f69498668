from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import treq
from treq.client import HTTPClient
from treq.testing import RequestTraversalAgent, _SynchronousProducer
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource, Resource
from zope.interface import implementer

from sipha.admin.access import Access
from sipha.admin.api import Api
from sipha.admin.interfaces import INode, Listing, Position
from sipha.admin.limits import Rates
from sipha.admin.log import EntryView, LogView, entry_view
from sipha.admin.route import Group
from sipha.admin.site import Front
from sipha.admin.trace import Traced
from sipha.admin.views import NodeView, PeerStatus, Reloaded, Status, WorkersStatus
from sipha.auth.domain import Domain, Domains
from sipha.errors import NotLeader, SiphaError, Unavailable
from sipha.events.feed import Feed, Source
from sipha.events.history import History, HistoryOff, Page
from sipha.events.recorder import Place, Recorder
from sipha.journal import Level
from sipha.state.accounts import Account
from sipha.state.binding import Binding
from sipha.state.entries import SCHEMA, Batch, Contact, Policy, PutSetting, Record, Register, encode
from sipha.state.location import listed
from sipha.state.machine import Machine
from sipha.state.outcomes import Outcome
from sipha.state.snapshot import Frozen

NOW = 1000.0
"""The cluster time, in seconds."""

WALL = 1_764_380_000.0
"""The wall time, in seconds since 1970."""


@implementer(INode)
class FakeNode:
    """A node with a real table, whose log applies at once; or hands records to its leader, or doesn't answer."""

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.machine = Machine()
        self.leads = True
        self.leads_without_phones = False
        self.leader: FakeNode | None = None
        self.leader_url: str | None = None
        self.trouble: Unavailable | None = None
        self.refusal: SiphaError | None = None
        self.alarms: tuple[str, ...] = ()
        self.workers: WorkersStatus | None = None
        self.memory = "whole"
        self.members = {name: NodeView(name, f"{name}.test:7000", "voter", False, True, 0)}
        self.yields = False
        self.next_leader: str | None = None
        self.freed = 0
        self.records: list[Record] = []
        self.held: list[Callable[[], None]] | None = None
        self.peers: tuple[PeerStatus, ...] = ()
        self.entry: dict[int, bytes] = {}
        self.answered: dict[str, int] = {}
        self.level: Level = "info"
        self.clock = Clock()
        self.feed = Feed(
            self.clock, Source(name, lambda: self.machine.index, lambda: NOW, lambda: WALL, lambda _: name)
        )
        self.machine.observer = self.feed
        self.recorder: Recorder | None = None
        self.traces: dict[str, Callable[[Traced], object]] = {}

    def status(self) -> Status:
        return Status(
            node=self.name,
            version="0.1.0",
            alarms=self.alarms,
            uptime=3723.5,
            cluster_id="0123456789abcdef" * 2,
            role="leader" if self.leads else "follower",
            memory=self.memory,
            standby=self.members[self.name].standby,
            leading=self.leads,
            leader=self.name if self.leads else None if self.leader is None else self.leader.name,
            term=3,
            commit_index=self.machine.index,
            applied_index=self.machine.index,
            durable_index=self.machine.index,
            first_index=1,
            last_index=self.machine.index,
            snapshot_index=0,
            hash=self.machine.hash_hex(),
            schema=SCHEMA,
            time=NOW,
            lease=0.19 if self.leads else 0.0,
            proposals=0,
            durability="fsync",
            journal_bytes=1000,
            virtual_addresses=("127.0.0.10",),
            holds_virtual_addresses=self.leads,
            connections=12,
            stream_calls=1,
            aors=len(self.machine.location),
            bindings=self.machine.location.count,
            accounts=len(self.machine.accounts),
            pings="on" if self.pings() else "off",
            counters={"received": 7},
            peers=self.peers,
            workers=self.workers,
        )

    def leading(self) -> bool:
        return self.leads

    def leads_log(self) -> bool:
        return self.leads or self.leads_without_phones

    def admin_of(self, name: str) -> str | None:
        return self.leader_url if self.leader is not None and name == self.leader.name else None

    def cluster_time(self) -> float:
        return NOW

    def position(self) -> Position:
        return Position(self.name, self.machine.index, NOW, self.leads, None if self.leads else 0.02)

    def log(self) -> LogView:
        index = self.machine.index
        return LogView(3, self.name, 0, index, index, index, index, 0, 2, 1000, None)

    def log_level(self) -> Level:
        return self.level

    def set_log_level(self, level: Level) -> None:
        self.level = level

    def entries(self, end: int, limit: int) -> Sequence[EntryView]:
        last = min(end - 1, self.machine.index)
        return [
            entry_view(index, 3, "records", self.entry[index], committed=True)
            for index in range(last, max(last - limit, 0), -1)
        ]

    def listing(self) -> Listing:
        frozen = self.machine.freeze_bindings()

        def close() -> None:
            for _ in frozen.close():
                pass
            self.freed += 1

        return Listing(listed(frozen, int(NOW * 1000)), close)

    def aors(self, after: str, limit: int) -> Sequence[str]:
        return self.machine.location.aors(after, limit)

    def bindings(self, aor: str) -> Sequence[Binding]:
        return self.machine.location.bindings(aor, int(NOW * 1000))

    def last_answered(self, binding: Binding) -> int | None:
        return self.answered.get(binding.aor) if self.leads else None

    def accounts(self, after: str, limit: int) -> Sequence[Account]:
        return self.machine.accounts.page(after, limit)

    def account(self, username: str, domain: str) -> Account | None:
        return self.machine.accounts.get(username, domain)

    def pings(self) -> bool:
        return self.machine.settings.get("pings") != "off"

    def turn_pings(self, done: Callable[[Outcome | Unavailable], None], *, on: bool) -> None:
        self.propose(PutSetting("pings", "" if on else "off"), done)

    def propose(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        if not self.leads:
            if self.leader is None:
                done(NotLeader("no node leads the cluster yet", retry_after=1))
            else:
                self.leader.propose(record, done)
            return
        if self.trouble is not None:
            done(self.trouble)
            return
        self.records.append(record)
        outcome = self.apply(record)
        if self.held is None:
            done(outcome)
        else:
            self.held.append(lambda: done(outcome))

    def cluster_id(self) -> str:
        return "0123456789abcdef" * 2

    def keep_history(self, path: Path) -> None:
        """Keep a history in a file; what is to be done on a thread is done at once."""
        self.recorder = self.feed.archive = Recorder(
            self.clock,
            maybeDeferred,
            lambda suspect: History(path, 3600.0, 1 << 20, suspect=suspect),
            lambda: Place(self.cluster_id(), self.feed.reach(), int(NOW * 1000)),
            self.feed.gap,
        )

    def history(self, aor: str, cursor: str, limit: int) -> Deferred[Page]:
        if self.recorder is None:
            return fail(HistoryOff())
        return self.recorder.read(aor, cursor, limit)

    def nodes(self) -> Sequence[NodeView]:
        return tuple(view for _, view in sorted(self.members.items()))

    def add_node(self, name: str, address: str) -> Deferred[None]:
        if ":" not in address:
            raise ValueError(f"{address!r} is no address")
        if self.refusal is not None:
            raise self.refusal
        self.members[name] = NodeView(name, address, "learner", False, False, None)
        return fail(self.trouble) if self.trouble else succeed(None)

    def remove_node(self, name: str) -> Deferred[None]:
        if self.refusal is not None:
            raise self.refusal
        del self.members[name]
        return succeed(None)

    def transfer(self, to: str | None) -> Deferred[str]:
        if self.refusal:
            return fail(self.refusal)
        if self.yields:
            self.leads, self.leader = False, FakeNode(to or "z")
        return succeed(to or "z")

    def successor(self) -> str | None:
        return self.next_leader

    def put_in_standby(self, name: str, *, force: bool) -> Deferred[str | None]:
        if self.refusal is not None and not force:
            raise self.refusal
        self.members[name] = msgspec.structs.replace(self.members[name], standby=True)
        return succeed(self.next_leader if name == self.name else self.name)

    def bring_online(self, name: str) -> Deferred[None]:
        if self.refusal is not None:
            raise self.refusal
        self.members[name] = msgspec.structs.replace(self.members[name], standby=False)
        return succeed(None)

    def prefer(self, name: str | None) -> Deferred[None]:
        if self.refusal is not None:
            raise self.refusal
        for one, view in self.members.items():
            self.members[one] = msgspec.structs.replace(view, preferred=one == name)
        return succeed(None)

    def reload(self) -> Deferred[Reloaded]:
        if self.refusal is not None:
            return fail(self.refusal)
        return succeed(Reloaded("/etc/sipha/sipha.toml", 2, ("sip.port", "domains")))

    def trace(self, aor: str, take: Callable[[Traced], object]) -> Callable[[], None]:
        self.traces[aor] = take
        return lambda: self.traces.pop(aor, None) and None

    def backup(self) -> Frozen:
        return self.machine.freeze(3, "0123456789abcdef" * 2)

    def free(self, frozen: Frozen) -> None:
        for _ in frozen.close():
            pass
        self.freed += 1

    def apply(self, record: Record) -> Outcome:
        """Put a record into the table, as the log does."""
        batch = Batch(SCHEMA, int(NOW * 1000), Policy(), (record,))
        entry = self.entry[self.machine.index + 1] = encode(batch)
        (outcome,) = self.machine.apply(self.machine.index + 1, entry)
        return outcome

    def register(self, aor: str, uri: str = "sip:phone@127.0.0.1:5070", **fields: Any) -> None:
        """Register one contact."""
        contact = Contact(uri, expires=600, q=500, params=";x=1")
        given = {
            "call_id": f"call-{uri}",
            "cseq": 7,
            "received": "sip:127.0.0.1:5070",
            "user_agent": "phone/1",
        } | fields
        self.apply(Register(aor=aor, contacts=(contact,), **given))  # type: ignore[arg-type]


DOMAINS = Domains(
    (
        Domain("sipha.test", "sipha.test", frozenset(("alias.test",))),
        Domain("lower.test", "Lower", case_sensitive=False),
    )
)


class Console:
    """Sends requests to a node's admin, as curl does, and flushes what answers later."""

    def __init__(
        self, node: FakeNode, forward_to: IResource | None = None, *more: Group, access: Access | None = None
    ) -> None:
        self.node = node
        self.clock = Clock()
        http = HTTPClient(RequestTraversalAgent(forward_to or Resource()), data_to_body_producer=_SynchronousProducer)
        self.api = Api(self.clock, node, DOMAINS, http, *more)
        self.site = self.api.resource()
        self.front = Front(
            self.clock, self.site, "127.0.0.11", access or Access(), Rates(1000.0), open_paths=self.api.open_paths
        )
        self.agent = RequestTraversalAgent(self.front)
        self.http = HTTPClient(self.agent, data_to_body_producer=_SynchronousProducer)

    def start(
        self, method: str, path: str, body: object = None, *, host: str | None = None, **headers: str
    ) -> Deferred[Reply]:
        """Send a request; the body is bytes, or encoded as JSON."""
        given = {name.replace("_", "-"): [value] for name, value in headers.items()}
        if body is not None:
            given.setdefault("content-type", ["application/json"])
        if host is not None:
            given["host"] = [host]
        data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)

        async def ask() -> Reply:
            response = await self.http.request(
                method, f"http://127.0.0.1:8080{path}", headers=Headers(given), data=data, allow_redirects=False
            )
            return Reply(response.code, response.headers, await treq.content(response))

        return Deferred.fromCoroutine(ask())

    def flush(self) -> None:
        """Carry what was written since."""
        self.agent.flush()

    def ask(self, method: str, path: str, body: object = None, *, host: str | None = None, **headers: str) -> Reply:
        """Send a request and return the answer, which must come at once."""
        replies: list[Reply] = []
        self.start(method, path, body, host=host, **headers).addCallback(replies.append)
        self.flush()
        (reply,) = replies
        return reply


class Reply(NamedTuple):
    """An answer."""

    status: int
    headers: Headers
    content: bytes

    @property
    def json(self) -> Any:
        """The body."""
        assert self.headers.getRawHeaders("Content-Type") == ["application/json"]
        return msgspec.json.decode(self.content)

    @property
    def fault(self) -> str:
        """Why the request failed."""
        error = self.json["error"]
        assert error["status"] == self.status
        return str(error["detail"])


def routes(node: FakeNode) -> IResource:
    """The routes of a node's admin."""
    return Console(node).site


def serve(node: FakeNode, access: Access | None = None) -> Front:
    """What a node's admin serves to those who have `access`, or to all."""
    return Console(node, access=access).front
