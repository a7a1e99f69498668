from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipha.cluster import checkpoint as module
from sipha.cluster.checkpoint import MAX_INDICES, PERIOD, STEP, Checkpoints
from sipha.cluster.wire import Checkpoint

ODD = 1 << 127


def table_hash(index: int) -> int:
    """What an honest node has."""
    return index * 0x9E3779B97F4A7C15F39CC0605CEDC835 % ODD


def said(index: int, value: int) -> Checkpoint:
    return Checkpoint(index, value.to_bytes(16, "big"))


class Nodes:
    """Some nodes, of which each may be odd from some index on, and the messages that are on their way."""

    def __init__(self, names: str) -> None:
        self.now = 0.0
        self.names = names
        self.members = set(names)
        self.nodes = {name: Checkpoints(name, lambda: self.members) for name in names}
        self.index = dict.fromkeys(names, 0)
        self.odd: dict[str, int] = {}
        self.way: list[tuple[str, str, Checkpoint]] = []

    def apply(self, name: str, index: int) -> None:
        for each in range(self.index[name] + 1, index + 1):
            self.nodes[name].applied(each, table_hash(each) ^ self.odd.get(name, 0))
        self.index[name] = max(index, self.index[name])

    def speak(self, name: str) -> None:
        for checkpoint in self.nodes[name].due(self.now):
            self.way += [(name, other, checkpoint) for other in self.names if other != name]

    def deliver(self, number: int = 0) -> None:
        sender, receiver, checkpoint = self.way.pop(number)
        self.nodes[receiver].received(sender, checkpoint)

    def settle(self, absent: str = "") -> int:
        """Let a second pass in which all talk, and return how many messages that took."""
        self.now += PERIOD
        count = 0
        while True:
            for name in set(self.names) - set(absent):
                self.speak(name)
            if not self.way:
                return count
            while self.way:
                count += 1
                if self.way[0][1] in absent:
                    del self.way[0]
                else:
                    self.deliver()

    def named(self, name: str) -> set[str]:
        """Whom a node takes for odd."""
        alarms = " ".join(self.nodes[name].alarms()).replace("this node", name)
        return set(re.findall(r"the table of (\S+) differs", alarms))


def applied(names: Iterable[str], index: int, odd: dict[str, int] | None = None) -> Nodes:
    nodes = Nodes("".join(names))
    nodes.odd = odd or {}
    for name in names:
        nodes.apply(name, index)
    return nodes


# Agreement


def test_nodes_with_the_same_table_raise_no_alarm() -> None:
    nodes = applied("abc", 200)
    for _ in range(3):
        nodes.settle()
    assert not any(node.alarms() or node.diverged for node in nodes.nodes.values())


def test_node_speaks_once_a_second_and_only_of_what_is_new_or_asked() -> None:
    nodes = applied("abc", 200)
    node = nodes.nodes["a"]
    assert [checkpoint.index for checkpoint in node.due(0.0)] == [192]
    assert not node.due(0.5)
    assert [checkpoint.index for checkpoint in node.due(1.0)] == [200]
    assert not node.due(2.0)
    node.forget("b")
    assert [checkpoint.index for checkpoint in node.due(3.0)] == [200]


def test_nodes_at_rest_fall_silent() -> None:
    nodes = applied("abcde", 200)
    nodes.settle()
    nodes.settle()
    assert nodes.settle() == 0


def test_nodes_under_load_dont_talk_each_other_up() -> None:
    nodes = Nodes("abcde")
    for second in range(1, 5):
        for number, name in enumerate(nodes.names):
            nodes.apply(name, second * 1000 - 100 * number)
        # each of five indices is spoken of by at most five nodes to four others
        assert nodes.settle() <= 5 * 5 * 4


def test_lone_node_has_nobody_to_talk_to() -> None:
    nodes = applied("a", 200)
    assert not nodes.nodes["a"].due(1.0)
    assert not nodes.nodes["a"].alarms()


