"""What the admin's JSON looks like: one Struct for each object that it sends or takes."""

from __future__ import annotations

from urllib.parse import unquote

import msgspec

from sipha.journal import Level
from sipha.sip.digest import ha1
from sipha.state.accounts import Account
from sipha.state.binding import Binding
from sipha.state.entries import PutAccount

HA1_LENGTHS = {"MD5": 32, "SHA-256": 64, "SHA-512-256": 64}
"""The algorithms of an account's hashes, and the hex digits of each."""


class PeerStatus(msgspec.Struct, frozen=True):
    """What a node sees of another one; `heard` is how many seconds ago, None if it isn't connected.

    `admin` is empty if the configuration doesn't say. `role` is `stranger` for one that isn't a member of the cluster;
    `match` is the entry up to which the leader knows it to have the log on disk, 0 elsewhere.
    """

    name: str
    admin: str
    address: str
    role: str
    connected: bool
    heard: float | None
    match: int


class ConfigurationStatus(msgspec.Struct, frozen=True):
    """What a node runs under: what is, or was, in this file, or its last good copy, as `source` says.

    `generation` counts the configurations since the process began, `loaded_at` is the node's wall time, in ISO 8601;
    `proven` says that it has passed its probation.
    """

    file: str
    source: str
    generation: int
    loaded_at: str
    proven: bool


class Reloaded(msgspec.Struct, frozen=True):
    """A configuration was loaded: from which file, as which generation, and the keys that have changed."""

    file: str
    generation: int
    changed: tuple[str, ...]


class Reload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration is to be loaded again."""


class LogLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the log of the process shows: what is of this level or above it."""

    level: Level


class WorkersStatus(msgspec.Struct, frozen=True):
    """The processes that read UDP beside the daemon: how many there are to be, and how many of them read now."""

    wanted: int
    reading: int


class Status(msgspec.Struct, frozen=True):
    """A node and what it sees; times in seconds.

    `alarms` are what an operator must know. `role` is leader, follower, learner or failed; `memory` is whole, amnesiac
    (it has lost what it held) or blank (it was never in a cluster). `hash` is that of the table at `applied_index`: two
    nodes with the same index have the same hash. `leading` is true while the node may answer phones; `lease` is how
    long it may without hearing from a majority, None without end (a cluster of one). In `standby` it leads only to hand
    leadership on. `time` is the cluster time. `connections` are those of phones over streams, `stream_calls` the calls
    being set up over them: a failover ends both.
    `durability` says what an acknowledged binding survives on this node; the log is on its disk up to `durable_index`.
    `pings` is on, off, or on the leader suspended, and why. Nodes of earlier releases don't tell of `configuration`.
    `workers` are those of the leader, None on a node without.
    """

    node: str
    version: str
    alarms: tuple[str, ...]
    uptime: float
    cluster_id: str
    role: str
    memory: str
    standby: bool
    leading: bool
    leader: str | None
    term: int
    commit_index: int
    applied_index: int
    durable_index: int
    first_index: int
    last_index: int
    snapshot_index: int
    hash: str
    schema: int
    time: float
    lease: float | None
    proposals: int
    durability: str
    journal_bytes: int
    virtual_addresses: tuple[str, ...]
    holds_virtual_addresses: bool
    connections: int
    stream_calls: int
    aors: int
    bindings: int
    accounts: int
    pings: str
    counters: dict[str, int]
    peers: tuple[PeerStatus, ...]
    configuration: ConfigurationStatus | None = None
    workers: WorkersStatus | None = None


class NodeView(msgspec.Struct, frozen=True):
    """A member of the cluster, as the node that is asked knows it.

    `role` is voter, witness or learner. `behind` is how many committed entries the leader doesn't know it to have on
    disk, and `obstacle` why it could not lead now, empty if it could; both None where that isn't known: another node
    than the leader was asked. `standby` and `preferred` are what operators have said.
    """

    name: str
    address: str
    role: str
    leads: bool
    connected: bool
    behind: int | None
    standby: bool = False
    preferred: bool = False
    obstacle: str | None = None


class Nodes(msgspec.Struct, frozen=True):
    """The members of the cluster, by name, and who would lead if leadership were handed on, as the leader knows it."""

    nodes: tuple[NodeView, ...]
    successor: str | None = None


class NewNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node that is to become a member: the others reach it at `address`, `host:port`."""

    name: str
    address: str


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which voter is to lead; any that is up to date if it is None."""

    to: str | None = None


