"""A node with its guard, and a phone, at a LAN."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sipha.vip.clock import boottime as now
from tests.vip.lan import Frame, Host, Lan, lan, reason_to_skip, wait_for

IPV4, IPV6 = "192.0.2.10", "2001:db8::10"
PORT = 9999


class Daemon:
    """A tests/vip/daemon.py."""

    def __init__(self, node: Host, path: Path, peer: str) -> None:
        command = [
            "ip",
            "netns",
            "exec",
            node.name,
            sys.executable,
            "-m",
            "tests.vip.daemon",
            str(path),
            peer,
            str(PORT),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.deadline = 0.0
        self._number = 0
        self.alarms: list[str] = []
        self._reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def say(self, *words: object) -> None:
        self._number += words[0] == "claim"
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def hear(self, kind: str, patience: float = 20.0) -> dict[str, Any]:
        """Return the next report of the guard on the latest claim, which must be of this kind: claimed or ended."""
        report = self._reports.get(timeout=patience)
        while report["number"] != self._number:
            report = self._reports.get(timeout=patience)
        assert report["report"] == kind, report
        return report

    def claim(self, *addresses: str, lease: float = 0.3) -> dict[str, Any]:
        self.say("claim", lease, *(addresses or (IPV4, IPV6)))
        return self.hear("claimed")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report = json.loads(line)
            if report["report"] == "alarms":
                self.alarms = report["texts"]
            elif report["report"] == "renewed":
                self.deadline = report["deadline"]
            else:
                self._reports.put(report)


class Site:
    """A node whose guard has two addresses, and a phone that hears the last words."""

    def __init__(self, network: Lan, node: Host, phone: Host, directory: Path) -> None:
        self.network = network
        self.node = node
        self.phone = phone
        self.socket = directory / "guard" / "socket"
        self.configuration = directory / "sipha.toml"
        self.configuration.write_text(
            f'[virtual_address]\nmode = "netlink"\naddresses = ["{IPV4}%e0", "{IPV6}%e0"]\nguard = "{self.socket}"\n'
        )
        self.configuration.chmod(0o644)
        self.words: list[tuple[float, bytes]] = []
        self.begun = now()
        self.guard: subprocess.Popen[bytes] | None = None
        self._daemons: list[Daemon] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._in_background(phone, self._listen)

    def start_guard(self, *options: str) -> subprocess.Popen[bytes]:
        self.guard = self.run_guard(*options)
        assert wait_for(self._guard_listens, 30.0)
        return self.guard

    def run_guard(self, *options: str) -> subprocess.Popen[bytes]:
        return self.node.run(sys.executable, "-m", "sipha.vip.guard", "--config", str(self.configuration), *options)

    def start_daemon(self) -> Daemon:
        self._daemons.append(Daemon(self.node, self.socket, self.phone.ipv4))
        return self._daemons[-1]

    def emit(self) -> None:
        """Have the node send from both addresses every 5 ms from now on, as a daemon would that knows of nothing."""
        self._in_background(self.node, self._emit)

    def ask(self) -> None:
        """Have the phone ask again and again who has the addresses."""
        self._in_background(self.phone, self._ask)

    def sent(self, address: str) -> list[Frame]:
        """What the node has sent that comes from this address."""
        return [frame for frame in self.node.sent(address) if frame.time >= self.begun]

    def comes(self, since: float = 0.0) -> dict[str, list[float]]:
        """When what came from each of the addresses left the node."""
        return {
            address: [frame.time for frame in self.sent(address) if frame.time >= since] for address in (IPV4, IPV6)
        }

    def gone(self) -> bool:
        return not any(self.node.has(address) for address in (IPV4, IPV6))

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for daemon in self._daemons:
            daemon.close()
        if self.guard is not None and self.guard.poll() is None:
            self.guard.send_signal(signal.SIGCONT)
            self.guard.terminate()
            self.guard.wait()
        self.node.ip("addr", "flush", "to", f"{IPV4}/32")
        self.node.ip("-6", "addr", "flush", "to", f"{IPV6}/128")

    def _guard_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as attempt:
            return attempt.connect_ex(str(self.socket)) == 0

    def _in_background(self, host: Host, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=host.inside, args=(work,), daemon=True))
        self._threads[-1].start()

    def _listen(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind((self.phone.ipv4, PORT))
            listener.settimeout(0.05)
            while not self._over.is_set():
                try:
                    word = listener.recv(2000)
                except TimeoutError:
                    continue
                self.words.append((now(), word))

    def _emit(self) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ipv4,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ipv6,
        ):
            ipv4.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
            ipv6.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
            ipv4.bind((IPV4, 5060))
            ipv6.bind((IPV6, 5060))
            while not self._over.wait(0.005):
                for each, peer in ((ipv4, self.phone.ipv4), (ipv6, self.phone.ipv6)):
                    try:
                        each.sendto(b"emitted", (peer, 9))
                    except OSError:
                        continue

    def _ask(self) -> None:
        while not self._over.wait(0.01):
            self.phone.resolves(IPV4, patience=0)
            self.phone.resolves(IPV6, patience=0)


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[Lan, Host, Host]]:
    """A LAN with a node and a phone."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    with lan() as made:
        node, phone = made.host(), made.host()
        time.sleep(0.1)
        yield made, node, phone


@pytest.fixture
def site(network: tuple[Lan, Host, Host], tmp_path: Path) -> Iterator[Site]:
    """A node and a phone; the guard is yet to be started."""
    made = Site(*network, tmp_path)
    try:
        yield made
    finally:
        made.close()
