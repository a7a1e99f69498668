from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.world import World
from tests.service.alone import Alone, addresses, configuration, found


@pytest.fixture
def world() -> Iterator[World]:
    """A reactor of its own, in a process that is afterwards as it was."""
    handler, interval = signal.getsignal(signal.SIGHUP), sys.getswitchinterval()
    with addresses():
        yield World()
    signal.signal(signal.SIGHUP, handler)
    sys.setswitchinterval(interval)


@pytest.fixture
def alone(world: World, tmp_path: Path) -> Iterator[Alone]:
    """A cluster of one, which leads."""
    settings = configuration(tmp_path)
    found(settings)
    alone = Alone(world, settings)
    world.until(lambda: alone.node.view.status().leading)
    yield alone
    alone.end()
