"""A LAN of network namespaces, with what happens on it for an oracle: frames as they leave, with their times."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from sipha.vip.clock import boottime as now

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_OUTGOING = 4


def reason_to_skip() -> str:
    """Why there can be no LAN here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    if subprocess.run(["ip", "netns", "add", "sipha-try"], capture_output=True, check=False).returncode:
        return "this kernel, or container, makes no network namespaces"
    subprocess.run(["ip", "netns", "delete", "sipha-try"], check=True)
    return ""


class Frame(NamedTuple):
    """What a host has sent, in seconds of CLOCK_BOOTTIME."""

    time: float
    data: bytes

    @property
    def arp(self) -> bool:
        return self.data[12:14] == b"\x08\x06"

    def comes_from(self, address: str) -> bool:
        """Return True if the frame tells anybody that the address is at its sender's."""
        if ":" in address:
            literal = socket.inet_pton(socket.AF_INET6, address)
            if self.data[12:14] != b"\x86\xdd":
                return False
            advertised = self.data[20] == 58 and self.data[54] == 136 and self.data[62:78] == literal
            return self.data[22:38] == literal or advertised
        literal = socket.inet_aton(address)
        if self.arp:
            return self.data[28:32] == literal
        return self.data[12:14] == b"\x08\x00" and self.data[26:30] == literal


class Host:
    """A namespace with interface `e0`, an IPv4 and an IPv6 address."""

    def __init__(self, lan: Lan, number: int) -> None:
        self.name = f"{lan.name}-{number}"
        self.ipv4 = f"192.0.2.{number}"
        self.ipv6 = f"2001:db8::{number}"
        self.sent_frames: list[Frame] = []
        self.received: list[Frame] = []
        self._stop = threading.Event()
        _run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        self.plug(lan, "e0")
        self.ip("addr", "add", f"{self.ipv4}/24", "dev", "e0")
        self.ip("addr", "add", f"{self.ipv6}/64", "dev", "e0", "nodad")
        self._thread = threading.Thread(target=self._capture, daemon=True)
        self._thread.start()

    def plug(self, lan: Lan, interface: str) -> None:
        """Give the host an interface in the LAN."""
        port = f"{self.name.rpartition('-')[2]}{interface}"
        _run(
            *("ip", "-n", lan.switch, "link", "add", port, "type", "veth"),
            *("peer", "name", interface, "netns", self.name),
        )
        _run("ip", "-n", lan.switch, "link", "set", port, "master", "br0", "up")
        self.ip("link", "set", interface, "up")

    def ip(self, *arguments: str) -> str:
        return _run("ip", "-n", self.name, *arguments)

    def has(self, address: str) -> bool:
        return f" {address}/" in self.ip("addr", "show")

    def gate(self) -> str:
        """The ruleset, as nft prints it."""
        return _run("ip", "netns", "exec", self.name, "nft", "list", "ruleset")

    def run(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command])

    def inside(self, do: Callable[[], T]) -> T:
        """Return what `do` returns, in a thread of this namespace."""
        done: list[T] = []
        faults: list[BaseException] = []

        def work() -> None:
            try:
                _enter(self.name)
                done.append(do())
            except BaseException as fault:  # noqa: BLE001  it is raised where it matters
                faults.append(fault)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if faults:
            raise faults[0]
        return done[0]

    def resolves(self, address: str, patience: float = 0.3) -> bool:
        """Return True if someone answers for the address; nothing that was learnt before counts."""
        self.ip("neigh", "flush", "dev", "e0")
        return self.reaches(address, patience)

    def reaches(self, address: str, patience: float = 0.3) -> bool:
        """Send something to an address, and return True if someone has it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def ask() -> bool:
            with socket.socket(family, socket.SOCK_DGRAM) as prod:
                prod.sendto(b"", (address, 9))
            return True

        self.inside(ask)
        return wait_for(lambda: self._knows(address), patience)

    def neighbour(self, address: str) -> str:
        """The link address that the host has learnt for an address."""
        words = self.ip("neigh", "show", address).split()
        return words[words.index("lladdr") + 1] if "lladdr" in words else ""

    def hardware(self, interface: str = "e0") -> str:
        words = self.ip("link", "show", interface).split()
        return words[words.index("link/ether") + 1]

    def sent(self, address: str) -> list[Frame]:
        """The frames so far that come from the address, announcements among them."""
        return [frame for frame in tuple(self.sent_frames) if frame.comes_from(address)]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        subprocess.run(["ip", "netns", "delete", self.name], check=False)

    def _knows(self, address: str) -> bool:
        return bool(self.neighbour(address))

    def _capture(self) -> None:
        _enter(self.name)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as tap:
            tap.bind(("e0", _ETH_P_ALL))
            while not self._stop.is_set():
                if select.select([tap], [], [], 0.05)[0]:
                    try:
                        data, where = tap.recvfrom(2000)
                    except OSError as error:
                        if error.errno != errno.ENETDOWN:
                            raise
                        continue
                    (self.sent_frames if where[2] == _OUTGOING else self.received).append(Frame(now(), data))


class Lan:
    """Hosts at one switch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.switch = f"{name}-switch"
        self.hosts: list[Host] = []
        _run("ip", "netns", "add", self.switch)
        _run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _run("ip", "-n", self.switch, "link", "set", "br0", "up")

    def host(self) -> Host:
        self.hosts.append(Host(self, len(self.hosts) + 1))
        return self.hosts[-1]

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        subprocess.run(["ip", "netns", "delete", self.switch], check=False)


def wait_for(condition: Callable[[], object], patience: float = 5.0) -> bool:
    """Poll until a condition holds; False if it doesn't in time."""
    deadline = now() + patience
    while not condition():
        if now() >= deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def lan() -> Iterator[Lan]:
    made = Lan(f"sv{os.getpid()}")
    try:
        yield made
    finally:
        made.close()


def _enter(name: str) -> None:
    """Move this thread to the namespace."""
    with Path("/run/netns", name).open("rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout
