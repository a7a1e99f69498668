from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.service.alone import addresses, configuration, found

RUN = """
import sys, time

wall, back = time.time, [0.0]
time.time = lambda: wall() - back[0]

from twisted.internet import reactor
from sipha.tap import Options, makeService

options = Options()
options.parseOptions(["run", "--config", sys.argv[1]])
daemon = makeService(options)
daemon.startService()

def look():
    if daemon.node.view.status().leading:
        print("leads", flush=True)
        daemon.stopService().addCallback(lambda _: reactor.stop())
    else:
        reactor.callLater(0.1, look)

def step():
    reactor.callLater(0.1, look)
    back[0] = 3600.0

reactor.callWhenRunning(step)
reactor.run()
"""


def test_node_goes_on_when_the_clock_on_the_wall_is_put_back(tmp_path: Path) -> None:
    found(configuration(tmp_path))
    command = [sys.executable, "-c", RUN, str(tmp_path / "sipha.toml")]
    with addresses():
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "leads\n", done.stderr
