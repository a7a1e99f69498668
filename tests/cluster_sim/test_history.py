"""The checker refuses histories that no registrar can have, and no others."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.state.entries import SCHEMA, Batch, Contact, Policy, Register, encode
from sipha.state.machine import Machine
from sipha.state.outcomes import Registered, Rejected
from tests.cluster_sim.history import Bound, History, Operation, Request, Result, Table, contradiction, step

ONE, TWO = Bound("one", "x", 1), Bound("two", "y", 1)


def op(request: Request, called: float, returned: float = math.inf, result: Result | None = None) -> Operation:
    return Operation("client", "aor", request, called, returned, result)


def register(contact: str, call_id: str = "x", cseq: int = 1) -> Request:
    return Request("register", (contact,), call_id, cseq)


def unregister(contact: str, call_id: str = "x", cseq: int = 2) -> Request:
    return Request("unregister", (contact,), call_id, cseq)


QUERY = Request("query")
CLEAR = Request("clear", (), "x", 9)

BAD = {
    "acknowledged binding is lost": [op(register("one"), 0, 1, (ONE,)), op(QUERY, 2, 3, ())],
    "stale read after a newer one": [
        op(register("one"), 0, 9, (ONE,)),
        op(QUERY, 1, 2, (ONE,)),
        op(QUERY, 3, 4, ()),
    ],
    "read sees what nobody wrote": [op(QUERY, 0, 1, (ONE,))],
    "read sees what is asked later": [op(QUERY, 0, 1, (ONE,)), op(register("one"), 2, 3, (ONE,))],
    "two writers see different orders": [
        op(register("one", "x"), 0, 5, (ONE, TWO)),
        op(register("two", "y"), 0, 5, (TWO, ONE)),
    ],
    "concurrent writers don't see each other": [
        op(register("one", "x"), 0, 5, (ONE,)),
        op(register("two", "y"), 0, 5, (TWO,)),
    ],
    "removed binding comes back": [
        op(register("one"), 0, 1, (ONE,)),
        op(unregister("one"), 2, 3, ()),
        op(QUERY, 4, 5, (ONE,)),
    ],
    "delayed REGISTER resurrects": [
        op(unregister("one", cseq=2), 0, 1, ()),
        op(register("one", cseq=1), 2, 3, (ONE,)),
    ],
    "lower CSeq is accepted": [
        op(register("one", cseq=5), 0, 1, (Bound("one", "x", 5),)),
        op(register("one", cseq=4), 2, 3, (Bound("one", "x", 4),)),
    ],
    "unknown takes effect twice": [
        op(register("one"), 0),
        op(QUERY, 1, 2, (ONE,)),
        op(Request("clear", (), "z", 1), 3, 4, ()),
        op(QUERY, 5, 6, (ONE,)),
    ],
    "unknown takes effect before its call": [op(QUERY, 0, 1, (ONE,)), op(register("one"), 2)],
    "read goes back behind a removal": [
        op(register("one"), 0, 1, (ONE,)),
        op(CLEAR, 2, 3, ()),
        op(register("two", "y"), 4, 5, (ONE, TWO)),
    ],
    "half of a REGISTER": [
        op(Request("register", ("one", "two"), "x", 1), 0),
        op(QUERY, 1, 2, (ONE,)),
    ],
    "acknowledged while another stood there": [
        op(register("one", "x", 1), 0, 1, (ONE,)),
        op(register("one", "y", 1), 2, 3, (Bound("one", "y", 1),)),
        op(QUERY, 4, 5, (ONE,)),
    ],
}

GOOD = {
    "nothing": [],
    "concurrent read sees it": [op(register("one"), 0, 9, (ONE,)), op(QUERY, 1, 2, (ONE,)), op(QUERY, 3, 4, (ONE,))],
    "concurrent read doesn't see it yet": [op(register("one"), 0, 9, (ONE,)), op(QUERY, 1, 2, ())],
    "unknown takes effect late": [
        op(register("one"), 0),
        op(QUERY, 1, 2, ()),
        op(QUERY, 3, 4, (ONE,)),
    ],
    "unknown never takes effect": [op(register("one"), 0), op(QUERY, 1, 2, ()), op(QUERY, 3, 4, ())],
    "repeat after unknown": [
        op(register("one"), 0),
        op(register("one"), 3, 4, (ONE,)),
        op(QUERY, 5, 6, (ONE,)),
    ],
    "delayed REGISTER is refused": [
        op(unregister("one", cseq=2), 0, 1, ()),
        op(register("one", cseq=1), 2, 3, "stale"),
    ],
    "answers out of order": [
        op(register("one", "x"), 0, 9, (ONE,)),
        op(register("two", "y"), 0, 2, (ONE, TWO)),
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_checker_refuses(name: str) -> None:
    assert contradiction(BAD[name]) is not None


@pytest.mark.parametrize("name", GOOD)
def test_checker_accepts(name: str) -> None:
    assert contradiction(GOOD[name]) is None


def test_history_names_the_aor_that_no_order_explains() -> None:
    history = History()
    for aor in ("good", "bad"):
        operation = history.call("client", aor, register("one"), 0)
        operation.returned, operation.result = 1, (ONE,)
    query = history.call("client", "bad", QUERY, 2)
    query.returned, query.result = 3, ()
    with pytest.raises(AssertionError, match=r"bad query .*-> \(\)"):
        history.check()


def test_refused_operation_that_takes_effect_is_noticed() -> None:
    history = History()
    history.refuse(history.call("client", "aor", register("one"), 0))
    query = history.call("client", "aor", QUERY, 2)
    query.returned, query.result = 3, (ONE,)
    with pytest.raises(AssertionError):
        history.check()


REQUESTS = st.one_of(
    st.builds(
        Request,
        st.sampled_from(["register", "unregister"]),
        st.lists(st.sampled_from(["one", "two", "six"]), min_size=1, max_size=2, unique=True).map(tuple),
        st.sampled_from("xyz"),
        st.integers(1, 6),
    ),
    st.builds(Request, st.just("clear"), st.just(()), st.sampled_from("xyz"), st.integers(1, 6)),
    st.just(QUERY),
)


@given(st.lists(REQUESTS, max_size=25))
def test_checker_means_by_a_request_what_the_machine_does(requests: list[Request]) -> None:
    """The sequential meaning is written down twice, independently."""
    machine, table = Machine(), Table()
    for index, request in enumerate(requests, 1):
        table, result = step(table, request)
        expires = 3600 if request.kind == "register" else 0
        record = Register(
            "aor",
            request.call_id,
            request.cseq,
            tuple(Contact(contact, expires) for contact in request.contacts),
            wildcard=request.kind == "clear",
        )
        (outcome,) = machine.apply(index, encode(Batch(SCHEMA, index, Policy(), (record,))))
        if result == "stale":
            assert isinstance(outcome, Rejected)
        else:
            assert isinstance(outcome, Registered)
            assert tuple(Bound(each.contact, each.call_id, each.cseq) for each in outcome.bindings) == result


@settings(max_examples=60)
@given(st.lists(REQUESTS, min_size=1, max_size=14), st.randoms(use_true_random=False))
def test_checker_accepts_whatever_a_sequential_registrar_answers(requests: list[Request], dice: random.Random) -> None:
    table = Table()
    operations = []
    for moment, request in enumerate(requests):
        table, result = step(table, request)
        called, returned = moment - dice.uniform(0, 4), moment + dice.uniform(0, 4)
        heard = dice.random() < 0.8
        operations.append(op(request, called, returned if heard else math.inf, result if heard else None))
    assert contradiction(operations) is None


@settings(max_examples=60)
@given(st.lists(REQUESTS, min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_checker_agrees_with_trying_all_orders(requests: list[Request], dice: random.Random) -> None:
    """Answers are mixed up, so that most histories are bad."""
    operations = []
    table = Table()
    for moment, request in enumerate(requests):
        table, result = step(table, request)
        if dice.random() < 0.3:
            _, result = step(Table(), request)
        operations.append(op(request, moment - dice.uniform(0, 3), moment + dice.uniform(0, 3), result))
    assert (contradiction(operations) is None) == _some_order_explains(operations, Table())


def _some_order_explains(operations: list[Operation], table: Table) -> bool:
    if not operations:
        return True
    first = min(operation.returned for operation in operations)
    for operation in operations:
        if operation.called <= first:
            after, result = step(table, operation.request)
            rest = [each for each in operations if each is not operation]
            if result == operation.result and _some_order_explains(rest, after):
                return True
    return False
