"""Three real nodes under load: rates, latencies, CPU time and memory, as one table and as JSON.

    make bench            about six minutes
    make bench QUICK=1    under three

The leader has core 0 to itself; the followers and the load share core 1. CPU time is that of the kernel's scheduler
(/proc/PID/task/*/schedstat), so it is what a request costs even where another process was in the way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.load import HERE, LOAD_CORE, build, pinned, read_report
from sipha.sandbox import Sandbox, SandboxError, SandboxNode

GUARANTEES = {
    "fsync": "200 OK once the entry is applied: it is on the disks of two nodes of three (fsync), which talk under TLS",
    "os": "200 OK once the entry is applied: two kernels of three have it (no fsync); the nodes talk under TLS",
}
PATIENT = "election_min = 2.0\nelection_max = 4.0"
"""What else this machine does must not end the leader's lease in the midst of a measurement."""

PASSWORD = "secret"
LEADER_CORE = 0
ACCOUNTS_AT_ONCE = 1000
OVERLOAD = 2
WINDOW = 16_384


@dataclass(frozen=True)
class Plan:
    """How much is measured: accounts, users under load, users in calls, and seconds for each row."""

    accounts: int = 100_000
    users: int = 10_000
    callers: int = 1_000
    seconds: float = 15.0


QUICK = Plan(accounts=20_000, seconds=6.0)


@dataclass
class Row:
    """What one measurement gave: a rate a second, microseconds of CPU for each, microseconds of latency."""

    name: str
    rate: float
    ok: int
    failed: int
    leader_us: float
    follower_us: float
    p50_us: float
    p99_us: float


