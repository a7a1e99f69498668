"""The peers of `make bench` do what they are said to do."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.daemon import PATH
from bench.load import DOMAIN, PASSWORD, Load, build, read_report
from bench.opensips import find
from bench.peers import Peer, in_memory, opensips_in_memory, replicated, written_through
from bench.postgresql import SCHEMA, STANDBYS

pytestmark = [pytest.mark.system, pytest.mark.long]

USERS = range(50)
Make = Callable[[Path, str], Peer]
PLACES: dict[Make, set[str]] = {
    in_memory: {"kamailio"},
    replicated: {"node 1", "node 2", "node 3"},
    written_through: {"kamailio", "primary", *STANDBYS},
    opensips_in_memory: {"opensips"},
}
TOLD_LATER: dict[Make, set[str]] = {replicated: {"node 2", "node 3"}}


@contextmanager
def running(make: Make) -> Iterator[Peer]:
    if make is opensips_in_memory:
        if find() is None:
            pytest.skip("OpenSIPS 2 is missing")
    elif not shutil.which("kamailio", path=PATH):
        pytest.skip("kamailio is missing")
    if make is written_through and not SCHEMA.is_dir():
        pytest.skip("kamailio-postgres-modules is missing")
    # The database's user has to get there.
    with tempfile.TemporaryDirectory(prefix="sipha-peer-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        peer = make(Path(name, "peer"), "127.0.92")
        try:
            peer.start()
            yield peer
        finally:
            peer.stop()


@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
def test_peer_has_what_it_acknowledged_wherever_it_should(make: Make) -> None:
    with running(make) as peer:
        users = [f"u{number:08}" for number in USERS]
        assert not any(cseq for found in peer.cseqs(users).values() for cseq in found.values())
        load = Load(peer)
        first = load.register(users=USERS, count=len(USERS), reuse=False)
        again = load.register(users=USERS, count=len(USERS))
        assert first.ok == again.ok == len(USERS)
        held = peer.cseqs(users)
        assert set(held) == PLACES[make]
        assert peer.told_later == TOLD_LATER.get(make, set())
        for found in held.values():
            assert set(found) == set(users)
            assert all(cseq > 1_000_000 for cseq in found.values())
        assert set(again.cpu_us) >= PLACES[make]
        assert all(cpu > 0 for cpu in again.cpu_us.values())
        call = load.call(users=len(USERS), seconds=0.5, rate=20)
        assert call.ok
        assert not call.failed


@pytest.mark.parametrize("make", [in_memory, opensips_in_memory], ids=lambda make: make.__name__)
def test_peer_wants_credentials(make: Make) -> None:
    with running(make) as peer:
        assert attempt(peer, "wrong")["lastbad"] == 401
        assert attempt(peer, PASSWORD)["ok"] == 1


def test_database_acknowledges_nothing_while_both_standbys_are_frozen() -> None:
    with running(written_through) as peer:
        assert attempt(peer, PASSWORD)["ok"] == 1
        frozen, thawed = (peer.trees()[name] for name in STANDBYS)
        try:
            frozen.signal(signal.SIGSTOP)
            thawed.signal(signal.SIGSTOP)
            assert attempt(peer, PASSWORD, cseq=10)["ok"] == 0
            thawed.signal(signal.SIGCONT)
            assert attempt(peer, PASSWORD, cseq=20)["ok"] == 1
        finally:
            frozen.signal(signal.SIGCONT)
            thawed.signal(signal.SIGCONT)


def attempt(peer: Peer, password: str, cseq: int = 1) -> dict[str, float]:
    """One user's REGISTER, which waits for 2 s."""
    common = ("-t", f"{peer.target}:5060", "-b", peer.load_host, "-d", DOMAIN, "-a", password, "-c", str(cseq))
    command = [str(build() / "regload"), *common, "-C", f"{peer.load_host}:5999", "-n", "1", "-N", "1", "-T", "2000"]
    return read_report(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
