"""A daemon with a guard of its own, as root without a unit has it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sipha.vip.clock import boottime as now
from tests.vip.conftest import IPV4, IPV6, PORT, Site
from tests.vip.lan import wait_for
from tests.vip.test_guard import assert_silent_after

pytestmark = pytest.mark.system


class Claimant:
    """A tests/vip/claimant.py on the site's node."""

    def __init__(self, site: Site) -> None:
        self.process = subprocess.Popen(
            [
                *("ip", "netns", "exec", site.node.name, sys.executable, "-m", "tests.vip.claimant"),
                *(str(site.configuration), site.phone.ipv4, str(PORT)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def hear(self, beginning: str) -> str:
        """Return the next line, which must begin so."""
        line = self._lines.get(timeout=30)
        assert line.startswith(beginning), line
        return line

    def guard(self) -> int:
        """The process id of its guard."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return int(children.split()[-1])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)


@pytest.fixture
def claimant(site: Site) -> Iterator[Claimant]:
    made = Claimant(site)
    try:
        yield made
    finally:
        made.close()


def hold(site: Site, claimant: Claimant) -> None:
    claimant.hear("claimed")
    assert site.phone.resolves(IPV4)
    assert site.phone.resolves(IPV6)


def test_daemon_starts_a_guard_and_stops_it(site: Site, claimant: Claimant) -> None:
    hold(site, claimant)
    guard = claimant.guard()
    assert os.getsid(guard) == guard, "a terminal's Ctrl-C is the daemon's to act on"
    claimant.process.terminate()
    assert claimant.process.wait(20) == 0
    assert site.gone()
    assert not alive(guard)
    assert not site.words


def test_killed_daemons_guard_speaks_and_ends(site: Site, claimant: Claimant) -> None:
    hold(site, claimant)
    guard = claimant.guard()
    killed = now()
    claimant.process.kill()
    assert wait_for(lambda: site.words)
    assert site.words[0][0] - killed < 0.3
    assert_silent_after(site, site.words[0][0])
    assert wait_for(lambda: not alive(guard))


def test_daemon_loses_the_claim_of_a_killed_guard_and_gets_another_guard(site: Site, claimant: Claimant) -> None:
    site.emit()
    hold(site, claimant)
    guard = claimant.guard()
    os.kill(guard, signal.SIGKILL)
    killed = now()
    claimant.hear("lost the guard is gone")
    lost = now()
    assert lost - killed < 1.0
    claimant.hear("claimed")
    assert claimant.guard() != guard
    assert site.phone.resolves(IPV4)


def test_daemon_loses_the_claim_of_a_frozen_guard(site: Site, claimant: Claimant) -> None:
    site.emit()
    hold(site, claimant)
    os.kill(claimant.guard(), signal.SIGSTOP)
    claimant.hear("lost the guard doesn't answer")
    lost = now()
    time.sleep(0.3)
    assert_silent_after(site, lost)
    os.kill(claimant.guard(), signal.SIGCONT)
    while "claimed" not in claimant.hear(""):
        continue
    assert site.phone.resolves(IPV4)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] not in {"Z", "X"}
