"""docs/quickstart.md, typed as it stands, on three machines: network and mount namespaces.

Each has an /etc, /var/lib and /run of its own, and the page's addresses. What isn't there are an init system, the
package's users, and sshd: stand-ins for systemctl, runuser, ssh and scp do what the page asks of these.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.conftest import wait_until
from tests.system.network import OUTSIDE, Network
from tests.system.ua import UserAgent, call

pytestmark = [pytest.mark.system, pytest.mark.network]

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
VIRTUAL = "192.0.2.10"
MOST_COMMANDS = 5

# What only this machine sees stands in /mnt: what is written to /etc and /var/lib, the home of root, and its daemon.
_MACHINE = """\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/etc /mnt/lib /mnt/home /mnt/work-etc /mnt/work-lib
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/work-etc overlay /etc
mount -t overlay -o lowerdir=/var/lib,upperdir=/mnt/lib,workdir=/mnt/work-lib overlay /var/lib
mount -t tmpfs tmpfs /run
echo ready
exec sleep infinity
"""

_STAND_INS = {
    "systemctl": """\
action=$1; daemon=$(cat /mnt/daemon 2>/dev/null || true)
case $action in
start) setsid twistd --nodaemon --pidfile= sipha run --config /etc/sipha/sipha.toml </dev/null >>/mnt/log 2>&1 &
       echo $! >/mnt/daemon ;;
stop)  [ -z "$daemon" ] || { kill "$daemon"; while kill -0 "$daemon"; do sleep 0.1; done 2>/dev/null; } ;;
kill)  kill -KILL "$daemon" ;;
*)     exit 2 ;;
esac
""",
    "runuser": 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n',
    "ssh": '[ "$1" != -- ] || shift; machine=$1; shift; exec on "$machine" "$@"\n',
    "scp": 'source=$2; exec cp -r "/proc/$(cat "$MACHINES/${source%%:*}")/root/mnt/home/${source#*:}" "$3"\n',
    # What the others are made of: a command in the home of root on another machine.
    "on": 'pid=$(cat "$MACHINES/$1"); shift\n'
    'exec nsenter --target "$pid" --mount --net -- sh -c \'cd /mnt/home && exec "$@"\' sh "$@"\n',
}


@dataclass(frozen=True)
class Command:
    """A command of the page, on which node it is typed, and what the page says that it prints."""

    node: str
    text: str
    printed: tuple[str, ...]

    def prints(self, output: str) -> bool:
        """True if it has printed that; an ellipsis stands for anything."""
        lines = [re.escape(line).replace("…", ".*").replace(r"\ ", r"\s+") for line in self.printed]
        return re.search(r"[\s\S]*".join(lines), output) is not None


def commands() -> list[Command]:
    """The commands of the page's console blocks, in order."""
    found: list[tuple[str, str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if prompt := re.match(r"(n\d)# (.*)", line):
                found.append((prompt[1], prompt[2], []))
            else:
                found[-1][2].append(line)
    return [Command(node, text, tuple(printed)) for node, text, printed in found]


class Machines:
    """Three machines of a network, as the page wants them."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network = network
        self._pids = directory / "machines"
        self._bin = directory / "bin"
        self._pids.mkdir()
        self._bin.mkdir()
        for name, text in _STAND_INS.items():
            (self._bin / name).write_text(f"#!/bin/sh\nset -e\n{text}")
            (self._bin / name).chmod(0o755)
        paths = (str(self._bin), str(Path(sys.executable).parent), os.environ["PATH"])
        self._environment = {**os.environ, "PATH": ":".join(paths), "MACHINES": str(self._pids), "SIPHA_URL": ""}
        for number, node in enumerate((*network.nodes, OUTSIDE), 11):
            network.run(node, "ip", "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
        for node in network.nodes:
            holder = subprocess.Popen(
                [*network.launcher(node), "unshare", "--mount", "sh", "-c", _MACHINE], stdout=subprocess.PIPE, text=True
            )
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                pytest.skip("mount namespaces and overlays can't be had here")
            (self._pids / node).write_text(str(holder.pid))

    def types(self, node: str, text: str) -> str:
        """What a command line prints on a machine; it must succeed."""
        command = [str(self._bin / "on"), node, "bash", "-c", text]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self._environment, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{node}# {text}\n{done.stdout}{done.stderr}{self.log(node)}"
        return done.stdout

    def leader(self) -> str:
        """Who leads, as one that does says; empty if none does."""
        for node in self.network.nodes:
            with (
                self.network.inside(node),
                suppress(OSError, ValueError),
                urllib.request.urlopen("http://127.0.0.1:8080/v1/status", timeout=2) as answer,
            ):
                if json.load(answer)["leading"]:
                    return node
        return ""

    def log(self, node: str) -> str:
        """What the daemon of a machine has said."""
        log = Path("/proc", (self._pids / node).read_text(), "root/mnt/log")
        return log.read_text() if log.exists() else ""


@pytest.fixture
def machines(can_build_networks: None, tmp_path: Path) -> Iterator[Machines]:
    with Network() as network:
        yield Machines(network, tmp_path)


def test_the_page_has_at_most_five_commands_a_node() -> None:
    page = PAGE.read_text(encoding="utf-8")
    until_phones = page[: page.index("## Phones")]
    for node in ("n1", "n2", "n3"):
        typed = re.findall(rf"^{node}# (.*)", until_phones, re.MULTILINE)
        assert 1 <= len(typed) <= MOST_COMMANDS
        assert not any(word in {"&&", ";", "||", "|"} for line in typed for word in shlex.split(line))


@pytest.mark.timeout(600)
def test_operator_follows_the_page(machines: Machines) -> None:
    page = commands()
    kill = next(place for place, command in enumerate(page) if "SIGKILL" in command.text)
    for command in page[:kill]:
        output = machines.types(command.node, command.text)
        assert command.prints(output), f"{command}\n{output}"
    with machines.network.inside(OUTSIDE):
        alice, bob = (
            UserAgent(user, (VIRTUAL, 5060), host="192.0.2.14", domain="example.com").register()
            for user in ("alice", "bob")
        )
    call(bob, alice).exchange("BYE")
    leader = machines.leader()
    survivor = next(node for node in machines.network.nodes if node != leader)
    for command, node in zip(page[kill:], (leader, survivor), strict=True):
        output = machines.types(node, command.text)
        assert command.prints(output), f"{command}\n{output}"
    wait_until(lambda: machines.leader() not in {"", leader}, "another node to lead")
    call(bob, alice).exchange("BYE")
    for node in {*machines.network.nodes} - {leader}:  # one of them doesn't lead, and hands on what it is asked
        assert machines.types(node, "siphactl prefer --nobody") == "no node is preferred\n"
    alice.close()
    bob.close()
