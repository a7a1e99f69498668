from __future__ import annotations

from pathlib import Path

import pytest

from bench import result, table
from bench.cluster import ALONE, COMPILED, REPLICATED
from bench.load import Sample
from bench.peers import CEILING, NEAREST
from bench.result import CALL, FIRST, HIGH, MOST, OVERLOAD, STEADY, STORM, Plan, Result


def sample(rate: float = 1.0, *, failed: int = 0, p99: float = 0.0, **cpu: float) -> Sample:
    cpu_us = {name.replace("_", " "): each for name, each in cpu.items()}
    return Sample(rate, ok=100, failed=failed, p50_us=p99 / 2, p99_us=p99, cpu_us=cpu_us, generator=0.5)


@pytest.fixture
def measured() -> Result:
    made = Result("a machine", Plan(rounds=2))
    made.servers = {REPLICATED.name: "two disks", NEAREST: "two disks, as it says"}
    for ours, theirs in ((20_000, 4_000), (12_000, 1_000)):
        made.add(REPLICATED.name, MOST, sample(ours, leader=50.0, follower_1=8.0, follower_2=12.0))
        made.add(NEAREST, MOST, sample(theirs, failed=3, kamailio=150.0, primary=450.0, s1=50.0, s2=50.0))
    return made


def row(made: table.Table, name: str) -> dict[str, str]:
    head, *lines = made.lines
    (line,) = (line for line in lines if line[0] == name)
    return dict(zip(head[1:], line[1:], strict=True))


def test_cost_is_the_time_of_all_processes() -> None:
    assert sample(leader=50.0, follower_1=8.0, follower_2=12.0).cost == 70.0


def test_ratio_is_that_of_the_servers_in_the_same_round(measured: Result) -> None:
    ours, theirs = measured.of(REPLICATED.name, MOST), measured.of(NEAREST, MOST)
    ratios = table.ratio(ours, theirs, lambda each: each.rate)
    assert (ratios.least, ratios.median, ratios.most) == (5.0, 8.5, 12.0)
    cells = row(table.registers(measured), NEAREST)
    assert cells["sipha's rate"] == "× 8.50 (5.00–12.00)"
    assert cells["its CPU time"] == "× 0.10"


def test_table_has_a_line_for_each_server_and_its_guarantee(measured: Result) -> None:
    assert row(table.guarantees(measured), NEAREST) == {"what 200 OK to a REGISTER means": "two disks, as it says"}
    cells = row(table.registers(measured), REPLICATED.name)
    assert cells["REGISTER/s"] == "16,000 (12,000–20,000)"
    assert cells["CPU µs"] == "70.0"
    assert cells["generator"] == "50%"
    assert cells["sipha's rate"] == ""


def test_table_counts_what_was_lost_under_all_loads(measured: Result) -> None:
    for load in (STEADY, HIGH, FIRST):
        measured.add(NEAREST, load, sample(failed=2, p99=4000.0))
        measured.add(REPLICATED.name, load, sample(p99=4000.0))
    cells = row(table.latencies(measured), NEAREST)
    assert cells["refused or lost"] == "12"
    assert cells["1,000/s: p50 ms"] == "2.00"


def test_table_of_calls_has_those_that_were_called(measured: Result) -> None:
    measured.add(NEAREST, CALL, sample(500.0, kamailio=100.0))
    _, *lines = table.calls(measured).lines
    assert [line[0] for line in lines] == [NEAREST]


