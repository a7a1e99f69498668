"""Debian's database servers, started for a test in a directory of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60.0
"""Seconds in which a server must answer."""

_SBIN = "/usr/sbin:/usr/bin"


@contextmanager
def mariadb(directory: Path) -> Iterator[Path]:
    """A MariaDB server that listens at the socket which is returned; root has no password. Has a database `sip`."""
    data, socket = directory / "data", directory / "socket"
    directory.mkdir()
    plain = ("--no-defaults", f"--datadir={data}", "--user=root")
    _run(_found("mariadb-install-db"), *plain, "--auth-root-authentication-method=normal", "--skip-test-db")
    server = subprocess.Popen(
        [_found("mariadbd"), *plain, f"--socket={socket}", f"--pid-file={directory}/pid", "--skip-networking"],
        stderr=(directory / "log").open("wb"),
    )
    try:
        client = (_found("mariadb"), "--no-defaults", f"--socket={socket}", "--user=root", "-e")
        _wait(lambda: _succeeds(*client, "CREATE DATABASE IF NOT EXISTS sip"), directory / "log")
        yield socket
    finally:
        server.terminate()
        server.wait()


@contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """A PostgreSQL server, of which the URL is returned, with a database `sip`."""
    directory.mkdir()
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    shutil.chown(directory, "postgres")
    for above in directory.parents:  # the server is no root, and must get there
        if above.owner() == "root" and os.geteuid() == 0 and above.is_relative_to(directory.parents[2]):
            above.chmod(above.stat().st_mode | 0o711)
    as_postgres = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()
    data = directory / "data"
    _run(*as_postgres, str(programs / "initdb"), "--auth=trust", "--no-sync", "--encoding=UTF8", "-D", str(data))
    server = subprocess.Popen(
        [*as_postgres, str(programs / "postgres"), "-D", str(data), "-k", str(directory), "-c", "listen_addresses="],
        stderr=(directory / "log").open("wb"),
    )
    try:
        host = ("-h", str(directory), "-U", "postgres")
        _wait(lambda: _succeeds(str(programs / "createdb"), *host, "sip"), directory / "log")
        yield f"postgresql://postgres@/sip?host={directory}"
    finally:
        server.terminate()
        server.wait()


def missing() -> str:
    """Which of the servers isn't there; empty if none is missing."""
    if not _which("mariadbd"):
        return "mariadb-server"
    return "" if Path("/usr/lib/postgresql").is_dir() else "postgresql"


def dump(socket: Path, file: Path) -> None:
    """Dump the database `sip` of a MariaDB server, as an operator does."""
    with file.open("wb") as opened:
        words = [_found("mariadb-dump"), "--no-defaults", f"--socket={socket}", "--user=root", "sip"]
        subprocess.run(words, stdout=opened, check=True)


def _which(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=_SBIN)


def _found(program: str) -> str:
    path = _which(program)
    assert path is not None, f"{program} is missing"
    return path


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def _succeeds(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _wait(condition: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, log.read_text(errors="replace")
        time.sleep(0.2)
