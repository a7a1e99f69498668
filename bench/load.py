"""The load generators: built from their sources beside this file, pinned to a core, put upon a server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from bench.tree import Tree, precedence

HERE = Path(__file__).parent
LOAD_CORE = 1
DOMAIN = "sipha.test"
PASSWORD = "secret"

_ROOM = 16_384
_ENDLESS = 100_000_000
_SAMPLE = 40


class Server(Protocol):
    """What load is put upon."""

    name: str
    guarantee: str
    """What a 200 OK to a REGISTER means."""
    load_host: str
    """The address of the phones."""
    window: int
    """With so many requests under way it does best."""
    told_later: frozenset[str]
    """The places that are told of a binding after it was acknowledged, and so may never have it."""

    @property
    def target(self) -> str:
        """Its address; the port is 5060."""

    def start(self) -> None:
        """Start it."""

    def stop(self) -> None:
        """End it."""

    def add_users(self, number: int) -> None:
        """Let u00000000 and up register, so many."""

    def logs(self) -> Sequence[Path]:
        """Where it says what goes wrong."""

    def trees(self) -> Mapping[str, Tree]:
        """All its processes, by what they are now; raises BenchError if some have ended."""

    def cseqs(self, users: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        """For each place that should have them, the CSeqs with which users' bindings were made."""


@dataclass(frozen=True)
class Sample:
    """What a load came to: a rate a second; microseconds of latency; CPU time of each process for each request, in µs.

    `generator` is the share of its core that the generator had: what comes near to 1 was limited by it.
    """

    rate: float
    ok: int
    failed: int
    p50_us: float
    p99_us: float
    cpu_us: dict[str, float]
    generator: float

    @property
    def cost(self) -> float:
        """The CPU time of all processes for each request, in µs."""
        return sum(self.cpu_us.values())


