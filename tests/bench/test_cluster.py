from __future__ import annotations

import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cluster import ALONE, LEADER_CORE, OTHER_CORE, REPLICATED, Cluster, Variant
from bench.load import BenchError, Load

USERS = 200


def test_variant_is_another_build_and_configuration(tmp_path: Path) -> None:
    variant = Variant(
        "compiled, two senders",
        "as it says",
        size=5,
        durability="os",
        tls=False,
        launcher=("env", "PYTHONPATH=build"),
        cluster="max_batch = 7",
        sip="receive_buffer = 1_000_000",
    )
    cluster = Cluster(variant, tmp_path, "127.0.93")
    assert (cluster.name, cluster.guarantee) == ("compiled, two senders", "as it says")
    assert len(cluster.sandbox.nodes) == 5
    for node in cluster.sandbox.nodes:
        assert cluster.sandbox.launcher_of(node) == ("env", "PYTHONPATH=build")
        cluster.sandbox.configure(node)
        made = tomllib.loads(node.configuration.read_text())
        assert made["cluster"].items() >= {"durability": "os", "plaintext": True, "max_batch": 7}.items()
        assert made["sip"].items() >= {"port": 5060, "receive_buffer": 1_000_000}.items()


@pytest.mark.system
def test_variant_that_isnt_what_it_says_is_found_out(tmp_path: Path) -> None:
    cluster = Cluster(replace(ALONE, compiled=True), tmp_path, "127.0.93")
    try:
        with pytest.raises(BenchError, match="is to be compiled, and is sipha"):
            cluster.start()
    finally:
        cluster.stop()


@pytest.mark.system
@pytest.mark.parametrize("variant", [REPLICATED, ALONE], ids=lambda variant: variant.name)
def test_phones_refresh_the_bindings_that_were_loaded(variant: Variant, tmp_path: Path) -> None:
    cluster = Cluster(variant, tmp_path, "127.0.93")
    cluster.preload(USERS, phones=True)
    try:
        cluster.start()
        sample = Load(cluster).register(users=range(USERS), count=USERS)
        assert sample.ok == USERS
        assert set(sample.cpu_us) == {"leader", *(f"follower {number}" for number in range(1, variant.size))}
        assert all(cpu > 0 for cpu in sample.cpu_us.values())
        assert cluster.agreed()
        status = cluster.sandbox.status(cluster.leader)
        assert status is not None
        assert (status["aors"], status["bindings"], status["accounts"]) == (USERS, USERS, USERS)
        # A phone that had moved would be an event, and a row of the history: more than a refresh is.
        history = cluster.sandbox.request(cluster.leader, "GET", f"/v1/history/sip:u00000000@{cluster.sandbox.domain}")
        assert {event["kind"] for event in history["events"]} <= {"gap"}
    finally:
        cluster.stop()


@pytest.mark.system
def test_leader_is_who_leads_when_its_cluster_is_measured(tmp_path: Path) -> None:
    cluster = Cluster(REPLICATED, tmp_path, "127.0.93")
    try:
        cluster.start()
        former = cluster.leader
        cluster.sandbox.request(former, "POST", "/v1/transfer", {})
        trees = cluster.trees()
        assert cluster.leader is not former
        assert len(trees) == REPLICATED.size
        assert os.sched_getaffinity(trees["leader"].pid) == {LEADER_CORE}
        assert former.process is not None
        assert os.sched_getaffinity(former.process.pid) == {OTHER_CORE}
    finally:
        cluster.stop()
