"""One process, no replication: the way of a REGISTER from the socket to the state and back, to profile it.

    .venv/bin/python -m bench.micro [--seconds 5] [--profile] [--parse]

The log is the machine itself, applied once per reactor turn. The process runs on core 0, the load on core 1.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react
from twisted.internet.utils import getProcessOutput
from zope.interface import implementer

from bench.load import LOAD_CORE, build, pinned, read_report
from sipha.auth.authenticator import Authenticator
from sipha.auth.domain import Domain, Domains
from sipha.cluster.proposals import Done, Tell, tell_each
from sipha.nat.detection import DEFAULT, make_detection
from sipha.registrar.registrar import Registrar
from sipha.registrar.registry import Registry
from sipha.sip.digest import ha1
from sipha.sip.events import Event, RequestReceived
from sipha.sip.layer import TransactionLayer
from sipha.sip.token import Tokens
from sipha.state.accounts import Account
from sipha.state.binding import Binding
from sipha.state.entries import SCHEMA, Batch, Policy, PutAccount, Record, encode
from sipha.state.interfaces import IBatchLog, ICredentials, ILocation
from sipha.state.machine import Machine
from sipha.transport.endpoint import Endpoint
from sipha.transport.interfaces import ITransactionUser
from sipha.transport.listeners import Listeners
from sipha.transport.sockets import Listener

DOMAIN = "sipha.test"
PASSWORD = "secret"


@implementer(IBatchLog, ILocation, ICredentials)
class MemoryLog:
    """A log without peers: what is proposed in one turn of the reactor is applied as one entry at its end."""

    def __init__(self, reactor: Any) -> None:
        self.machine = Machine()
        self._reactor = reactor
        self._waiting: list[tuple[Record, Any, Tell]] = []

    def propose(self, record: Record, done: Done) -> None:
        """See ILog."""
        self.propose_all([(record, done)], tell_each)

    def propose_all(self, records: Sequence[tuple[Record, Any]], tell: Tell) -> None:
        """See IBatchLog."""
        if not self._waiting:
            self._reactor.callLater(0, self.apply)
        self._waiting += [(record, waiting, tell) for record, waiting in records]

    def apply(self) -> None:
        """Apply what waits."""
        proposals, self._waiting = self._waiting, []
        records = tuple(record for record, _, _ in proposals)
        entry = encode(Batch(SCHEMA, int(self.cluster_time() * 1000), Policy(), records))
        applied = zip(proposals, self.machine.apply(self.machine.index + 1, entry), strict=True)
        for tell, those in groupby(applied, lambda each: each[0][2]):
            tell([(waiting, outcome) for (_, waiting, _), outcome in those])

    def cluster_time(self) -> float:
        """See ILog."""
        return time.monotonic()

    def lookup(self, aor: str) -> Sequence[Binding]:
        """See ILocation."""
        return self.machine.location.lookup(aor, int(self.cluster_time() * 1000))

    def bindings(self, aor: str) -> Sequence[Binding]:
        """See ILocation."""
        return self.machine.location.bindings(aor, int(self.cluster_time() * 1000))

    def credential(self, auth_name: str, realm: str) -> Account | None:
        """See ICredentials."""
        return self.machine.accounts.credential(auth_name, realm)

    def known(self, aor: str) -> bool:
        """See ICredentials."""
        return self.machine.accounts.known(aor)


@implementer(ITransactionUser)
class RegistrarOnly:
    """Hands each request to the registrar."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    def event_received(self, event: Event, now: float) -> None:
        """See ITransactionUser."""
        if isinstance(event, RequestReceived):
            self._registrar.request_received(event.request, event.flow, now)


async def measure(reactor: Any, options: argparse.Namespace) -> None:
    """Serve REGISTERs for a while and print what one costs."""
    generators = build()
    log = MemoryLog(reactor)
    tokens = Tokens({1: bytes(32)})
    domain = Domain(DOMAIN, DOMAIN, algorithms=("MD5",))
    domains = Domains([domain])
    authenticator = Authenticator(log, lambda: tokens, domains)
    registry = Registry(log, log, authenticator)
    listeners = Listeners(reactor, [Listener("UDP", "127.0.0.1", 0)])
    endpoint = Endpoint(reactor, TransactionLayer(), listeners, before_sending=registry.propose)
    registrar = Registrar(
        registry,
        log,
        authenticator,
        domains,
        cluster_time=log.cluster_time,
        term=lambda: 1,
        send=endpoint.send_all,
        is_behind_nat=make_detection(DEFAULT),
    )
    for number in range(options.users):
        user = f"u{number:08}"
        hashes = {"MD5": ha1("MD5", user, DOMAIN, PASSWORD)}
        log.propose(PutAccount(user, DOMAIN, user, DOMAIN, hashes), lambda _: None)
    log.apply()
    await endpoint.start(RegistrarOnly(registrar), None if options.parse else registrar.datagram_received)
    [listener] = listeners.addresses
    command = [str(generators / "regload"), "-t", f"127.0.0.1:{listener.port}", "-d", DOMAIN, "-a", PASSWORD, "-R"]
    command += ["-n", str(options.users), "-w", str(options.window)]

    async def load(*more: str) -> tuple[dict[str, float], float]:
        before = time.process_time()
        executable, *arguments = pinned(LOAD_CORE, [*command, *more])
        output = await getProcessOutput(executable, arguments, os.environ, reactor=reactor)
        return read_report(output.decode()), time.process_time() - before

    report, cpu = await load("-N", str(options.users), "-c", "1")
    _show("first REGISTER", report, cpu)
    profile = cProfile.Profile() if options.profile else None
    if profile is not None:
        profile.enable()
    report, cpu = await load("-N", "100000000", "-D", str(options.seconds), "-c", "1000")
    if profile is not None:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    _show("refresh" + (" (profiled)" if profile else ""), report, cpu)
    print("counters:", dict(endpoint.counters), registrar.counters)
    await endpoint.stop()


def _show(name: str, report: dict[str, float], cpu: float) -> None:
    each = cpu / max(report["ok"], 1) * 1e6
    latency = f"p50 {report['p50us']:.0f} µs, p99 {report['p99us']:.0f} µs"
    failed = report["bad"] + report["timeout"]
    print(
        f"{name}: {report['rate']:.0f}/s, {each:.1f} µs CPU each, {latency}, {failed:.0f} of {report['ok']:.0f} failed"
    )


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(prog="bench.micro", description="Measure a REGISTER in one process.")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--users", type=int, default=10000)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--parse", action="store_true", help="parse each message, none is read at a glance")
    parser.add_argument("--profile", action="store_true", help="print where the time goes; it costs time itself")
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    react(lambda reactor: ensureDeferred(measure(reactor, options)))


if __name__ == "__main__":
    main()