# Divergence


@settings(deadline=None)
@given(st.sampled_from(["abc", "abcde"]), st.data())
def test_all_name_the_one_odd_node_and_no_other(names: str, data: st.DataObject) -> None:
    odd = data.draw(st.sampled_from(names))
    nodes = applied(names, data.draw(st.integers(1, 300)), {odd: ODD})
    nodes.settle()
    nodes.settle()
    assert all(nodes.named(name) == {odd} for name in names)
    assert [name for name in names if nodes.nodes[name].diverged] == [odd]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["abc", "abcde"]), st.data())
def test_lost_late_and_reordered_messages_never_make_an_honest_node_odd(names: str, data: st.DataObject) -> None:
    nodes = Nodes(names)
    faulty = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names) // 2))
    for _ in range(data.draw(st.integers(1, 40))):
        happen(nodes, faulty, data)
        for name in names:
            assert nodes.named(name) <= nodes.odd.keys()
            assert nodes.nodes[name].diverged <= (name in nodes.odd)
    end = max(nodes.index.values()) + 1
    for name in names:
        nodes.apply(name, end)
        for other in names:
            nodes.nodes[name].forget(other)
    nodes.settle()
    nodes.settle()
    assert all(nodes.named(name) == nodes.odd.keys() for name in names)


def happen(nodes: Nodes, faulty: list[str], data: st.DataObject) -> None:
    """Let one thing happen."""
    name = data.draw(st.sampled_from(nodes.names))
    match data.draw(st.sampled_from(["apply", "speak", "deliver", "lose", "repeat", "reconnect", "break"])):
        case "apply":
            nodes.apply(name, nodes.index[name] + data.draw(st.sampled_from([1, 5, 64, 200])))
        case "speak":
            nodes.now += data.draw(st.sampled_from([0.0, 0.4, 1.0]))
            nodes.speak(name)
        case "deliver" if nodes.way:
            nodes.deliver(data.draw(st.integers(0, len(nodes.way) - 1)))
        case "lose" if nodes.way:
            del nodes.way[data.draw(st.integers(0, len(nodes.way) - 1))]
        case "repeat" if nodes.way:
            nodes.way.append(nodes.way[0])
        case "reconnect":
            nodes.nodes[name].forget(data.draw(st.sampled_from(nodes.names)))
        case "break" if faulty:
            nodes.odd[data.draw(st.sampled_from(faulty))] = ODD


def test_honest_node_among_two_that_are_odd_alike_takes_itself_for_odd() -> None:
    nodes = applied("abc", 200, {"a": ODD, "b": ODD})
    nodes.settle()
    assert [name for name in "abc" if nodes.nodes[name].diverged] == ["c"]


def test_no_majority_is_an_alarm_and_no_guess() -> None:
    nodes = applied("abc", 192, {"a": ODD})
    nodes.settle(absent="c")
    for name in "ab":
        (alarm,) = nodes.nodes[name].alarms()
        assert "differ at entry 192, and no majority of the 3 nodes agrees: b " in alarm
        assert not nodes.nodes[name].diverged
    nodes.nodes["a"].forget("c")
    nodes.nodes["b"].forget("c")
    nodes.settle()
    assert all(nodes.named(name) == {"a"} and len(nodes.nodes[name].alarms()) == 1 for name in "abc")


def test_three_tables_of_three_nodes_are_an_alarm_and_no_guess() -> None:
    nodes = applied("abc", 192, {"a": ODD, "b": ODD + 1})
    nodes.settle()
    assert not any(node.diverged for node in nodes.nodes.values())
    assert all("no majority" in alarm for node in nodes.nodes.values() for alarm in node.alarms())
    assert all(node.alarms() for node in nodes.nodes.values())


