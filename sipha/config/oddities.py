"""What is legal in a configuration, but hardly what was meant."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from sipha.config import Cluster, Config

_FORGETS = 30.0
"""Seconds of silence after which many NATs forget a phone over UDP, whatever RFC 4787 §4.3 asks of them."""


def oddities(config: Config) -> Iterator[str]:
    """Each in a sentence that begins with the key."""
    yield from _of_the_cluster(config.cluster)
    own = {"cluster.listen": config.cluster.listen, "admin.listen": config.admin.listen}
    own |= {f"cluster.peers[{number}].address": peer.address for number, peer in enumerate(config.cluster.peers)}
    for key, address in own.items():
        if address.address[0] in config.virtual_address.hosts:
            yield f"{key}: {address.address[0]} is a virtual address, which moves between nodes; write one that stays"
    if config.virtual_address.mode == "loopback":
        for peer in config.cluster.peers:
            if not ip_address(peer.address.address[0]).is_loopback:
                yield (
                    f'virtual_address.mode: "loopback" is for nodes on one machine, and {peer.name} is on another; '
                    "two could have the address at once"
                )
                break
    trusted = {f"peers[{number}].networks": peer.networks for number, peer in enumerate(config.peers)}
    for key, networks in {**trusted, "registrar.edges": config.registrar.edges}.items():
        for network in networks:
            if network.network.prefixlen == 0:
                yield f"{key}: {network} is everybody, and whoever is in it is trusted"
    yield from _of_pings(config)


def _of_the_cluster(cluster: Cluster) -> Iterator[str]:
    nodes = len(cluster.peers) + 1
    if nodes % 2 == 0:
        yield (
            f"cluster.peers: {nodes} nodes bear no greater loss than {nodes - 1} do; add one, which may be a witness"
        )
    strangers = [str(peer.name) for peer in cluster.peers if not peer.admin]
    if strangers and not cluster.admin_port:
        yield (
            f"cluster.admin_port: without it, or an admin of {', '.join(strangers)} in cluster.peers, what only the "
            "leader can do must be asked of that node itself"
        )
    if cluster.witness and cluster.priority:
        yield f"cluster.priority: {cluster.priority} counts for nothing with witness = true"


def _of_pings(config: Config) -> Iterator[str]:
    nat = config.nat
    if nat.ping_scope == "none":
        return
    if nat.ping_interval > _FORGETS:
        yield f"nat.ping_interval: many NATs forget a phone after {_FORGETS:g} s, before it is pinged again"
    if nat.remove_unreachable and nat.max_lost == 1:
        yield "nat.max_lost: with 1 a single lost datagram removes a phone"
