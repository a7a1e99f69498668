"""The kernels read what strangers send: their tests pass with the sanitizers watching each byte that they touch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.kernels import HERE

SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g"
CALLS = re.compile(r'\bkernel\(f?"([\w.{}]+)"')
CALLERS = {
    str(path.relative_to(HERE)): names
    for path in sorted((HERE / "tests").rglob("test_*.py"))
    if path != Path(__file__) and (names := set(CALLS.findall(path.read_text())))
}
"""Which kernels each module of tests asks for."""

PLANTED = """
#include "%s/sipha/kernel.h"

static PyObject *last(PyObject *module, PyObject *data)
{
    const char *bytes = PyBytes_AS_STRING(data);
    return PyLong_FromLong(bytes[PyBytes_GET_SIZE(data) + %d]);
}

static PyObject *shifted(PyObject *module, PyObject *number)
{
    return PyLong_FromLong(1 << (PyLong_AsLong(number) + %d));
}

static PyMethodDef methods[] = {{"last", last, METH_O, NULL}, {"shifted", shifted, METH_O, NULL}, {NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "planted", NULL, 0, methods};

PyMODINIT_FUNC PyInit_planted(void)
{
    return PyModule_Create(&module);
}
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the sanitizers before all else, so that the kernels that it builds have them.

    Bytes have memory of their own then, which ends where they do.
    """
    libraries = [_library(name) for name in ("libasan.so", "libubsan.so")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "CFLAGS": SANITIZE,
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # what Python keeps to its end is no leak
        "PYTHONMALLOC": "malloc",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=HERE, env=environment, capture_output=True, text=True, check=False
    )


def _library(name: str) -> str:
    said = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(said).is_absolute():
        pytest.skip(f"{name} is missing")
    return said


def test_every_kernel_has_tests() -> None:
    configuration = ConfigParser()
    configuration.read(HERE / "setup.cfg", encoding="utf-8")
    assert set(configuration["compiled"]["kernels"].split()) <= set.union(*CALLERS.values())


@pytest.mark.parametrize(
    ("call", "beyond", "said"),
    [
        ("last(bytes(1000))", 0, None),  # the zero at their end
        ("last(bytes(1000))", 1, "heap-buffer-overflow"),
        ("shifted(1)", 29, None),
        ("shifted(1)", 31, "shift exponent 32 is too large"),
    ],
)
def test_sanitizers_see_a_planted_fault(tmp_path: Path, call: str, beyond: int, said: str | None) -> None:
    (tmp_path / "planted.c").write_text(PLANTED % (HERE, beyond, beyond))
    script = f"from pathlib import Path; from tests import kernels; kernels.HERE = Path({str(tmp_path)!r})"
    ended = run("-c", f"{script}; kernels.kernel('planted').{call}")
    assert (ended.returncode == 0) is (said is None), ended.stderr
    assert said is None or said in ended.stderr


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("module", CALLERS)
def test_sanitizers_see_no_fault_in_what_the_tests_of_kernels_do(module: str) -> None:
    ended = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not system and not long", module)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-5000:]
    assert re.search(r"^\d+ passed", ended.stdout.splitlines()[-1])