def test_majority_is_of_the_members_and_not_of_those_who_answer() -> None:
    nodes = applied("abcde", 192, {"a": ODD})
    nodes.settle(absent="e")
    assert all(nodes.named(name) == {"a"} for name in "bcd")
    nodes = applied("abcde", 192, {"a": ODD})
    nodes.settle(absent="de")
    assert not nodes.named("b")
    assert nodes.nodes["b"].alarms()


def test_what_strangers_say_counts_for_nothing() -> None:
    nodes = applied("abc", 192)
    for stranger in "xyz":
        nodes.nodes["a"].received(stranger, said(192, ODD))
    assert not nodes.nodes["a"].alarms()


def test_node_that_is_no_member_any_more_raises_no_alarm() -> None:
    nodes = applied("abcde", 192, {"e": ODD})
    nodes.settle()
    assert nodes.named("a") == {"e"}
    nodes.members.remove("e")
    assert not nodes.named("a")


def test_node_that_lags_is_compared_when_it_gets_there() -> None:
    nodes = applied("abc", 100)
    nodes.odd["c"] = ODD
    for name in "ab":
        nodes.apply(name, 333)
    nodes.settle()
    nodes.settle()  # at rest: 333 is what they speak of
    assert not nodes.named("a")
    nodes.apply("c", 333)
    nodes.settle()
    assert all(nodes.named(name) == {"c"} for name in "abc")


def test_diverged_node_is_so_until_its_new_table_agrees() -> None:
    nodes = applied("abc", 200, {"a": ODD})
    nodes.settle()
    nodes.settle()
    odd = nodes.nodes["a"]
    del nodes.odd["a"]
    odd.replaced()
    assert odd.diverged
    odd.applied(128, table_hash(128))
    nodes.settle()
    assert odd.diverged  # it agrees, but not yet where it was odd
    nodes.index["a"] = 128
    nodes.apply("a", 200)
    nodes.settle()
    assert not any(node.diverged or node.alarms() for node in nodes.nodes.values())


def test_node_whose_table_was_replaced_speaks_of_the_old_one_no_more() -> None:
    nodes = applied("ab", 200, {"a": ODD})
    nodes.settle()
    odd = nodes.nodes["a"]
    odd.replaced()
    odd.received("b", said(128, table_hash(128)))
    odd.received("b", said(192, table_hash(192)))
    assert not odd.due(nodes.now + PERIOD)


def test_node_that_fetched_another_odd_table_is_still_diverged() -> None:
    nodes = applied("abc", 200, {"a": ODD})
    nodes.settle()
    nodes.settle()
    nodes.nodes["a"].replaced()
    nodes.odd["a"] = ODD + 1
    nodes.index["a"] = 128
    nodes.apply("a", 264)
    nodes.settle()
    assert nodes.nodes["a"].diverged


# Snapshots


def test_snapshot_is_confirmed_by_another_than_its_sender() -> None:
    nodes = applied("ab", 200)
    joining = Checkpoints("c", lambda: nodes.members)
    assert joining.confirms(192, table_hash(192), "a") is None
    joining.received("a", said(192, table_hash(192)))
    assert joining.confirms(192, table_hash(192), "a") is None
    joining.received("b", said(192, table_hash(192)))
    assert joining.confirms(192, table_hash(192), "a") is True
    assert joining.confirms(192, ODD, "a") is False


def test_nodes_that_dispute_a_snapshot_need_a_majority() -> None:
    joining = Checkpoints("e", lambda: "abcde")
    joining.received("b", said(192, 7))
    joining.received("c", said(192, 8))
    assert joining.confirms(192, 7, "a") is False
    joining.received("d", said(192, 7))
    assert joining.confirms(192, 7, "a") is True
    assert joining.confirms(192, 8, "a") is False


