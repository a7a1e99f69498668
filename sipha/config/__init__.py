"""The configuration: one TOML file, decoded into typed values before the reactor starts.

`load` is total: it returns a `Config` in which every value was checked, or raises ConfigError with one message that
names the file, the line or the key, what is wrong and what would be right. Keys and defaults are explained in
etc/sipha.toml; docs/reference.md is made of that and of the types here. Each table says which of its keys are `live`: a
running node takes another value of those.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import msgspec

from sipha.config.texts import (
    AbsolutePath,
    AdminUrl,
    ClientName,
    DomainName,
    Duration,
    FilePath,
    Network,
    NodeName,
    PeerName,
    Sha256,
    SipAddress,
    SocketAddress,
    VirtualIp,
)
from sipha.errors import ConfigError
from sipha.journal import Level
from sipha.nat import detection
from sipha.toml import Section, convert, parse, read
from sipha.vip.messages import SOCKET
from sipha.vip.placement import Placement

# The units of numbers, for docs/reference.md.
SECONDS = msgspec.Meta(extra={"unit": "s"})
BYTES = msgspec.Meta(extra={"unit": "bytes"})
PER_CENT = msgspec.Meta(extra={"unit": "%"})
PER_SECOND = msgspec.Meta(extra={"unit": "requests per second"})

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400), SECONDS]
Expiry = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1), SECONDS]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Algorithm = Literal["SHA-512-256", "SHA-256", "MD5"]
EmergencyNumber = Annotated[str, msgspec.Meta(pattern=r"\A\+?[0-9*#]{1,20}\Z")]
Role = Literal["read", "operate", "admin"]

STRENGTH: tuple[Algorithm, ...] = ("SHA-512-256", "SHA-256", "MD5")
"""The digest algorithms, strongest first (RFC 8760 §2.4)."""

DATA_DIR = AbsolutePath("/var/lib/sipha")
"""Where the data directory is by default."""


def _is_loopback(host: str) -> bool:
    return ip_address(host).is_loopback


def _array(values: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _refuse_repeats(key: str, what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{key}: {what + ' ' if what else ''}{str(value)!r} appears twice; each must be different")
        seen.add(value)


class Node(Section, frozen=True):
    """This node."""

    name: NodeName
    data_dir: AbsolutePath = DATA_DIR


class ClusterPeer(Section, frozen=True):
    """Another node, of those that one which isn't a member yet looks for.

    `admin` is where siphactl finds it; empty if that can't be from another machine.
    """

    name: NodeName
    address: SocketAddress
    admin: AdminUrl = AdminUrl()


class Cluster(Section, frozen=True):
    """The log between the nodes."""

    live: ClassVar[frozenset[str]] = frozenset({"peers"})

    name: NodeName = NodeName("sipha")
    listen: SocketAddress = SocketAddress("127.0.0.1:7000")
    ca: FilePath = FilePath()
    certificate: FilePath = FilePath()
    key: FilePath = FilePath()
    plaintext: bool = False
    admin_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    durability: Literal["fsync", "os"] = "fsync"
    priority: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 100
    witness: bool = False
    heartbeat: Annotated[float, msgspec.Meta(ge=0.01, le=1), SECONDS] = 0.05
    election_min: Annotated[float, msgspec.Meta(ge=0.1, le=10), SECONDS] = 0.4
    election_max: Annotated[float, msgspec.Meta(ge=0.1, le=20), SECONDS] = 0.8
    peers: tuple[ClusterPeer, ...] = ()

    def __post_init__(self) -> None:
        """Check what concerns more than one key."""
        if not self.heartbeat * 3 < self.election_min:
            raise ValueError(
                f"heartbeat: {self.heartbeat} is too long for election_min = {self.election_min}; "
                f"a follower must hear three within it: write less than {self.election_min / 3:.3g}"
            )
        if not self.election_min < self.election_max:
            raise ValueError(f"election_max: {self.election_max} must be more than election_min = {self.election_min}")
        _refuse_repeats("peers", "name", (peer.name for peer in self.peers))
        _refuse_repeats("peers", "address", (peer.address for peer in self.peers))
        self._check_encryption()
        if self.admin_port and not self.encrypted:
            raise ValueError("admin_port: is of use only with ca, certificate and key")
        if self.admin_port == self.listen.address[1]:
            raise ValueError(f"admin_port: {self.admin_port} is the port of listen; write another")

    def _check_encryption(self) -> None:
        """Check that the nodes know each other by certificates, or are all on this machine."""
        files = {"ca": self.ca, "certificate": self.certificate, "key": self.key}
        missing = [key for key, path in files.items() if not path]
        if self.encrypted:
            if missing:
                raise ValueError(f"{missing[0]}: is missing; ca, certificate and key go together")
            if self.plaintext:
                raise ValueError("plaintext: true contradicts ca, certificate and key; leave it out, or them")
            return
        if self.peers and not self.plaintext:
            raise ValueError(
                "ca: is missing; write ca, certificate and key, which siphactl ca makes, or plaintext = true if all "
                "nodes are on this machine"
            )
        for key, address in (("listen", self.listen), *(("peers", peer.address) for peer in self.peers)):
            if not _is_loopback(address.address[0]):
                raise ValueError(
                    f"{key}: {str(address)!r} is not a loopback address, and without certificates the log must not "
                    "leave the machine; write ca, certificate and key, or an address such as "
                    '"127.0.0.11:7000"'
                )

    @property
    def encrypted(self) -> bool:
        """True if the nodes talk under TLS."""
        return bool(self.ca or self.certificate or self.key)

    @property
    def wish_to_lead(self) -> int:
        """The priority that counts."""
        return 0 if self.witness else self.priority


class VirtualAddress(Section, frozen=True):
    """The addresses that the leader alone answers at, and how it comes by them."""

    mode: Literal["loopback", "netlink", "external", "hook"] = "loopback"
    addresses: tuple[VirtualIp, ...] = (VirtualIp("127.0.0.10"),)
    guard: AbsolutePath = AbsolutePath(SOCKET)
    hook: FilePath = FilePath()
    hook_deadline: Seconds = 10.0

    def __post_init__(self) -> None:
        """Check what concerns more than one value."""
        if not self.addresses:
            raise ValueError('addresses: needs at least one address, such as ["127.0.0.10"]')
        _refuse_repeats("addresses", "", self.hosts)
        for placement in self.placements:
            if self.mode == "netlink" and not placement.interface:
                raise ValueError(
                    f"addresses: {str(placement)!r} names no interface to add it to; "
                    f'write one such as "{placement}%eth0"'
                )
            if self.mode != "netlink" and placement.interface:
                raise ValueError(
                    f"addresses: {str(placement)!r} names an interface, but in {self.mode} mode sipha adds no address "
                    f'to any; write "{placement.address}", or mode = "netlink"'
                )
        if self.mode == "hook" and not self.hook:
            raise ValueError(
                'hook: is missing; write the command that moves the addresses, or another mode than "hook"'
            )
        if self.mode != "hook" and self.hook:
            raise ValueError(f'hook: {str(self.hook)!r} is never run in {self.mode} mode; write mode = "hook"')

    @property
    def placements(self) -> tuple[Placement, ...]:
        """The addresses as values."""
        return tuple(address.placement for address in self.addresses)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses alone, as literals."""
        return tuple(placement.address for placement in self.placements)


