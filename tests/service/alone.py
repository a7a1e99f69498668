"""A node that is the only one of its cluster, on a real reactor and disk."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sipha import config
from sipha.cluster import founding
from sipha.service.life import Life
from sipha.service.node import Node
from tests.cluster.world import World

CONFIG = """
[node]
name = "n1"
data_dir = "{directory}/data"
[cluster]
listen = "127.0.0.51:7000"
{cluster}
[virtual_address]
addresses = ["127.0.0.50"]
[admin]
listen = "127.0.0.51:8080"
[[domains]]
name = "sipha.test"
"""


@contextmanager
def addresses() -> Iterator[None]:
    """Have the node's addresses, which are the machine's: who else wants them waits."""
    with Path(tempfile.gettempdir(), "sipha-service-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def configuration(directory: Path, cluster: str = "plaintext = true", admin: str = "") -> config.Config:
    """A configuration whose data are in this directory, and which is there itself."""
    path = directory / "sipha.toml"
    text = CONFIG.format(directory=directory, cluster=cluster)
    path.write_text(text.replace("[[domains]]", f"{admin}[[domains]]"))
    return config.load(path)


def found(settings: config.Config, **others: str) -> None:
    """Let the node be a founder, with others at these addresses."""
    with founding.taken(settings.node.data_dir.path, create=True) as disk:
        founding.found(disk, "n1", {"n1": str(settings.cluster.listen), **others})


class Alone:
    """The node, between its start and its end."""

    def __init__(self, world: World, settings: config.Config, path: Path = Path("sipha.toml")) -> None:
        self.world = world
        self.config = settings
        self.life = Life(world.reactor, settings.node.data_dir.path.parent / "sipha.toml")
        self.node = Node(world.reactor, self.life)
        self.node.startService()

    def end(self) -> None:
        ended: list[object] = []
        self.node.stopService().addBoth(ended.append)
        self.world.until(lambda: ended)