def test_goals_show_what_was_measured_and_nothing_else(measured: Result) -> None:
    goals = table.goals(measured)
    assert row(goals, f"its rate beside {NEAREST}") == {
        "goal": "× 7",
        "stretch": "× 10",
        "at this speed": "",
        "interpreted": "× 8.50 (5.00–12.00)",
        "compiled": "",
    }
    assert row(goals, "a follower's")["interpreted"] == "10.0 µs"
    assert row(goals, "what its core would serve by that")["interpreted"] == "20,000/s"
    names = {line[0] for line in goals.lines[1:]}
    assert not any("memory" in name or "calls" in name for name in names)
    measured.add(ALONE.name, MOST, sample(31_000.0, leader=30.0))
    measured.parts = {
        REPLICATED.name: {table.MEMORY: [795.0], table.PINGS: [0.051], table.STALL: [0.0093]},
        COMPILED.name: {table.PINGS: [0.041], table.SERVED: [0.95]},
    }
    for _ in range(measured.plan.rounds):
        measured.add(COMPILED.name, MOST, sample(31_000.0, leader=25.0, follower_1=2.0))
    measured.add(COMPILED.name, OVERLOAD, sample(15_200.0, p99=340_000.0))
    measured.add(COMPILED.name, STORM, sample(10.0))
    goals = table.goals(measured)
    assert row(goals, "a follower's")["compiled"] == "2.0 µs"
    assert row(goals, "REGISTER refresh in memory on one node")["interpreted"] == "31,000/s"
    assert row(goals, f"{table.MEMORY}, 1,000,000 bindings") == {
        "goal": "1,000 B",
        "stretch": "700 B",
        "at this speed": "",
        "interpreted": "795 B",
        "compiled": "",
    }
    assert row(goals, f"{table.STALL}, 1,000,000 bindings")["interpreted"] == "9.3 ms"
    assert row(goals, table.PINGS) == {
        "goal": "6 % of a core",
        "stretch": "",
        "at this speed": "",
        "interpreted": "5.1% of a core",
        "compiled": "4.1% of a core",
    }
    assert row(goals, table.SERVED)["compiled"] == "95%"
    assert row(goals, "99th percentile of what is served then")["compiled"] == "340 ms"
    assert row(goals, "100,000 phones at once")["compiled"] == "through after 10.0 s, 0 lost"


def test_goals_are_in_proportion_to_the_speed_of_the_machine(measured: Result) -> None:
    for _ in range(measured.plan.rounds):
        measured.add(CEILING, MOST, sample(45_000.0, kamailio=18.0))
        measured.add(REPLICATED.name, STEADY, sample(1_000.0, p99=4000.0))
    goals = table.goals(measured)
    here = {line[0]: row(goals, line[0])["at this speed"] for line in goals.lines[1:]}
    assert here["REGISTER refresh, three nodes, mTLS, fsync, nonce reused"] == "15,000/s"
    assert here["a follower's"] == "8 µs"
    assert here["REGISTER at 1,000/s: p99"] == "10 ms"
    assert here[f"its rate beside {NEAREST}"] == ""


def test_goals_of_large_tables_are_none_of_small_ones(measured: Result) -> None:
    measured.plan = Plan(bindings=1000)
    measured.parts = {REPLICATED.name: {table.MEMORY: [90_000.0], table.STALL: [0.001]}}
    for name in (table.MEMORY, table.STALL):
        assert row(table.goals(measured), f"{name}, 1,000 bindings")["goal"] == ""


def test_result_is_read_as_it_was_written(measured: Result, tmp_path: Path) -> None:
    measured.noise = {f"{table.SYNC} p50": [0.0001, 0.0002]}
    measured.write(tmp_path / "made" / "bench.json")
    assert result.read(tmp_path / "made" / "bench.json") == measured


def test_table_is_aligned_on_a_terminal_and_piped_in_the_handbook() -> None:
    made = table.Table([["a", "b/s"], ["name", "1"]])
    assert made.text() == "a     b/s\nname    1"
    assert made.markdown() == "| a | b/s |\n| --- | --- |\n| name | 1 |"


def test_noise_says_what_the_host_adds(measured: Result) -> None:
    measured.noise, measured.idle = {f"{table.SYNC} p50": [0.0001, 0.0003]}, {"sipha": 0.021}
    measured.shares = [0.9, 0.5, 0.97]
    assert table.noise(measured) == (
        "The host: fdatasync p50 0.20 (0.10–0.30) ms, a busy process gets 90% (50%–97%) of a core; "
        "while nothing comes they take of a core: sipha 2.1%"
    )