class Sip(Section, frozen=True):
    """The SIP transports and the timers of RFC 3261 §17 and §16.6."""

    live: ClassVar[frozenset[str]] = frozenset(
        {
            "port",
            "transports",
            "receive_buffer",
            "emergency_numbers",
            "max_message",
            "max_connections",
            "idle_timeout",
            "message_timeout",
        }
    )

    port: Port = 5060
    transports: tuple[Literal["udp", "tcp"], ...] = ("udp", "tcp")
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    receive_buffer: Annotated[int, msgspec.Meta(ge=65536, le=2**30), BYTES] = 16777216
    emergency_numbers: tuple[EmergencyNumber, ...] = ("112", "911")
    max_message: Annotated[int, msgspec.Meta(ge=4096, le=2**20), BYTES] = 65536
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10000
    idle_timeout: Seconds = 3600.0
    message_timeout: Seconds = 10.0
    t1: Annotated[float, msgspec.Meta(ge=0.05, le=10), SECONDS] = 0.5
    t2: Annotated[float, msgspec.Meta(ge=0.1, le=60), SECONDS] = 4.0
    t4: Annotated[float, msgspec.Meta(ge=0.1, le=60), SECONDS] = 5.0
    timer_c: Annotated[float, msgspec.Meta(gt=180, le=3600), SECONDS] = 185.0
    branch_timeout: Annotated[float, msgspec.Meta(ge=0.5, le=32), SECONDS] = 6.0

    def __post_init__(self) -> None:
        """Check what concerns more than one key."""
        if "udp" not in self.transports:
            raise ValueError('transports: must contain "udp" (RFC 3261 §18); write ["udp", "tcp"]')
        _refuse_repeats("transports", "", self.transports)
        if self.t2 < self.t1:
            raise ValueError(f"t2: {self.t2} must not be less than t1 = {self.t1}")


