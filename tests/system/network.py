"""A real network in namespaces: nodes on a bridge, phones behind a router with NAT, a caller outside, faults between.

    phones ── router ──┐
               outside ┤ bridge (in the namespace `hub`)
         n1, n2, n3, … ┘

Every place is a network namespace; its port of the bridge bears its name. Needs root, iproute2 and nftables.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import count, permutations
from pathlib import Path
from typing import Self

HUB, ROUTER, PHONES, OUTSIDE = "hub", "router", "phones", "outside"

PREFIX, PREFIX6 = "10.77.0", "fd77::"
"""The bridge's networks, /24 and /64: nodes are .11 and up, the router .2, the caller .100, virtual addresses .10."""

PHONES_NETWORK = "10.88.0"
"""The /24 behind the router, which is .1."""

HUB_MAC = "02:53:49:50:00:01"

_HOSTS = {ROUTER: 2, OUTSIDE: 100}
_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_serial = count(1)

_FAULTS = """\
table bridge faults
delete table bridge faults
table bridge faults {{
    chain forward {{
        type filter hook forward priority 0
        {rules}
    }}
}}
"""

_ROUTER = """\
table ip router
delete table ip router
table ip router {{
    chain postrouting {{
        type nat hook postrouting priority 100
        oifname "wan" masquerade fully-random
    }}
    chain input {{
        type filter hook input priority 0
        iifname "wan" ip protocol {{ udp, tcp }} drop
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop
        {outward} accept
        {inward} ct state established,related accept
    }}
}}
"""


