from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from sipha import config
from sipha.admin.views import Reloaded
from sipha.config import lastgood
from sipha.errors import ConfigError
from sipha.service.life import Life
from sipha.service.probation import LIMIT

TEXT = '[node]\nname = "a"\ndata_dir = "{data}"\n[[domains]]\nname = "sipha.test"\n'
OTHER_PORT = "[sip]\nport = 5070\n"
OTHER_NAME = '[cluster]\nname = "other"\n'
BROKEN = "[sip]\nport = \n"


class FakeNode:
    """A node that runs under anything, and whose listeners answer or don't."""

    def __init__(self, running: config.Config, data: Path) -> None:
        self.ran = [running]
        self.settled: list[config.Config] = []
        self.leads = False
        self.deaf = ""
        self.refusals: list[str] = []
        self.disk_error: OSError | None = None
        self.left: list[str] = []
        self._data = data

    def reconfigure(self, new: config.Config) -> None:
        if self.refusals:
            raise ConfigError(self.refusals.pop(0))
        self.ran.append(new)

    def settle(self) -> None:
        self.settled.append(self.ran[-1])

    def must_serve(self) -> bool:
        return self.leads

    def questions(self) -> int:
        return 7

    def trouble(self, since: int) -> str:
        assert since == 7
        return self.deaf

    def keep(self, name: str, data: bytes, done: Callable[[Exception | None], None]) -> None:
        if self.disk_error is None:
            (self._data / name).write_bytes(data)
        done(self.disk_error)

    def leave(self, reason: str) -> None:
        self.left.append(reason)


class Process:
    """The life of a configuration, and the nodes that ran under it."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.data.mkdir(exist_ok=True)
        self.path = directory / "sipha.toml"
        if not self.path.exists():
            self.write("")
        self.clock = Clock()
        self.restarts = 0
        self.life = Life(self.clock, self.path, self._restart)
        self.node = FakeNode(self.life.running.config, self.data)

    def start(self, *, leads: bool = False, deaf: str = "") -> None:
        self.node.leads, self.node.deaf = leads, deaf
        self.life.begin(self.node)

    def write(self, more: str) -> None:
        self.path.write_text(TEXT.format(data=self.data) + more)

    def reload(self) -> list[Reloaded | Failure]:
        results: list[Reloaded | Failure] = []
        reloading: Deferred[Reloaded] = self.life.reload()
        reloading.addBoth(results.append)
        return results

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.1] * round(seconds * 10))

    def alarms(self) -> str:
        return "\n".join(self.life.alarms())

    def copy(self) -> str:
        found = lastgood.find(self.path)
        return "" if found is None else found.text

    def _restart(self) -> None:
        self.restarts += 1
        self.node = FakeNode(self.life.running.config, self.data)
        self.life.begin(self.node)


@pytest.fixture
def fresh(tmp_path: Path) -> Process:
    """A process that has never run before."""
    return Process(tmp_path)


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """A process whose configuration has passed its probation, in a node that doesn't lead."""
    first = Process(tmp_path)
    first.start()
    first.wait(LIMIT + 0.5)
    process = Process(tmp_path)
    process.start()
    assert process.life.proven
    return process


def problem(results: list[Reloaded | Failure]) -> str:
    (failure,) = results
    assert isinstance(failure, Failure)
    assert failure.check(ConfigError)
    return str(failure.value)


