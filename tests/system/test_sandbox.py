"""`make run`: three nodes in the foreground, which end with it and keep what they know."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.system.conftest import wait_until
from tests.system.phones import PATIENCE
from tests.system.ua import UserAgent

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
SERVER = ("127.0.0.10", 5060)
NODES = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
Start = Callable[..., "Run"]


class Run:
    """A command that runs the sandbox, in a session of its own like that of a terminal."""

    def __init__(self, command: list[str], directory: Path, state: Path) -> None:
        self.state = state
        self.text = ""
        self.process = subprocess.Popen(
            command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def wait_until_ready(self) -> None:
        """Read what is printed, up to the line that says so."""
        deadline = time.monotonic() + PATIENCE
        while not self.text.endswith("sipha: ready\n"):
            assert time.monotonic() < deadline, self.text
            self._read()

    def end(self) -> int:
        """Wait for the end of the command and return its status; the rest of what it prints is in `text`."""
        status = self.process.wait(PATIENCE)
        while self._read():
            pass
        return status

    def _read(self) -> bool:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], 0.1)[0]:
            return False
        data = os.read(self.process.stdout.fileno(), 65536)
        self.text += data.decode()
        return bool(data)

    @property
    def nodes(self) -> list[int]:
        """The processes of the nodes, known by the directory in their command line."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue  # it has ended
            if any(word.startswith(f"{self.state}/n") for word in words):
                found.append(int(process.name))
        return found

    def kill(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for node in self.nodes:
            os.kill(node, signal.SIGKILL)
        wait_until(lambda: not self.nodes, "the nodes to end")
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command; the addresses of the sandbox must be free."""
    for address in (SERVER, *((node, 8080) for node in NODES)):
        with socket.socket() as probe:
            if probe.connect_ex(address) == 0:
                pytest.fail(f"something listens on {address[0]} port {address[1]}; stop it (is it make run?)")
    runs: list[Run] = []

    def run(command: list[str], directory: Path, state: Path) -> Run:
        runs.append(Run(command, directory, state))
        return runs[-1]

    yield run
    for each in runs:
        each.kill()


def sandbox(start: Start, directory: Path, *options: str) -> Run:
    return start([sys.executable, "-m", "sipha.sandbox", "--directory", str(directory), *options], ROOT, directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sandbox_says_where_all_is_and_stops_all_with_a_signal(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    run = sandbox(start, tmp_path / "state")
    run.wait_until_ready()
    for text in ("127.0.0.10:5060", "sipha.test", "alice-secret", *(f"http://{node}:8080" for node in NODES)):
        assert text in run.text
    assert len(run.nodes) == 3
    UserAgent("alice", SERVER).register().close()
    start_of_end = time.monotonic()
    run.process.send_signal(number)
    assert run.end() == 0
    assert not run.nodes
    assert time.monotonic() - start_of_end < 8.0, "it did not end by itself"
    assert "Traceback" not in run.text


def test_sandbox_stops_all_when_it_is_told_before_it_is_ready(start: Start, tmp_path: Path) -> None:
    run = sandbox(start, tmp_path / "state")
    wait_until(lambda: len(run.nodes) == 3, "three nodes")
    start_of_end = time.monotonic()
    run.process.terminate()
    assert run.end() == 0
    assert not run.nodes
    assert time.monotonic() - start_of_end < 8.0, "it did not end by itself"


def test_sandbox_leaves_another_that_runs_alone(start: Start, tmp_path: Path) -> None:
    first = sandbox(start, tmp_path / "state")
    first.wait_until_ready()
    second = sandbox(start, tmp_path / "state", "--fresh")
    assert second.end() == 1
    assert second.text == "sipha: something answers at http://127.0.0.11:8080 already; stop it first\n"
    assert len(first.nodes) == 3
    UserAgent("alice", SERVER).register().close()
    first.process.terminate()
    assert first.end() == 0


def test_sandbox_leaves_no_node_behind_when_it_is_killed(start: Start, tmp_path: Path) -> None:
    run = sandbox(start, tmp_path / "state")
    run.wait_until_ready()
    run.process.kill()
    wait_until(lambda: not run.nodes, "the nodes to end")


def test_sandbox_keeps_its_state_unless_it_starts_fresh(start: Start, tmp_path: Path) -> None:
    for options, bound in (((), 0), ((), 1), (("--fresh",), 0)):
        run = sandbox(start, tmp_path / "state", *options)
        run.wait_until_ready()
        wait_until(partial(all_have, accounts=3, bindings=bound), f"{bound} bindings on all nodes")
        UserAgent("alice", SERVER).register().close()
        run.process.terminate()
        assert run.end() == 0


def test_sandbox_says_what_is_wrong_when_a_node_cant_start(start: Start, tmp_path: Path) -> None:
    with socket.create_server((NODES[1], 7000)):
        run = sandbox(start, tmp_path / "state")
        assert run.end() == 1
    assert "node n2 stopped; its log is" in run.text
    assert not run.nodes


@pytest.mark.parametrize("whom", ["make", "all"])
def test_make_run_hands_signals_on(start: Start, tmp_path: Path, whom: str) -> None:
    """SIGTERM comes to make alone, Ctrl-C in a terminal to all of its processes."""
    # A directory of its own, whose .run is not the developer's.
    for name in (".ci", ".venv", "Makefile", "pyproject.toml", "setup.cfg", "setup.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    run = start(["make", "--old-file=.venv/.installed", "run", "FRESH=1"], tmp_path, tmp_path / ".run")
    run.wait_until_ready()
    UserAgent("alice", SERVER).register().close()
    if whom == "make":
        run.process.terminate()
    else:
        os.killpg(run.process.pid, signal.SIGINT)
    run.end()
    assert not run.nodes


def all_have(**numbers: int) -> bool:
    """Return True if the status of all nodes has these numbers."""
    for node in NODES:
        try:
            with urllib.request.urlopen(f"http://{node}:8080/v1/status", timeout=PATIENCE) as response:
                status = json.load(response)
        except urllib.error.URLError:
            return False  # it has not started yet: two of three are a majority
        if not numbers.items() <= status.items():
            return False
    return True
