"""The package in a Debian 12 of its own, from its installation to its purge; each test goes on where the last ended."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sipha import config
from tests.package.machine import Machine, machine, reason_to_skip

HERE = Path(__file__).parents[2]
UNITS = ("sipha.service", "sipha-guard.service")
ADDRESS = "192.0.2.10"
CAP_SYS_RESOURCE = 24

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def package() -> Path:
    """The package that `make deb` has built."""
    built = sorted((HERE / "dist").glob("sipha_*.deb"))
    if not built:
        pytest.skip("there is no package: make test-deb builds it")
    return built[-1]


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    with machine(tmp_path_factory.mktemp("debian")) as made:
        yield made


def until(condition: Callable[[], object], patience: float = 120.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


def previous(package: Path, directory: Path) -> Path:
    """A package of a lower version."""
    subprocess.run(["dpkg-deb", "--raw-extract", package, directory / "previous"], check=True)
    control = directory / "previous" / "DEBIAN" / "control"
    control.write_text(re.sub(r"^(Version: .*)$", r"\1~previous", control.read_text("utf-8"), flags=re.MULTILINE))
    subprocess.run(["dpkg-deb", "--build", "-Znone", directory / "previous", directory / "previous.deb"], check=True)
    shutil.rmtree(directory / "previous")
    return directory / "previous.deb"


def has_address(debian: Machine) -> bool:
    return f"{ADDRESS}/" in debian.run("ip", "-4", "address")


def serves(debian: Machine) -> bool:
    return "serves phones" in debian.systemd("sipha", "StatusText")[0]


def test_package_waits_for_a_configuration_once_it_is_installed(debian: Machine, package: Path, tmp_path: Path) -> None:
    debian.run("dpkg", "--install", debian.copy(previous(package, tmp_path)))
    for unit in UNITS:
        assert debian.systemd(unit, "UnitFileState", "ActiveState") == ("enabled", "inactive")
    assert debian.run("stat", "--format=%U %G %a", "/var/lib/sipha").split() == ["sipha", "sipha", "700"]
    assert "/usr/sbin/nologin" in debian.run("getent", "passwd", "sipha-guard")
    assert debian.run("siphactl", "--version").startswith("siphactl, version")


def test_units_are_as_systemd_wants_them_and_confined(debian: Machine) -> None:
    assert not debian.run("systemd-analyze", "verify", "--man=no", *UNITS)
    for unit in UNITS:
        exposure = debian.run("systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
        level = re.search(r"(\d+\.\d) (\w+)", exposure)
        assert level is not None
        assert float(level[1]) < 3.0, exposure


def test_kernel_is_to_allow_the_buffers_that_sockets_ask_for(debian: Machine) -> None:
    told = debian.run("/lib/systemd/systemd-sysctl", "--cat-config")
    assert f"net.core.rmem_max = {config.Sip().receive_buffer}" in told.splitlines()


def test_guard_is_left_out_where_nothing_is_to_be_guarded(debian: Machine) -> None:
    debian.run("systemctl", "start", "sipha")
    assert debian.systemd("sipha-guard", "ActiveState", "Result") == ("inactive", "exec-condition")
    assert debian.systemd("sipha", "StatusText") == ("a: learner, term 0; alarms: 1, see siphactl status",)
    debian.run("systemctl", "stop", "sipha")
    assert debian.systemd("sipha", "ActiveState", "Result") == ("inactive", "success")
    assert not debian.journal("--priority=warning", "--unit=sipha-guard")


def test_service_user_serves_a_phone(debian: Machine) -> None:
    shutil.copytree(HERE / "debian", debian.path("/root/sipha/debian"))
    isolated = "--ignore-restrictions=isolation-container"  # which the machine is, though a null testbed doesn't know
    debian.run("autopkgtest", "--no-built-binaries", isolated, "/root/sipha", "--", "null")
    assert "Unable to write to plugin cache" not in debian.journal("--unit=sipha")


def test_journal_knows_how_grave_a_line_is(debian: Machine) -> None:
    debian.run("systemctl", "start", "sipha")
    until(lambda: serves(debian))
    assert "failover to a" in debian.journal("--unit=sipha", "--priority=info")
    assert "failover to a" not in debian.journal("--unit=sipha", "--priority=warning")


def test_services_have_no_rights_but_theirs(debian: Machine) -> None:
    rights = {}
    for unit in UNITS:
        (pid,) = debian.systemd(unit, "MainPID")
        status = debian.run("cat", f"/proc/{pid}/status")
        rights[unit] = re.findall(r"^Cap(?:Eff|Bnd):\s*(\w+)$", status, flags=re.MULTILINE)
    assert rights == {"sipha.service": ["0000000000000400"] * 2, "sipha-guard.service": ["0000000000003000"] * 2}


def test_guard_is_never_late(debian: Machine) -> None:
    if not int(re.findall(r"CapBnd:\s*(\w+)", debian.run("cat", "/proc/1/status"))[0], 16) >> CAP_SYS_RESOURCE & 1:
        pytest.skip("nobody here may give it what it asks for: CAP_SYS_RESOURCE is missing")
    (guard,) = debian.systemd("sipha-guard", "MainPID")
    assert "SCHED_FIFO" in debian.run("chrt", "--pid", guard)
    assert debian.run("cat", f"/proc/{guard}/oom_score_adj") == "-1000\n"
    assert "VmLck:\t       0 kB" not in debian.run("cat", f"/proc/{guard}/status")


def test_reload_leaves_the_node_serving(debian: Machine) -> None:
    before = debian.systemd("sipha", "MainPID")
    debian.run("systemctl", "reload", "sipha")
    until(lambda: debian.systemd("sipha", "ActiveState") == ("active",))
    assert debian.systemd("sipha", "MainPID") == before
    assert serves(debian)


@pytest.mark.parametrize("unit", UNITS)
def test_process_that_stands_still_is_replaced(debian: Machine, unit: str) -> None:
    before = debian.systemd(unit, "MainPID")
    debian.run("kill", "-STOP", *before)
    until(lambda: debian.systemd(unit, "ActiveState") == ("active",) and debian.systemd(unit, "MainPID") != before)
    assert "Watchdog timeout" in debian.journal(f"--unit={unit}")
    assert "most recent call first" in debian.journal(f"--unit={unit}"), "where it stood"
    until(lambda: serves(debian) and has_address(debian))


def test_no_address_outlives_a_killed_guard_that_has_no_successor(debian: Machine) -> None:
    assert has_address(debian)
    drop_in = debian.path("/etc/systemd/system/sipha-guard.service.d/none.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nRestart=no\n")
    debian.run("systemctl", "daemon-reload")
    debian.run("systemctl", "kill", "--signal=KILL", "sipha-guard")
    until(lambda: debian.systemd("sipha-guard", "ActiveState", "Result") == ("failed", "signal"))
    assert not has_address(debian)
    shutil.rmtree(drop_in.parent)
    debian.run("systemctl", "daemon-reload")
    debian.run("systemctl", "start", "sipha-guard")
    until(lambda: serves(debian) and has_address(debian))


def test_upgrade_restarts_what_runs_and_keeps_what_is_there(debian: Machine, package: Path) -> None:
    configuration = debian.path("/etc/sipha/sipha.toml").read_text("utf-8")
    identity = debian.path("/var/lib/sipha/identity").read_bytes()
    before = {unit: debian.systemd(unit, "MainPID") for unit in UNITS}
    debian.run("dpkg", "--install", "--force-confold", debian.copy(package))
    for unit in UNITS:
        assert debian.systemd(unit, "ActiveState") == ("active",)
        assert debian.systemd(unit, "MainPID") != before[unit]
    until(lambda: serves(debian))
    assert debian.path("/etc/sipha/sipha.toml").read_text("utf-8") == configuration
    assert debian.path("/var/lib/sipha/identity").read_bytes() == identity
    assert "192.0.2.1:5062" in debian.run("siphactl", "show", "alice@sipha.test"), "what a phone was told is kept"
    said = debian.journal("--unit=sipha", "--unit=sipha-guard")
    stopped = [said.rindex(f"Stopping {unit}") for unit in UNITS]
    assert stopped == sorted(stopped), "sipha hands leadership on before its guard goes"


def test_operator_gets_help(debian: Machine) -> None:
    for page in ("siphactl", "sipha", "sipha-guard", "sipha.toml"):
        assert "sipha" in debian.run("man", "--locale=C", page)
    line = "source /usr/share/bash-completion/completions/siphactl; COMP_WORDS=(siphactl sta); COMP_CWORD=1"
    completed = debian.run("bash", "-c", f'{line}; _siphactl_completion siphactl; echo "${{COMPREPLY[@]}}"')
    assert "status" in completed.split()


def test_purge_leaves_nothing_but_the_users(debian: Machine) -> None:
    assert has_address(debian)
    assert "sipha" in debian.run("nft", "list", "tables")
    debian.run("dpkg", "--purge", "sipha")
    assert not has_address(debian)
    assert "sipha" not in debian.run("nft", "list", "tables")
    for path in ("/etc/sipha", "/usr/lib/sipha", "/var/lib/sipha", "/run/sipha-guard"):
        assert not debian.path(path).exists(), path
    assert not debian.run("pgrep", "--uid=sipha,sipha-guard", check=False)
    assert not debian.run("systemctl", "list-unit-files", "--no-legend", "sipha*", check=False)