class TestReload:
    def test_live_keys_are_applied_and_named(self, process: Process) -> None:
        process.write(OTHER_PORT)
        assert process.reload() == [Reloaded(str(process.path), 2, ("sip.port",))]
        assert [each.sip.port for each in process.node.ran] == [5060, 5070]
        assert [each.sip.port for each in process.node.settled] == [5070]
        assert process.life.status().generation == 2
        assert OTHER_PORT in process.copy()
        assert not process.alarms()

    def test_what_takes_a_restart_is_refused_and_nothing_is_applied(self, process: Process) -> None:
        process.write(OTHER_PORT + OTHER_NAME)
        assert "cluster.name can't change while the node runs: restart it" in problem(process.reload())
        assert len(process.node.ran) == 1
        assert "something else than what runs in cluster.name, sip.port: that takes a restart" in process.alarms()
        process.write(OTHER_PORT)
        assert len(process.reload()) == 1
        assert not process.alarms()

    def test_broken_file_is_refused_by_line_and_mending_it_helps(self, process: Process) -> None:
        process.write(BROKEN)
        assert "line 7, column 8: not TOML" in problem(process.reload())
        assert "line 7, column 8: not TOML" in process.alarms()
        assert len(process.node.ran) == 1
        process.write("")
        assert process.reload() == [Reloaded(str(process.path), 1, ())]
        assert not process.alarms()

    def test_what_the_node_refuses_isnt_applied(self, process: Process) -> None:
        process.write(OTHER_PORT)
        process.node.refusals = ["sip.port: can't listen"]
        assert problem(process.reload()) == "sip.port: can't listen"
        assert process.life.running.config.sip.port == 5060
        assert "failed: sip.port: can't listen; what ran before goes on" in process.alarms()
        assert len(process.reload()) == 1
        assert not process.alarms()

    def test_leader_that_falls_silent_takes_it_back(self, process: Process) -> None:
        process.node.leads, process.node.deaf = True, "the SIP listener doesn't answer"
        process.write(OTHER_PORT)
        results = process.reload()
        process.wait(LIMIT - 0.5)
        assert not results
        process.wait(1)
        assert "failed its probation, and was taken back: the SIP listener doesn't answer" in problem(results)
        assert [each.sip.port for each in process.node.ran] == [5060, 5070, 5060]
        assert [each.sip.port for each in process.node.settled] == [5060]
        assert process.life.running.config.sip.port == 5060
        assert OTHER_PORT not in process.copy()

        process.node.deaf = ""
        assert "the SIP listener doesn't answer; what ran before goes on" in process.alarms(), (
            "until a good one is loaded"
        )
        process.write("")
        assert "doesn't answer" in process.alarms()
        results = process.reload()
        assert len(results) == 1
        assert not process.alarms()

    def test_what_comes_meanwhile_waits_for_the_verdict(self, process: Process) -> None:
        process.node.leads, process.node.deaf = True, "not yet"
        process.write(OTHER_PORT)
        first = process.reload()
        process.write("")
        second = process.reload()
        process.wait(LIMIT - 0.5)
        assert [each.sip.port for each in process.node.ran] == [5060, 5070]
        process.node.deaf = ""
        process.wait(1)
        assert [len(first), len(second)] == [1, 1]
        assert [each.sip.port for each in process.node.ran] == [5060, 5070, 5060]
        assert process.life.running.config.sip.port == 5060

    def test_leader_that_answers_keeps_it(self, process: Process) -> None:
        process.node.leads, process.node.deaf = True, "not yet"
        process.write(OTHER_PORT)
        results = process.reload()
        assert not process.life.proven
        process.node.deaf = ""
        process.wait(0.2)
        assert results == [Reloaded(str(process.path), 2, ("sip.port",))]
        assert process.life.proven

    def test_node_that_cant_go_back_ends_itself(self, process: Process) -> None:
        process.node.leads, process.node.deaf = True, "deaf"
        process.write(OTHER_PORT)
        results = process.reload()
        process.node.refusals = ["sip.port: is in use"]
        process.wait(LIMIT + 0.5)
        assert "taken back" in problem(results)
        assert process.node.left == ["what ran before can't be applied again: sip.port: is in use"]

    def test_who_waits_hears_that_the_node_is_stopped(self, process: Process) -> None:
        process.node.leads, process.node.deaf = True, "deaf"
        results = process.reload()
        process.life.end()
        assert problem(results) == "the node is being stopped"
        assert not process.clock.getDelayedCalls()


