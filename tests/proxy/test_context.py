from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipha.proxy.context import (
    COMPLETED_ELSEWHERE,
    Action,
    Answer,
    Cancel,
    Fork,
    ForkState,
    Forward,
    ResponseContext,
    Start,
)
from sipha.proxy.target import Target
from sipha.sip.message import Response


def context_of(*sizes: int, invite: bool = True) -> ResponseContext:
    groups = [[Target(f"sip:{group}-{number}@192.0.2.1") for number in range(size)] for group, size in enumerate(sizes)]
    return ResponseContext(groups, invite=invite)


def response(status: int, *headers: tuple[str, str]) -> Response:
    return Response(status, "", headers)


def statuses(actions: list[Action]) -> list[int]:
    """What goes upstream."""
    found = []
    for action in actions:
        if isinstance(action, Forward):
            found.append(action.response.status)
        elif isinstance(action, Answer):
            found.append(action.status)
    return found


def cancelled(actions: list[Action]) -> list[Fork]:
    return [action.fork for action in actions if isinstance(action, Cancel)]


# What the forks end with (negative: no response came, and this is what we make of it), and what goes upstream.
BEST = [
    ((486,), 486),
    ((486, 404), 486),
    ((404, 486), 486),
    ((480, 486), 486),
    ((-408, 486), 486),
    ((-480, 486), 486),
    ((-408, 480), 480),
    ((-408, -480), 480),
    ((-408, -408), 408),
    ((486, 401), 401),
    ((407, 486), 407),
    ((404, 415), 415),
    ((404, 420), 420),
    ((486, 484), 484),
    ((503, 407, 501, 404), 407),
    ((500, 404), 404),
    ((500, 404, 302), 302),
    ((302, 603), 603),
    ((404, 600, 302), 600),
    ((503,), 500),
    ((503, 501), 501),
    ((503, 500), 500),
    ((-500, 501), 501),
    ((503, -408), 408),
    ((487, 486), 486),
    ((488, 486), 488),
]


@pytest.mark.parametrize(("ends", "best"), BEST)
def test_context_chooses_the_best_response(ends: tuple[int, ...], best: int) -> None:
    context = context_of(len(ends))
    context.start()
    sent: list[int] = []
    for fork, status in zip(context.forks, ends, strict=True):
        assert not sent
        if status < 0:
            sent += statuses(context.fork_failed(fork, -status))
        else:
            sent += statuses(context.response_received(fork, response(status)))
    assert sent == [best]
    assert context.ended


def test_context_prefers_a_received_response_to_a_finding_of_ours() -> None:
    context = context_of(2)
    context.start()
    context.fork_failed(context.forks[0], 480)
    received = response(480)
    assert context.response_received(context.forks[1], received) == [Forward(received)]


def test_context_without_targets_answers_480() -> None:
    assert context_of().start() == [Answer(480)]


def test_context_starts_groups_one_after_the_other() -> None:
    context = context_of(2, 1)
    (first,) = context.start()
    assert isinstance(first, Start)
    assert context.fork_failed(first.forks[0], 480) == []
    (second,) = context.response_received(first.forks[1], response(486))
    assert isinstance(second, Start)
    assert len(second.forks) == 1
    assert statuses(context.fork_failed(second.forks[0], 480)) == [486]


def test_context_forwards_no_100() -> None:
    context = context_of(1)
    context.start()
    assert context.response_received(context.forks[0], response(100)) == []
    assert context.forks[0].state is ForkState.PROCEEDING


def test_context_forwards_no_provisional_after_the_final() -> None:
    context = context_of(2)
    context.start()
    context.response_received(context.forks[0], response(200))
    assert statuses(context.response_received(context.forks[1], response(180))) == []


def test_context_keeps_the_first_reason_of_a_cancel_that_waits() -> None:
    context = context_of(2)
    context.start()
    context.response_received(context.forks[0], response(200))
    assert context.cancel(("Q.850;cause=16",)) == []
    assert cancelled(context.response_received(context.forks[1], response(180))) == [context.forks[1]]
    assert context.forks[1].reasons == COMPLETED_ELSEWHERE


def test_context_cancels_a_fork_once() -> None:
    context = context_of(1)
    context.start()
    context.response_received(context.forks[0], response(180))
    assert len(cancelled(context.cancel(()))) == 1
    assert context.cancel(()) == []
    assert cancelled(context.response_received(context.forks[0], response(183))) == []


