"""The kernels, which setup.cfg names, built of their source for the tests that compare them with their references."""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parents[1]


@cache
def kernel(name: str, *macros: str) -> Any:
    """The module in C with this name, built with these macros; nothing imports it but who calls this."""
    source = HERE / f"{name.replace('.', '/')}.c"
    with tempfile.TemporaryDirectory(prefix="sipha-kernel-") as directory:
        extension = Extension(name, [str(source)], define_macros=[(macro, None) for macro in macros])
        command = build_ext(Distribution({"ext_modules": [extension]}))
        command.build_lib = command.build_temp = directory
        command.ensure_finalized()
        command.run()
        loader = ExtensionFileLoader(name, command.get_ext_fullpath(name))
        spec = spec_from_loader(name, loader)
        assert spec is not None
        module = module_from_spec(spec)
        loader.exec_module(module)
    return module


def check_that_nothing_is_kept(use: Callable[[], object], objects: Sequence[object]) -> None:
    """Use a kernel a thousand times, and see that no memory and no reference to these objects is left of it."""
    use()
    gc.collect()
    counts = [sys.getrefcount(each) for each in objects]
    blocks = sys.getallocatedblocks()
    for _ in range(1000):
        use()
    gc.collect()
    assert [sys.getrefcount(each) for each in objects] == counts
    assert sys.getallocatedblocks() - blocks < 100
