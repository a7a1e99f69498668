"""A PostgreSQL with two standbys, of which one must have each commit on its disk before it is acknowledged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.tree import Tree

PATIENCE = 60.0
"""How long anything may take, in seconds."""

_ENDING = 20.0

SCHEMA = Path("/usr/share/kamailio/postgres")
STANDBYS = ("s1", "s2")
SYNCHRONOUS = f"ANY 1 ({', '.join(STANDBYS)})"

_USER = "postgres"
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_SETTINGS = _DURABLE | {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "wal_level": "replica",
    "listen_addresses": "",
    "unix_socket_directories": "",
}


@dataclass
class Database:
    """Three servers, which listen at PREFIX.21 and up: the primary, s1 and s2. Root lets them run as another user."""

    directory: Path
    prefix: str
    launcher: tuple[str, ...] = ()
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        """Make the primary with the tables of a registrar, and the standbys as copies of it; wait for both."""
        self.directory.mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(self.directory, _USER)
        self._run("initdb", "--auth=trust", "--no-sync", "--encoding=UTF8", "-D", str(self.directory / "primary"))
        self._start("primary")
        self._wait("primary")
        self.ask("primary", "CREATE DATABASE kamailio", database="postgres")
        for name in ("standard", "usrloc"):
            self._run("psql", *self._connection("primary"), "-q", "-f", str(SCHEMA / f"{name}-create.sql"))
        for name in STANDBYS:
            target = ("-D", str(self.directory / name), "--write-recovery-conf", "--create-slot", f"--slot={name}")
            host, port = self.host("primary"), "5432"
            self._run("pg_basebackup", "-h", host, "-p", port, "-U", _USER, "--checkpoint=fast", "--no-sync", *target)
            self._start(name)
            self._wait(name)
        self.ask("primary", f"ALTER SYSTEM SET synchronous_standby_names = '{SYNCHRONOUS}'")
        self.ask("primary", "SELECT pg_reload_conf()")
        self._until(self.is_synchronous, "both standbys to follow")

    def stop(self) -> None:
        """End all servers, the primary first: in order if they do so within a few seconds."""
        for process in self.processes.values():
            process.send_signal(signal.SIGINT)  # clients are disconnected
        for process in self.processes.values():
            try:
                process.wait(_ENDING)
            except subprocess.TimeoutExpired:
                Tree(process.pid).signal(signal.SIGKILL)
                process.wait()

    def host(self, name: str) -> str:
        """Where a server listens, at port 5432."""
        return f"{self.prefix}.{21 + ('primary', *STANDBYS).index(name)}"

    @property
    def url(self) -> str:
        """The primary's tables, as Kamailio names them."""
        return f"postgres://{_USER}@{self.host('primary')}:5432/kamailio"

    def ask(self, name: str, statement: str, database: str = "kamailio") -> list[str]:
        """The rows that a server gives for a statement, in one text each."""
        return self._run("psql", *self._connection(name, database), "-At", "-c", statement).splitlines()

    def is_synchronous(self) -> bool:
        """True if a commit waits until one of both standbys, which both follow, has it on disk."""
        settings = {**_DURABLE, "synchronous_standby_names": SYNCHRONOUS}
        values = ", ".join(f"current_setting('{name}')" for name in settings)
        shown = self.ask("primary", f"SELECT {values}")
        followers = self.ask(
            "primary", "SELECT application_name, state, sync_state FROM pg_stat_replication ORDER BY 1"
        )
        return (
            shown == ["|".join(settings.values())]
            and followers == [f"{name}|streaming|quorum" for name in STANDBYS]
            and all(self.ask(name, "SHOW fsync") == ["on"] for name in STANDBYS)
        )

    def _start(self, name: str) -> None:
        # A standby is known to the primary by the name of its cluster.
        settings = {**_SETTINGS, "listen_addresses": self.host(name), "cluster_name": name}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [
                    *self.launcher,
                    *self._as_user(),
                    *self._program("postgres", "-D", str(self.directory / name), *options),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _wait(self, name: str) -> None:
        ready = self._program("pg_isready", "-q", "-h", self.host(name), "-p", "5432")
        self._until(lambda: subprocess.run(ready, check=False).returncode == 0, f"{name} to answer")

    def _connection(self, name: str, database: str = "kamailio") -> tuple[str, ...]:
        return ("-X", "-v", "ON_ERROR_STOP=1", "-h", self.host(name), "-p", "5432", "-U", _USER, "-d", database)

    def _run(self, program: str, *arguments: str) -> str:
        command = [*self._as_user(), *self._program(program, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise DatabaseError(f"{program} {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    @staticmethod
    def _as_user() -> tuple[str, ...]:
        ids = (f"--reuid={_USER}", f"--regid={_USER}", "--init-groups")
        return ("setpriv", *ids, "--") if os.geteuid() == 0 else ()

    @staticmethod
    def _program(name: str, *arguments: str) -> list[str]:
        newest = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        return [str(newest / name), *arguments]

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes.values()):
                logs = [line for file in self.directory.glob("*.log") for line in file.read_text().splitlines()[-5:]]
                raise DatabaseError("\n".join((f"waited in vain for {what}", *logs)))
            time.sleep(0.1)


class DatabaseError(Exception):
    """The servers don't run as they should."""
