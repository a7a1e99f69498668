"""Stands in for systemd on a machine (machines.py): `systemctl VERB UNIT`, for the units of the package.

As there, a service runs as the unit's user, is started when it says that it is ready, and begins anew when it dies.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

UNITS = Path(__file__).parents[2] / "debian"
RUN = Path("/run/systemctl")
LOG = Path("/mnt/log")


class Unit:
    """A unit, by what its file says; the processes of one that runs are found in RUN."""

    def __init__(self, name: str) -> None:
        self.name = name.removesuffix(".service")
        self._says: dict[str, list[str]] = defaultdict(list)
        text = (UNITS / f"{self.name}.service").read_text("utf-8")
        for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
            self._says[key].append(value)
        self._supervisor, self._main = RUN / f"{self.name}.supervisor", RUN / f"{self.name}.main"

    @property
    def runs(self) -> bool:
        """True from its start to its end."""
        return self._supervisor.exists()

    def start(self) -> None:
        """Start it, and what it wants; return when it is ready."""
        for wanted in " ".join(self._says["Wants"]).split():
            if (UNITS / wanted).exists():
                Unit(wanted).start()
        if self.runs or any(self._run(line).wait() for line in self._says["ExecCondition"]):
            return
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.close(reading)
            self._supervise(os.fdopen(writing, "wb"))
        os.close(writing)
        if not os.read(reading, 1):
            sys.exit(f"Job for {self.name}.service failed.")

    def stop(self) -> None:
        """Stop it; return when it has ended."""
        with suppress(FileNotFoundError):
            os.kill(int(self._supervisor.read_text()), signal.SIGTERM)
        while self.runs:
            time.sleep(0.02)

    def reload(self) -> None:
        """Run what the unit says."""
        for line in self._says["ExecReload"]:
            if self._run(line.replace("$MAINPID", self._main.read_text())).wait():
                sys.exit(f"Job for {self.name}.service failed.")

    def kill(self, name: str) -> None:
        """Send its process a signal."""
        os.kill(int(self._main.read_text()), signal.Signals[name])

    def _supervise(self, started: BinaryIO) -> NoReturn:
        os.setsid()
        self._supervisor.write_text(str(os.getpid()))
        with LOG.open("ab") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        stopped = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal stopped
            stopped = True
            process.terminate()

        while not stopped:
            address = RUN / f"{self.name}.notify"
            address.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
                notices.bind(str(address))
                notices.settimeout(0.05)
                address.chmod(0o666)
                process = self._run(self._says["ExecStart"][0], f"NOTIFY_SOCKET={address}")
                self._main.write_text(str(process.pid))
                signal.signal(signal.SIGTERM, stop)
                while process.poll() is None:
                    with suppress(TimeoutError):
                        if b"READY=1" in notices.recv(4096).split(b"\n") and not started.closed:
                            started.write(b"1")
                            started.close()
            started.close()  # whoever waits hears that it has died instead
            time.sleep(0 if stopped else _seconds(self._says["RestartSec"][0]))
        for line in self._says["ExecStopPost"]:
            self._run(line).wait()
        self._supervisor.unlink()
        os._exit(0)

    def _run(self, line: str, *environment: str) -> subprocess.Popen[bytes]:
        """Start a command of the unit."""
        user = self._says["User"][0]
        for kind, parent in (("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run")):
            for name in self._says[kind]:
                directory = Path(parent, name)
                directory.mkdir(exist_ok=True)
                directory.chmod(int(self._says[f"{kind}Mode"][0], 8))
                shutil.chown(directory, user, user)
        rights = ",".join(
            f"+{right.removeprefix('CAP_').lower()}" for right in self._says["AmbientCapabilities"][0].split()
        )
        return subprocess.Popen(
            [
                "setpriv",
                f"--reuid={user}",
                f"--regid={user}",
                "--clear-groups",
                "--no-new-privs",
                f"--inh-caps={rights}",
                f"--ambient-caps={rights}",
                "env",
                *self._says["Environment"],
                *environment,
                *shlex.split(line),
            ],
            umask=int(self._says["UMask"][0], 8),
            cwd="/",
            stdin=subprocess.DEVNULL,
        )


def _seconds(text: str) -> float:
    return float(text.removesuffix("ms")) / 1000 if text.endswith("ms") else float(text)


def main(verb: str, *words: str) -> None:
    """Do as systemctl does."""
    RUN.mkdir(exist_ok=True)
    units = [Unit(word) for word in words if not word.startswith("-")]
    if verb == "try-restart":
        units = [unit for unit in units if unit.runs]
    for unit in units:
        match verb:
            case "start":
                unit.start()
            case "stop" | "restart" | "try-restart":
                unit.stop()
            case "reload":
                unit.reload()
            case "kill":
                unit.kill(words[0].removeprefix("--signal="))
    for unit in units if verb.endswith("restart") else ():
        unit.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
