"""Everything is in setup.cfg; SIPHA_COMPILE=1 has a wheel's modules compiled, those that it names."""

from __future__ import annotations

import os
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

from setuptools import Extension, setup

CONFIGURATION = ConfigParser()
CONFIGURATION.read(Path(__file__).with_name("setup.cfg"), encoding="utf-8")
COMPILE = os.environ.get("SIPHA_COMPILE") == "1"


def requirements() -> list[str]:
    """What it takes to compile: the compiler, and the libraries, whose types it reads."""
    wanted = CONFIGURATION["options.extras_require"]["compile"] + CONFIGURATION["options"]["install_requires"]
    return wanted.strip().splitlines()


def extensions() -> list[Extension]:
    """The modules in C: those made of the source beside them, and the kernels, which are written in it."""
    from mypyc.build import mypycify  # noqa: PLC0415  it is here only then

    for former in Path("build").glob("lib.*"):  # what isn't named any more would be installed, too
        shutil.rmtree(former)
    paths = [name.replace(".", "/") + ".py" for name in CONFIGURATION["compiled"]["modules"].split()]
    return [*mypycify(paths, group_name="sipha.compiled"), *kernels()]


def kernels() -> list[Extension]:
    """The modules that are written in C; each does what a function of the module that imports it does, too."""
    names = CONFIGURATION["compiled"]["kernels"].split()
    headers = [str(path) for path in Path("sipha").rglob("*.h")]
    return [Extension(name, [name.replace(".", "/") + ".c"], depends=headers) for name in names]


setup(
    setup_requires=requirements() if COMPILE else [],
    ext_modules=extensions() if COMPILE and "bdist_wheel" in sys.argv else [],
)
