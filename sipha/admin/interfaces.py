"""What the admin asks of the node that it runs in; service.py provides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from sipha.admin.log import EntryView, LogView
    from sipha.admin.trace import Traced
    from sipha.admin.views import NodeView, Reloaded, Status
    from sipha.errors import Unavailable
    from sipha.events.feed import Feed
    from sipha.events.history import Page
    from sipha.journal import Level
    from sipha.state.accounts import Account
    from sipha.state.binding import Binding
    from sipha.state.entries import Record
    from sipha.state.outcomes import Outcome
    from sipha.state.snapshot import Frozen


@dataclass(frozen=True, slots=True)
class Position:
    """How far a node's table is: at log index `index` and cluster time `time` in seconds.

    A node that leads under its lease has applied all that was ever acknowledged. `heard` is how many seconds ago
    another one has last heard the leader, None if it hears none.
    """

    node: str
    index: int
    time: float
    leads: bool
    heard: float | None


class Listing(NamedTuple):
    """The unexpired bindings of each AOR at one moment, in the order of the AORs; `close` gives back what it holds."""

    bindings: Iterator[Sequence[Binding]]
    close: Callable[[], None]


class INode(Interface):
    """A node, for who looks at it and changes its table from outside SIP."""

    def status() -> Status:
        """What the node is, and what it sees of the others."""

    def leading() -> bool:
        """Return True if the node leads and its lease is valid."""

    def leads_log() -> bool:
        """Return True if the node leads, even if it serves no phones: a witness, or a node in standby."""

    def admin_of(name: str) -> str | None:
        """Return the URL at which another node takes what is handed on to it; None if it isn't known."""

    def cluster_time() -> float:
        """Return the cluster time now, in seconds."""

    def position() -> Position:
        """How far the table is."""

    def log() -> LogView:
        """Where the log is."""

    def log_level() -> Level:
        """The level of the process's log, below which it shows nothing."""

    def set_log_level(level: Level) -> None:
        """Give the process's log another level until the configuration is loaded again, and say so in it."""

    def entries(end: int, limit: int) -> Sequence[EntryView]:
        """Up to `limit` entries before index `end` that are in memory, newest first, and no more than 64 KiB or one."""

    def listing() -> Listing:
        """All bindings as they are now, to be iterated while the table goes on changing; raises SiphaError."""

    def aors(after: str, limit: int) -> Sequence[str]:
        """The first `limit` AORs after one, in the order of their text; the bindings of some may have expired."""

    def bindings(aor: str) -> Sequence[Binding]:
        """The unexpired bindings of an AOR."""

    def last_answered(binding: Binding) -> int | None:
        """The cluster time in ms at which the last ping was sent that a phone has answered; None if it isn't known.

        Who leads knows it, and nobody else: since it began to, and once a phone has answered.
        """

    def accounts(after: str, limit: int) -> Sequence[Account]:
        """The first `limit` accounts after an identity `username@domain`, in the order of their identities."""

    def account(username: str, domain: str) -> Account | None:
        """The account `username@domain`."""

    def pings() -> bool:
        """Return False if an operator has turned the pings of phones behind NAT off."""

    def turn_pings(done: Callable[[Outcome | Unavailable], None], *, on: bool) -> None:
        """Have the cluster ping, or not, from now on, and call `done` once, as `ILog.propose` does."""

    def propose(record: Record, done: Callable[[Outcome | Unavailable], None]) -> None:
        """Queue a record for the log and call `done` once, as `ILog.propose` does."""

    def cluster_id() -> str:
        """The cluster that the node is in; empty if it is in none."""

    feed: Feed = Attribute("What the node tells of.")

    def history(aor: str, cursor: str, limit: int) -> Deferred[Page]:
        """A page of what has become of an AOR, from the latest event on.

        Fails with HistoryError, and with ValueError for what is no cursor.
        """

    def trace(aor: str, take: Callable[[Traced], object]) -> Callable[[], None]:
        """Have `take` told of each message of an AOR that passes this node, until what is returned is called.

        Raises QueueFull.
        """

    def nodes() -> Sequence[NodeView]:
        """The members of the cluster, by name."""

    def add_node(name: str, address: str) -> Deferred[None]:
        """As the leader, make a node a member; fires when a majority has agreed.

        Raises ValueError for a name or address that can't be, and SiphaError if it is refused, as the Deferred does.
        """

    def remove_node(name: str) -> Deferred[None]:
        """As the leader, make a node no member any more; raises SiphaError as `add_node` does."""

    def transfer(to: str | None) -> Deferred[str]:
        """As the leader, hand leadership to a voter; fires with the leader's name, or fails with SiphaError."""

    def successor() -> str | None:
        """Who would lead if leadership were handed on now, as the leader knows it."""

    def put_in_standby(name: str, *, force: bool) -> Deferred[str | None]:
        """As the leader, let a node lead no more, and fire with who leads then.

        Raises SiphaError if no other could lead and it isn't forced, as the Deferred does.
        """

    def bring_online(name: str) -> Deferred[None]:
        """As the leader, let a node lead again; raises SiphaError."""

    def prefer(name: str | None) -> Deferred[None]:
        """As the leader, let a node lead whenever it can, or any; raises SiphaError."""

    def reload() -> Deferred[Reloaded]:
        """Load the configuration file again; fires once that is proven, or fails with ConfigError."""

    def backup() -> Frozen:
        """The table as it is now, to be iterated, and then given to `free`; raises SiphaError."""

    def free(frozen: Frozen) -> None:
        """Give back what a backup holds."""
