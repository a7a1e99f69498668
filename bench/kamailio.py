"""A Kamailio as Debian has it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.daemon import HERE, Daemon

MODULES = "/usr/lib/x86_64-linux-gnu/kamailio/modules:/usr/lib/aarch64-linux-gnu/kamailio/modules"


@dataclass
class Kamailio(Daemon):
    """One instance, which receives UDP at `host` and `more_addresses` with so many workers; see kamailio.cfg.

    It uses the quick allocator: Debian's default is one for finding faults, which takes up to four times the CPU time.
    """

    defines: Mapping[str, str] = field(default_factory=dict)
    more_addresses: tuple[str, ...] = ()

    def command(self) -> Sequence[str]:
        """See Daemon."""
        defines = {"CTL": f'"unix:{self._control}"', **self.defines}
        addresses = [f"udp:{host}:5060" for host in (self.host, *self.more_addresses)]
        return [
            *("kamailio", "-f", str(HERE / "kamailio.cfg"), "-L", MODULES, "-DD", "-E", "-x", "fm", "-X", "fm"),
            *("-n", str(self.workers), "-m", "1024", "-M", "16"),
            *("-Y", str(self.directory), "-P", str(self.directory / "pid")),
            *(word for name, value in defines.items() for word in ("-A", f"{name}={value}" if value else name)),
            *(word for address in addresses for word in ("-l", address)),
        ]

    def cseq(self, user: str) -> int:
        """See Daemon."""
        command = ["kamcmd", "-s", f"unix:{self._control}", "ul.lookup", "location", user]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return max((int(number) for number in re.findall(r"CSeq: (\d+)", output)), default=0)

    @property
    def _control(self) -> Path:
        return self.directory / "ctl"