class Load:
    """Phones of one server, u00000000 and up, whose CSeqs rise from one load to the next.

    Replicas may have what was acknowledged some seconds later, at most `patience`.
    """

    def __init__(self, server: Server, patience: float = 15.0) -> None:
        self.server = server
        self._patience = patience
        self._generators = build()
        # Of a REGISTER with an old CSeq nothing comes, which is quickly done.
        self._cseq = 1

    def register(
        self,
        *options: str,
        users: range,
        count: int = _ENDLESS,
        seconds: float = 300.0,
        rate: float | None = None,
        window: int | None = None,
        reuse: bool = True,
        port: int = 5999,
        shuffled: bool = False,
    ) -> Sample:
        """REGISTERs of users in turns or `shuffled`, `count` or for some seconds, at a rate or as many as go.

        With `reuse` they have credentials of a challenge before; `port` is the phones' and their contacts', so that
        who registers again from it only refreshes. A part of what was acknowledged is looked for in all places that
        should have it; raises BenchError where it isn't, unless that is a place told later, whose lack is a failure.
        """
        first_cseq, self._cseq = self._cseq, self._cseq + 1_000_000
        acknowledged = os.memfd_create("acknowledged")  # no disk, whose syncs are measured
        try:
            sample = self._run(
                "regload",
                *("-C", f"{self.server.load_host}:{port}", "-P", str(port), "-c", str(first_cseq)),
                *("-s", str(users.start), "-n", str(len(users)), "-N", str(count), "-D", f"{seconds:g}"),
                *(offered(rate) if rate else ("-w", str(window or self.server.window))),
                *(("-R",) if reuse else ()),
                *(("-S",) if shuffled else ()),
                *("-o", f"/proc/{os.getpid()}/fd/{acknowledged}"),
                *options,
            )
            with open(acknowledged, closefd=False) as lines:
                numbers = sorted({line.partition(" ")[0] for line in lines})
        finally:
            os.close(acknowledged)
        some = [f"u{int(number):08}" for number in numbers[:: max(1, len(numbers) // _SAMPLE)]]
        return replace(sample, failed=sample.failed + self._lost(some, first_cseq))

    def call(self, *, users: int, seconds: float, rate: float | None = None) -> Sample:
        """Calls between users; the latency is that of the 200 to the INVITE."""
        how = ("-r", f"{rate:.0f}") if rate else ("-w", "32")
        return self._run("callgen", "-n", str(users), "-N", str(_ENDLESS), "-D", f"{seconds:g}", *how)

    def _run(self, generator: str, *options: str) -> Sample:
        server = self.server
        common = ("-t", f"{server.target}:5060", "-b", server.load_host, "-d", DOMAIN, "-a", PASSWORD)
        command = pinned(LOAD_CORE, [str(self._generators / generator), *common, *options])
        trees = server.trees()
        before = {name: tree.cpu() for name, tree in trees.items()}
        with precedence(pid for tree in trees.values() for pid in tree.pids()):
            output = run_ahead(command)
        spent = {name: tree.cpu() - before[name] for name, tree in trees.items()}
        if server.trees() != trees:
            raise BenchError(f"{server.name}: another leads than before, or a process is another")
        report = read_report(output)
        each = max(report["ok"], 1)
        failed = int(report["bad"] + report["timeout"] + report["ovf"])
        if failed:
            print(f"  {server.name}: {output.strip()}", file=sys.stderr, flush=True)
        return Sample(
            rate=report["rate"],
            ok=int(report["ok"]),
            failed=failed,
            p50_us=report["p50us"],
            p99_us=report["p99us"],
            cpu_us={name: round(seconds / each * 1e6, 2) for name, seconds in spent.items()},
            generator=round(report["gencpu"] / max(report["secs"], 0.001), 3),
        )

    def _lost(self, users: Sequence[str], cseq: int) -> int:
        """How many of the users' bindings a place that is told later lacks, having had the time to hear of them."""
        deadline = time.monotonic() + self._patience
        while True:
            found = self.server.cseqs(users)
            lacking = {
                place: missing
                for place, made in found.items()
                if (missing := {user for user in users if made.get(user, 0) < cseq})
            }
            if not lacking:
                return 0
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)  # replicas may apply what they have a little later
        where = f"{self.server.name}: acknowledged, but not there: {lacking}"
        if not lacking.keys() <= self.server.told_later:
            raise BenchError(where)
        print(f"  {where}", file=sys.stderr, flush=True)
        return len(set.union(*lacking.values()))


def run_ahead(command: list[str], **environment: str) -> str:
    """Run a command in a session of its own that has precedence, and return what it prints."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | environment, start_new_session=True
    ) as process:
        try:
            with precedence([process.pid]):
                output, _ = process.communicate(timeout=600)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise BenchError(f"{' '.join(command[:4])} ends with status {process.returncode}")
    return output


def build() -> Path:
    """Compile both generators unless they are newer than their sources; return the directory they are in.

    Another process may build them at the same time: what is there is whole.
    """
    directory = HERE / "build"
    directory.mkdir(exist_ok=True)
    for name in ("regload", "callgen"):
        made, sources = directory / name, (HERE / f"{name}.c", HERE / "sipload.h")
        if not made.exists() or any(source.stat().st_mtime > made.stat().st_mtime for source in sources):
            # OpenSSL calls MD5 deprecated; digest authentication needs it.
            flags = ["-O2", "-Wall", "-Wno-deprecated-declarations"]
            with TemporaryDirectory(dir=directory) as apart:
                whole = Path(apart) / name
                subprocess.run(["cc", *flags, "-o", str(whole), str(sources[0]), "-lcrypto"], check=True)
                whole.replace(made)
    return directory


def offered(rate: float) -> tuple[str, ...]:
    """The options of regload for so many a second, however many of them are under way."""
    return ("-r", f"{rate:.0f}", "-w", str(int(4 * rate) + _ROOM))


def pinned(core: int, command: list[str]) -> list[str]:
    """The command, to be run on one core."""
    return ["taskset", "-c", str(core), *command]


def read_report(output: str) -> dict[str, float]:
    """What a generator reports, by name: counts, seconds, microseconds."""
    return {name: float(value) for name, _, value in (field.partition("=") for field in output.split())}


class BenchError(Exception):
    """What was measured didn't do what it should, so that its figures would say nothing."""
