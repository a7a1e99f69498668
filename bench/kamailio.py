"""A Kamailio as Debian has it: its processes, and what it holds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
MODULES = "/usr/lib/x86_64-linux-gnu/kamailio/modules:/usr/lib/aarch64-linux-gnu/kamailio/modules"

PATIENCE = 30.0
"""How long anything may take, in seconds."""

_ENDING = 5.0


@dataclass
class Kamailio:
    """One instance, which receives UDP at `host` and `more_addresses` with so many workers; see kamailio.cfg.

    It uses the quick allocator: Debian's default is one for finding faults, which takes up to four times the CPU time.
    """

    directory: Path
    host: str
    workers: int = 2
    defines: Mapping[str, str] = field(default_factory=dict)
    more_addresses: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        defines = {"CTL": f'"unix:{self._control}"', **self.defines}
        addresses = [f"udp:{host}:5060" for host in (self.host, *self.more_addresses)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.launcher,
                    *("kamailio", "-f", str(HERE / "kamailio.cfg"), "-L", MODULES, "-DD", "-E", "-x", "fm", "-X", "fm"),
                    *("-n", str(self.workers), "-m", "1024", "-M", "16"),
                    *("-Y", str(self.directory), "-P", str(self.directory / "pid")),
                    *(word for name, value in defines.items() for word in ("-A", f"{name}={value}" if value else name)),
                    *(word for address in addresses for word in ("-l", address)),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"},
            )
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise KamailioError(f"Kamailio at {self.host} doesn't answer; its log ends with\n{self._log()}")
            time.sleep(0.1)

    def answers(self) -> bool:
        """Return True if it answers an OPTIONS within a second."""
        return subprocess.run([*self.launcher, str(HERE / "check-sip"), self.host, "1"], check=False).returncode == 0

    def cseq(self, user: str) -> int:
        """The CSeq of a user's newest contact, or 0 if there is none."""
        command = ["kamcmd", "-s", f"unix:{self._control}", "ul.lookup", "location", user]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return max((int(number) for number in re.findall(r"CSeq: (\d+)", output)), default=0)

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

    @property
    def _control(self) -> Path:
        return self.directory / "ctl"

    def _log(self) -> str:
        return "\n".join((self.directory / "log").read_text(errors="replace").splitlines()[-15:])


class KamailioError(Exception):
    """A Kamailio doesn't run as it should."""
