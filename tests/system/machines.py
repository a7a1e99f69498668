"""Three nodes and the machine of an authority, on which the commands of the handbook are typed as they stand.

Each is a network and a mount namespace, with an /etc, /var/lib, /var/backups, /usr/lib and /run of its own, the
users of the package, and an address of the pages. What isn't there has stand-ins:

- systemd, for which systemctl.py starts the package's own units;
- sshd and its keys: ssh and scp enter the other machine;
- a repository: apt installs nothing, and restarts what runs.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.handbook import ROOT, Command
from tests.system import systemctl
from tests.system.conftest import wait_until
from tests.system.network import OUTSIDE, Network

# What keeps the users of the package from this checkout, such as /root.
_CLOSED = next((parent for parent in reversed(ROOT.parents) if not parent.stat().st_mode & 0o001), "")

# What only this machine sees stands in /mnt; there, too, are the home of root, and the log of its services.
_MACHINE = f"""\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/home /mnt/checkout
if [ {_CLOSED} ]; then
    mount --bind {ROOT} /mnt/checkout
    mount -t tmpfs -o mode=755 tmpfs {_CLOSED}
    mkdir -p {ROOT}
    mount --bind /mnt/checkout {ROOT}
fi
for directory in /etc /var/lib /usr/lib; do
    own=/mnt$directory
    mkdir -p "$own/upper" "$own/work"
    mount -t overlay -o "lowerdir=$directory,upperdir=$own/upper,workdir=$own/work" overlay "$directory"
