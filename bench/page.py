"""What docs/performance.md shows of `make bench` and `make curves`: its tables and its curves.

    make figures

takes their JSON into docs/performance/, draws the curves beside it, and writes the tables between the page's marks.
What a shorter run has measured is refused: its tables are small, and some goals aren't in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench import curves, result, table
from bench.curves import Curves, Point
from bench.load import HERE, Sample
from bench.log_figures import over

PAGE = HERE.parent / "docs" / "performance.md"
FIGURES = HERE.parent / "docs" / "performance"
MEASURED: dict[str, tuple[Callable[[Path], result.Result | Curves], object]] = {
    "bench.json": (result.read, result.QUICK),
    "curves.json": (curves.read, curves.QUICK),
}
"""How what was measured is read, and the plan of the shorter run."""

# Letters stay letters, and the same figures give the same bytes.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sipha", "font.size": 9})


class Panel(NamedTuple):
    """One of a curve's two diagrams: what its lines are, from each sample or from each point."""

    label: str
    lines: dict[str, Callable[[Point], Sequence[float]]]


class Curve(NamedTuple):
    """How a curve is drawn."""

    name: str
    label: str
    logarithmic: bool
    panels: tuple[Panel, Panel]


def _of(number: Callable[[Sample], float]) -> Callable[[Point], Sequence[float]]:
    return lambda point: [number(sample) for sample in point.samples]


def _followers(point: Point) -> Sequence[float]:
    return [table.follower(sample) for sample in point.samples if len(sample.cpu_us) > 1]


COST = Panel("CPU µs for each REGISTER", {"leader": _of(table.leader), "a follower": _followers})
RATE = Panel("REGISTER/s", {"": _of(lambda sample: sample.rate)})
MEMORY = Panel("MB resident, each node", {"": lambda point: [point.resident / 1e6]})
GROUP = Panel("REGISTERs in an entry", {"": lambda point: [1 / entries for entries in point.entries]})

CURVES = (
    Curve("bindings", "bindings", logarithmic=True, panels=(COST, MEMORY)),
    Curve("nodes", "nodes", logarithmic=False, panels=(COST, RATE)),
    Curve("contacts", "contacts of an AOR", logarithmic=False, panels=(COST, RATE)),
    Curve("windows", "REGISTERs under way", logarithmic=True, panels=(COST, GROUP)),
)


def draw(curve: Curve, points: Sequence[Point], file: Path) -> None:
    """Draw a curve: the median of the rounds, and from where to where they went."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, 2), curve.panels, strict=True):
        for name, values in panel.lines.items():
            ranges = [over(values(point)) for point in points if values(point)]
            axes.errorbar(
                [point.x for point in points if values(point)],
                [each.median for each in ranges],
                [[each.median - each.least for each in ranges], [each.most - each.median for each in ranges]],
                label=name,
                marker="o",
                markersize=3,
                linewidth=1,
                capsize=2,
            )
        if curve.logarithmic:
            axes.set_xscale("log")
        axes.set_xticks([point.x for point in points], [_short(point.x) for point in points])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(curve.label)
        axes.set_ylabel(panel.label)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, linewidth=0.3)
        if len(panel.lines) > 1:
            axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None, "Creator": None})


def _short(number: int) -> str:
    """A number as an axis has room for it."""
    for unit, letter in ((1_000_000, "M"), (1000, "k")):
        if number % unit == 0:
            return f"{number // unit}{letter}"
    return str(number)


def fill(page: str, blocks: dict[str, str]) -> str:
    """Put each block of text between its marks; raises ValueError for a block that has none."""
    for name, text in blocks.items():
        before, mark, rest = page.partition(f"<!-- make figures: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        if not end:
            raise ValueError(f"the page has no marks for {name}")
        page = f"{before}{mark}{text}\n{end}{after}"
    return page


def blocks(measured: result.Result, drawn: Curves) -> dict[str, str]:
    """The text between the marks, by the names of these."""
    tables = {make.__name__: make(measured).markdown() for make in table.TABLES}
    plan = drawn.plan
    busy = f" A busy process got {over(drawn.shares).text('.0%')} of a core meanwhile." if drawn.shares else ""
    return tables | {
        "machine": f"{table.head(measured)}.\n\n{table.noise(measured)}.",
        "curves": f"{drawn.machine}; {plan.rounds} rounds of {plan.seconds:g} s, {plan.users:,} users.{busy}",
    }


def take(build: Path, figures: Path) -> None:
    """Copy what was measured; raises ValueError if a shorter run did."""
    for name, (read, shorter) in MEASURED.items():
        if (made := build / name).exists():
            if read(made).plan == shorter:
                raise ValueError(f"{made} is of a shorter run: measure without QUICK=1, or remove it to keep the last")
            shutil.copy(made, figures / name)


def main() -> None:
    """Take over what was measured."""
    FIGURES.mkdir(exist_ok=True)
    try:
        take(HERE / "build", FIGURES)
    except ValueError as error:
        raise SystemExit(f"make figures: {error}") from None
    measured, drawn = result.read(FIGURES / "bench.json"), curves.read(FIGURES / "curves.json")
    for curve in CURVES:
        draw(curve, getattr(drawn, curve.name), FIGURES / f"{curve.name}.svg")
    PAGE.write_text(fill(PAGE.read_text("utf-8"), blocks(measured, drawn)), "utf-8")


if __name__ == "__main__":
    main()
