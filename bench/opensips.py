"""An OpenSIPS 2, where one is installed."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.daemon import HERE, PATH, Daemon, DaemonError

_ANSWER = 65_535


@dataclass
class OpenSips(Daemon):
    """One instance, which receives UDP at `host` with so many workers; see opensips.cfg."""

    def command(self) -> Sequence[str]:
        """See Daemon."""
        program = find()
        if program is None:
            raise DaemonError("no OpenSIPS 2 is installed")
        modules = next(program.resolve().parents[1].glob("lib*/**/opensips/modules"), None)
        if modules is None:
            raise DaemonError(f"{program} has no modules beside it")
        script = (HERE / "opensips.cfg").read_text()
        head = f'listen=udp:{self.host}:5060\nchildren={self.workers}\nmpath="{modules}/"\n'
        socket_name = f'modparam("mi_datagram", "socket_name", "{self._control}")\n'
        config = self.directory / "opensips.cfg"
        config.write_text(script.replace("# HEAD\n", head).replace("# CONTROL\n", socket_name))
        return [str(program), "-f", str(config), "-F", "-m", "1024", "-M", "16"]

    def cseq(self, user: str) -> int:
        """See Daemon."""
        ours = self.directory / "asking"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            ours.unlink(missing_ok=True)
            asking.bind(str(ours))
            asking.settimeout(5)
            asking.sendto(f":ul_show_contact:\nlocation\n{user}\n".encode(), str(self._control))
            answer = asking.recv(_ANSWER).decode()
        return max((int(number) for number in re.findall(r"Cseq:: (\d+)", answer)), default=0)

    @property
    def _control(self) -> Path:
        return self.directory / "mi"


def find() -> Path | None:
    """Where OpenSIPS is, if it is one whose scripts are those of version 2."""
    program = shutil.which("opensips", path=PATH)
    if program is None:
        return None
    version = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stdout
    return Path(program) if "opensips 2." in version.partition("\n")[0] else None
