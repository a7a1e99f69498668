from __future__ import annotations

import pytest
from twisted.logger import Logger
from twisted.python.failure import Failure

from sipha import journal


def test_line_has_its_priority_and_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    log = Logger("sipha.service.node", observer=journal.observer())
    log.critical("this node stops in {wait:g} s", wait=60)
    log.info("it has started")
    assert capsys.readouterr().out.splitlines() == [
        "<2>[sipha.service.node#critical] this node stops in 60 s",
        "<6>[sipha.service.node#info] it has started",
    ]


def test_each_line_of_a_traceback_has_its_priority(capsys: pytest.CaptureFixture[str]) -> None:
    Logger("sipha", observer=journal.observer()).failure("it failed", Failure(OSError(28, "No space left on device")))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert all(line.startswith("<2>") for line in lines)
    assert "No space left on device" in lines[-1]


def test_event_without_a_level_is_information(capsys: pytest.CaptureFixture[str]) -> None:
    journal.observer()({"log_format": "printed", "log_system": "-"})
    assert capsys.readouterr().out == "<6>[-] printed\n"
