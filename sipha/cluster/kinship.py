"""Which of the connected nodes belong to our cluster, and how a node with a blank disk comes to belong to one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from twisted.logger import Logger

from sipha.cluster.membership import Membership, address_of
from sipha.cluster.peers import INetwork
from sipha.cluster.status import PeerStatus
from sipha.cluster.storage import Identity, Storage
from sipha.cluster.wire import PROTOCOL, Condition, Hello
from sipha.errors import ConfigError
from sipha.sip.flow import Address
from sipha.state.entries import SCHEMA
from sipha.state.machine import Machine


class Kinship:
    """What node `node` of the cluster named `cluster` says of itself, and what the others say.

    `seeds` are the nodes that one without a log looks for; `own_priority` is its wish to lead, 0 for a witness.
    """

    def __init__(  # noqa: PLR0917  one caller
        self,
        node: str,
        cluster: str,
        own_priority: int,
        seeds: Mapping[str, Address],
        storage: Storage,
        network: INetwork,
        membership: Membership,
        machine: Machine,
    ) -> None:
        self.own_priority = own_priority
        self.condition = Condition("")
        """What we say of ourselves beyond what is so from the start."""
        self.kin: set[str] = set()
        """The members that are connected and of our cluster."""
        self.guests: set[str] = set()
        """Others of our cluster's nodes that are connected: one may lead that was added after what we know."""
        self._node = node
        self._cluster = cluster
        self._seeds = dict(seeds)
        self._storage = storage
        self._network = network
        self._membership = membership
        self._machine = machine
        self._spoke_of_trouble = False  # in a hello
        self._conditions: dict[str, Condition] = {}  # what the others have said since their hello
        self._unusable = ""  # why a member can't be talked to
        self._log = Logger(namespace="sipha.cluster")

    @property
    def cluster_id(self) -> str:
        """The id of our cluster; empty if we have never been in one."""
        return "" if self._storage.identity is None else self._storage.identity.cluster_id

    def introduce(self) -> Hello:
        """What to say about ourselves."""
        self._spoke_of_trouble = self._spoke_of_trouble or bool(self.condition.trouble)
        identity = self._storage.identity or Identity("", self._node, "", amnesiac=False)
        return Hello(
            PROTOCOL,
            self._cluster,
            self._node,
            identity.cluster_id,
            identity.incarnation,
            SCHEMA,
            self.own_priority,
            identity.amnesiac,
            self.condition.trouble,
        )

    def objection(self, peer: str, hello: Hello, *, led: bool) -> str | None:
        """Why we don't talk to a peer that says this, None if we do; `led` is whether we hear of a leader."""
        if not self.cluster_id or not hello.cluster_id:
            return None  # one of us has yet to join
        if hello.cluster_id != self.cluster_id:
            return "other cluster id"
        if hello.schema < self._machine.schema:
            return "older release"
        return "no member" if led and not self._knows(peer) else None

    def connected(self, peer: str) -> None:
        """A peer can be sent to."""
        hello = self._network.hello(peer)
        if hello is not None and self.cluster_id and hello.cluster_id == self.cluster_id:
            if self._knows(peer) and peer not in self.kin:
                self.kin.add(peer)
                if self.condition.trouble or self._spoke_of_trouble:
                    self._tell(peer)  # it may have changed since we said hello
            elif peer not in self.kin:
                self.guests.add(peer)

    def disconnected(self, peer: str) -> None:
        """The connection to a peer is gone."""
        self.kin.discard(peer)
        self.guests.discard(peer)
        self._conditions.pop(peer, None)

    def _knows(self, peer: str) -> bool:
        members = (*self._machine.members, *self._membership.members)
        return not members or any(member.name == peer for member in members)

    def hello(self, peer: str) -> Hello:
        """What a peer of our cluster has said of itself; one that isn't connected knows nothing and wants nothing."""
        hello = self._network.hello(peer) if peer in self.kin else None
        return hello or Hello(PROTOCOL, self._cluster, peer, "", "", 0, 0)

    def priority(self, name: str) -> int:
        """The wish to lead that a node's configuration states; 0 for one that isn't connected."""
        return self.own_priority if name == self._node else self.hello(name).priority

    def is_witness(self, name: str) -> bool:
        """True if a node is known never to serve phones."""
        return (name == self._node or name in self.kin) and not self.priority(name)

    def declare(self, condition: Condition) -> None:
        """Say what has become of us to all who understand it."""
        if condition != self.condition:
            self.condition = condition
            for peer in sorted(self.kin):
                self._tell(peer)

    def _tell(self, peer: str) -> None:
        if self.hello(peer).trouble is not None:
            self._network.send(peer, self.condition)

    def heard(self, peer: str, condition: Condition) -> None:
        """A peer says what has become of it."""
        self._conditions[peer] = condition

    def trouble(self, name: str) -> str:
        """What keeps a node from serving phones well, as far as it has told us; empty if nothing does."""
        if name == self._node:
            return self.condition.trouble
        condition = self._conditions.get(name)
        return (self.hello(name).trouble or "") if condition is None else condition.trouble

    def join(self, leader: str) -> None:
        """A leader counts us among its members: be of its cluster from now on; raises OSError."""
        hello = self._network.hello(leader)
        if hello is not None and hello.cluster_id:
            self._storage.join(hello.cluster_id)
            self._log.info("{node} joins cluster {id}", node=self._node, id=hello.cluster_id)
            self.call_anew()

    def call_anew(self) -> None:
        """Tell all peers what has become of us, on new connections."""
        self._network.set_peers({})
        self.call()

    def call(self) -> None:
        """Talk to the members, or as long as we know of none, to the seeds.

        Those of the latest entry may yet be cut off the log again, by a leader whom only those applied know of.
        """
        members = (*self._machine.members, *self._membership.members)
        others: dict[str, Address] = {}
        self._unusable = ""
        for member in members:
            if member.name == self._node:
                continue
            try:
                address = address_of(member)
                self._network.check(member.name, address)
            except (ConfigError, ValueError) as error:  # an entry of the log must not stop a node
                self._unusable = f"{member.name} can't be talked to: {error}"
                self._log.error("{problem}", problem=self._unusable)
            else:
                others[member.name] = address
        self._network.set_peers(others if members else self._seeds)
        guests, self.guests = self.guests, set()
        for peer in sorted(guests):
            self.connected(peer)

    def seek(self, seeds: Mapping[str, Address]) -> None:
        """Look for these nodes from now on, as long as we know of no members."""
        self._seeds = dict(seeds)
        self.call()

    def peers(self, match: Mapping[str, int]) -> Iterator[PeerStatus]:
        """What is to be said of the others; `match` is the entry up to which each has our log."""
        known: dict[str, tuple[str, Any]] = {
            name: (f"{host}:{port}", "stranger") for name, (host, port) in self._seeds.items()
        }
        known |= {member.name: (member.address, member.role) for member in self._membership.members}
        known.pop(self._node, None)
        for name, (address, role) in sorted(known.items()):
            heard = self._network.heard(name)
            yield PeerStatus(name, address, role, heard is not None, heard, match.get(name, 0))

    def alarms(self) -> Iterator[str]:
        """What an operator must know about our belonging."""
        identity = self._storage.identity
        if identity is None:
            yield (
                "this node's disk is blank: found a cluster (siphactl cluster init) or let it join one (siphactl node "
                "add on the leader)"
            )
        elif self._membership.members and self._membership.get(self._node) is None:
            yield "this node is no member of the cluster any more"
        elif identity.amnesiac:
            yield (
                "this node has lost what it held: it doesn't vote, and what it stores doesn't count, until a majority "
                "of the others has given it everything"
            )
        if self._unusable:
            yield self._unusable
        yield from self._storage.alarms
