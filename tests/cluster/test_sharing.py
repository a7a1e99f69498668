from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twisted.logger import LogEvent

from sipha.cluster.sharing import BATCH
from sipha.cluster.wire import MAX_FRAME, Hello, Shared, frame
from tests.cluster.assembly import Assemble, Assembly


def listen(cluster: Assembly, name: str) -> list[bytes]:
    heard: list[bytes] = []
    cluster.replica(name).sharing.subscribe("calls", heard.extend)
    return heard


def cluster_of(assemble: Assemble, **options: int) -> tuple[Assembly, str, list[str]]:
    """Three nodes, the leader, and the others; options are those of node c."""
    cluster = assemble()
    cluster.start("ab")
    cluster.start("c", **options)
    leader = cluster.wait_for_leader("ab")
    cluster.run(0.1)
    return cluster, leader, [name for name in "abc" if name != leader]


def test_others_hear_what_is_shared_in_order(assemble: Assemble) -> None:
    cluster, leader, others = cluster_of(assemble)
    heard = [listen(cluster, name) for name in others]
    cluster.replica(leader).sharing.share("calls", [b"one", b"two"])
    cluster.replica(leader).sharing.share("calls", [b"three"])
    cluster.replica(leader).sharing.share("unheard of", [b"four"])
    cluster.run(0.05)
    assert heard == [[b"one", b"two", b"three"]] * 2


def test_much_is_shared_in_messages_that_fit(assemble: Assemble) -> None:
    cluster, leader, others = cluster_of(assemble)
    heard = listen(cluster, others[0])
    pieces = [bytes([number]) * (BATCH // 3) for number in range(20)]
    cluster.replica(leader).sharing.share("calls", pieces)
    cluster.run(0.05)
    assert heard == pieces
    assert all(len(frame(message)) < MAX_FRAME for message in cluster.said(Shared))


def test_full_connection_is_spared(assemble: Assemble) -> None:
    cluster, leader, others = cluster_of(assemble)
    cluster.seats[leader].line.full.add(others[0])
    cluster.replica(leader).sharing.share("calls", [b"one", b"two"])
    assert not cluster.said(Shared, receiver=others[0])
    assert len(cluster.said(Shared, receiver=others[1])) == 1
    assert cluster.replica(leader).status().counters["shared data dropped"] == 2


def test_node_that_connects_is_told_all_there_is(assemble: Assemble) -> None:
    cluster, leader, others = cluster_of(assemble)
    pieces = [bytes([number]) * (BATCH // 3) for number in range(20)]
    cluster.replica(leader).sharing.subscribe("calls", lambda _: None, lambda: pieces)
    heard = [listen(cluster, name) for name in others]
    cluster.hang_up(leader, others[0])
    cluster.run(2.0)
    assert heard == [pieces, []]


def test_release_that_does_not_know_of_sharing_and_a_witness_are_sent_nothing(assemble: Assemble) -> None:
    cluster, leader, others = cluster_of(assemble, priority=0)
    older = next(name for name in others if name != "c")
    hellos = cluster.seats[leader].line.hellos
    hellos[older] = msgspec.structs.replace(hellos[older], trouble=None)
    cluster.replica(leader).sharing.share("calls", [b"one"])
    assert not cluster.said(Shared)


def test_listener_that_fails_does_not_harm_the_log(assemble: Assemble, failures: list[LogEvent]) -> None:
    def fail(_data: Sequence[bytes]) -> None:
        raise RuntimeError("cannot")

    cluster, leader, others = cluster_of(assemble)
    for name in others:
        cluster.replica(name).sharing.subscribe("calls", fail)
    for _ in range(20):
        cluster.replica(leader).sharing.share("calls", [b"one"])
    cluster.run(0.5)
    assert cluster.leader() == leader
    assert not cluster.failed
    assert len(failures) == 40
    failures.clear()


class EarlierHello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """What a release before said first, and could read."""

    protocol: int
    cluster: str
    node: str
    cluster_id: str
    incarnation: str
    schema: int
    priority: int
    amnesiac: bool = False


def test_releases_understand_each_others_hello() -> None:
    ours = Hello(2, "sipha", "a", "", "", 2, 100, trouble="")
    earlier = EarlierHello(2, "sipha", "a", "", "", 2, 100)
    encode = msgspec.msgpack.encode
    assert msgspec.msgpack.decode(encode(ours), type=EarlierHello) == earlier
    assert msgspec.msgpack.decode(encode(earlier), type=Hello) == msgspec.structs.replace(ours, trouble=None)
