from __future__ import annotations

import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import repeat
from pathlib import Path

import pytest

from bench import load
from bench.load import BenchError, Load, read_report, run_ahead
from bench.tree import Tree

# Of this process alone: others may run these tests beside it.
HOST, PHONES = (f"127.{net}.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}" for net in (91, 92))


class Registrar(threading.Thread):
    """Answers each REGISTER with 200, and keeps what it says in all places but those that it `forgets`."""

    name = "registrar"
    guarantee = "none"
    target = HOST
    load_host = PHONES
    window = 8
    told_later: frozenset[str] = frozenset()

    def __init__(self, forgets: frozenset[str]) -> None:
        super().__init__(daemon=True)
        self.forgets = forgets
        self.held: dict[str, int] = {}
        self.leaders: Iterator[int] = repeat(os.getpid())
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, 5060))

    def run(self) -> None:
        while True:
            data, source = self.socket.recvfrom(4096)
            if data == b"end":
                return
            message = data.decode()
            fields = [line for line in message.split("\r\n") if re.match("Via|From|To|Call-ID|CSeq", line)]
            user, cseq = re.search(r"To: <sip:(\w+)@", message), re.search(r"CSeq: (\d+)", message)
            assert user is not None
            assert cseq is not None
            self.held[user[1]] = int(cseq[1])
            self.socket.sendto("\r\n".join(["SIP/2.0 200 OK", *fields, "", ""]).encode(), source)

    def trees(self) -> Mapping[str, Tree]:
        return {"leader": Tree(next(self.leaders))}

    def cseqs(self, users: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        held = {user: self.held[user] for user in users}
        return {place: {} if place in self.forgets else held for place in ("here", "there")}

    def add_users(self, number: int) -> None:
        pass

    def logs(self) -> Sequence[Path]:
        return []

    def stop(self) -> None:
        self.socket.sendto(b"end", (HOST, 5060))
        self.join()


@pytest.fixture(params=[frozenset(), frozenset({"there"})], ids=["faithful", "forgetful"])
def registrar(request: pytest.FixtureRequest) -> Iterator[Registrar]:
    registrar = Registrar(request.param)
    with closing(registrar.socket):
        registrar.start()
        yield registrar
        registrar.stop()


def test_load_finds_out_what_was_acknowledged_and_is_not_there(registrar: Registrar) -> None:
    load = Load(registrar, patience=0)
    if registrar.forgets:
        with pytest.raises(BenchError, match=r"acknowledged, but not there: .*'there': .*'u00000007'"):
            load.register(users=range(20), count=20)
    else:
        assert load.register(users=range(20), count=20).ok == 20


def test_load_counts_as_lost_what_a_place_that_is_told_later_lacks(registrar: Registrar) -> None:
    registrar.told_later = frozenset({"there"})
    sample = Load(registrar, patience=0).register(users=range(20), count=20)
    assert (sample.ok, sample.failed) == (20, 20 if registrar.forgets else 0)


def test_load_does_not_excuse_who_acknowledged(registrar: Registrar) -> None:
    registrar.forgets, registrar.told_later = frozenset({"here", "there"}), frozenset({"there"})
    with pytest.raises(BenchError, match=r"acknowledged, but not there: .*'here'"):
        Load(registrar, patience=0).register(users=range(20), count=20)


def test_load_raises_the_cseqs_from_run_to_run(registrar: Registrar) -> None:
    registrar.forgets = frozenset()
    load = Load(registrar, patience=0)
    load.register(users=range(20), count=40)
    first = dict(registrar.held)
    load.register(users=range(20), count=20, shuffled=True)
    changed = {user for user, cseq in registrar.held.items() if cseq != first[user]}
    assert changed
    assert all(registrar.held[user] > first[user] for user in changed)


def test_load_has_one_leader_from_its_beginning_to_its_end(registrar: Registrar) -> None:
    registrar.forgets = frozenset()
    registrar.leaders = iter((os.getpid(), os.getppid()))
    with pytest.raises(BenchError, match="another leads than before"):
        Load(registrar).register(users=range(20), count=20)


def test_report_is_read_by_name() -> None:
    assert read_report("ok=3 rate=1.5\n") == {"ok": 3.0, "rate": 1.5}


def test_command_that_runs_ahead_gives_what_it_prints_or_how_it_ends() -> None:
    said = "import os, sys; print(os.environ['WORD'], os.getsid(0) == os.getpid()); sys.exit(len(sys.argv) - 1)"
    assert run_ahead([sys.executable, "-c", said], WORD="yes") == "yes True\n"
    with pytest.raises(BenchError, match="ends with status 1"):
        run_ahead([sys.executable, "-c", said, "fail"], WORD="yes")


def test_build_shows_no_generator_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != -o ]; do shift; done\n'
        'echo half > "$2"\n'
        f'ls "{tmp_path}/build" >> "{tmp_path}/seen"\n'
        'echo whole > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(load, "HERE", tmp_path)
    for source in ("regload.c", "callgen.c", "sipload.h"):
        (tmp_path / source).touch()
    (tmp_path / "build").mkdir()

    load.build()

    seen = (tmp_path / "seen").read_text().split()
    assert seen.count("regload") == 1  # when the other was compiled, after it
    assert "callgen" not in seen
    assert [(tmp_path / "build" / name).read_text() for name in ("regload", "callgen")] == ["whole\n"] * 2
