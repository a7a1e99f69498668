"""Phones that register at whoever seems to lead, and write down what they asked and heard."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from sipha.errors import Unavailable, UnknownOutcome
from sipha.state.entries import Contact, Register
from sipha.state.outcomes import Outcome, Registered, Rejected
from tests.cluster_sim.history import Bindings, Bound, Operation, Request, Result

if TYPE_CHECKING:
    from tests.cluster_sim.node import Node
    from tests.cluster_sim.world import World

PATIENCE = 3.0
"""Seconds after which a client takes the outcome for unknown."""

CONTACTS = ("sip:1@192.0.2.1", "sip:2@192.0.2.2", "sip:3@192.0.2.3")


class Client:
    """Asks one thing after the other, most often (`loyalty`) who seems to lead; several of them share an AOR."""

    def __init__(self, world: World, name: str, aors: tuple[str, ...], pause: float, loyalty: float) -> None:
        self.world = world
        self.name = name
        self.aors = aors
        self.pause = pause
        self.loyalty = loyalty
        self.stopped = False
        self._dice = random.Random(f"{world.seed} {name}")
        self._leader = ""
        self._cseq = 0
        self._attempts = 0
        self._again: Operation | None = None  # worth asking once more
        self._under_way: Operation | None = None
        self._wait()

    def look(self) -> None:
        """Ask what there is in the end."""
        leader = self.world.leader()
        for aor in self.aors:
            if leader is not None:
                operation = self.world.history.call(self.name, aor, Request("query"), self.world.events.now)
                self._arrive(operation, self.world.nodes[leader])

    def _wait(self) -> None:
        self._under_way = None
        if not self.stopped:
            self.world.events.callLater(self._dice.expovariate(1 / self.pause), self._ask)

    def _ask(self) -> None:
        dice, world = self._dice, self.world
        aor, request = self._choose()
        name = self._leader if self._leader in world.nodes and dice.random() < self.loyalty else ""
        node = world.nodes[name or dice.choice(sorted(world.nodes))]
        operation = world.history.call(self.name, aor, request, world.events.now)
        self._under_way = operation
        world.events.callLater(PATIENCE, self._give_up, operation)
        world.events.callLater(dice.uniform(0.0001, 0.005), self._arrive, operation, node)

    def _choose(self) -> tuple[str, Request]:
        """Mostly what phones do; sometimes what the network does to them."""
        dice, again = self._dice, self._again
        self._again = None
        if again is not None and dice.random() < 0.7:
            return again.aor, again.request
        aor = dice.choice(self.aors)
        self._cseq += 1
        cseq = self._cseq
        if dice.random() < 0.05:
            cseq = max(cseq - dice.randrange(6), 1)  # delayed, or a repeat with another content
        call_id = f"{self.name}-{cseq // 50}"
        match dice.choices(["register", "two", "unregister", "clear", "query"], [50, 5, 15, 3, 27])[0]:
            case "register":
                return aor, Request("register", (dice.choice(CONTACTS),), call_id, cseq)
            case "two":
                return aor, Request("register", tuple(dice.sample(CONTACTS, 2)), call_id, cseq)
            case "unregister":
                return aor, Request("unregister", (dice.choice(CONTACTS),), call_id, cseq)
            case "clear":
                return aor, Request("clear", (), call_id, cseq)
        return aor, Request("query")

    def _arrive(self, operation: Operation, node: Node) -> None:
        if node.up:
            node.post(node.life, self._serve, operation, node)
        else:
            self._refused(operation)

    def _serve(self, operation: Operation, node: Node) -> None:
        """On the node: what its registrar would do."""
        request = operation.request
        if request.kind == "query":
            if node.replica.leading():
                self._answer(operation, node, bound(node.replica.bindings(operation.aor)))
            else:
                self._refuse(operation, node)
            return
        expires = 3600 if request.kind == "register" else 0
        contacts = tuple(Contact(contact, expires) for contact in request.contacts)
        self._attempts += 1
        record = Register(
            operation.aor,
            request.call_id,
            request.cseq,
            contacts,
            wildcard=request.kind == "clear",
            user_agent=f"{self.name}/{self._attempts}",
        )
        node.propose(record, lambda outcome: self._proposed(operation, node, outcome))

    def _proposed(self, operation: Operation, node: Node, outcome: Outcome | Unavailable) -> None:
        if isinstance(outcome, Registered):
            self._answer(operation, node, bound(outcome.bindings))
        elif isinstance(outcome, Rejected):
            assert outcome.status == 500, outcome
            self._answer(operation, node, "stale")
        elif isinstance(outcome, UnknownOutcome):
            self.world.events.callLater(0.001, self._unknown, operation)
        else:
            assert isinstance(outcome, Unavailable), outcome
            self._refuse(operation, node)

    def _answer(self, operation: Operation, node: Node, result: Result) -> None:
        """What leaves the node while it has the address reaches the client."""
        if node.may_answer():
            self._leader = node.name
            self.world.events.callLater(node.ahead + self._dice.uniform(0.0001, 0.005), self._hear, operation, result)

    def _hear(self, operation: Operation, result: Result) -> None:
        operation.returned, operation.result = self.world.events.now, result
        if operation is self._under_way:
            self._wait()

    def _refuse(self, operation: Operation, node: Node) -> None:
        leader = node.leader_hint()
        self._leader = leader if leader and leader != node.name else ""
        self.world.events.callLater(self._dice.uniform(0.001, 0.02), self._refused, operation)

    def _refused(self, operation: Operation) -> None:
        self.world.history.refuse(operation)
        if operation is self._under_way:
            if operation.request.kind != "query":
                self._again = operation
            self._wait()

    def _unknown(self, operation: Operation) -> None:
        if operation is self._under_way:
            self._again = operation
            self._wait()

    def _give_up(self, operation: Operation) -> None:
        if operation is self._under_way:
            self._leader = ""
            self._unknown(operation)


def bound(bindings: object) -> Bindings:
    """What of bindings the history knows."""
    return tuple(Bound(each.contact, each.call_id, each.cseq) for each in bindings)  # type: ignore[attr-defined]


class Registering:
    """A phone that registers two contacts for some seconds, at whoever leads; what time does to them is checked.

    About when both run out it refreshes one of them, which may cross the leader's word that it has run out.
    """

    def __init__(self, world: World, name: str, pause: float) -> None:
        self.world = world
        self.name = name
        self.pause = pause
        self.stopped = False
        self._dice = random.Random(f"{world.seed} {name}")
        self._cseq = 0
        world.events.callLater(0.1, self._register)

    def _register(self) -> None:
        dice, events = self._dice, self.world.events
        contacts, expires = dice.sample(CONTACTS, 2), dice.choice([1, 2, 3])
        leader = self.world.leader()
        if leader is not None:
            # The leader looks for what has run out in each second but the present one: let that be late in it.
            late = (dice.uniform(0.7, 1.0) - self.world.nodes[leader].cluster_time()) % 1.0
            events.callLater(late, self._ask, contacts, expires)
            events.callLater(late + expires - dice.uniform(0.0, 0.2), self._ask, contacts[:1], expires)
        events.callLater(1.0 + expires + dice.expovariate(1 / self.pause), self._register)

    def _ask(self, contacts: list[str], expires: int) -> None:
        world, leader = self.world, self.world.leader()
        if self.stopped or leader is None:
            return
        self._cseq += 1
        record = Register(
            f"sip:{self.name}@example.com",
            self.name,
            self._cseq,
            tuple(Contact(contact, expires) for contact in contacts),
            user_agent=f"{self.name}/{self._cseq}",
        )
        node = world.nodes[leader]
        node.post(node.life, node.propose, record, self._heard)

    def _heard(self, outcome: Outcome | Unavailable) -> None:
        # It doesn't wait for its answers: one that was held up on its way comes too late.
        assert isinstance(outcome, Registered | Rejected | Unavailable), outcome


class Refreshing:
    """A phone that says the same for some seconds, again and again, now and then before it has heard the answer."""

    def __init__(self, world: World, name: str, pause: float) -> None:
        self.world = world
        self.name = name
        self.pause = pause
        self.stopped = False
        self._dice = random.Random(f"{world.seed} {name}")
        self._cseq = 0
        world.events.callLater(0.1, self._refresh)

    def _refresh(self) -> None:
        world, leader = self.world, self.world.leader()
        if self.stopped:
            return
        for _ in range(self._dice.choice([1, 1, 2, 3])):
            self._cseq += 1
            if leader is not None:
                node, record = world.nodes[leader], self._register(self._cseq)
                node.post(node.life, node.propose, record, partial(self._heard, record))
        world.events.callLater(self._dice.expovariate(1 / self.pause), self._refresh)

    def _register(self, cseq: int) -> Register:
        return Register(f"sip:{self.name}@example.com", self.name, cseq, (Contact(CONTACTS[0], 2),))

    def _heard(self, record: Register, outcome: Outcome | Unavailable) -> None:
        # One that was held up on its way comes too late.
        assert isinstance(outcome, Registered | Rejected | Unavailable), outcome
        if isinstance(outcome, Registered):
            assert [binding.cseq for binding in outcome.bindings] == [record.cseq], outcome
