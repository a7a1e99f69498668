"""Shows that the simulation has teeth: the core with one guard removed must fail at some seed.

    python -m tests.cluster_sim.mutations [--seeds 4000] [GUARD ...]

prints for each guard the first seed that fails without it, and how; exit status 1 if there is none.
"""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any, cast

from tests.cluster_sim.explore import PROCESSES, Result, explore, hush
from tests.cluster_sim.weather import ELECTIONS, Weather

SEEDS = 4000
"""Within how many seeds each removed guard must be missed."""

_HANG = 20
"""Seconds of computing after which a seed counts as failed: without the guard something goes round in circles."""


@dataclass(frozen=True)
class Mutation:
    """A guard, and how it is removed: in the function `place` (`module:name`, `module:Class.name`) a text replaced."""

    guard: str
    place: str
    text: str
    instead: str
    weather: Weather | None = None
    """The one weather to look in, for a guard that is seldom missed in the others."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Remove the guard for some time; raises ValueError if the text isn't there exactly once."""
        module_name, _, path = self.place.partition(":")
        module = import_module(f"sipha.{module_name}")
        *outer, name = path.split(".")
        owner: Any = module
        for step in outer:
            owner = getattr(owner, step)
        original = vars(owner)[name]
        function = original.fget if isinstance(original, property) else getattr(original, "__func__", original)
        source = textwrap.dedent(inspect.getsource(cast("FunctionType", function)))
        if source.count(self.text) != 1:
            raise ValueError(f"{self.place} has {self.text!r} {source.count(self.text)} times")
        made: dict[str, Any] = {}
        changed = "from __future__ import annotations\n" + source.replace(self.text, self.instead)
        exec(compile(changed, f"{self.place} without its guard", "exec"), vars(module), made)
        setattr(owner, name, made[name])
        try:
            yield
        finally:
            setattr(owner, name, original)


VOTER, LEASE, GUARDS = "cluster.voter:Voter.", "cluster.lease:", "cluster.guards:verify"

