"""What clients asked of the registrar and what they heard, and whether one order of it explains all of that.

The registrar is sequential per AOR (RFC 3261 §10.3): each operation takes effect at one moment between its call and
its answer. `contradiction` searches for such moments as Wing and Gong do, with Lowe's memory of what was tried. An
operation whose outcome is unknown may take effect at any time after its call, or never; one that was refused never
does, and so it isn't part of the history.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Bound(NamedTuple):
    """A binding as far as its order matters."""

    contact: str
    call_id: str
    cseq: int


class Request(NamedTuple):
    """What a client asks: to bind or to remove contacts, to remove all, or what there is."""

    kind: Literal["register", "unregister", "clear", "query"]
    contacts: tuple[str, ...] = ()
    call_id: str = ""
    cseq: int = 0


Bindings = tuple[Bound, ...]
Result = Bindings | Literal["stale"]


class Table(NamedTuple):
    """The state of one AOR: its bindings in the order they were made, and the highest CSeq removed of each Call-ID."""

    bindings: Bindings = ()
    removed: tuple[tuple[str, int], ...] = ()

    def bury(self, call_id: str, cseq: int) -> Table:
        """Remember that a CSeq was removed, or removed something."""
        removed = dict(self.removed)
        removed[call_id] = max(cseq, removed.get(call_id, -1))
        return Table(self.bindings, tuple(sorted(removed.items())))


def step(table: Table, request: Request) -> tuple[Table, Result]:
    """What one request makes of an AOR, and the answer."""
    if request.kind == "query":
        return table, table.bindings
    before = table.bindings
    removed = dict(table.removed).get(request.call_id, -1)
    after = _clear(before, request, removed) if request.kind == "clear" else _bind(before, request, removed)
    if after is None:
        return table, "stale"
    if request.kind != "register" and request.cseq > removed:
        table = table.bury(request.call_id, request.cseq)
    staying = {bound.contact: bound.call_id for bound in after}
    for bound in before:
        if staying.get(bound.contact) != bound.call_id:
            table = table.bury(bound.call_id, bound.cseq)
    return Table(after, table.removed), after


def _clear(before: Bindings, request: Request, removed: int) -> Bindings | None:
    if request.cseq == removed:
        return before
    if request.cseq < removed or any(_is_stale(request, bound) for bound in before):
        return None
    return ()


def _bind(before: Bindings, request: Request, removed: int) -> Bindings | None:
    """Bind or remove the contacts: all of them, or none."""
    register = request.kind == "register"
    after = list(before)
    for contact in request.contacts:
        if not register and request.cseq == removed:
            continue  # a repeat of what removed it
        new = Bound(contact, request.call_id, request.cseq)
        place = next((place for place, bound in enumerate(after) if bound.contact == contact), None)
        if place is None:
            if register and request.cseq <= removed:
                return None
            if register:
                after.append(new)
            continue
        old = after[place]
        if register and old == new:
            continue  # a repeat
        if _is_stale(request, old) or (old.call_id != request.call_id and request.cseq <= removed):
            return None
        if register:
            after[place] = new
        else:
            del after[place]
    return tuple(after)


def _is_stale(request: Request, bound: Bound) -> bool:
    return bound.call_id == request.call_id and request.cseq <= bound.cseq


@dataclass(eq=False)
class Operation:
    """What a client asked and when; its result and when it heard that, None and never if it is unknown."""

    client: str
    aor: str
    request: Request
    called: float
    returned: float = math.inf
    result: Result | None = None

    def __str__(self) -> str:
        until = "..." if self.returned == math.inf else f"{self.returned:.4f}"
        contacts = ",".join(self.request.contacts)
        what = f"{self.request.kind} {contacts} {self.request.call_id}#{self.request.cseq}"
        return f"{self.called:.4f}-{until} {self.client} {self.aor} {what} -> {self.result}"


class History:
    """The operations of all clients."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def call(self, client: str, aor: str, request: Request, now: float) -> Operation:
        """A client asks."""
        operation = Operation(client, aor, request, now)
        self.operations.append(operation)
        return operation

    def refuse(self, operation: Operation) -> None:
        """The client hears that the operation won't ever take effect."""
        self.operations.remove(operation)

    def check(self) -> None:
        """Raise AssertionError with an AOR's history if no order explains it."""
        by_aor: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            by_aor[operation.aor].append(operation)
        for operations in by_aor.values():
            culprit = contradiction(operations)
            if culprit is not None:
                lines = "\n".join(map(str, sorted(operations, key=lambda each: each.called)))
                raise AssertionError(f"no order explains\n{lines}\nin which\n{culprit}\nis the last that fits nowhere")


class _Event:
    """A call or an answer, in a list from which an operation's two can be taken out and put back."""

    __slots__ = ("answer", "bit", "next", "operation", "previous")

    def __init__(self, operation: Operation | None, bit: int) -> None:
        self.operation = operation
        self.bit = bit
        self.answer: _Event | None = None  # of a call
        self.previous: _Event = self
        self.next: _Event | None = None

    def lift(self) -> None:
        """Take the call and its answer out."""
        for event in (self, self.answer):
            assert event is not None
            event.previous.next = event.next
            if event.next is not None:
                event.next.previous = event.previous

    def drop(self) -> None:
        """Put them back."""
        for event in (self.answer, self):
            assert event is not None
            event.previous.next = event
            if event.next is not None:
                event.next.previous = event


def _events(operations: Sequence[Operation]) -> _Event:
    """The list of calls and answers by time, behind a head; of two at the same time, the call comes first."""
    moments = []
    for number, operation in enumerate(operations):
        call, answer = _Event(operation, 1 << number), _Event(operation, 1 << number)
        call.answer = answer
        moments += [(operation.called, 0, number, call), (operation.returned, 1, number, answer)]
    moments.sort(key=lambda moment: moment[:3])
    last = head = _Event(None, 0)
    for *_, event in moments:
        last.next, event.previous = event, last
        last = event
    return head


def contradiction(operations: Iterable[Operation]) -> Operation | None:
    """Of one AOR's operations, the answered one that no order explains, or None if they are linearizable."""
    operations = sorted(operations, key=lambda operation: operation.called)
    waiting = sum(operation.result is not None for operation in operations)
    head = _events(operations)
    table, done = Table(), 0
    path: list[tuple[_Event, Table]] = []
    tried: set[tuple[int, Table]] = set()
    culprit: Operation | None = None
    least = len(operations) + 1
    event = head.next
    while waiting:
        assert event is not None  # answers that never come stand last, and nobody waits for them
        operation = event.operation
        assert operation is not None
        if event.answer is not None:
            after, result = step(table, operation.request)
            if operation.result in {None, result} and (done | event.bit, after) not in tried:
                tried.add((done | event.bit, after))
                path.append((event, table))
                table, done = after, done | event.bit
                waiting -= operation.result is not None
                event.lift()
                event = head.next
            else:
                event = event.next
            continue
        if waiting < least:
            least, culprit = waiting, operation
        if not path:
            return culprit
        event, table = path.pop()
        done &= ~event.bit
        assert event.operation is not None
        waiting += event.operation.result is not None
        event.drop()
        event = event.next
    return None