class Domain(Section, frozen=True):
    """A domain that sipha is responsible for; the first one is the default domain, an empty realm is the name."""

    name: DomainName
    realm: str = ""
    aliases: tuple[DomainName, ...] = ()
    algorithms: tuple[Algorithm, ...] = ("MD5",)
    case_sensitive: bool = True
    third_party_register: bool = False

    def __post_init__(self) -> None:
        """Fill in the realm, and check what concerns more than one value."""
        if not self.realm:
            msgspec.structs.force_setattr(self, "realm", str(self.name))
        if not self.realm.isprintable() or '"' in self.realm or "\\" in self.realm:
            raise ValueError(f"realm: {self.realm!r} has quotes, backslashes or control characters; leave them out")
        right = tuple(algorithm for algorithm in STRENGTH if algorithm in self.algorithms)
        if not right:
            raise ValueError('algorithms: needs at least one; write ["SHA-256", "MD5"]')
        if self.algorithms != right:
            raise ValueError(f"algorithms: must stand strongest first and once each; write {_array(right)}")


class Registrar(Section, frozen=True):
    """What REGISTER may do (RFC 3261 §10.3)."""

    live: ClassVar[frozenset[str]] = frozenset(
        {
            "default_expires",
            "min_expires",
            "max_expires",
            "min_expires_policy",
            "expires_jitter",
            "max_contacts",
            "full",
            "full_status",
            "one_per_instance",
            "out_of_order",
            "nonce_lifetime",
            "edges",
        }
    )

    default_expires: Expiry = 3600
    min_expires: Expiry = 60
    max_expires: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1), SECONDS] = 7200
    min_expires_policy: Literal["reject", "raise"] = "reject"
    expires_jitter: Annotated[int, msgspec.Meta(ge=0, le=50), PER_CENT] = 10
    max_contacts: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 12
    full: Literal["replace", "refuse"] = "replace"
    full_status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 403
    one_per_instance: bool = True
    out_of_order: Literal[500, 200] = 500
    nonce_lifetime: Annotated[int, msgspec.Meta(ge=5, le=86400), SECONDS] = 300
    edges: tuple[Network, ...] = ()

    def __post_init__(self) -> None:
        """Check what concerns more than one key."""
        if not self.min_expires <= self.default_expires <= (self.max_expires or self.default_expires):
            raise ValueError(
                f"default_expires: {self.default_expires} must lie between min_expires = {self.min_expires} "
                f"and max_expires = {self.max_expires}"
            )
        # "This response code MUST only be used where the expiry is less than one hour" (RFC 3261 §10.3 step 7).
        if self.min_expires_policy == "reject" and self.min_expires > 3600:
            raise ValueError(
                f"min_expires: {self.min_expires} is more than 3600, and RFC 3261 §10.3 lets nobody reject that; "
                'write 3600 or less, or min_expires_policy = "raise"'
            )