MUTATIONS = [
    # What PySyncObj does wrong
    Mutation(
        "F1: entries that are held are not truncated to be added again",
        GUARDS,
        "held = _held(entries, log)",
        "return Verified(_with(append, commit_index=commit_index))",
    ),
    Mutation(
        "F1: also on a conflict all that matches is kept",
        GUARDS,
        "_with(append, prev_index=prev + held, prev_term=prev_term, entries=entries[held:], commit_index=commit_index)",
        "_with(append, commit_index=commit_index)",
    ),
    Mutation(
        "F3: a message that follows no entry commits nothing",
        GUARDS,
        "_with(append, commit_index=min(append.commit_index, log.commit_index))",
        "append",
    ),
    Mutation(
        "a message commits no further than it verifies",
        GUARDS,
        "commit_index = min(append.commit_index, end)",
        "commit_index = append.commit_index",
    ),
    # Votes
    Mutation(
        "a vote counts once for each voter",
        VOTER + "_receive_vote",
        "if peer not in voters:",
        "if True:",
    ),
    Mutation(
        "a vote counts in its own term only",
        VOTER + "_receive_vote",
        "if message.term != self.raft.term or peer not in self.others:\n        return\n",
        "from msgspec.structs import replace\n    message = replace(message, term=self.raft.term)\n",
    ),
    Mutation(
        "a vote is durable before it is given",
        "cluster.journal:Journal.setCurrentTerm",
        "self._disk.replace(_TERM, seal(ballot))",
        "self._disk.replace(_TERM, seal(Ballot(term, None)))",
    ),
    Mutation(
        "a blank or forgetful disk doesn't vote",
        "cluster.replica:Replica._watch_memory",
        "self._voter.may_vote = identity is not None and not identity.amnesiac",
        "self._voter.may_vote = True",
    ),
    Mutation(
        "what a forgetful node says counts for no entry",
        VOTER + "_receive_reply",
        "if message.success and peer in self.forgetful:",
        "if False:",
    ),
    Mutation(
        "what a forgetful node says counts for no lease",
        VOTER + "_receive_lease_ack",
        "peer not in self.forgetful and message.sent >= self._greeted.get(peer, 0)",
        "True",
    ),
    Mutation(
        "amnesia ends only with what was committed without the node",
        VOTER + "remembers",
        "return term == self.raft.term and 0 < index <= self.raft.applied_index",
        "return self.raft.term_at(self.raft.applied_index) == self.raft.term",
    ),
    Mutation(
        "a node that begins anew is counted anew",
        VOTER + "greeted",
        "self.raft.forget_match(peer)",
        "pass",
    ),
    # Promise and lease
    Mutation(
        "a follower keeps its promise when asked for a vote",
        VOTER + "_receive_vote_request",
        " or self._promise.binds(now)",
        "",
    ),
    Mutation(
        "a follower keeps its promise and doesn't stand",
        VOTER + "_ask_for_pre_votes",
        " or self._promise.binds(now)",
        "",
    ),
    Mutation(
        "the promise outlasts the lease by the clocks' error",
        LEASE + "Promise.give",
        "now + duration * MARGIN",
        "now + duration * 0.5",
    ),
    Mutation(
        "after a start a node keeps still for as long as it has ever promised",
        LEASE + "Promise.__init__",
        "self._quiet_until = self.until = now + self._longest * MARGIN",
        "self._quiet_until = self.until = now",
    ),
    Mutation(
        "the longest promise is on disk before it is given",
        LEASE + "Promise.give",
        "self._disk.replace(_FILE, seal(Longest(duration)))",
        "pass",
    ),
    Mutation(
        "the lease counts from when the heartbeat was sent",
        VOTER + "_receive_lease_ack",
        "self.lease.acknowledge(peer, message.claim, sent, self._clock())",
        "self.lease.acknowledge(peer, message.claim, self._clock(), self._clock())",
    ),
    Mutation(
        "the lease needs a majority",
        LEASE + "Lease._count",
        "needed = (len(self._others) + 1) // 2",
        "needed = 0",
    ),
    Mutation(
        "a lease acknowledgement counts for its own claim only",
        LEASE + "Lease.acknowledge",
        "claim == self.claim and ",
        "",
    ),
    Mutation(
        "a lease that has run out stays so",
        LEASE + "Lease.lapse",
        "if self.held and 0.0 < self.until <= now:",
        "if False:",
    ),
    Mutation(
        "only the secret of the latest claim releases from a promise",
        LEASE + "Promise.release",
        "if not secret or not self._commitment or commit_to(secret) != self._commitment:",
        "if not secret:",
    ),
    Mutation(
        "for a claim that has ended nothing is promised",
        LEASE + "Promise.give",
        "if not commitment or claim < self._claim or (claim == self._claim and self.secret):",
        "if not commitment:",
    ),
    Mutation(
        "a lease is acknowledged only with a promise",
        VOTER + "_receive_append",
        "if promised and (",
        "if (",
    ),
    Mutation(
        "the term is written down before a lease is acknowledged",
        VOTER + "_receive_append",
        "answer = raft.receive_append(peer, append)\n",
        "self._send(peer, LeaseAck(message.term, message.claim, message.sent))\n"
        "    answer = raft.receive_append(peer, append)\n",
    ),
    Mutation(
        "a claim ends before its secret is told to the next leader",
        "cluster.handover:Handover._drain",
        "secret = self._voter.lease.end()",
        "secret = self._voter.lease.secret",
    ),
    Mutation(
        "a leader acts only when all of earlier terms is applied",
        "cluster.tenure:Tenure._whole",
        "return self._raft.leads and self._whole_term == self._raft.term",
        "return self._raft.leads",
    ),
    # What is acknowledged
    Mutation(
        "a follower acknowledges what it has on disk",
        VOTER + "_answer",
        "if next_index > self._journal.durable + 1:",
        "if False:",
    ),
    Mutation(
        "the leader counts what it has on disk itself",
        "cluster.raft:Raft._on_disks",
        "self._journal.durable",
        "self.last_index",
    ),
    Mutation(
        "an acknowledgement counts for its own term only",
        VOTER + "_receive_reply",
        "elif message.term == raft.term and raft.leads",
        "elif raft.leads",
    ),
    Mutation(
        "what is written is synced before it counts as durable",
        "cluster.writer:Writer.write",
        "if self._sync:\n            self._disk.sync(name)\n\n"
        "    self._put(job, last, record=(name, offset, records) if self._sync and header is None else None)",
        "\n    self._put(job, last)",
    ),
    Mutation(
        "what is cut off counts as durable no more",
        "cluster.writer:Writer.cut",
        "self.lose(last)",
        "pass",
    ),
    Mutation(
        "what is cut off is gone before anything else is written",
        "cluster.writer:Writer.cut",
        "self._disk.truncate(name, size)",
        "pass",
    ),
    Mutation(
        "only the last file of the log has room behind its records",
        "cluster.journal:Journal._collect",
        "self._writer.cut((), full.name, full.size, full.last)",
        "pass",
    ),
    Mutation(
        "a failed write is not followed by another",
        "cluster.writer:Writer._end",
        "self._broken = True",
        "operation.error = None",
    ),
    Mutation(
        "damage behind which something durable stands is no torn tail",
        "cluster.journal:Journal._cut_tail",
        "if any(each.vouches(self._disk, index) for each in [segment, *rest]):",
        "if False:",
    ),
    Mutation(
        "each record has a checksum",
        "cluster.segment:Segment._parse",
        "crc32(view[start - OVERHEAD + _lead.size : stop], salt) != checksum",
        "False",
    ),
    Mutation(
        "what a node loses it knows to have lost",
        "cluster.storage:Storage.open",
        'storage._forget("; ".join([*reasons, str(damage)]))',
        "[disk.remove(n) for n in disk.names() if n.startswith(('log-', 'snapshot-', 'term', 'progress'))]; "
        "storage.snapshot = None; storage.journal = Journal.open(disk, None, sync=sync, commit=0)",
    ),
    # Members, proposals, time, table
    Mutation(
        "one change of the members at a time",
        "cluster.membership:Membership._check_idle",
        "if self._under_way():",
        "if False:",
    ),
    Mutation(
        "members count from when they stand in the log",
        "cluster.membership:Membership.recompute",
        "if latest is not None and latest[0] > index:",
        "if latest is not None and index < latest[0] <= self._voter.raft.commit_index:",
    ),
    Mutation(
        "what is under way when leadership ends has an unknown outcome",
        "cluster.proposals:Proposals.refuse_all",
        "self._refuse_under_way(unknown)",
        "self._refuse_under_way(refusal)",
    ),
    Mutation(
        "what was handed to a leader that is gone has an unknown outcome",
        "cluster.forwarding:Forwarding._give_up",
        "UnknownOutcome(detail)",
        "NotLeader(detail)",
    ),
    Mutation(
        "removed bindings are remembered",
        "state.location:Location._bury",
        "if staying.get(binding.contact_id) != binding.call_id and",
        "if False and",
    ),
    Mutation(
        "an Expire removes what it saw, and only if that has run out",
        "state.location:Location.expire",
        "binding.contact_id != contact_id or binding.version != version or binding.expires_at > time",
        "binding.contact_id != contact_id",
    ),
    Mutation(
        "a new leader goes on from the latest time that a voter knows",
        VOTER + "_receive_grant",
        "self._learn_time(message.time, message.time_term)\n",
        "pass\n",
    ),
    Mutation(
        "votes, too, tell a new leader the time",
        VOTER + "_receive_vote",
        "self._learn_time(message.time, message.time_term)\n",
        "pass\n",
    ),
    Mutation(
        "a later leader's time counts more than an earlier one's",
        VOTER + "_learn_time",
        "self._time.begin(time, self._clock())",
        "pass",
        ELECTIONS,
    ),
    Mutation(
        "an earlier leader's time doesn't count any more",
        VOTER + "_learn_time",
        "elif term == self.time_term:",
        "else:",
    ),
    Mutation(
        "followers hear the time with each heartbeat",
        VOTER + "_receive_append",
        "self._time.follow(message.time, now)",
        "pass",
    ),
    Mutation(
        "time goes on while a node is down and its machine is not",
        "cluster.memory:Memory._resume_time",
        "max(elapsed, 0.0)",
        "0.0",
    ),
    Mutation(
        "entries are forgotten only when a durable snapshot covers them",
        "cluster.snapshots:_Writer.finish",
        "self._disk.sync(self._name)",
        "pass",
    ),
    Mutation(
        "a received snapshot replaces the log in one step",
        "cluster.writer:Writer.replace",
        "for later in removed[:-1]:",
        "for later in removed:",
    ),
]


