"""The load generators: built from their sources beside this file, pinned to a core, their reports read."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
LOAD_CORE = 1


def build() -> Path:
    """Compile both generators unless they are newer than their sources; return the directory they are in."""
    directory = HERE / "build"
    directory.mkdir(exist_ok=True)
    for name in ("regload", "callgen"):
        made, sources = directory / name, (HERE / f"{name}.c", HERE / "sipload.h")
        if not made.exists() or any(source.stat().st_mtime > made.stat().st_mtime for source in sources):
            # OpenSSL calls MD5 deprecated; digest authentication needs it.
            flags = ["-O2", "-Wall", "-Wno-deprecated-declarations"]
            subprocess.run(["cc", *flags, "-o", str(made), str(sources[0]), "-lcrypto"], check=True)
    return directory


def pinned(core: int, command: list[str]) -> list[str]:
    """The command, to be run on one core."""
    return ["taskset", "-c", str(core), *command]


def read_report(output: str) -> dict[str, float]:
    """What a generator reports, by name: counts, seconds, microseconds."""
    return {name: float(value) for name, _, value in (field.partition("=") for field in output.split())}
