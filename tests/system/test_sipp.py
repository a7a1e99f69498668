"""SIPp plays both sides of calls through three real nodes; what each side says and expects is in scenarios/."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sipha.sandbox import Sandbox
from tests.system.conftest import PREFIX, bindings

pytestmark = pytest.mark.system

SCENARIOS = Path(__file__).with_name("scenarios")
CALLER, CALLEE = f"{PREFIX}.61", f"{PREFIX}.62"
CALLEE_PORT = 5080
TRANSPORTS = {"udp": "u1", "tcp": "t1"}
PAIRS = [("udp", "udp"), ("tcp", "tcp"), ("udp", "tcp"), ("tcp", "udp")]


class Sipp:
    """SIPp processes, all of them ended with the test."""

    def __init__(self, server: str, directory: Path) -> None:
        self._server = server
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, scenario: str, host: str, transport: str, *options: str, port: int = 0, calls: int = 1, **keys: object
    ) -> Callable[[], None]:
        """Begin a scenario; what is returned waits for its end and raises AssertionError if a call failed."""
        user = str(keys.get("user", keys.get("caller")))
        errors = self._directory / f"{scenario}-{len(self._processes)}.errors"
        command = [
            *("sipp", f"{self._server}:5060", "-sf", str(SCENARIOS / f"{scenario}.xml"), "-i", host, "-m", str(calls)),
            *("-t", TRANSPORTS[transport], "-au", user, "-ap", f"{user}-secret", "-nostdin", "-timeout", "25"),
            *("-timeout_error", "-recv_timeout", "10000", "-trace_err", "-error_file", str(errors)),
            *(("-p", str(port)) if port else ()),
            *(part for name, value in keys.items() for part in ("-key", name, str(value))),
            *options,
        ]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self._directory
        )
        self._processes.append(process)

        def finish() -> None:
            output, _ = process.communicate(timeout=40)
            said = errors.read_text(errors="replace") if errors.exists() else output.decode(errors="replace")
            assert process.returncode == 0, f"{scenario}: exit status {process.returncode}\n{said[-3000:]}"

        return finish

    def run(self, scenario: str, host: str, transport: str, *options: str, **keys: object) -> None:
        """Play a scenario to its end."""
        self.start(scenario, host, transport, *options, **keys)()  # type: ignore[arg-type]

    def close(self) -> None:
        """End what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def sipp(sandbox: Sandbox, tmp_path: Path) -> Iterator[Sipp]:
    sipp = Sipp(sandbox.virtual_address, tmp_path)
    yield sipp
    sipp.close()


@pytest.fixture
def call(sipp: Sipp) -> Callable[..., None]:
    """Play the two sides of a call of alice to bob, who has registered."""

    def play(
        caller: str, callee: str, transports: tuple[str, str], *options: str, calls: int = 1, talk: int = 20
    ) -> None:
        sipp.run("register", CALLEE, transports[1], user="bob", contact_port=CALLEE_PORT, expires=120)
        users = {"caller": "alice", "callee": "bob"}
        answered = sipp.start(callee, CALLEE, transports[1], port=CALLEE_PORT, calls=calls, **users)
        wait_for_listener(transports[1])
        sipp.run(caller, CALLER, transports[0], "-d", str(talk), *options, calls=calls, **users)
        answered()

    return play


def wait_for_listener(transport: str) -> None:
    """Wait until the callee listens; a connection that an earlier one has left behind has its address, too."""
    deadline = time.monotonic() + 5
    address = "".join(f"{int(part):02X}" for part in reversed(CALLEE.split("."))) + f":{CALLEE_PORT:04X}"
    while f" {address} 00000000:0000 " not in Path(f"/proc/net/{transport}").read_text():
        assert time.monotonic() < deadline, "sipp doesn't listen"
        time.sleep(0.02)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_phone_registers_refreshes_asks_and_unregisters(sandbox: Sandbox, sipp: Sipp, transport: str) -> None:
    sipp.run("registration", CALLEE, transport, user="alice", contact_port=CALLEE_PORT, expires=120)
    assert bindings(sandbox, sandbox.wait_for_leader(), "alice") == []


def test_two_users_have_a_binding_each(sandbox: Sandbox, sipp: Sipp) -> None:
    for user, transport in (("alice", "udp"), ("bob", "tcp")):
        sipp.run("register", CALLEE, transport, user=user, contact_port=CALLEE_PORT, expires=120)
    leader = sandbox.wait_for_leader()
    assert [len(bindings(sandbox, leader, user)) for user in ("alice", "bob")] == [1, 1]


@pytest.mark.parametrize("transports", PAIRS)
def test_caller_hangs_up(call: Callable[..., None], transports: tuple[str, str]) -> None:
    call("caller", "callee", transports)


@pytest.mark.parametrize("transports", PAIRS)
def test_callee_hangs_up(call: Callable[..., None], transports: tuple[str, str]) -> None:
    call("caller_hung_up_on", "callee_hangs_up", transports)


@pytest.mark.parametrize(
    ("caller", "callee"),
    [
        ("caller_cancels", "callee_cancelled"),
        ("caller_of_busy", "callee_busy"),
        ("caller_in_dialog", "callee_in_dialog"),
        ("requester", "responder"),
        ("subscriber", "notifier"),
    ],
)
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_scenario_is_played_to_its_end(call: Callable[..., None], caller: str, callee: str, transport: str) -> None:
    call(caller, callee, (transport, transport))


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_fifty_calls_at_twenty_a_second_all_succeed(call: Callable[..., None], transport: str) -> None:
    call("caller", "callee", (transport, transport), "-r", "20", calls=50, talk=500)
