from __future__ import annotations

from pathlib import Path

import pytest

from bench import curves, page, result
from bench.curves import Point
from bench.load import Sample


def test_page_shows_what_was_measured() -> None:
    """Run `make figures` after another `make bench` or `make curves`."""
    measured, drawn = result.read(page.FIGURES / "bench.json"), curves.read(page.FIGURES / "curves.json")
    text = page.PAGE.read_text("utf-8")
    assert page.fill(text, page.blocks(measured, drawn)) == text


def test_page_shows_each_curve() -> None:
    text = page.PAGE.read_text("utf-8")
    for curve in page.CURVES:
        assert f"(performance/{curve.name}.svg)" in text
        assert (page.FIGURES / f"{curve.name}.svg").exists()


def test_figures_of_a_shorter_run_are_refused(tmp_path: Path) -> None:
    build, figures = tmp_path / "build", tmp_path / "figures"
    figures.mkdir()
    result.Result("a machine", result.Plan()).write(build / "bench.json")
    page.take(build, figures)
    assert result.read(figures / "bench.json").machine == "a machine"
    result.Result("another", result.QUICK).write(build / "bench.json")
    with pytest.raises(ValueError, match="of a shorter run"):
        page.take(build, figures)
    assert result.read(figures / "bench.json").machine == "a machine"


def test_block_replaces_what_stands_between_its_marks() -> None:
    text = "a\n<!-- make figures: x -->\nold\n<!-- end -->\nb\n<!-- make figures: y -->\n<!-- end -->\nc\n"
    filled = page.fill(text, {"y": "two\nlines", "x": "new"})
    assert filled == text.replace("old", "new").replace("y -->\n", "y -->\ntwo\nlines\n")
    with pytest.raises(ValueError, match="no marks for z"):
        page.fill(text, {"z": ""})


@pytest.mark.parametrize("curve", page.CURVES, ids=lambda curve: curve.name)
def test_same_figures_make_the_same_picture(curve: page.Curve, tmp_path: Path) -> None:
    alone = {"leader": 50.0}
    points = [
        Point(x, [Sample(1000.0 / x, 10, 0, 1.0, 2.0, cpu, 0.1)] * 2, resident=x * 1000, entries=[0.5, 0.25])
        for x, cpu in ((1, alone), (3, alone | {"follower 1": 9.0}), (5, alone | {"follower 1": 8.0}))
    ]
    for name in ("a.svg", "b.svg"):
        page.draw(curve, points, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert curve.label in text
    assert all(panel.label in text for panel in curve.panels)
