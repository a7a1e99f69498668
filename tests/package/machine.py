"""A Debian 12 of its own with systemd as its first process, in which the package is installed: systemd-nspawn's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = (
    *("autopkgtest", "dbus", "dpkg-dev", "iproute2", "libnftables1", "man-db", "nftables", "procps", "python3"),
    *("systemd", "systemd-sysv"),
)
"""What is there beside Debian's essential packages: among it what the package depends on, and what runs its tests."""

START = 60.0


def reason_to_skip() -> str:
    """Why there can be no such machine here; empty if there can."""
    if os.geteuid() != 0:
        return "systemd-nspawn takes root"
    missing = [command for command in ("mmdebstrap", "systemd-nspawn") if not shutil.which(command)]
    return f"{' and '.join(missing)} is missing: make test-deb installs it" if missing else ""


class Machine:
    """The machine, from its boot to its end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        name = f"--machine=sipha-{os.getpid()}"  # by the directory's name, two runs' would be one
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", name]
        self._process = subprocess.Popen(
            [*command, f"--directory={root}", "--boot", "systemd.unit=multi-user.target"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._first = 0
        end = time.monotonic() + START
        while not self._boots():
            assert self._process.poll() is None, "systemd-nspawn has given up"
            assert time.monotonic() < end, "the machine doesn't start"
            time.sleep(0.1)

    def run(self, *command: str, check: bool = True, stdin: str = "") -> str:
        """Run a command in it as root, and return what it prints."""
        done = subprocess.run(
            ["nsenter", "--target", str(self._first), "--all", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def systemd(self, unit: str, *properties: str) -> tuple[str, ...]:
        """What systemd holds a unit's properties to be."""
        shown = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties))
        values = dict(line.split("=", 1) for line in shown.splitlines())
        return tuple(values[name] for name in properties)

    def journal(self, *options: str) -> str:
        """What the journal has."""
        return self.run("journalctl", "--output=cat", "--no-pager", *options)

    def path(self, path: str) -> Path:
        """A file of it, from outside."""
        return self.root / path.removeprefix("/")

    def copy(self, file: Path) -> str:
        """Give it a file, and return its path there."""
        shutil.copy(file, self.root / "root")
        return f"/root/{file.name}"

    def close(self) -> None:
        """Switch it off."""
        os.kill(self._first, signal.SIGKILL)
        self._process.wait()

    def _boots(self) -> bool:
        """Look for its first process, which isn't the first child of systemd-nspawn, and ask it."""
        parent = self._process.pid
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split():
            if Path(f"/proc/{child}/comm").read_text("ascii") == "systemd\n":
                self._first = int(child)
        return bool(self._first) and "running" in self.run("systemctl", "is-system-running", check=False)


@contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """A fresh one, whose disk is made in this directory."""
    root = directory / "root"
    made = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", "bookworm", str(root)]
    subprocess.run(made, check=True)
    booted = Machine(root)
    try:
        yield booted
    finally:
        booted.close()