class Proxy(Section, frozen=True):
    """What the proxy does with requests (RFC 3261 §16)."""

    live: ClassVar[frozenset[str]] = frozenset({"allow_inbound", "max_breadth"})

    allow_inbound: bool = False
    max_breadth: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 60


class Nat(Section, frozen=True):
    """How phones behind NAT are recognised, and kept reachable."""

    live: ClassVar[frozenset[str]] = frozenset(
        {
            "detect",
            "ping_interval",
            "ping_method",
            "ping_scope",
            "ping_from",
            "ping_timeout",
            "remove_unreachable",
            "max_lost",
        }
    )

    detect: tuple[detection.Test, ...] = detection.DEFAULT
    ping_interval: Annotated[float, msgspec.Meta(ge=1, le=3600), SECONDS] = 25.0
    ping_method: Literal["OPTIONS", "udp"] = "OPTIONS"
    ping_scope: Literal["nated", "all", "flagged", "none"] = "nated"
    ping_from: SipAddress = SipAddress()
    ping_timeout: Annotated[float, msgspec.Meta(ge=0.1, le=60), SECONDS] = 3.0
    remove_unreachable: bool = False
    max_lost: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4

    def __post_init__(self) -> None:
        """Check what concerns more than one key."""
        _refuse_repeats("detect", "", self.detect)
        if self.ping_timeout >= self.ping_interval:
            raise ValueError(
                f"ping_timeout: {self.ping_timeout:g} must be less than ping_interval = {self.ping_interval:g}"
            )
        if self.remove_unreachable and self.ping_method != "OPTIONS":
            raise ValueError(
                f'remove_unreachable: nobody answers pings of ping_method = "{self.ping_method}"; write "OPTIONS", or '
                "remove_unreachable = false"
            )


class Peer(Section, frozen=True):
    """A trusted SIP element, known by the address it sends from; its requests aren't challenged."""

    name: PeerName
    networks: tuple[Network, ...]

    def __post_init__(self) -> None:
        """Check that the peer can be recognised."""
        if not self.networks:
            raise ValueError('networks: needs at least one network, such as ["192.0.2.10"]')


class Capture(Section, frozen=True):
    """A capture server that gets a copy of each SIP message (HEP version 3), and who we are to it."""

    server: SocketAddress
    agent: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 1
    key: Annotated[str, msgspec.Meta(max_length=256)] = ""


class AdminToken(Section, frozen=True):
    """A bearer token of the admin, of which only the hash is known here, and what who has it may do."""

    name: PeerName
    role: Role
    sha256: Sha256


class AdminClient(Section, frozen=True):
    """A name in certificates that `admin.ca` has issued, and what who shows one may do."""

    name: ClientName
    role: Role


