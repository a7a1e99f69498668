"""Nodes that talk over real connections."""

from __future__ import annotations

from zope.interface import implementer

from sipha.cluster.peers import INetworkUser, Peers
from sipha.cluster.tls import Credentials
from sipha.cluster.wire import PROTOCOL, Hello, LastWord, ProtocolError, RaftMessage, StaleTerm
from sipha.sip.flow import Address
from tests.cluster.world import World


def greeting(node: str, cluster: str = "sipha", protocol: int = PROTOCOL, *, incarnation: str = "") -> Hello:
    """What a node says first."""
    return Hello(protocol, cluster, node, "0123456789abcdef" * 2, incarnation, 2, 100)


def blank(node: str) -> Hello:
    """What a node says first that has never been in a cluster."""
    return Hello(PROTOCOL, "sipha", node, "", "", 2, 100)


@implementer(INetworkUser)
class User:
    """Who is behind a node's connections: keeps what it hears, and refuses the hellos of one incarnation."""

    def __init__(self, hello: Hello) -> None:
        self.hello = hello
        self.refused = "bad"
        self.strangers: set[str] = set()
        self.events: list[str] = []
        self.messages: list[RaftMessage] = []
        self.words: list[LastWord] = []

    def introduce(self) -> Hello:
        return self.hello

    def greeted(self, peer: str, hello: Hello) -> str | None:
        assert peer == hello.node
        if peer in self.strangers:
            return "no member"
        return "bad incarnation" if hello.incarnation == self.refused else None

    def connected(self, peer: str) -> None:
        self.events.append(f"+{peer}")

    def disconnected(self, peer: str) -> None:
        self.events.append(f"-{peer}")

    def received(self, peer: str, message: RaftMessage) -> None:
        self.messages.append(message)
        if message == StaleTerm(666):
            raise ProtocolError("not our log")

    def last_word_heard(self, word: LastWord) -> None:
        self.words.append(word)


class Node:
    """The network of one node, and its user."""

    def __init__(
        self,
        world: World,
        name: str,
        addresses: dict[str, Address],
        cluster: str = "sipha",
        credentials: Credentials | None = None,
    ) -> None:
        others = {peer: address for peer, address in addresses.items() if peer != name}
        self.network = Peers(world.reactor, name, addresses[name], others, cluster, credentials)
        self.user = User(greeting(name, cluster))
        self.network.start(self.user)