@dataclass
class Result:
    """All that was measured."""

    machine: str
    python: str
    guarantee: str
    plan: Plan
    accounts_per_second: float = 0.0
    bytes_per_binding: dict[str, int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    agreed: bool = False


class Bench:
    """A running cluster, and the load upon it."""

    def __init__(self, sandbox: Sandbox, plan: Plan) -> None:
        self.sandbox = sandbox
        self.plan = plan
        self.generators = build()
        self.load_host = f"{sandbox.prefix}.200"
        self._cseq = 1
        self._lead()

    def load_accounts(self) -> float:
        """Create the accounts u00000000 and up; return how many a second."""
        began = time.monotonic()
        create_accounts(self.sandbox, self.leader, self.plan.accounts)
        return self.plan.accounts / (time.monotonic() - began)

    def register(self, name: str, *options: str, users: int | None = None, reuse: bool = True) -> Row:
        """REGISTERs from regload."""
        # Each run's CSeqs are higher than any before, or its REGISTERs would be stale.
        first_cseq, self._cseq = self._cseq, self._cseq + 1_000_000
        command = [
            "regload",
            "-C",
            f"{self.load_host}:5999",
            "-c",
            str(first_cseq),
            "-n",
            str(users or self.plan.users),
        ]
        return self._measure(name, [*command, *(["-R"] if reuse else []), *options])

    def storm(self, name: str) -> Row:
        """All users at once, as phones after a power cut, with a challenge each: the rate is that to the last 200."""
        phones = self.plan.accounts
        return self.register(
            name,
            *("-N", str(phones), "-w", str(phones), "-x", "-p", "-T", "32000", "-D", "120"),
            users=phones,
            reuse=False,
        )

    def restart(self) -> None:
        """Kill all nodes, and start them again."""
        for node in self.sandbox.nodes:
            self.sandbox.kill(node)
        for node in self.sandbox.nodes:
            self.sandbox.start_node(node)
        self._lead()

    def call(self, name: str, *options: str) -> Row:
        """Calls from callgen; their latency is that of the 200 to the INVITE."""
        return self._measure(name, ["callgen", "-n", str(self.plan.callers), *options])

    def memory(self) -> dict[str, int]:
        """The resident memory of each node's own in bytes."""
        return {node.name: resident(node) for node in self.sandbox.nodes}

    def agreed(self) -> bool:
        """True once all nodes have applied as much and have the same hash."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            seen = [self.sandbox.status(node) for node in self.sandbox.nodes]
            if len({(status["applied_index"], status["hash"]) if status else None for status in seen}) == 1:
                return None not in seen
            time.sleep(0.2)
        return False

    def _lead(self) -> None:
        """Find out who leads, and pin the nodes accordingly."""
        self.leader = self.sandbox.wait_for_leader()
        self.followers = [node for node in self.sandbox.nodes if node is not self.leader]
        _pin(self.leader, LEADER_CORE)
        for node in self.followers:
            _pin(node, LOAD_CORE)

    def _measure(self, name: str, command: list[str]) -> Row:
        generator, *options = command
        common = ["-t", f"{self.sandbox.virtual_address}:5060", "-b", self.load_host, "-d", self.sandbox.domain]
        executable = str(self.generators / generator)
        before = {node.name: _cpu_ns(node) for node in self.sandbox.nodes}
        output = subprocess.run(
            pinned(LOAD_CORE, [executable, *common, "-a", PASSWORD, *options]),
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        ).stdout
        spent = {node.name: _cpu_ns(node) - before[node.name] for node in self.sandbox.nodes}
        report = read_report(output)
        if self.sandbox.leader() is not self.leader:
            raise SandboxError(f"{name}: {self.leader.name} lost the lead under load")
        each = 1000 * max(report["ok"], 1)
        row = Row(
            name=name,
            rate=report["rate"],
            ok=int(report["ok"]),
            failed=int(report["bad"] + report["timeout"]),
            leader_us=spent[self.leader.name] / each,
            follower_us=sum(spent[node.name] for node in self.followers) / len(self.followers) / each,
            p50_us=report["p50us"],
            p99_us=report["p99us"],
        )
        print(f"  {row.name}: {row.rate:.0f}/s, leader {row.leader_us:.1f} µs", file=sys.stderr, flush=True)
        if row.failed:
            print(f"    {output.strip()}", file=sys.stderr, flush=True)
        return row


def create_accounts(sandbox: Sandbox, leader: SandboxNode, number: int) -> None:
    """Create the accounts u00000000 and up, as far as they don't exist."""
    for first in range(0, number, ACCOUNTS_AT_ONCE):
        accounts = [
            {"username": f"u{each:08}", "domain": sandbox.domain, "password": PASSWORD}
            for each in range(first, min(first + ACCOUNTS_AT_ONCE, number))
        ]
        while accounts:  # 503: the machine was held up, and the leader could not be sure of a majority
            results = sandbox.request(leader, "POST", "/v1/accounts", accounts)["results"]
            accounts = [one for one, result in zip(accounts, results, strict=True) if result["status"] == 503]
            if any(result["status"] not in {201, 409, 503} for result in results):
                raise SandboxError(f"accounts can't be created: {results}")


def measure(bench: Bench, result: Result) -> None:
    """Take all measurements."""
    plan, seconds = bench.plan, ("-N", "100000000", "-D", f"{bench.plan.seconds:g}")
    result.accounts_per_second = bench.load_accounts()
    before = bench.memory()
    result.rows.append(
        bench.register(
            f"first REGISTER with its 401, {plan.accounts} phones",
            *("-N", str(plan.accounts), "-D", "300", "-w", "128"),
            users=plan.accounts,
            reuse=False,
        )
    )
    time.sleep(1)  # the followers apply the last entries
    after = bench.memory()
    result.bytes_per_binding = {name: (now - before[name]) // plan.accounts for name, now in after.items()}
    result.rows += [
        most := bench.register("REGISTER, nonce reused, as fast as it goes", *seconds, "-w", "256"),
        bench.register("REGISTER, offered twice as fast", *seconds, *offered(OVERLOAD * most.rate)),
        bench.register("REGISTER, one at a time", *seconds, "-w", "1"),
        bench.register("REGISTER at 100/s", *seconds, "-r", "100"),
        bench.register("REGISTER at 1000/s", *seconds, "-r", "1000"),
        bench.register("REGISTER without Contact (query)", *seconds, "-w", "128", "-m", "query"),
        bench.call("call (INVITE 180 200 ACK BYE 200)", *seconds, "-w", "32"),
        bench.call("calls at 100/s", *seconds, "-r", "100"),
    ]
    bench.restart()
    result.rows.append(bench.storm(f"all {plan.accounts} phones at once, after all nodes were killed"))
    result.agreed = bench.agreed()


def offered(rate: float) -> tuple[str, ...]:
    """The options of regload for so many a second, however many of them are under way."""
    return ("-r", f"{rate:.0f}", "-w", str(int(4 * rate) + WINDOW))


def render(result: Result) -> str:
    """The table."""
    head = ("", "rate/s", "leader µs", "follower µs", "p50 ms", "p99 ms", "failed")
    lines = [
        (
            row.name,
            f"{row.rate:,.0f}",
            f"{row.leader_us:.1f}",
            f"{row.follower_us:.1f}",
            f"{row.p50_us / 1000:.2f}",
            f"{row.p99_us / 1000:.2f}",
            str(row.failed),
        )
        for row in result.rows
    ]
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    table = []
    for name, *cells in (head, *lines):
        columns = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        table.append("  ".join(columns))
    memory = ", ".join(f"{name} {size} B" for name, size in result.bytes_per_binding.items())
    return "\n".join(
        (
            f"sipha, three nodes, leader on core {LEADER_CORE}; µs are CPU time of a node for each request or call",
            f"guarantee: {result.guarantee}",
            f"{result.machine}; Python {result.python}",
            "",
            *table,
            "",
            f"memory per binding at {result.plan.accounts:,}, the end of the log (up to 32 MiB) included: {memory}",
            f"accounts created through the admin: {result.accounts_per_second:,.0f}/s",
            f"tables of the three nodes agree: {'yes' if result.agreed else 'NO'}",
        )
    )


@contextmanager
def cluster(durability: str) -> Iterator[Sandbox]:
    """Three nodes in a directory of their own, which goes with them."""
    with tempfile.TemporaryDirectory(prefix="sipha-bench-") as directory:
        settings = f'durability = "{durability}"\n{PATIENT}'
        # The load's contacts look as if they were behind NAT, and the peers don't ping them either.
        quiet = '[nat]\nping_scope = "none"'
        sandbox = Sandbox(Path(directory), prefix="127.0.7", tls=True, cluster=settings, extra=quiet)
        try:
            sandbox.start()
            yield sandbox
        except BaseException:
            for node in sandbox.nodes:
                log = node.directory / "log"
                print(f"-- {log}", *_tail(log), sep="\n", file=sys.stderr)
            raise
        finally:
            sandbox.stop()


def _tail(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-15:] if path.exists() else []


def _pin(node: SandboxNode, core: int) -> None:
    for task in _tasks(node):
        os.sched_setaffinity(int(task.name), {core})


def _tasks(node: SandboxNode) -> Iterator[Path]:
    assert node.process is not None
    return Path(f"/proc/{node.process.pid}/task").iterdir()


def _cpu_ns(node: SandboxNode) -> int:
    return sum(int((task / "schedstat").read_text().split()[0]) for task in _tasks(node))


def resident(node: SandboxNode) -> int:
    """The memory of a node that is its own, in bytes."""
    assert node.process is not None
    _, pages, shared, *_ = Path(f"/proc/{node.process.pid}/statm").read_text().split()
    return (int(pages) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _machine() -> str:
    cpu: dict[str, Any] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        cpu.setdefault(name.strip(), value.strip())
    return f"{cpu.get('model name', platform.machine())}, {os.cpu_count()} cores"


def main() -> int:
    """Run the benchmark; 1 if it could not be, or if the nodes' tables differ."""
    parser = argparse.ArgumentParser(prog="bench.run", description="Measure sipha on three nodes.")
    parser.add_argument("--durability", choices=sorted(GUARANTEES), default="fsync", help="cluster.durability (fsync)")
    parser.add_argument("--quick", action="store_true", help="shorter, with fewer accounts")
    parser.add_argument("--json", type=Path, default=HERE / "build" / "result.json", help="where the figures go")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        print("bench: needs two cores, one for the leader and one for the load", file=sys.stderr)
        return 1
    os.sched_setaffinity(0, {LOAD_CORE})
    plan = QUICK if options.quick else Plan()
    result = Result(_machine(), platform.python_version(), GUARANTEES[options.durability], plan)
    try:
        with cluster(options.durability) as sandbox:
            measure(Bench(sandbox, plan), result)
    except SandboxError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(render(result))
    options.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return 0 if result.agreed else 1


if __name__ == "__main__":
    sys.exit(main())