done
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/backups
systemd-sysusers {ROOT}/debian/sipha.sysusers 2>/dev/null
systemd-tmpfiles --create {ROOT}/debian/sipha.tmpfiles
ln -s {Path(sys.executable).parents[1]} /usr/lib/sipha
runuser -u sipha -- test -x /usr/lib/sipha/bin/twistd
echo ready
exec sleep infinity
"""

_STAND_INS = {
    "systemctl": f'exec {sys.executable} {systemctl.__file__} "$@"\n',
    "apt": "systemctl try-restart sipha sipha-guard\n",
    "ssh": '[ "$1" != -- ] || shift; machine=$1; shift; exec on "$machine" "$@"\n',
    "scp": '[ "$1" != -r ] || shift; exec cp -r "/proc/$(cat "$MACHINES/${1%%:*}")/root/mnt/home/${1#*:}" "$2"\n',
    # What the others are made of: a command in the home of root on another machine.
    "on": 'pid=$(cat "$MACHINES/$1"); shift\n'
    'exec nsenter --target "$pid" --mount --net -- sh -c \'cd /mnt/home && exec "$@"\' sh "$@"\n',
}

DEADLINE = 60.0
"""Seconds in which a command must be done."""

AUTHORITY = "authority"
"""The machine that isn't a node: it has the cluster's authority, and 192.0.2.14."""


class Machines:
    """The machines of a network, by the names and at the addresses of the pages."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network = network
        self._pids = directory / "machines"
        self._bin = directory / "bin"
        self._pids.mkdir()
        self._bin.mkdir()
        for name, text in _STAND_INS.items():
            self.stand_in(name, text)
        # Everybody may run the stand-ins, and what the package would have installed.
        paths = (str(self._bin), "/usr/lib/sipha/bin", os.environ["PATH"])
        self.environment = {
            **os.environ,
            "PATH": ":".join(paths),
            "MACHINES": str(self._pids),
            "HOME": "/mnt/home",
            "SIPHA_URL": "",
        }
        for number, place in enumerate((*network.nodes, OUTSIDE), 11):
            network.run(place, "ip", "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            holder = subprocess.Popen(
                [*network.launcher(place), "unshare", "--mount", "sh", "-c", _MACHINE],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                pytest.skip("mount namespaces, overlays or users who can read this checkout can't be had here")
            (self._pids / (AUTHORITY if place == OUTSIDE else place)).write_text(str(holder.pid))

    def stand_in(self, name: str, text: str) -> None:
        """Have a command on all machines that is a script."""
        (self._bin / name).write_text(f"#!/bin/sh\nset -e\n{text}")
        (self._bin / name).chmod(0o755)

    def types(self, node: str, text: str) -> str:
        """What a command line prints on a machine; it must succeed."""
        done = self._run(node, text)
        assert done.returncode == 0, f"{node}# {text}\n{done.stdout}{done.stderr}{self.log(node)}"
        return done.stdout

    def follow(self, commands: Iterable[Command], operator: str = "") -> list[str]:
        """Type commands of a page, each where its prompt is, and see that they print what the page says.

        `operator` is the machine of the prompt `$`, if not the leader. A command fails if, and only if, what it says
        then stands on the page. Returns what they have printed.
        """
        return [self._follow(command, self._place(command, operator)) for command in commands]

    def watch(self, command: Command, meanwhile: Callable[[], object]) -> None:
        """Type a command that has no end, and end it when it has printed what the page says while something happens."""
        with (
            tempfile.TemporaryFile("w+") as output,
            subprocess.Popen(
                self._words(self._place(command), command.text), stdout=output, env=self.environment
            ) as process,
        ):

            def printed() -> str:
                output.seek(0)
                return output.read()

            wait_until(printed, f"{command.text} to begin")
            meanwhile()
            wait_until(lambda: command.prints(printed()), f"{command} instead of {printed()}")
            process.terminate()

    def _place(self, command: Command, operator: str = "") -> str:
        return (operator or self.leader()) if command.prompt == "$" else command.prompt.removesuffix("#")

    def _follow(self, command: Command, place: str) -> str:
        done = self._run(place, command.text)
        said = done.stderr if done.returncode else done.stdout
        happened = f"{command}\non {place}: status {done.returncode}\n{done.stdout}{done.stderr}{self.log(place)}"
        assert command.printed or done.returncode == 0, happened
        assert command.prints(said), happened
        return said

    def _run(self, node: str, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._words(node, text),
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            timeout=DEADLINE,
        )

    def _words(self, node: str, text: str) -> list[str]:
        return [str(self._bin / "on"), node, "bash", "-c", text]

    @contextmanager
    def variable(self, name: str, value: str) -> Iterator[None]:
        """Have a variable in the environment of what is typed meanwhile."""
        self.environment[name] = value
        yield
        del self.environment[name]

    def read(self, node: str, path: str) -> str:
        """A file of a machine."""
        return self.types(node, f"cat {path}")

    def write(self, node: str, path: str, text: str) -> None:
        """Have a file on a machine say something else."""
        self.types(node, f"printf %s {shlex.quote(text)} >{path}")

    def append(self, node: str, path: str, text: str) -> None:
        """Write at the end of a file of a machine."""
        self.types(node, f"printf %s {shlex.quote(text)} >>{path}")

    def asks(self, node: str, path: str) -> Any:
        """What the admin of a machine answers to a GET; raises OSError if it doesn't."""
        with self.network.inside(node), urllib.request.urlopen(f"http://127.0.0.1:8080{path}", timeout=5) as answer:
            return json.load(answer)

    def leader(self) -> str:
        """Who leads, once one does."""
        found: list[str] = []

        def is_known() -> bool:
            found[:] = [node for node in self.network.nodes if self._status(node).get("leading")]
            return bool(found)

        wait_until(is_known, "a node to lead")
        return found[0]

    def role(self, node: str) -> str:
        """What a node is now; empty if it doesn't answer."""
        return str(self._status(node).get("role", ""))

    def make_lead(self, node: str) -> None:
        """Have a node lead."""
        if self.leader() != node:
            self.types(self.leader(), f"siphactl transfer {node}")
            wait_until(lambda: self.leader() == node, f"{node} to lead")

    def log(self, node: str) -> str:
        """What the services of a machine have said."""
        log = Path("/proc", (self._pids / node).read_text(), "root/mnt/log")
        return log.read_text() if log.exists() else ""

    def _status(self, node: str) -> dict[str, Any]:
        """The status of a node; empty if it doesn't answer."""
        with suppress(OSError, ValueError):
            status: dict[str, Any] = self.asks(node, "/v1/status")
            return status
        return {}
