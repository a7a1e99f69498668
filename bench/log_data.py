"""Data directories made beforehand: a log to be replayed, and a snapshot of many bindings.

    python -m bench.log_data [--phones HOST] FILE CLUSTER-ID BINDINGS a=127.0.0.1:7001 ...

writes a snapshot; it is a process of its own because its memory should go with it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.load import DOMAIN, PASSWORD
from bench.log_figures import record
from sipha.cluster import founding
from sipha.cluster.guards import REGULAR
from sipha.cluster.seal import seal
from sipha.cluster.storage import Progress, Storage
from sipha.sip.digest import ha1
from sipha.state.entries import (
    SCHEMA,
    Batch,
    Contact,
    Member,
    Policy,
    PutAccount,
    PutMembers,
    RaiseSchema,
    Record,
    Register,
    encode,
)
from sipha.state.machine import Machine

BOOT = "bench"
"""The name of the machine's run, as all nodes are told."""

_FOUNDED = 3
"""The last entry of a founder's log."""

_REGISTERING = 1_800_000
"""Milliseconds over which the phones of a snapshot registered."""

_GROUP = 100
_AT_ONCE = 1000


def write_log(directory: Path, node: str, entries: int) -> int:
    """Put entries of one record behind a founder's, all committed; return the index of the last."""
    with founding.taken(directory) as disk:
        storage = Storage.open(disk, node, sync=True, snapshot=None)
        journal = storage.journal
        last = _FOUNDED + entries
        for index in range(_FOUNDED + 1, last + 1):
            journal.add(bytes([REGULAR]) + _batch(record(index, entries)), index, 1)
            if not index % _AT_ONCE:
                journal.sync_now()
        journal.close()
        disk.replace("progress", seal(Progress(last, BOOT, 0.0, 0)))
    return last


def add_snapshot(directory: Path, node: str, snapshot: Path, index: int) -> None:
    """Let a founder's log follow a snapshot."""
    os.link(snapshot, directory / f"snapshot-{index:020d}")
    with founding.taken(directory) as disk:
        storage = Storage.open(disk, node, sync=True, snapshot=(index, 1))
        storage.journal.close()


def make_snapshot(
    file: Path, cluster_id: str, bindings: int, voters: Mapping[str, str], phones: tuple[str, str] | None = None
) -> int:
    """Write a snapshot of a cluster with so many bindings; return its index.

    `phones` are the addresses of regload and of its server, if the bindings are those of its users, who have accounts
    then.
    """
    pairs = [f"{name}={address}" for name, address in voters.items()]
    whose = ["--phones", *phones] if phones else []
    command = [sys.executable, "-m", "bench.log_data", *whose, str(file), cluster_id, str(bindings), *pairs]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _batch(*records: Record, time: int = 0) -> bytes:
    return encode(Batch(SCHEMA, time, Policy(), records))


def _user(number: int, host: str, server: str) -> tuple[Record, Record]:
    """The account of a user of regload, and the REGISTER before the first that it sends to a server."""
    user = f"u{number:08}"
    contact = Contact(f"sip:{user}@{host}:5999;transport=udp", 3600)
    return (
        PutAccount(user, DOMAIN, user, DOMAIN, {"MD5": ha1("MD5", user, DOMAIN, PASSWORD)}),
        Register(
            f"sip:{user}@{DOMAIN}",
            f"c{number:08}-0@ua.{DOMAIN}",
            0,
            (contact,),
            received=f"sip:{host}:5999;transport=udp",
            socket=f"udp:{server}:5060",
            user_agent="regload/2",
        ),
    )


def main() -> None:
    """Write a snapshot and print its index."""
    parser = argparse.ArgumentParser(prog="bench.log_data", description="Write a snapshot of many bindings.")
    parser.add_argument(
        "--phones", nargs=2, metavar=("HOST", "SERVER"), help="the bindings are those of regload's users there"
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("cluster_id")
    parser.add_argument("bindings", type=int)
    parser.add_argument("voters", nargs="+", help="NAME=ADDRESS")
    options = parser.parse_args()
    bindings, phones = options.bindings, options.phones
    machine = Machine()
    members = tuple(Member(name, address, "voter") for name, address in (voter.split("=") for voter in options.voters))
    machine.apply(2, _batch(PutMembers(members)))
    machine.apply(_FOUNDED, _batch(RaiseSchema(SCHEMA)))
    for first in range(0, bindings, _GROUP):
        numbers = range(first, min(first + _GROUP, bindings))
        records = [
            one for number in numbers for one in (_user(number, *phones) if phones else (record(number, bindings),))
        ]
        machine.apply(machine.index + 1, _batch(*records, time=first * _REGISTERING // bindings))
    with options.file.open("wb") as out:
        for chunk in machine.freeze(1, options.cluster_id):
            out.write(chunk)
    print(machine.index)


if __name__ == "__main__":
    main()
