"""One machine of the simulated cluster: its clock, its disk, its guard, and the replica that runs while it is up."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from zope.interface import implementer

from sipha.cluster import founding, raft, segment
from sipha.cluster.expirer import Expirer
from sipha.cluster.guards import members_of
from sipha.cluster.handover import HandoverFailed
from sipha.cluster.journal import Journal
from sipha.cluster.leadership import ILeader, LeaderServices
from sipha.cluster.lease import MARGIN
from sipha.cluster.membership import MembershipRefused
from sipha.cluster.raft import Raft, Timing
from sipha.cluster.replica import Replica
from sipha.cluster.seal import unseal
from sipha.cluster.sealed import Ballot, Longest
from sipha.cluster.wire import MAX_LEASE
from sipha.errors import ConfigError, Unavailable, UnknownOutcome
from sipha.state.entries import Policy, Record, Register
from sipha.state.outcomes import Done, Outcome
from tests.cluster_sim.disk import Crashed, VirtualDisk
from tests.cluster_sim.events import Timer
from tests.cluster_sim.guard import Claim, Guard
from tests.cluster_sim.network import SILENCE, Link
from tests.cluster_sim.violation import Violation

if TYPE_CHECKING:
    from tests.cluster_sim.world import World

QUICK = (0.0001, 0.002)
"""Seconds that a job of the disk takes."""

POLICY = Policy(max_contacts=12, min_expires=1)


@dataclass(frozen=True)
class Options:
    """How a node is configured."""

    election_min: float = 0.25
    durability: str = "fsync"
    priority: int = 100
    log_limit: int = 6000
    """Bytes of log after which a snapshot is taken: after a few dozen entries."""
    guarded: bool = True
    """Whether it has a guard; without one nothing holds the address back but the daemon itself."""


class NodeTimer:
    """What `callLater` gives: it can be cancelled until it is really called, however long the node is frozen before."""

    __slots__ = ("args", "function", "over", "timer")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args
        self.over = False
        self.timer: Timer

    def active(self) -> bool:
        return not self.over

    def cancel(self) -> None:
        assert not self.over, "cancelled after it was called or cancelled"
        self.over = True
        if self.timer.active():
            self.timer.cancel()

    def getTime(self) -> float:
        return self.timer.at


class NodeReactor:
    """The reactor of one life of a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.life = node.life

    def callLater(self, delay: float, function: Callable[..., Any], *args: Any) -> NodeTimer:
        node, timer = self.node, NodeTimer(function, args)
        timer.timer = node.world.events.callLater(node.ahead + delay / node.rate, node.ring, self.life, timer)
        return timer

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        self.callLater(0.0, function, *args)

    def seconds(self) -> float:
        return self.node.clock()


