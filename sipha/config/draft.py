"""The configuration of a new node: what etc/sipha.toml has, as far as it is decided, in the same order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sipha.config import Config, Domain, Node
from sipha.config.texts import DomainName, NodeName, SocketAddress, VirtualIp

EXAMPLE = Config(Node(NodeName("a")), (Domain(DomainName("sipha.test")),))
"""What etc/sipha.toml says as it is delivered: who has it has decided nothing yet."""

CERTIFICATES = {"ca": "ca.pem", "certificate": "cert.pem", "key": "key.pem"}
"""The files of a node's certificate, by the key that names each, as `siphactl ca` calls them."""

ADMIN_PORT = 7001
"""Where nodes that know each other by certificates hand on what only the leader can do."""

_HEAD = """\
# sipha: the configuration of node {name}, as siphactl init has written it.
#
# sipha.toml(5), or etc/sipha.toml of the source, has every key with its meaning and its default, which counts where a
# key is left out. Times are in seconds, sizes in bytes. An unknown key is an error.
"""


@dataclass(frozen=True)
class Draft:
    """What distinguishes a new node; `peers` are the addresses of the others by name, `certificates` where theirs are.

    Without certificates the nodes talk in the clear, which is only for one machine.
    """

    name: NodeName
    cluster: NodeName
    address: SocketAddress
    virtual_addresses: tuple[VirtualIp, ...]
    domain: DomainName
    admin: SocketAddress
    data_dir: Path
    certificates: Path | None = None
    peers: Mapping[NodeName, SocketAddress] = field(default_factory=dict)

    def text(self) -> str:
        """The file."""
        return "\n".join([_HEAD.format(name=self.name), *self._node(), *self._cluster(), *self._rest()])

    def _node(self) -> Iterable[str]:
        yield "[node]"
        yield _line("name", self.name, "this node, as the others call it and as its certificate does")
        yield _line("data_dir", str(self.data_dir), "where the log is kept, a local disk")
        yield ""

    def _cluster(self) -> Iterable[str]:
        yield "[cluster]"
        yield _line("name", self.cluster, "the same on all nodes")
        yield _line("listen", self.address, "where the other nodes reach this one")
        if self.certificates is not None:
            yield "# With these the nodes know each other (docs/cluster-tls.md)."
            for key, file in CERTIFICATES.items():
                yield _line(key, str(self.certificates / file))
            yield _line("admin_port", ADMIN_PORT, "where other nodes hand on what only who leads can do")
        elif self.peers:
            yield "plaintext = true                # the nodes talk in the clear: they are all on this machine"
        yield ""
        if self.peers:
            yield "# The other nodes. Who the members are stands in the log; these are whom a new node looks for."
        for name, address in self.peers.items():
            yield "[[cluster.peers]]"
            yield _line("name", name)
            yield _line("address", address)
            yield ""

    def _rest(self) -> Iterable[str]:
        netlink = any(address.placement.interface for address in self.virtual_addresses)
        yield "[virtual_address]"
        yield _line("mode", "netlink" if netlink else "loopback", "docs/virtual-address.md")
        addresses = json.dumps([str(address) for address in self.virtual_addresses])
        yield f"{'addresses = ' + addresses:<31} # the addresses that phones use; the leader has them"
        yield ""
        yield "[[domains]]"
        yield _line("name", self.domain, "phones are users of this domain")
        yield ""
        yield "[admin]"
        yield _line("listen", self.admin, "HTTP; a loopback address")
        yield ""


def _line(key: str, value: str | int, meaning: str = "") -> str:
    # JSON's strings are TOML's, too.
    line = f"{key} = {json.dumps(value)}"
    return f"{line:<31} # {meaning}" if meaning else line