def missed(mutation: Mutation, seeds: int = SEEDS) -> Result | None:
    """The first seed that fails without the guard, None if none does."""
    with mutation.applied():
        for seed in range(1, seeds + 1):
            result = _explore(seed, mutation.weather)
            if result.failure:
                return result
    return None


def _explore(seed: int, weather: Weather | None) -> Result:
    """Run a seed; one that doesn't end has failed."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _HANG)
    try:
        return explore(seed, weather=weather)
    except KeyboardInterrupt:
        return Result(seed, 0, 0, 0, "it does not end")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Removes one guard after the other and looks for a seed that fails.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many to try for each")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="how many guards are tried side by side")
    parser.add_argument("guards", nargs="*", help="parts of the names of the guards to try; all without any")
    arguments = parser.parse_args()
    chosen = [
        mutation
        for mutation in MUTATIONS
        if not arguments.guards or any(part in mutation.guard for part in arguments.guards)
    ]
    unmissed = 0
    with ProcessPoolExecutor(arguments.processes, initializer=hush) as pool:
        results = pool.map(missed, chosen, [arguments.seeds] * len(chosen))
        for mutation, result in zip(chosen, results, strict=True):
            unmissed += result is None
            seed, failure = ("none", "") if result is None else (result.seed, result.failure.strip().splitlines()[-1])
            print(f"{seed!s:>5}  {mutation.guard}: {failure[:160]}", flush=True)
    return int(unmissed > 0)


if __name__ == "__main__":
    sys.exit(main())
