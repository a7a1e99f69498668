from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.tree import AHEAD, Tree, precedence

BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def test_tree_counts_the_time_of_children_that_have_ended() -> None:
    before = Tree(os.getpid()).cpu()
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert Tree(os.getpid()).cpu() - before > 0.25


def test_tree_counts_the_time_and_memory_of_grandchildren() -> None:
    inner = f"import time\nheld = bytearray(50_000_000)\n{BUSY}\nprint('done', flush=True)\ntime.sleep(60)"
    outer = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        tree = Tree(process.pid)
        _, grandchild = tree.pids()
        assert tree.cpu() > 0.3
        assert tree.resident() > 50_000_000
        tree.pin(0)
        assert os.sched_getaffinity(grandchild) == {0}
        tree.signal(signal.SIGKILL)


def test_tree_of_a_process_that_has_ended_takes_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    tree = Tree(process.pid)
    tree.signal(signal.SIGKILL)
    assert (tree.cpu(), tree.resident()) == (0.0, 0)


AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(os.geteuid() != 0 or not AUTOGROUP.exists(), reason="takes root, and a kernel with autogroups")
def test_precedence_is_that_of_the_session_and_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as process:
        group = Path(f"/proc/{process.pid}/autogroup")
        with precedence([process.pid]):
            assert group.read_text().endswith(f" nice {AHEAD}\n")
            assert not AUTOGROUP.read_text().endswith(f" nice {AHEAD}\n")
        assert group.read_text().endswith(" nice 0\n")
        process.communicate(b"\n")


def test_precedence_of_a_process_that_has_ended_changes_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with precedence([process.pid]):
        pass