def test_announced_snapshot_is_confirmed_to_all_by_who_knows_its_index() -> None:
    nodes = applied("abc", 1000)
    nodes.index["c"] = 0
    nodes.nodes["c"] = Checkpoints("c", lambda: nodes.members)
    for name in "ab":
        nodes.nodes[name].forget("c")
    assert nodes.nodes["a"].comparable(640)
    nodes.nodes["a"].announce(640, table_hash(640))
    nodes.settle()
    assert nodes.nodes["c"].confirms(640, table_hash(640), "a") is True
    assert nodes.nodes["a"].confirms(640, table_hash(640), "a") is True
    assert not any(node.alarms() for node in nodes.nodes.values())


def test_odd_snapshot_is_not_confirmed_and_makes_nobody_else_odd() -> None:
    nodes = applied("abc", 1000, {"a": ODD})
    nodes.nodes["c"] = Checkpoints("c", lambda: nodes.members)
    nodes.nodes["a"].announce(640, table_hash(640) ^ ODD)
    nodes.settle()
    assert nodes.nodes["c"].confirms(640, table_hash(640) ^ ODD, "a") is False
    assert not nodes.nodes["b"].diverged


def test_leaders_snapshot_at_any_index_is_confirmed_if_announced_before_others_apply_it() -> None:
    nodes = applied("abc", 100)
    nodes.apply("a", 101)
    nodes.nodes["a"].announce(101, table_hash(101))
    nodes.speak("a")
    while nodes.way:
        nodes.deliver()
    for name in "abc":
        nodes.apply(name, 150)
    nodes.settle()
    assert nodes.nodes["a"].confirms(101, table_hash(101), "a") is True
    assert nodes.nodes["b"].confirms(101, table_hash(101), "a") is True


def test_leaders_snapshot_at_any_index_is_confirmed_by_who_has_gone_no_further() -> None:
    nodes = applied("abc", 101)
    nodes.nodes["a"].announce(101, table_hash(101))
    nodes.speak("a")
    while nodes.way:
        nodes.deliver()
    for name in "abc":
        nodes.apply(name, 150)
    nodes.settle()
    assert nodes.nodes["a"].confirms(101, table_hash(101), "a") is True


def test_announcing_again_tells_a_node_that_has_come_anew() -> None:
    nodes = applied("abc", 1000)
    nodes.nodes["a"].announce(640, table_hash(640))
    nodes.settle()
    nodes.nodes["c"] = Checkpoints("c", lambda: nodes.members)
    for name in "ab":
        nodes.nodes[name].forget("c")
    nodes.nodes["a"].announce(640, table_hash(640))
    nodes.settle()
    assert nodes.nodes["c"].confirms(640, table_hash(640), "a") is True


# Bounds


def test_own_hashes_take_bounded_room_and_the_latest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 4)
    node = Checkpoints("a", lambda: "ab")
    for index in range(1, 100 * STEP + 1):
        node.applied(index, index)
        assert len(node._ours) <= 2 * 4
        assert set(range(index - index % STEP, max(index - 4 * STEP, 0), -STEP)) <= node._ours.keys()


def test_snapshot_at_any_index_is_remembered_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_INDICES", 2)
    nodes = applied("abc", 101)
    nodes.nodes["a"].announce(101, table_hash(101))
    nodes.settle()
    for index in range(200, 1200, 200):
        for name in "abc":
            nodes.apply(name, index)
        nodes.settle()
    assert nodes.nodes["a"].confirms(101, table_hash(101), "a") is None
    for name in "abc":
        nodes.nodes["a"].forget(name)
        nodes.nodes["b"].forget(name)
    nodes.nodes["a"].announce(101, table_hash(101))
    nodes.settle()
    assert nodes.nodes["a"].confirms(101, table_hash(101), "a") is True


def test_what_others_say_takes_bounded_room() -> None:
    nodes = applied("ab", 100)
    for index in range(3 * MAX_INDICES):
        nodes.nodes["a"].received("b", said(index, index))
    assert len(nodes.nodes["a"]._indices) == MAX_INDICES