def obstacle() -> str:
    """What keeps such a network from being built on this machine; empty if nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "nft", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is missing"
    tried = subprocess.run(
        ["unshare", "--net", "nft", "--file", "-"],
        input=_FAULTS.format(rules="numgen random mod 100 < 1 drop") + _ROUTER.format(outward="", inward=""),
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.stderr.strip().partition("\n")[0]


class Network:
    """The places, and what lies between them.

    A fault is at the bridge, beyond what a node's port shows of the node: see capture.py. `pinhole` is for how long the
    router lets datagrams in after the last one that went out, in seconds. Networks of several processes don't meet;
    what a process that was killed left behind, the next one removes.
    """

    def __init__(self, size: int = 3, *, pinhole: int = 30) -> None:
        self.nodes = tuple(f"n{number}" for number in range(1, size + 1))
        self._name = f"sipha-{os.getpid()}-{next(_serial)}"
        self._pinhole = pinhole
        self._cuts: set[tuple[str, str]] = set()
        self._losses: dict[str, int] = {}
        self._unplugged: set[str] = set()

    # -- places -----------------------------------------------------------------------------------------------------

    @property
    def ports(self) -> tuple[str, ...]:
        """The places on the bridge."""
        return (*self.nodes, ROUTER, OUTSIDE)

    def namespace(self, place: str) -> str:
        """The name of a place's namespace."""
        return f"{self._name}-{place}"

    def host(self, place: str) -> str:
        """The IPv4 address of a place on the bridge."""
        return f"{PREFIX}.{self._number(place)}"

    def host6(self, place: str) -> str:
        """The IPv6 address of a place on the bridge."""
        return f"{PREFIX6}{self._number(place)}"

    @contextmanager
    def inside(self, place: str) -> Iterator[None]:
        """Be in a place: the sockets that this thread opens, and the processes that it starts, stay there."""
        there = _NAMESPACES / self.namespace(place)
        with Path("/proc/thread-self/ns/net").open("rb") as home, there.open("rb") as namespace:
            _enter(namespace.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def launcher(self, place: str) -> tuple[str, ...]:
        """The words before a command that make it run in a place, with the place's /sys, as the same process."""
        return ("ip", "netns", "exec", self.namespace(place))

    def run(self, place: str, *command: str, text: str = "") -> str:
        """Run a command in a place and return what it prints; raises NetworkError if it fails."""
        return _run(*self.launcher(place), *command, text=text)

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Build the network."""
        sweep()
        atexit.register(self.stop)
        for place in (HUB, PHONES, *self.ports):
            _run("ip", "netns", "add", self.namespace(place))
            # No duplicate address detection, no router solicitations: addresses are good at once, and idle is silent.
            for name in ("accept_dad", "dad_transmits", "router_solicitations"):
                self._sysctl(place, f"net/ipv6/conf/default/{name}", 0)
            self._ip(place, "link set lo up")
        self._sysctl(HUB, "net/ipv6/conf/default/disable_ipv6", 1)
        self._ip(HUB, f"link add bridge address {HUB_MAC} up type bridge forward_delay 0 mcast_snooping 0")
        for place in self.ports:
            device = "wan" if place == ROUTER else "eth0"
            self._ip(HUB, f"link add {place} type veth peer name {device} netns {self.namespace(place)}")
            self._ip(HUB, f"link set {place} master bridge up")
            self._ip(place, f"address add {self.host(place)}/24 dev {device}")
            self._ip(place, f"address add {self.host6(place)}/64 dev {device}")
            self._ip(place, f"link set {device} up")
        self._ip(ROUTER, f"link add lan type veth peer name eth0 netns {self.namespace(PHONES)}")
        self._ip(ROUTER, f"address add {PHONES_NETWORK}.1/24 dev lan")
        self._ip(ROUTER, "link set lan up")
        self._ip(PHONES, f"address add {PHONES_NETWORK}.2/24 dev eth0")
        self._ip(PHONES, "link set eth0 up")
        self._ip(PHONES, f"route add default via {PHONES_NETWORK}.1")
        self._sysctl(ROUTER, "net/ipv4/ip_forward", 1)
        self.admit_all()
        for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            self._sysctl(ROUTER, f"net/netfilter/{name}", self._pinhole)
        return self

    def stop(self) -> None:
        """Kill what still runs in the places, and remove them."""
        atexit.unregister(self.stop)
        _remove([path.name for path in _NAMESPACES.glob(f"{self._name}-*")])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    # -- faults -----------------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """Lose what goes from one place to another; the way back stays open."""
        self._cuts.add((source, target))
        self._apply()

    def partition(self, *groups: Collection[str]) -> None:
        """Cut both ways between groups of places; a place in none of them is in the last."""
        *named, last = groups
        rest = set(self.ports) - {place for group in named for place in group}
        for one, other in permutations([*named, {*last, *rest}], 2):
            self._cuts |= {(source, target) for source in one for target in other}
        self._apply()

    def lose(self, place: str, percent: int) -> None:
        """Lose so much of what goes to and from a place, at random."""
        self._losses[place] = percent
        self._apply()

    def unplug(self, place: str) -> None:
        """Pull a place's cable: it loses the carrier."""
        self._unplugged.add(place)
        self._ip(HUB, f"link set {place} down")

    def heal(self) -> None:
        """Undo all faults."""
        for place in self._unplugged:
            self._ip(HUB, f"link set {place} up")
        self._unplugged.clear()
        self._cuts.clear()
        self._losses.clear()
        self._apply()

    def admit_all(self) -> None:
        """Let the router forward what phones send, and the answers to it."""
        self._load(ROUTER, _ROUTER.format(outward='iifname "lan"', inward='iifname "wan"'))

    def admit_only(self, host: str, port: int) -> None:
        """Let the router forward UDP to and from one address and port, and nothing else."""
        outward = f'iifname "lan" ip daddr {host} udp dport {port}'
        inward = f'iifname "wan" ip saddr {host} udp sport {port}'
        self._load(ROUTER, _ROUTER.format(outward=outward, inward=inward))

    # ---------------------------------------------------------------------------------------------------------------

    def _number(self, place: str) -> int:
        return _HOSTS[place] if place in _HOSTS else 11 + self.nodes.index(place)

    def _apply(self) -> None:
        rules = [f'iifname "{source}" oifname "{target}" drop' for source, target in sorted(self._cuts)]
        rules += [
            f'{way} "{place}" numgen random mod 100 < {percent} drop'
            for place, percent in self._losses.items()
            for way in ("iifname", "oifname")
        ]
        self._load(HUB, _FAULTS.format(rules="\n".join(rules)))

    def _load(self, place: str, rules: str) -> None:
        self.run(place, "nft", "--file", "-", text=rules)

    def _ip(self, place: str, command: str) -> None:
        _run("ip", "-netns", self.namespace(place), *command.split())

    def _sysctl(self, place: str, name: str, value: int) -> None:
        with self.inside(place):
            Path("/proc/sys", name).write_text(f"{value}\n", encoding="ascii")


class NetworkError(Exception):
    """The network can't be built or changed."""


def sweep() -> None:
    """Remove the networks of processes that are no more."""
    names = [path.name for path in _NAMESPACES.glob("sipha-*-*-*")]
    _remove([name for name in names if not Path("/proc", name.split("-")[1]).exists()])


def _remove(namespaces: Collection[str]) -> None:
    for name in namespaces:
        for pid in _processes(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for name in namespaces:
        # Another process may be removing the same.
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _processes(namespace: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", namespace], check=False, capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split() if int(pid) != os.getpid()]


def _enter(namespace: int) -> None:
    # os.setns came with Python 3.12.
    if _libc.setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
