"""A registrar of somebody else: its processes, whether it answers, and what it holds."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PATH = f"{os.environ['PATH']}:/usr/sbin"
"""Where registrars are looked for."""

PATIENCE = 30.0
"""How long anything may take, in seconds."""

_ENDING = 5.0


@dataclass
class Daemon:
    """One instance at `host`, in a process group of its own; `launcher` are the words before its command."""

    directory: Path
    host: str
    workers: int = 2
    launcher: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """The words that start it; it stays in the foreground, and logs to its standard error."""
        raise NotImplementedError

    def cseq(self, user: str) -> int:
        """The CSeq of a user's newest contact, or 0 if there is none."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.launcher, *self.command()],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PATH": PATH},
            )
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                name = type(self).__name__
                raise DaemonError(f"{name} at {self.host} doesn't answer; its log ends with\n{self._log()}")
            time.sleep(0.1)

    def answers(self) -> bool:
        """Return True if it answers an OPTIONS within a second."""
        return subprocess.run([*self.launcher, str(HERE / "check-sip"), self.host, "1"], check=False).returncode == 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """End it, in order if it does so within a few seconds."""
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_ENDING)
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def _log(self) -> str:
        return "\n".join((self.directory / "log").read_text(errors="replace").splitlines()[-15:])


class DaemonError(Exception):
    """A registrar doesn't run as it should."""