class TestAlarms:
    def test_file_that_differs_from_what_runs_is_told(self, process: Process) -> None:
        process.write(OTHER_PORT)
        assert "something else than what runs in sip.port: siphactl reload applies it" in process.alarms()
        process.write("# nothing but a comment\n")
        assert not process.alarms()

    def test_file_that_is_gone_is_told(self, process: Process) -> None:
        process.path.unlink()
        assert "can't be read: No such file or directory; what was loaded before goes on" in process.alarms()

    def test_file_is_read_once_while_it_stays_as_it_is(self, process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
        process.write(OTHER_PORT)
        shown = process.alarms()
        monkeypatch.setattr(config, "load_source", lambda _: pytest.fail("it was read again"))
        assert process.alarms() == shown

    def test_copy_that_cant_be_written_is_told(self, process: Process) -> None:
        process.node.disk_error = OSError(28, "No space left on device")
        process.write(OTHER_PORT)
        assert len(process.reload()) == 1
        assert "the last good copy of the configuration can't be written" in process.alarms()
        process.node.disk_error = None
        process.reload()
        assert not process.alarms()


class TestStart:
    def test_first_configuration_is_kept_when_it_has_passed(self, fresh: Process) -> None:
        fresh.start(leads=True, deaf="not yet")
        fresh.wait(1)
        assert not fresh.copy()
        assert not fresh.life.status().proven
        fresh.node.deaf = ""
        fresh.wait(0.2)
        assert fresh.copy() == fresh.path.read_text()
        assert fresh.life.status().proven

    def test_first_configuration_that_fails_has_nothing_to_go_back_to(self, fresh: Process) -> None:
        fresh.start(leads=True, deaf="the SIP listener doesn't answer")
        fresh.wait(LIMIT + 0.5)
        assert "the SIP listener doesn't answer; there is no last good copy to go back to" in fresh.alarms()
        assert not fresh.restarts
        fresh.node.deaf = ""
        assert len(fresh.reload()) == 1
        assert not fresh.alarms()
        assert fresh.copy()

    def test_broken_file_without_a_copy_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "sipha.toml").write_text(BROKEN)
        with pytest.raises(ConfigError, match="line 2, column 8"):
            Process(tmp_path)

    def test_broken_file_is_passed_over_for_the_copy(self, process: Process, tmp_path: Path) -> None:
        process.write(BROKEN)
        again = Process(tmp_path)
        again.start()
        assert again.life.status().source == "last good copy"
        assert again.life.file == again.data / lastgood.NAME
        assert again.life.running.config.sip.port == 5060
        assert "line 7, column 8: not TOML" in again.alarms()
        assert "the node runs on the last good copy" in again.alarms()
        again.write(OTHER_PORT)
        assert again.reload() == [Reloaded(str(again.path), 2, ("sip.port",))]
        assert again.life.status().source == "file"
        assert again.life.file == again.path
        assert not again.alarms()

    def test_new_configuration_that_fails_is_left_for_the_copy(self, process: Process, tmp_path: Path) -> None:
        process.write(OTHER_NAME)
        again = Process(tmp_path)
        again.start(leads=True, deaf="the SIP listener doesn't answer")
        assert again.life.running.config.cluster.name == "other"
        again.wait(LIMIT + 0.5)
        assert again.restarts == 1
        assert again.life.running.config.cluster.name == "sipha"
        assert again.life.proven
        assert "the SIP listener doesn't answer; the node runs on the last good copy" in again.alarms()
        again.wait(LIMIT + 0.5)
        assert again.restarts == 1
        again.write("")
        assert len(again.reload()) == 1
        assert not again.alarms()

    def test_new_configuration_whose_listeners_cant_be_opened_is_left_for_the_copy(
        self, process: Process, tmp_path: Path
    ) -> None:
        process.write(OTHER_PORT)
        again = Process(tmp_path)
        again.start()
        assert again.life.cannot_serve("can't listen")
        assert again.restarts == 1
        assert not again.life.cannot_serve("can't listen"), "the good one isn't to blame"
        assert again.restarts == 1

    def test_stop_in_the_probation_leaves_all_as_it_was(self, process: Process, tmp_path: Path) -> None:
        process.write(OTHER_PORT)
        again = Process(tmp_path)
        again.start()
        again.life.end()
        again.wait(LIMIT + 0.5)
        assert OTHER_PORT not in again.copy()
