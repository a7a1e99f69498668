"""The tables of a result: of all servers side by side, and of sipha's goals; as text and for the handbook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bench.cluster import ALONE, COMPILED, COMPILED_ALONE, REPLICATED
from bench.load import Sample
from bench.log_figures import Range, over
from bench.peers import CEILING, NEAREST
from bench.result import CALL, CALLS, FIRST, HIGH, MOST, OVERLOAD, STEADY, STORM, Plan, Result

MEMORY = "memory of log and table for each binding"
START = "start until the table is there"
SERVES = "start until a phone has registered"
STALL = "longest stall by its own doing"
SERVED = "served at twice the maximum, of the maximum"
PINGS = "4,000 pings/s"
SYNC, LATE = "fdatasync", "sleep late"

REFERENCE = 9.0
"""Of CPU time, in µs, the ceiling took for a REGISTER where the goals were set."""

Number = Callable[[Sample], float]

_THREE = (REPLICATED, COMPILED)
"""Three nodes, as the interpreter runs them, and compiled."""


class Goal(NamedTuple):
    """What is to be reached where the ceiling takes REFERENCE for a REGISTER.

    On a machine of half the speed a rate is to be half as high (`speeds` 1), and a time may be twice as long (-1).
    `stretch` is what would be better still.
    """

    number: float
    form: str
    speeds: int = 0
    stretch: float | None = None

    def text(self, speed: float = 1.0) -> str:
        """What it comes to at a speed, of that where it was set."""
        return self.form.format(self.number * speed**self.speeds)


class Table(NamedTuple):
    """Cells, line by line; the first line is the head, the first column names what the line is about.

    The others are words or numbers.
    """

    lines: list[list[str]]
    words: bool = False

    def text(self) -> str:
        """For a terminal."""
        align = str.ljust if self.words else str.rjust
        widths = [max(map(len, column)) for column in zip(*self.lines, strict=True)]
        return "\n".join(
            "  ".join([name.ljust(widths[0]), *map(align, cells, widths[1:])]).rstrip() for name, *cells in self.lines
        )

    def markdown(self) -> str:
        """For the handbook."""
        head, *rest = self.lines
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def guarantees(result: Result) -> Table:
    """What a 200 OK to a REGISTER means."""
    return Table([["server", "what 200 OK to a REGISTER means"], *map(list, result.servers.items())], words=True)


def registers(result: Result) -> Table:
    """REGISTERs as fast as they go, and how sipha compares round by round."""
    head = [
        "as fast as it goes",
        "REGISTER/s",
        "CPU µs",
        "p50 ms",
        "p99 ms",
        "generator",
        "sipha's rate",
        "its CPU time",
    ]
    ours = result.of(REPLICATED.name, MOST)
    lines = [head]
    for server in result.servers:
        theirs = result.of(server, MOST)
        lines.append(
            [
                server,
                _spread(theirs, _rate, ",.0f"),
                _spread(theirs, _cost, ".1f"),
                _spread(theirs, _p50, ".2f"),
                _spread(theirs, _p99, ".2f"),
                _spread(theirs, lambda sample: sample.generator, ".0%"),
                *(
                    (_ratio(ours, theirs, number) for number in (_rate, _cost))
                    if server != REPLICATED.name
                    else ("", "")
                ),
            ]
        )
    return Table(lines)


def latencies(result: Result) -> Table:
    """REGISTERs at a rate, and first ones."""
    head = ["at a rate", "1,000/s: p50 ms", "p99 ms", "CPU µs", "80 %: p50 ms", "p99 ms", "CPU µs"]
    lines = [[*head, "with its 401/s", "CPU µs", "refused or lost"]]
    for server in result.servers:
        steady, high, first = (result.of(server, load) for load in (STEADY, HIGH, FIRST))
        cells = [_spread(each, number, form) for each in (steady, high) for number, form in _LATENCY]
        failed = sum(sample.failed for load in (MOST, STEADY, HIGH, FIRST) for sample in result.of(server, load))
        lines.append([server, *cells, _spread(first, _rate, ",.0f"), _spread(first, _cost, ".1f"), f"{failed}"])
    return Table(lines)


def calls(result: Result) -> Table:
    """Calls: INVITE with its 407 or credentials, 180, 200, ACK, BYE, 200."""
    lines = [["calls", "calls/s", "CPU µs", "100/s: p50 ms", "p99 ms", "CPU µs", "refused or lost"]]
    for server in result.servers:
        most, steady = result.of(server, CALL), result.of(server, CALLS)
        if most:
            cells = [_spread(most, _rate, ",.0f"), _spread(most, _cost, ".0f")]
            cells += [_spread(steady, number, form) for number, form in _LATENCY]
            lines.append([server, *cells, f"{sum(sample.failed for sample in (*most, *steady))}"])
    return Table(lines)


def goals(result: Result) -> Table:
    """What sipha is to reach, what that comes to at the speed of this machine, and what it does."""
    ceiling = result.of(CEILING, MOST)
    speed = REFERENCE / over(list(map(_cost, ceiling))).median if ceiling else None
    lines = [["sipha", "goal", "stretch", "at this speed", "interpreted", "compiled"]]
    for name, goal, measured in _goals(result):
        if any(measured):
            lines.append([name, *_aims(goal, speed), *measured])
    return Table(lines, words=True)


def _aims(goal: Goal | None, speed: float | None) -> list[str]:
    """A goal, its stretch, and what it comes to at a speed."""
    if goal is None:
        return ["", "", ""]
    stretch = "" if goal.stretch is None else goal.form.format(goal.stretch)
    return [goal.text(), stretch, goal.text(speed) if goal.speeds and speed else ""]


def noise(result: Result) -> str:
    """What the host adds."""
    parts = [f"{name} {over(values).text('.2f', 1e3)} ms" for name, values in result.noise.items()]
    if result.shares:
        parts.append(f"a busy process gets {over(result.shares).text('.0%')} of a core")
    idle = [f"{server} {share:.1%}" for server, share in result.idle.items()]
    return f"The host: {', '.join(parts)}; while nothing comes they take of a core: {', '.join(idle)}"


_A_SECOND, _MS, _S = "{:,.0f}/s", "{:.3g} ms", "{:.3g} s"


def _goals(result: Result) -> Iterator[tuple[str, Goal | None, list[str]]]:
    def both(load: str, number: Number, form: str, unit: str) -> list[str]:
        return [_spread(result.of(variant.name, load), number, form, unit) for variant in _THREE]

    def parts(name: str, form: str, scale: float, unit: str) -> list[str]:
        figures = [result.parts.get(variant.name, {}).get(name) for variant in _THREE]
        return [over(each).text(form, scale) + unit if each else "" for each in figures]

    yield (
        "REGISTER refresh, three nodes, mTLS, fsync, nonce reused",
        Goal(30_000, _A_SECOND, 1, 45_000),
        both(MOST, _rate, ",.0f", "/s"),
    )
    nearest = result.of(NEAREST, MOST)
    ratios = [_ratio(result.of(variant.name, MOST), nearest, _rate) for variant in _THREE]
    yield f"its rate beside {NEAREST}", Goal(7, "× {:g}", stretch=10), ratios
    alone = [_spread(result.of(variant.name, MOST), _rate, ",.0f", "/s") for variant in (ALONE, COMPILED_ALONE)]
    yield "REGISTER refresh in memory on one node", Goal(35_000, _A_SECOND, 1, 60_000), alone
    yield (
        "first REGISTER with its 401, three nodes",
        Goal(18_000, _A_SECOND, 1, 27_000),
        both(FIRST, _rate, ",.0f", "/s"),
    )
    for load, limits in ((STEADY, (1, 5)), (HIGH, (5, 50))):
        for name, number, limit in (("p50", _p50, limits[0]), ("p99", _p99, limits[1])):
            yield f"{load}: {name}", Goal(limit, _MS, -1), both(load, number, ".2f", " ms")
    yield "calls", Goal(2_500, _A_SECOND, 1, 5_000), both(CALL, _rate, ",.0f", "/s")
    yield "leader's CPU time for a REGISTER", None, both(MOST, leader, ".1f", " µs")
    yield "what its core would serve by that", None, both(MOST, lambda sample: 1e6 / leader(sample), ",.0f", "/s")
    yield "a follower's", Goal(4, "{:.3g} µs", -1, 2.5), both(MOST, follower, ".1f", " µs")
    bindings, large = f"{result.plan.bindings:,} bindings", result.plan.bindings == Plan.bindings
    yield (
        f"{MEMORY}, {bindings}",
        Goal(1_000, "{:,.0f} B", stretch=700) if large else None,
        parts(MEMORY, ",.0f", 1, " B"),
    )
    for name in (START, SERVES):
        yield f"{name}, {bindings}", Goal(8, _S, -1, 4) if large else None, parts(name, ".2f", 1, " s")
    yield f"{STALL}, {bindings}", Goal(20, _MS, -1, 10) if large else None, parts(STALL, ".1f", 1e3, " ms")
    yield PINGS, Goal(6, "{:.3g} % of a core", -1), parts(PINGS, ".1%", 1, " of a core")
    yield SERVED, Goal(0.8, "{:.0%}"), parts(SERVED, ".0%", 1, "")
    overload, storms = result.of(COMPILED.name, OVERLOAD), result.of(COMPILED.name, STORM)
    yield "99th percentile of what is served then", Goal(1, _S, -1), ["", _spread(overload, _p99, ",.0f", " ms")]
    goal = Goal(15, _S, -1) if result.plan.phones == Plan.phones else None
    for storm in storms:
        through = f"through after {storm.ok / storm.rate:.1f} s, {storm.failed} lost"
        yield f"{result.plan.phones:,} phones at once", goal, ["", through]


def _spread(samples: Sequence[Sample], number: Number, form: str, unit: str = "") -> str:
    return over(list(map(number, samples))).text(form) + unit if samples else ""


def _ratio(ours: Sequence[Sample], theirs: Sequence[Sample], number: Number) -> str:
    return f"× {ratio(ours, theirs, number).text('.2f')}" if ours and theirs else ""


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], number: Number) -> Range:
    """How many times as much one server's number is as another's in the same round, over all rounds."""
    return over([number(own) / number(other) for own, other in zip(ours, theirs, strict=True)])


def _rate(sample: Sample) -> float:
    return sample.rate


def _cost(sample: Sample) -> float:
    return sample.cost


def _p50(sample: Sample) -> float:
    return sample.p50_us / 1e3


def _p99(sample: Sample) -> float:
    return sample.p99_us / 1e3


def leader(sample: Sample) -> float:
    """The CPU time of the leader."""
    return sample.cpu_us["leader"]


def follower(sample: Sample) -> float:
    """The CPU time of a follower."""
    followers = [cost for name, cost in sample.cpu_us.items() if name.startswith("follower")]
    return sum(followers) / len(followers)


_LATENCY: tuple[tuple[Number, str], ...] = ((_p50, ".2f"), (_p99, ".2f"), (_cost, ".1f"))

TABLES: tuple[Callable[[Result], Table], ...] = (guarantees, registers, latencies, calls, goals)


def head(result: Result) -> str:
    """Where and how it was measured."""
    plan = result.plan
    return (
        f"{result.machine}; {plan.rounds} rounds of {plan.seconds:g} s in turns, {plan.users:,} users; the median, and "
        "from where to where the rounds went"
    )


def text(result: Result) -> str:
    """All of it, for a terminal."""
    return "\n\n".join((head(result), *(table(result).text() for table in TABLES), noise(result)))