@implementer(ILeader)
class Observer:
    """Sees a node gain and lose leadership."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def gained(self) -> None:
        self.node.world.note(self.node.name, "leads")

    def lost(self) -> None:
        self.node.world.note(self.node.name, "leads no more")
        if not self.node.frozen:
            self.node.guard.withdraw()


class Log:
    """The journal of a node as the library has it, which shows the invariants what becomes of it."""

    def __init__(self, node: Node, journal: Journal) -> None:
        self.node = node
        self.journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self.journal, name)

    def __len__(self) -> int:
        return len(self.journal)

    def __getitem__(self, item: int | slice) -> Any:
        return self.journal[item]

    def add(self, command: bytes, index: int, term: int) -> None:
        self.journal.add(command, index, term)
        self.node.world.invariants.added(self.node, command, index, term)

    def deleteEntriesFrom(self, position: int) -> None:
        self.node.world.invariants.cut(self.node, self.journal.first_index + position)
        self.journal.deleteEntriesFrom(position)
        self.node.world.invariants.shortened(self.node)


class Node:
    """The machine `name`. `ahead` is by how much its present step has been held up, in seconds."""

    def __init__(self, world: World, name: str, options: Options) -> None:
        self.world = world
        self.name = name
        self.address = f"192.0.2.1:{ord(name)}"
        self.options = options
        self.timing = Timing(election_min=options.election_min, election_max=2 * options.election_min)
        self.life = 0
        self.boots = 0
        self.ahead = 0.0
        self.rate = world.dice.uniform(0.995, 1.005)
        self.offset = world.dice.uniform(10, 10_000)
        self.disk = VirtualDisk(Random(f"{world.seed} disk {name}"))
        self.guard = Guard(self)
        self.frozen_until = 0.0
        self.reads_left = -1
        """After how many more readings of its clock it is held up, for `stall` seconds; negative if it isn't."""
        self.stall = 0.0
        self.harmed = False
        """True from when its disk lost something until it has it all again."""
        self.wanted = False
        """Whether the daemon should run."""
        self.whole = False
        """False while its disk may lack a vote or an entry that it had, as far as it has looked."""
        self.seen_commit = self.seen_index = self.seen_time = self.seen_term = 0
        self._mended = -math.inf
        self._dying = False
        self._replica: Replica | None = None
        self._journal: Journal | None = None  # of the latest life
        self._lost: tuple[float, Journal | None] = (-math.inf, None)  # when its disk was lost, and what was on it
        self._link: Link | None = None
        self._postponed: list[tuple[bool, int, Callable[..., Any], tuple[Any, ...]]] = []

    # Clock

    def time(self) -> float:
        """Its CLOCK_BOOTTIME at this moment, whatever its step believes."""
        return self.offset + self.world.events.now * self.rate

    def now(self) -> float:
        """Its CLOCK_BOOTTIME as its step knows it, which may have been held up."""
        return self.offset + (self.world.events.now + self.ahead) * self.rate

    def clock(self) -> float:
        """What its processes read; between two readings the node may be held up."""
        value = self.now()
        if self.reads_left >= 0:
            self.reads_left -= 1
            if self.reads_left < 0:
                self.ahead += self.stall
        return value

    def until(self, time: float) -> float:
        """Seconds until its clock shows `time`."""
        return (time - self.time()) / self.rate

    def run_at(self, rate: float) -> None:
        """Let its clock run slower or faster from now on."""
        self.offset += self.world.events.now * (self.rate - rate)
        self.rate = rate

    # What happens on it

    @property
    def up(self) -> bool:
        """True while its daemon runs, or is frozen."""
        return self._replica is not None

    @property
    def frozen(self) -> bool:
        """True while its processes do nothing."""
        return self.world.events.now < self.frozen_until

    def receive(self, life: int, function: Callable[..., Any], *args: Any) -> None:
        """Something arrives for this life's link."""
        self._run(True, life, self._to_link, (function, args))

    def _to_link(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        assert self._link is not None
        function(self._link, *args)

    def post(self, life: int, function: Callable[..., Any], *args: Any) -> None:
        """Something arrives for this life's daemon from elsewhere."""
        self._run(True, life, function, args)

    def ring(self, life: int, timer: NodeTimer) -> None:
        """A timer of this life is due."""
        self._run(False, life, self._call, (timer,))

    def _call(self, timer: NodeTimer) -> None:
        if not timer.over:
            timer.over = True
            timer.function(*timer.args)

    def _run(self, message: bool, life: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Do a step of the node, unless it is of an earlier life; later if the node is frozen."""
        if life != self.life or self._replica is None:
            return
        world = self.world
        if world.events.now < self.frozen_until:
            self._postponed.append((message, life, function, args))
            return
        raft.use_clock(self.clock)
        try:
            function(*args)
        except Crashed as crashed:
            world.note(self.name, str(crashed))
            self._dying = True
        if self._dying or self.disk._state == "crashed":  # a Deferred may have caught it
            self._end(power_lost=world.dice.random() < 0.5)
            world.died(self)
            return
        if self._replica is None:
            return
        if self.ahead:
            self._freeze(self.ahead)
            self.ahead = 0.0
        self._renew()
        world.invariants.stepped(self)

    def _renew(self) -> None:
        """Tell the guard how long we may lead; told that it has spoken, give up the claim."""
        replica = self._replica
        assert replica is not None
        if not self.options.guarded or not replica.leadership.held or not self.leads(guarded=False):
            return
        lease = replica._lease
        if not self.guard.renew(Claim(replica.term, lease.secret), lease.until):
            self.give_up_claim()

    def _freeze(self, seconds: float) -> None:
        self.frozen_until = max(self.frozen_until, self.world.events.now + seconds)
        self.world.events.callLater(self.frozen_until - self.world.events.now, self._thaw)

    def _thaw(self) -> None:
        """Do what was put off: as the reactor does, in an order of its own between timers and messages."""
        if self.frozen:
            return
        postponed, self._postponed = self._postponed, []
        order = self.world.dice.choice("tmx")
        if order != "x":
            postponed.sort(key=lambda each: each[0] == (order == "t"))
        for each in postponed:
            self._run(*each)

    # Faults

    def freeze(self, seconds: float) -> None:
        """Let it do nothing for some time, as SIGSTOP does."""
        if self.up:
            self.world.note(self.name, "freezes", seconds)
            self._freeze(seconds)
            if seconds > SILENCE:
                self.world.net.falls_silent(self.name)

    def crash(self) -> None:
        """End the daemon as kill -9 does; what it sent and wrote stays."""
        if self.up:
            self.world.note(self.name, "is killed")
            self._end(power_lost=False)

    def lose_power(self) -> None:
        """End everything; of what wasn't synced anything may be left."""
        if self.up:
            self.world.note(self.name, "loses power")
            self._end(power_lost=True)

    def _end(self, *, power_lost: bool) -> None:
        self.life += 1
        self._dying = False
        self.ahead = 0.0
        self.frozen_until = 0.0
        self.reads_left = -1
        self._postponed = []
        self.world.dead.append(self._replica)
        link, self._link, self._replica = self._link, None, None
        assert link is not None
        link.user = None
        link.drop()
        self.world.net.abandon(self.name)
        if power_lost:
            self.guard.power_lost()
            self.disk.lose_power()
            self.offset = self.world.dice.uniform(2, 20) - self.world.events.now * self.rate
            self.boots += 1
            self.world.invariants.powerless(self)
        else:
            self.guard.daemon_died()
            self.disk.kill()

    def start(self) -> None:
        """Start the daemon, if it is down and should run."""
        if not self.up and self.wanted:
            self.boot()

    def die_sending(self, messages: int, kind: type = object) -> None:
        """Die as soon as so many more messages of a kind have been sent."""
        if self._link is not None:
            self._link.sends_left = (messages, kind)

    def live(self) -> None:
        """Die neither of a message nor of a write that is yet to come."""
        self.disk.crash_in(None)
        if self._link is not None:
            self._link.sends_left = None

    def death(self, when: str) -> BaseException:
        """What ends a step, and the daemon."""
        self._dying = True
        return Crashed(f"dies {when}")

    def die_in_disk(self, steps: int) -> None:
        """Die in the midst of a write, a sync or a change of names."""
        if self.up:
            self.disk.crash_in(1 + self.world.dice.randrange(steps))

    def wipe(self) -> None:
        """Put a blank disk in."""
        self.world.note(self.name, "is wiped")
        self.harmed, self.whole = True, False
        self.disk.wipe()
        self._lost = (self.world.events.now, self._journal)
        self.world.invariants.wiped(self)

    def flip(self) -> None:
        """Let a bit rot in something that the disk has vouched for; what it has not may have been torn as well."""
        files = {name: size for name, size in self._vouched().items() if size}
        if not files:
            return
        self.harmed = True
        name = self.world.dice.choice(sorted(files))
        bit = self.world.dice.randrange(8 * files[name])
        self.world.note(self.name, "has a bit flipped", name, bit)
        self.disk.flip(name, bit)
        self._lost = (self.world.events.now, self._journal)
        if name == "promise":
            self.world.patience = MARGIN * MAX_LEASE / 1000

    def _vouched(self) -> dict[str, int]:
        """The files, and how many bytes of each can't be taken for what a power cut left half-written."""
        image = self.disk.image()
        sizes = {name: len(data) for name, data in image.items() if not name.startswith(("damaged-", "snapshot."))}
        logs = sorted(name for name in sizes if name.startswith("log-"))
        vouched = 0
        ends: dict[str, list[tuple[int, int]]] = {name: [] for name in logs}
        for name in logs:
            position = image[name].find(segment._RECORD)
            while 0 <= position <= sizes[name] - segment.OVERHEAD:
                magic, _, length, index, *_, durable = segment._record.unpack_from(image[name], position)
                position += segment.OVERHEAD + length
                if magic != segment._RECORD or position > sizes[name]:
                    break  # room, or cut short, as on a full disk: it vouches for nothing
                ends[name].append((index, position))
                vouched = max(vouched, durable)
        return sizes | {name: max((end for index, end in ends[name] if index <= vouched), default=0) for name in logs}

    def fill_disk(self) -> None:
        """Leave a little room on the disk."""
        used = sum(map(len, self.disk.image().values()))
        self.disk.capacity = used + self.world.dice.choice([0, 100, 3000])

    def fail_sync(self) -> None:
        """Let the disk fail to sync, or to write."""
        self.disk.failing = {self.world.dice.choice(["sync", "sync", "write", "sync of names", "rename"])}

    def slow_disk(self, seconds: float) -> None:
        """Let each job of the disk take up to so long."""
        self.disk.delay = (seconds / 10, seconds)

    def mend_disk(self) -> None:
        """Let the disk have room, succeed, and be as quick as ever."""
        if self.disk_is_bad:
            self._mended = self.world.events.now
        self.disk.capacity = None
        self.disk.failing = set()
        self.disk.delay = QUICK

    @property
    def disk_is_bad(self) -> bool:
        """True while the disk refuses something."""
        return self.disk.capacity is not None or bool(self.disk.failing)

    @property
    def disk_was_bad(self) -> bool:
        """True while the daemon may learn that the disk has refused something."""
        return self.disk_is_bad or self.world.events.now < self._mended + 5.0

    # The daemon: all that knows of Replica's insides

    def reactor(self) -> NodeReactor:
        """The reactor of the present life."""
        return NodeReactor(self)

    def found(self) -> None:
        """Make its blank disk one of the founders' of the cluster, and let the daemon run from now on."""
        self.wanted = True
        voters = {name: self.world.nodes[name].address for name in self.world.founders}
        self.disk.start(NodeReactor(self))
        founding.found(self.disk, self.name, voters, f"{self.world.seed:032x}")

    def boot(self) -> None:
        """Start the daemon from its disk; it may die at that."""
        self.life += 1
        self.world.note(self.name, "starts")
        reactor = NodeReactor(self)
        self.disk.start(reactor)
        peers = {name: ("192.0.2.1", ord(name)) for name in self.world.founders if name != self.name}
        link = self._link = Link(self, peers)
        raft.use_clock(self.clock)
        try:
            replica = self._replica = Replica(
                reactor,
                self.name,
                self.disk,
                link,
                peers,
                POLICY,
                sync=self.options.durability == "fsync",
                priority=self.options.priority,
                log_limit=self.options.log_limit,
                timing=self.timing,
                clock=self.clock,
                boot_id=str(self.boots),
                failed=lambda reason: self.world.failed(self, reason),
            )
            self._look_into(replica)
            services = LeaderServices(replica.leadership)
            Expirer(reactor, replica).setServiceParent(services)
            services.startService()
            replica.start()
        except Crashed as crashed:
            self.world.note(self.name, str(crashed))
            self._end(power_lost=False)
            self.world.died(self)
        except ConfigError as error:
            self._refused(str(error))

    def _refused(self, reason: str) -> None:
        """The daemon doesn't start: the disk is to blame, and an operator gives it a blank one."""
        self.world.note(self.name, "does not start", reason)
        self._end(power_lost=False)
        if self.harmed:
            self.wipe()
        elif not self.disk_was_bad:
            raise Violation(f"{self.name} does not start: {reason}")
        self.world.died(self)

    def _look_into(self, replica: Replica) -> None:
        """See what it adds and applies."""
        apply = replica._raft._apply

        def applied(index: int, entry: bytes) -> list[Outcome]:
            outcomes: list[Outcome] = apply(index, entry)
            self.world.invariants.applied(self, index, entry, outcomes)
            return outcomes

        replica._raft._apply = applied
        replica._raft._SyncObj__raftLog = Log(self, replica._journal)
        replica.leadership.observe(Observer(self))
        self.world.invariants.started(self, self._journal, replica._journal)
        self._journal = replica._journal
        self.seen_commit = replica._raft.commit_index
        self.seen_index, self.seen_time, self.seen_term = replica.machine.index, replica.machine.time, 0

    @property
    def replica(self) -> Replica:
        """The replica of a node that is up."""
        assert self._replica is not None, f"{self.name} is down"
        return self._replica

    @property
    def failed(self) -> bool:
        """True if it has left the cluster."""
        return self.replica._driver.state == "failed"

    @property
    def raft(self) -> Raft:
        """The library's node."""
        return self.replica._raft

    def leads(self, *, guarded: bool = True) -> bool:
        """True if it holds a lease that it may use, now; if it is guarded, one that its guard has not ended."""
        replica = self._replica
        if replica is None:
            return False
        lease = replica._lease
        if not lease.usable or self.time() >= lease.until:
            return False
        return not guarded or lease.secret not in self.guard.spoken

    def may_answer(self) -> bool:
        """True if what it sends to clients leaves the machine."""
        return self.leads() and (not self.options.guarded or self.guard.passes())

    def claim_secret(self) -> bytes:
        """The secret of its present claim."""
        return self.replica._lease.secret

    def claim_gone(self, secret: bytes) -> None:
        """The guard says that it has ended the claim with this secret."""
        if self.claim_secret() == secret:
            self.give_up_claim()

    def give_up_claim(self) -> None:
        """The guard has ended the claim: only another one may go on."""
        self.replica.claim_ended()

    def claim(self) -> tuple[int, int]:
        """The term that it leads, and the number of its present claim."""
        return self.replica.term, self.replica._lease.claim

    def lease_until(self) -> float:
        """When its lease ends, by its clock."""
        return self.replica._lease.until

    def time_at(self, clock: float) -> int:
        """The cluster time in ms, as it knows it when its clock shows this."""
        time = self.replica._time
        return max(time._given, int(time._elapsed(clock, 1.0)))

    def time_term(self) -> int:
        """The term of the leader whose cluster time it knows."""
        return self.replica._voter.time_term

    def cluster_time(self) -> float:
        """The cluster time in seconds, as it knows it now."""
        return self.time_at(self.time()) / 1000

    def is_kin(self, peer: str) -> bool:
        """True if it talks to this peer as to a member of its cluster."""
        return peer in self.replica._kinship.kin

    def follows(self, leader: str, term: int) -> bool:
        """True if it follows this leader of this term."""
        return not self.failed and not self.raft.leads and self.raft.leader == leader and self.raft.term == term

    def leader_hint(self) -> str | None:
        """Who leads as far as it knows."""
        return self.replica.leader

    def transfer(self, to: str | None) -> None:
        """Hand leadership on; it may be refused."""
        self.post(self.life, self._transfer, to)

    def _transfer(self, to: str | None) -> None:
        self.replica.transfer(to).addErrback(lambda failure: failure.trap(HandoverFailed) and None)

    def change_members(self, dice: Random) -> None:
        """Add a node that is no member, or remove one."""
        self.post(self.life, self._change_members, dice)

    def _change_members(self, dice: Random) -> None:
        membership, nodes = self.replica.membership, self.world.nodes
        names = {member.name for member in membership.members}
        strangers = [name for name in nodes if name not in names]
        try:
            if strangers and dice.random() < 0.6:
                name = dice.choice(strangers)
                nodes[name].wanted = True
                membership.add(name, nodes[name].address, lambda _: None)
                nodes[name].start()
            elif len(names) > 3:
                name = dice.choice(sorted(names))
                membership.remove(name, nodes[name].removed)
        except MembershipRefused:
            pass

    def removed(self, outcome: object) -> None:
        """It is no member any more: soon somebody switches it off."""
        if isinstance(outcome, Done):
            self.wanted = False
            self.world.events.callLater(self.world.dice.uniform(0.1, 3.0), self.retire)

    def retire(self) -> None:
        """End it, unless it is a member again."""
        if not self.wanted:
            self.crash()

    @property
    def listens(self) -> bool:
        """True if it can be connected with."""
        return self._link is not None and self._link.user is not None

    def calls(self, peer: str) -> bool:
        """True if it wants to be connected with this peer."""
        return self._link is not None and peer in self._link.peers

    def has_all_of(self, leader: Node) -> bool:
        """True if it has applied all that the leader has in its log."""
        last = leader.raft.last_index
        return self.up and self.raft.last_index == last and self.raft.applied_index == last

    def propose(self, record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        """Propose a record; `done` is called once, or never if the daemon dies."""
        heard: list[Outcome | Unavailable] = []

        def note(outcome: Outcome | Unavailable) -> None:
            assert not heard, f"{self.name} answers {record} twice"
            heard.append(outcome)
            invariants = self.world.invariants
            if isinstance(outcome, Unavailable) and not isinstance(outcome, UnknownOutcome):
                if isinstance(record, Register) and record.user_agent:
                    invariants.refused(record.user_agent)
            elif not isinstance(outcome, Unavailable) and self.raft.leads:
                invariants.acknowledged = max(invariants.acknowledged, self.replica.machine.index)
            done(outcome)

        def check() -> None:
            assert heard, f"{self.name} never answers {record}"

        self.reactor().callLater(4.0, check)  # behind what is due before, should the node be frozen meanwhile
        self.replica.propose(record, note)

    def durable(self) -> int:
        """Up to which index its log is on disk."""
        return self.replica._journal.durable

    def keeps(self, index: int, term: int | None, since: float) -> bool:
        """True if its disk has this entry and lacks no other, or had it and has lost it since."""
        journals = [self._journal] if self.whole else []
        when, lost = self._lost
        if since < when:
            journals.append(lost)
        return any(
            journal is not None
            and index <= max(journal.durable, journal.first_index)
            and (term is None or journal.term_at(index) in {term, None})
            for journal in journals
        )

    def term(self) -> int:
        """Its term, now or when it was last up."""
        return 0 if self._journal is None else self._journal.getCurrentTerm()

    def ballot(self) -> tuple[int, str | None] | None:
        """The term and the vote in it that no power cut takes away; None if there are none."""
        data = self.disk.durable("term")
        if data is None:
            return None
        ballot = unseal(data, Ballot)
        return ballot.term, ballot.vote

    def promised(self) -> float:
        """For how many seconds it will keep still after a start, whatever happens before."""
        data = self.disk.durable("promise")
        try:
            return 0.0 if data is None else unseal(data, Longest).duration
        except ValueError:
            return MAX_LEASE / 1000

    def voters(self) -> frozenset[str]:
        """Those that vote, as it sees them."""
        return frozenset(self.replica.membership.voters)

    def other_voters(self) -> frozenset[str]:
        """Those that vote, as it sees them, without itself."""
        return self.replica._voter.others

    def settled_voters(self) -> frozenset[str]:
        """Those that vote by the latest entry that it knows to be committed; none if it has that no more."""
        commit = self.raft.commit_index
        commands = [command for index, command in self.replica._journal._members if index <= commit]
        members = members_of(commands[-1]) if commands else self.replica.membership._base[1]
        return frozenset(member.name for member in members if member.role != "learner")

    def is_majority(self, holders: Collection[str]) -> bool:
        """True if these are more than half of the voters, as it sees them."""
        voters = self.voters()
        return 2 * len(voters.intersection(holders)) > len(voters)

    def forgetful(self) -> bool:
        """True if its disk may lack a vote or an entry that it had."""
        identity = self.replica._storage.identity
        return identity is None or identity.amnesiac
