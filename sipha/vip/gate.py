"""The kernel's gate: what comes from a virtual address leaves the machine only while its element of an nft set lives.

That is ARP in which the address is the sender's, and every IPv4 or IPv6 packet of the machine's own whose source it is:
neighbour advertisements, TCP's retransmissions and ICMP errors among them. The elements time out in the kernel, so that
the gate shuts while every process stands still.

There are two: what the machine makes passes the first (`output`), and what leaves by the address's own interface the
second (`egress`), at the last moment. Without that, packets that wait in the kernel for a neighbour to answer ARP, for
up to 3 s, would leave when it does; and frames of AF_PACKET sockets would pass beside.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable, Collection, Iterable, Sequence

from sipha.vip.placement import Placement

OPENING = 0.05
"""Seconds within which a gate must be open that has begun to be opened."""

_Sets = tuple[tuple[str, str, int], ...]

_LEASE: _Sets = (
    ("arp", "lease", 4),
    ("inet", "lease", 4),
    ("inet", "lease6", 6),
    ("netdev", "lease", 4),
    ("netdev", "lease6", 6),
)
_OPENING: _Sets = tuple((family, name.replace("lease", "opening"), version) for family, name, version in _LEASE)


class GateError(Exception):
    """The kernel or libnftables refuses; the message is libnftables' own."""


class Lapsed(Exception):
    """The deadline has passed: what was held until then is given up."""


class Nft:
    """libnftables: commands in the language of nft, each text one transaction of the kernel."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise GateError(f"{error}; install the package libnftables1") from None
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(library.nft_ctx_new(0))
        library.nft_ctx_buffer_error(self._context)
        self._library = library

    def run(self, commands: str) -> None:
        """Do all of it or nothing; raises GateError."""
        if self._library.nft_run_cmd_from_buffer(self._context, commands.encode()):
            said = self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
            raise GateError(said.partition("\n")[0] or "nft says nothing")


class Gate:
    """The gate before these addresses; `clock` is CLOCK_BOOTTIME."""

    def __init__(self, placements: Sequence[Placement], clock: Callable[[], float], run: Callable[[str], None]) -> None:
        self._placements = placements
        self._clock = clock
        self._run = run

    def install(self) -> None:
        """Put the gate up, shut, in the place of one that is there; raises GateError."""
        self._run(ruleset(self._placements, {name for _, name in socket.if_nameindex()}))

    def remove(self) -> None:
        """Take the gate away, so that everything passes; raises GateError."""
        self._run(_AWAY)

    def open(self, addresses: Iterable[str], deadline: float) -> None:
        """Let pass what comes from these addresses until the deadline; raises Lapsed or GateError.

        The text holds the time that is left, not the deadline: one that is stopped before the kernel has got it would
        open the gate too late. So the elements come first to sets that let nothing pass, and from there to the gate's.
        """
        addresses = tuple(addresses)
        self._run(_elements("add", _OPENING, addresses, min(OPENING, self._left(deadline))))
        self._replace(_OPENING, addresses, deadline)

    def renew(self, addresses: Iterable[str], deadline: float) -> None:
        """Keep the gate open until the deadline; raises Lapsed if it has shut meanwhile, and GateError."""
        self._replace(_LEASE, tuple(addresses), deadline)

    def _replace(self, sets: _Sets, addresses: Sequence[str], deadline: float) -> None:
        """Have the addresses' elements of these sets make way for those that let pass until the deadline.

        The kernel finds no element to delete that has timed out, and then does none of it: what comes late, however
        long ago it was begun, doesn't open the gate.
        """
        left = self._left(deadline)
        try:
            self._run(_elements("delete", sets, addresses) + _elements("add", _LEASE, addresses, left))
        except GateError as error:
            if "Could not process rule: No such file or directory" in str(error):
                raise Lapsed from None
            raise
        self._left(deadline)

    def shut(self) -> None:
        """Let nothing pass; raises GateError."""
        try:
            self._run("".join(f"flush set {family} sipha {name}\n" for family, name, _ in _LEASE + _OPENING))
        except GateError:
            self.install()  # someone has removed it

    def _left(self, deadline: float) -> float:
        left = deadline - self._clock()
        if left < 0.001:  # nft takes no timeout of 0 ms
            raise Lapsed
        return left


def ruleset(placements: Sequence[Placement], interfaces: Collection[str]) -> str:
    """The gate in the language of nft, shut; a chain can only hang on one of the `interfaces` that there are.

    A second interface in the same LAN would answer ARP as well (arp_ignore is 0 by default): replies leave through the
    address's own alone. IPv6 has no such habit.
    """
    arp, inet = [], []
    egress: dict[str, list[str]] = {interface: [] for _, interface, _ in placements if interface in interfaces}
    for address, interface, _ in placements:
        if ":" in address:
            packets = f"ip6 saddr {address} ip6 saddr != @lease6 drop"
            frames = [packets]
        else:
            packets = f"ip saddr {address} ip saddr != @lease drop"
            claims = f"arp saddr ip {address} arp saddr ip != @lease drop"
            frames = [packets, claims]
            arp += [claims, f'arp operation reply arp saddr ip {address} oifname != "{interface}" drop']
        inet.append(packets)
        egress.get(interface, []).extend(frames)
    chains = [
        _EGRESS.format(number=number, interface=interface, rules="\n".join(rules))
        for number, (interface, rules) in enumerate(egress.items())
    ]
    return _AWAY + _RULESET.format(arp="\n".join(arp), inet="\n".join(inet), egress="\n".join(chains))


_EGRESS = """\
chain egress{number} {{
type filter hook egress device "{interface}" priority 0; policy accept;
{rules}
}}"""

# Adding a table that is there does nothing, and deleting one that isn't fails.
_AWAY = """\
add table arp sipha
delete table arp sipha
add table inet sipha
delete table inet sipha
add table netdev sipha
delete table netdev sipha
"""

# With the old tables away, they are new in one step.
# What a node routes for others isn't its own, whoever it comes from: hence output, not postrouting.
_RULESET = """\
table arp sipha {{
set lease {{ type ipv4_addr; flags timeout; }}
set opening {{ type ipv4_addr; flags timeout; }}
chain output {{
type filter hook output priority 0; policy accept;
{arp}
}}
}}
table inet sipha {{
set lease {{ type ipv4_addr; flags timeout; }}
set opening {{ type ipv4_addr; flags timeout; }}
set lease6 {{ type ipv6_addr; flags timeout; }}
set opening6 {{ type ipv6_addr; flags timeout; }}
chain output {{
type filter hook output priority 0; policy accept;
{inet}
}}
}}
table netdev sipha {{
set lease {{ type ipv4_addr; flags timeout; }}
set opening {{ type ipv4_addr; flags timeout; }}
set lease6 {{ type ipv6_addr; flags timeout; }}
set opening6 {{ type ipv6_addr; flags timeout; }}
{egress}
}}
"""


def _elements(verb: str, sets: _Sets, addresses: Iterable[str], left: float | None = None) -> str:
    """The commands that add or delete the addresses' elements of these sets; `left` is their timeout in seconds."""
    timeout = "" if left is None else f" timeout {int(left * 1000)}ms"
    return "".join(
        f"{verb} element {family} sipha {name} {{ {address}{timeout} }}\n"
        for family, name, version in sets
        for address in addresses
        if (6 if ":" in address else 4) == version
    )
