from __future__ import annotations

import pytest
from rich.console import Console

from sipha.ctl import progress as module
from sipha.ctl.progress import progress


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, terminal: bool) -> str:
    monkeypatch.setattr(
        module, "Console", lambda stderr: Console(stderr=stderr, force_terminal=terminal, width=80, no_color=True)
    )
    with progress("dump.sql", 200) as show:
        show(50)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_terminal_sees_how_far_the_work_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(monkeypatch, capsys, terminal=True)
    assert "dump.sql" in text
    assert "25%" in text


def test_what_is_no_terminal_sees_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(monkeypatch, capsys, terminal=False) == ""