class Admin(Section, frozen=True):
    """The admin's HTTP listener, and who may ask."""

    live: ClassVar[frozenset[str]] = frozenset({"listen", "tokens", "clients"})

    listen: SocketAddress = SocketAddress("127.0.0.1:8080")
    certificate: FilePath = FilePath()
    key: FilePath = FilePath()
    ca: FilePath = FilePath()
    rate: Annotated[float, msgspec.Meta(ge=1, le=1_000_000), PER_SECOND] = 100.0
    tokens: tuple[AdminToken, ...] = ()
    clients: tuple[AdminClient, ...] = ()

    def __post_init__(self) -> None:
        """Check what concerns more than one key; above all, that no stranger is served."""
        _refuse_repeats("tokens", "name", (token.name for token in self.tokens))
        _refuse_repeats("clients", "name", (client.name for client in self.clients))
        for one, other in (("certificate", "key"), ("key", "certificate"), ("ca", "certificate")):
            if getattr(self, one) and not getattr(self, other):
                raise ValueError(f"{other}: is missing; {one} is of use only with it")
        if self.clients and not self.ca:
            raise ValueError(
                "ca: is missing, and without it no certificate of [[admin.clients]] can be verified; write that of the "
                'authority which issues them, such as "/etc/sipha/ca.pem"'
            )
        if _is_loopback(self.listen.address[0]):
            return
        if not self.certificate:
            raise ValueError(
                f"listen: {str(self.listen)!r} is not a loopback address, and the admin must not talk in the clear "
                "elsewhere; write certificate and key, or an address such as "
                '"127.0.0.1:8080"'
            )
        if not (self.tokens or self.clients):
            raise ValueError(
                f"listen: {str(self.listen)!r} is not a loopback address, and nobody is asked who he is; write "
                "[[admin.tokens]], as siphactl token shows them, or [[admin.clients]] and ca, or an address such as "
                '"127.0.0.1:8080"'
            )


class Log(Section, frozen=True):
    """What the log of the process shows, what is of this level or above it, and in which form.

    With `registers` each outcome of a REGISTER is a line.
    """

    live: ClassVar[frozenset[str]] = frozenset({"level", "registers"})

    level: Level = "info"
    format: Literal["auto", "text", "journal", "json"] = "auto"
    registers: bool = False


class History(Section, frozen=True):
    """What is kept, on this node, of what has become of each AOR: for how long, and how much."""

    keep: Duration = Duration("30d")
    max_bytes: Annotated[int, msgspec.Meta(ge=2**20, le=2**40), BYTES] = 2**28

    @property
    def kept(self) -> bool:
        """True if anything is kept."""
        return self.keep.seconds > 0


class Config(Section, frozen=True):
    """The whole configuration of a node."""

    live: ClassVar[frozenset[str]] = frozenset({"domains", "peers"})

    node: Node
    domains: tuple[Domain, ...]
    cluster: Cluster = Cluster()
    virtual_address: VirtualAddress = VirtualAddress()
    sip: Sip = Sip()
    registrar: Registrar = Registrar()
    proxy: Proxy = Proxy()
    nat: Nat = Nat()
    peers: tuple[Peer, ...] = ()
    capture: Capture | None = None
    admin: Admin = Admin()
    log: Log = Log()
    history: History = History()

    def __post_init__(self) -> None:
        """Check what concerns more than one section."""
        if not self.domains:
            raise ValueError('domains: needs at least one; write [[domains]] and name = "sipha.test"')
        names = [name for domain in self.domains for name in (domain.name, *domain.aliases)]
        _refuse_repeats("domains", "name or alias", names)
        _refuse_repeats("peers", "name", (peer.name for peer in self.peers))
        if self.admin.listen.address == (self.cluster.listen.address[0], self.cluster.admin_port):
            raise ValueError(
                f"admin.listen: {str(self.admin.listen)!r} is taken by cluster.admin_port; write another port"
            )
        for peer in self.cluster.peers:
            if peer.name == self.node.name:
                raise ValueError(f"cluster.peers: {str(peer.name)!r} is this node itself; list only the other nodes")
            if peer.address == self.cluster.listen:
                raise ValueError(
                    f"cluster.peers: {str(peer.address)!r}, the address of {peer.name}, is this node's cluster.listen; "
                    "write that node's own"
                )

    @property
    def default_domain(self) -> Domain:
        """The domain that a Request-URI with an address of ours means."""
        return self.domains[0]


class Source(NamedTuple):
    """A configuration, and the text that says it."""

    text: str
    config: Config


def load(path: str | Path) -> Config:
    """Read and check the configuration file; raises ConfigError."""
    return load_source(path).config


def load_source(path: str | Path) -> Source:
    """The same, with the file's text."""
    text = read(path)
    try:
        return Source(text, convert(parse(text), Config))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