class Standby(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node is to lead no more; with `force` even if no other could."""

    force: bool = False


class Online(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node may lead again."""


class Prefer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which node is to lead whenever it can; any if it is None."""

    node: str | None


class Duty(msgspec.Struct, frozen=True):
    """Whether a node is in standby now, and who leads."""

    name: str
    standby: bool
    leader: str | None


class Leader(msgspec.Struct, frozen=True):
    """Who leads now."""

    leader: str


class Pings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the cluster pings the phones that it is configured to ping."""

    on: bool


class Setting(msgspec.Struct, frozen=True):
    """A setting of the cluster: its value, what that is if nobody has said anything, and what it is about."""

    name: str
    value: str
    default: str
    about: str


class Settings(msgspec.Struct, frozen=True):
    """The settings of the cluster."""

    settings: tuple[Setting, ...]


class SettingValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The value that a setting is to have."""

    value: str


class BindingView(msgspec.Struct, frozen=True):
    """A binding; `expires` is in seconds from now, `q` from 0 to 1 or None, `last_modified` in ms of cluster time.

    `answered` is how many seconds ago the ping was sent that the phone answered last; None if the node that was asked
    doesn't know: who leads does, and has to hear an answer first.
    """

    aor: str
    contact: str
    expires: int
    q: float | None
    call_id: str
    cseq: int
    user_agent: str
    received: str
    behind_nat: bool
    socket: str
    path: tuple[str, ...]
    methods: str
    instance: str
    reg_id: int
    params: str
    flow: str
    flags: int
    cflags: int
    attr: str
    kv_store: str
    contact_id: str
    last_modified: int
    answered: int | None = None


class Bindings(msgspec.Struct, frozen=True):
    """Bindings, and the cursor of the next page, None on the last one."""

    bindings: tuple[BindingView, ...]
    cursor: str | None = None


class AccountView(msgspec.Struct, frozen=True):
    """An account without its hashes; `algorithms` are those that it has one for."""

    username: str
    domain: str
    auth_name: str
    realm: str
    algorithms: tuple[str, ...]

    @property
    def identity(self) -> str:
        """`username@domain`."""
        return f"{self.username}@{self.domain}"


class Accounts(msgspec.Struct, frozen=True):
    """Accounts, and the cursor of the next page, None on the last one."""

    accounts: tuple[AccountView, ...]
    cursor: str | None = None


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A new password, or its hashes by algorithm; an empty `auth_name` leaves it, or makes it the username."""

    password: str = ""
    ha1: dict[str, str] = {}
    auth_name: str = ""

    def __post_init__(self) -> None:
        """Check that there is exactly one secret, and that hashes look like hashes."""
        if bool(self.password) == bool(self.ha1):
            raise ValueError("write either password or ha1")
        for algorithm, digits in self.ha1.items():
            length = HA1_LENGTHS.get(algorithm)
            if length is None:
                raise ValueError(f"{algorithm!r} is not an algorithm; write {', '.join(HA1_LENGTHS)}")
            if len(digits) != length or not set(digits) <= set("0123456789abcdef"):
                raise ValueError(f"the HA1 of {algorithm} must be {length} lower-case hex digits")
        if not self.auth_name.isprintable() or ":" in self.auth_name or len(self.auth_name) > 255:
            # RFC 7616 §3.4.4: a colon would end the username within the hash.
            raise ValueError("auth_name must be printable, without a colon, at most 255 characters")

    def hashes(self, auth_name: str, realm: str) -> dict[str, str]:
        """HA1 for each algorithm."""
        if self.ha1:
            return self.ha1
        return {algorithm: ha1(algorithm, auth_name, realm, self.password) for algorithm in HA1_LENGTHS}


class NewAccount(Secret, frozen=True, kw_only=True):
    """An account to create; the username is written as in a URI."""

    username: str
    domain: str


class Removed(msgspec.Struct, frozen=True):
    """How many were removed."""

    removed: int


class Result(msgspec.Struct, frozen=True):
    """What became of one account of several: a status as of HTTP, and why it failed."""

    account: str
    status: int
    detail: str = ""


class Results(msgspec.Struct, frozen=True):
    """What became of each account, in the order in which they were given."""

    results: tuple[Result, ...]


class Fault(msgspec.Struct, frozen=True):
    """Why a request failed."""

    status: int
    detail: str


class FaultReply(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: Fault


def binding_view(binding: Binding, now: float, last_answered: int | None = None) -> BindingView:
    """Show a binding at a cluster time in seconds; `last_answered`, in ms of it, is what is known of its pings."""
    return BindingView(
        aor=binding.aor,
        contact=_text(binding.contact),
        expires=binding.remaining(int(now * 1000)),
        q=None if binding.q is None else binding.q / 1000,
        call_id=_text(binding.call_id),
        cseq=binding.cseq,
        user_agent=_text(binding.user_agent),
        received=_text(binding.received),
        behind_nat=binding.behind_nat,
        socket=binding.socket,
        path=tuple(_text(uri) for uri in binding.path),
        methods=_text(binding.methods),
        instance=_text(binding.instance),
        reg_id=binding.reg_id,
        params=_text(binding.params),
        flow=binding.flow,
        flags=binding.flags,
        cflags=binding.cflags,
        attr=_text(binding.attr),
        kv_store=_text(binding.kv_store),
        # 64 bits are more than a number in JavaScript holds.
        contact_id=f"{binding.contact_id:016x}",
        last_modified=binding.last_modified,
        answered=None if last_answered is None else max(int(now - last_answered / 1000), 0),
    )


def account_view(account: Account | PutAccount) -> AccountView:
    """Show an account."""
    return AccountView(account.username, account.domain, account.auth_name, account.realm, tuple(sorted(account.ha1)))


def default_auth_name(username: str) -> str:
    """What a phone authenticates as if nothing else was said: the username as its user types it."""
    return unquote(username)


def _text(text: str) -> str:
    """Text from a phone as valid Unicode: JSON can't hold the bytes that weren't UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