def test_context_of_a_non_invite_cancels_nothing() -> None:
    context = context_of(2, invite=False)
    context.start()
    context.response_received(context.forks[0], response(100))
    assert context.cancel(()) == []
    assert cancelled(context.response_received(context.forks[1], response(603))) == []


def test_cancelled_context_prefers_487() -> None:
    context = context_of(3)
    context.start()
    context.response_received(context.forks[0], response(404))
    for fork in context.forks[1:]:
        context.response_received(fork, response(180))
    context.cancel(())
    context.response_received(context.forks[1], response(302))
    final = response(487)
    assert context.response_received(context.forks[2], final) == [Forward(final)]


def test_non_invite_408_from_downstream_is_not_chosen() -> None:
    context = context_of(2, invite=False)
    context.start()
    context.response_received(context.forks[0], response(408))
    assert statuses(context.response_received(context.forks[1], response(500))) == [500]


def test_challenges_are_collected_without_the_chosen_one_twice() -> None:
    context = context_of(3)
    context.start()
    first = response(407, ("Proxy-Authenticate", "one"))
    context.response_received(context.forks[0], first)
    context.response_received(context.forks[1], response(401, ("WWW-Authenticate", "two"), ("WWW-Authenticate", "3")))
    (best,) = context.response_received(context.forks[2], response(404, ("Proxy-Authenticate", "not this")))
    assert isinstance(best, Forward)
    assert best.response.headers.all("Proxy-Authenticate") == ["one"]
    assert best.response.headers.all("WWW-Authenticate") == ["two", "3"]
    assert "WWW-Authenticate" not in first.headers


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from([100, 180, 183, 200, 202, 302, 401, 404, 407, 408, 486, 487, 500, 503, 600, 603])
        | st.sampled_from(["fail", "timeout", "expire", "cancel"]),
    ),
    max_size=60,
)


class History:
    """A context to which things happen, and all that it asked for."""

    def __init__(self, sizes: list[int], *, invite: bool) -> None:
        self.context = context_of(*sizes, invite=invite)
        self.actions = self.context.start()

    def happen(self, index: int, what: int | str) -> None:
        context = self.context
        fork = context.forks[index % len(context.forks)]
        if isinstance(what, int):
            actions = context.response_received(fork, response(what))
        elif what == "cancel":
            actions = context.cancel(("Q.850;cause=16",))
        elif what == "expire":
            actions = context.fork_expired(fork)
        else:
            actions = context.fork_failed(fork, 480 if what == "fail" else 408)
        self.actions += actions
        if any(status >= 300 for status in statuses(actions)):
            assert all(fork.state is ForkState.ENDED for fork in context.forks)

    def end(self) -> None:
        """Each transaction times out, those of later groups too."""
        while not self.context.ended:
            for index in range(len(self.context.forks)):
                self.happen(index, "timeout")


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), EVENTS, st.booleans())
def test_any_history_gives_one_final_and_leaves_no_fork(
    sizes: list[int], events: list[tuple[int, int | str]], invite: bool
) -> None:
    history = History(sizes, invite=invite)
    for index, what in events:
        history.happen(index, what)
    history.end()
    sent = statuses(history.actions)
    finals = [status for status in sent if status >= 200]
    # "exactly one final response to a non-INVITE request, and either exactly one non-2xx response or one or more 2xx
    # responses to an INVITE request" (§16.7 step 5); a 2xx after a non-2xx is its server transaction's to discard.
    assert finals
    assert invite or len(finals) == 1
    assert all(status < 300 for status in finals[1:])
    # No provisional follows the final; 100 and 503 are never forwarded.
    assert sent[sent.index(finals[0]) :] == finals
    assert not {100, 503} & set(sent)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), EVENTS, st.booleans())
def test_any_history_starts_and_cancels_each_fork_once(
    sizes: list[int], events: list[tuple[int, int | str]], invite: bool
) -> None:
    history = History(sizes, invite=invite)
    for index, what in events:
        history.happen(index, what)
    history.end()
    started = [fork for action in history.actions if isinstance(action, Start) for fork in action.forks]
    assert started == history.context.forks
    assert len(cancelled(history.actions)) == len(set(map(id, cancelled(history.actions))))
    assert invite or not cancelled(history.actions)
