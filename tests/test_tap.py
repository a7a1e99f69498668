from __future__ import annotations

import subprocess
import sys

STEPPING = """
import time
from types import SimpleNamespace
from twisted.internet import base

step = 0.0

def set_back() -> None:
    global step
    step = -3600.0

base.ReactorBase.seconds = staticmethod(lambda: time.time() + step)
from sipha import tap
tap.Node = lambda reactor, *_: reactor
reactor = tap.makeService(SimpleNamespace(subOptions={"configuration": None, "config": None}))
reactor.callLater(0.1, set_back)
reactor.callLater(0.2, reactor.stop)
reactor.run()
"""


def test_timers_of_a_node_go_on_when_the_wall_clock_is_set_back() -> None:
    subprocess.run([sys.executable, "-c", STEPPING], check=True, timeout=20)
