"""What the admin sees of the node that it runs in, and what it can have done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from sipha import RELEASE, config
from sipha.admin.interfaces import INode, Listing, Position
from sipha.admin.log import EntryView, Kind, LogView, SnapshotView, entry_view
from sipha.admin.trace import Traced
from sipha.admin.views import NodeView, PeerStatus, Reloaded, Status
from sipha.cluster.guards import MEMBERSHIP, NO_OP, REGULAR
from sipha.cluster.handover import HandoverFailed
from sipha.cluster.snapshots import SnapshotFile
from sipha.config.texts import NodeName, SocketAddress
from sipha.errors import ConfigError, Unavailable, UnknownOutcome
from sipha.events.feed import Feed
from sipha.events.history import HistoryOff, Page
from sipha.journal import Level
from sipha.nat.keepalive import OFF, SETTING, Keepalive
from sipha.service.access import AdminAccess
from sipha.service.events import EventService
from sipha.service.health import Health
from sipha.service.life import Life
from sipha.service.log import Log
from sipha.service.replication import Replication
from sipha.service.sip import SipService
from sipha.service.trace import Tracing
from sipha.state.accounts import Account
from sipha.state.binding import Binding
from sipha.state.entries import PutSetting, Record
from sipha.state.location import listed
from sipha.state.outcomes import Outcome
from sipha.state.snapshot import Frozen
from sipha.vip.address import IVirtualAddress

DEADLINE = 4.0
"""Seconds that a majority has for a change of who is a member or may lead; less than who forwarded it waits for."""


_KINDS: Mapping[int, Kind] = {
    REGULAR: "records",
    MEMBERSHIP: "members",
    NO_OP: "empty",
}


class Parts(NamedTuple):
    """The services of a node that its admin asks."""

    replication: Replication
    address: IVirtualAddress
    sip: SipService
    keepalive: Keepalive
    health: Health
    events: EventService
    access: AdminAccess
    tracing: Tracing
    log: Log

    def alarms(self) -> Iterator[str]:
        """What an operator must know of them."""
        for part in (self.replication, self.address, self.sip, self.keepalive, self.events, self.access):
            yield from part.alarms()


@implementer(INode)
class View:
    """The node that has these `parts`, and a configuration with this `life`."""

    def __init__(self, reactor: Any, configuration: config.Config, parts: Parts, life: Life) -> None:
        self._reactor = reactor
        self.parts = parts
        self._life = life
        (
            self._replication,
            self._address,
            self._sip,
            self._keepalive,
            _,
            self._events,
            self._access,
            self._tracing,
            self._log,
        ) = parts
        self._replica = self._replication.replica
        self._started_at = reactor.seconds()
        self.adopt(configuration)

    def adopt(self, configuration: config.Config) -> None:
        """Speak of another configuration."""
        self._config = configuration
        self._admins = {str(peer.name): str(peer.admin) for peer in configuration.cluster.peers if peer.admin}

    def status(self) -> Status:
        """What the node is, and what it sees of the others."""
        replica, machine = self._replica.status(), self._replica.machine
        return Status(
            node=replica.node,
            version=RELEASE,
            alarms=(*replica.alarms, *self._other_alarms()),
            uptime=self._reactor.seconds() - self._started_at,
            cluster_id=replica.cluster_id,
            role=replica.role,
            memory=replica.memory,
            standby=self._replica.candidacy.in_standby(replica.node),
            leading=replica.leading and self._sip.listening,
            leader=replica.leader,
            term=replica.term,
            commit_index=replica.commit_index,
            applied_index=replica.applied_index,
            durable_index=replica.durable_index,
            first_index=replica.first_index,
            last_index=replica.last_index,
            snapshot_index=replica.snapshot_index,
            hash=replica.hash,
            schema=replica.schema,
            time=replica.time,
            lease=replica.lease,
            proposals=replica.proposals,
            durability=replica.durability,
            journal_bytes=replica.journal_bytes,
            virtual_addresses=self._config.virtual_address.hosts,
            holds_virtual_addresses=self._address.held and self._sip.listening,
            connections=self._sip.connections,
            stream_calls=self._sip.stream_calls,
            aors=len(machine.location),
            bindings=machine.location.count,
            accounts=len(machine.accounts),
            pings=self._keepalive.state,
            counters={
                **replica.counters,
                **self._sip.counters(),
                **self._keepalive.counted(),
                **self._events.counters,
                **self._access.counted(),
            },
            peers=tuple(
                PeerStatus(
                    peer.name,
                    self._admins.get(peer.name, ""),
                    peer.address,
                    peer.role,
                    peer.connected,
                    peer.heard,
                    peer.match,
                )
                for peer in replica.peers
            ),
            configuration=self._life.status(),
            workers=self._sip.workers,
        )

    def alarms(self) -> Iterator[str]:
        """What an operator must know."""
        yield from self._replica.alarms()
        yield from self._other_alarms()

    def _other_alarms(self) -> Iterator[str]:
        yield from self._life.alarms()
        yield from self.parts.alarms()

    def summary(self) -> str:
        """What the node is, in a line."""
        status = self.status()
        role = "serves phones" if status.leading else status.role
        alarms = f"; alarms: {len(status.alarms)}, see siphactl status" if status.alarms else ""
        return f"{status.node}: {role}, term {status.term}{alarms}"

    def leading(self) -> bool:
        """Return True if the node leads and its lease is valid."""
        return self._replica.leading()

    def leads_log(self) -> bool:
        """Return True if the node leads, even if it serves no phones."""
        return self._replica.leads_log

    def admin_of(self, name: str) -> str | None:
        """Return the URL at which another node takes what is handed on to it; None if it isn't known."""
        return self._admins.get(name) or self._access.url(name)

    def cluster_time(self) -> float:
        """Return the cluster time now, in seconds."""
        return self._replica.cluster_time()

    def position(self) -> Position:
        """How far the table is."""
        replica = self._replica
        return Position(
            replica.node, replica.machine.index, replica.cluster_time(), replica.leading(), replica.heard_leader()
        )

    def log(self) -> LogView:
        """Where the log is."""
        status, file = self._replica.status(), self._replica.snapshot
        return LogView(
            term=status.term,
            leader=status.leader,
            first_index=status.first_index,
            last_index=status.last_index,
            durable_index=status.durable_index,
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            readable_after=self._replica.readable_after,
            schema=status.schema,
            bytes=status.journal_bytes,
            snapshot=None if file is None else _snapshot_view(file),
        )

    def log_level(self) -> Level:
        """The level of the process's log."""
        return self._log.level

    def set_log_level(self, level: Level) -> None:
        """Give the process's log another level until the configuration is loaded again."""
        self._log.set_level(level)

    def entries(self, end: int, limit: int) -> Sequence[EntryView]:
        """Up to `limit` entries before index `end` that are in memory, newest first."""
        commit_index = self._replica.status().commit_index
        return [
            entry_view(index, term, _KINDS[command[0]], command[1:], committed=index <= commit_index)
            for command, index, term in self._replica.recent(end, limit)
        ]

    def listing(self) -> Listing:
        """All bindings as they are now."""
        frozen = self._replica.machine.freeze_bindings()
        return Listing(listed(frozen, int(self.cluster_time() * 1000)), partial(self._replica.free, frozen))

    def aors(self, after: str, limit: int) -> Sequence[str]:
        """The first `limit` AORs after one."""
        return self._replica.machine.location.aors(after, limit)

    def bindings(self, aor: str) -> Sequence[Binding]:
        """The unexpired bindings of an AOR."""
        return self._replica.bindings(aor)

    def last_answered(self, binding: Binding) -> int | None:
        """When the last ping was sent that a phone has answered, as this node knows."""
        return self._keepalive.last_answered(binding)

    def accounts(self, after: str, limit: int) -> Sequence[Account]:
        """The first `limit` accounts after an identity."""
        return self._replica.machine.accounts.page(after, limit)

    def account(self, username: str, domain: str) -> Account | None:
        """The account `username@domain`."""
        return self._replica.machine.accounts.get(username, domain)

    def pings(self) -> bool:
        """Return False if an operator has turned pings off."""
        return self._replica.machine.settings.get(SETTING) != OFF

    def turn_pings(self, done: Callable[[Outcome | Unavailable], None], *, on: bool) -> None:
        """Have the cluster ping, or not, from now on."""
        self._replica.propose(PutSetting(SETTING, "" if on else OFF), done)

    def propose(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        """Queue a record for the log."""
        self._replica.propose(record, done)

    def trace(self, aor: str, take: Callable[[Traced], object]) -> Callable[[], None]:
        """Have `take` told of each message of an AOR, until what is returned is called."""
        return self._tracing.follow(aor, take)

    def nodes(self) -> Sequence[NodeView]:
        """The members of the cluster, by name."""
        status, candidacy = self._replica.status(), self._replica.candidacy
        peers = {peer.name: peer for peer in status.peers}
        leads = status.role == "leader"
        views = []
        for member in self._replica.membership.members:
            own = member.name == status.node
            behind = None
            if leads:
                behind = max(status.commit_index - (status.durable_index if own else peers[member.name].match), 0)
            connected = own or peers[member.name].connected
            views.append(
                NodeView(
                    member.name,
                    member.address,
                    member.role,
                    member.name == status.leader,
                    connected,
                    behind,
                    candidacy.in_standby(member.name),
                    candidacy.preferred == member.name,
                    candidacy.obstacle(member.name) if leads else None,
                )
            )
        return views

    def successor(self) -> str | None:
        """Who would lead if leadership were handed on now, as the leader knows it."""
        return self._replica.candidacy.successor

    def add_node(self, name: str, address: str) -> Deferred[None]:
        """Make a node a member; raises ValueError and SiphaError."""
        node, listens = NodeName.parse(name), SocketAddress.parse(address)
        cluster = self._config.cluster
        if not (cluster.encrypted or cluster.plaintext):
            raise ConfigError(
                f"{self._replica.node} has no certificates to talk to other nodes with; write cluster.ca, certificate "
                "and key, which siphactl ca makes, in its configuration, and start it again"
            )
        if not (cluster.encrypted or ip_address(listens.address[0]).is_loopback):
            raise ValueError(f"{address!r} is not a loopback address, and the nodes of this cluster talk unencrypted")
        return self._change(lambda done: self._replica.membership.add(str(node), str(listens), done))

    def remove_node(self, name: str) -> Deferred[None]:
        """Make a node no member any more; raises SiphaError."""
        return self._change(lambda done: self._replica.membership.remove(name, done))

    def put_in_standby(self, name: str, *, force: bool) -> Deferred[str | None]:
        """Let a node lead no more, and fire with who leads then; raises SiphaError."""
        changed = self._change(lambda done: self._replica.candidacy.put_in_standby(name, done, force=force))
        return changed.addCallback(lambda _: self._relieve(name))

    def bring_online(self, name: str) -> Deferred[None]:
        """Let a node lead again; raises SiphaError."""
        return self._change(lambda done: self._replica.candidacy.bring_online(name, done))

    def prefer(self, name: str | None) -> Deferred[None]:
        """Let a node lead whenever it can, or any; raises SiphaError."""
        return self._change(lambda done: self._replica.candidacy.prefer(name or "", done))

    def transfer(self, to: str | None) -> Deferred[str]:
        """Hand leadership on; to this node, there is nothing to do."""
        return succeed(to) if to == self._replica.node else self._replica.transfer(to)

    def reload(self) -> Deferred[Reloaded]:
        """Load the configuration file again."""
        return self._life.reload()

    def cluster_id(self) -> str:
        """The cluster that this node is in."""
        return self._replica.cluster_id

    @property
    def feed(self) -> Feed:
        """What this node tells of."""
        return self._events.feed

    def history(self, aor: str, cursor: str, limit: int) -> Deferred[Page]:
        """What has become of an AOR."""
        if self._events.recorder is None:
            return fail(HistoryOff())
        return self._events.recorder.read(aor, cursor, limit)

    def backup(self) -> Frozen:
        """The table as it is now."""
        return self._replica.backup()

    def free(self, frozen: Frozen) -> None:
        """Give back what a backup holds."""
        self._replica.free(frozen)

    def _relieve(self, name: str) -> Deferred[str | None]:
        """Hand leadership on if the node of this name is this one and leads; fires with who leads then."""
        if name != self._replica.node or not self._replica.leads_log:
            return succeed(self._replica.leader)

        def still(failure: Failure) -> str | None:
            failure.trap(HandoverFailed)  # it tries again by itself
            return self._replica.leader

        return self._replica.transfer(None, "it is in standby").addErrback(still)

    def _change(self, change: Callable[[Callable[[Outcome | Unavailable], None]], None]) -> Deferred[None]:
        """Change who is a member or may lead; the log may never say what became of it."""
        changed: Deferred[None] = Deferred()

        def done(outcome: Outcome | Unavailable) -> None:
            if isinstance(outcome, Unavailable):
                changed.errback(outcome)
            else:
                changed.callback(None)

        def give_up(_: object, __: float) -> None:
            raise UnknownOutcome("no majority has agreed yet; the change may still be made")

        change(done)
        return changed.addTimeout(DEADLINE, self._reactor, give_up)


def _snapshot_view(file: SnapshotFile) -> SnapshotView:
    header = file.header
    return SnapshotView(header.index, header.term, header.time / 1000, file.size, header.hash.hex())
