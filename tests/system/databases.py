"""Debian's database servers, started for a test in a directory of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
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
def postgresql() -> Iterator[str]:
    """A PostgreSQL server, of which the URL is returned, with a database `sip`.

    It refuses to run as root, and so lives where another user gets to.
    """
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    as_postgres = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()
    with tempfile.TemporaryDirectory(prefix="sipha-postgresql-") as directory:
        if as_postgres:
            shutil.chown(directory, "postgres")
        data = f"{directory}/data"
        _run(*as_postgres, str(programs / "initdb"), "--auth=trust", "--no-sync", "--encoding=UTF8", "-D", data)
        log = Path(directory, "log")
        server = subprocess.Popen(
            [*as_postgres, str(programs / "postgres"), "-D", data, "-k", directory, "-c", "listen_addresses="],
            stderr=log.open("wb"),
        )
        try:
            _wait(lambda: _succeeds(str(programs / "createdb"), "-h", directory, "-U", "postgres", "sip"), log)
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
