from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from sipha.service.metrics import Metrics
from sipha.service.probe import INTERVAL
from tests.service.alone import Alone

ROOT = Path(__file__).parents[2]
OTHERS = {"sipha_follower_lag", "sipha_lease_seconds"}
"""What one node that is alone doesn't have."""

Samples = dict[tuple[str, ...], float]


def samples(alone: Alone) -> Samples:
    """All samples of a node, by name and the values of their labels, in the order of their names."""
    text = generate_latest(Metrics(alone.node.view)).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def commit(alone: Alone) -> None:
    """Have something committed."""
    outcomes: list[object] = []
    alone.node.view.turn_pings(outcomes.append, on=False)
    alone.world.until(lambda: outcomes)


def test_metrics_say_what_the_node_is(alone: Alone) -> None:
    found, status = samples(alone), alone.node.view.status()
    assert found["sipha_node_info", status.cluster_id, "n1", status.version] == 1
    assert found["sipha_role", "leader"] == 1
    assert found["sipha_role", "follower"] == 0
    assert found["sipha_leading",] == found["sipha_virtual_addresses_held",] == 1
    assert found["sipha_term",] == status.term
    assert found["sipha_log_index", "commit"] == status.commit_index
    assert found["sipha_log_bytes",] == status.journal_bytes
    assert found["process_resident_memory_bytes",] > 1e6


@pytest.mark.parametrize(
    ("key", "grown"),
    [
        (("sipha_responses_total", "200", "OPTIONS"), lambda alone: alone.world.turn(3 * INTERVAL)),
        (("sipha_transaction_total", "requests received"), lambda alone: alone.world.turn(3 * INTERVAL)),
        (("sipha_stall_seconds_count",), lambda alone: alone.world.turn(1.0)),
        (("sipha_commit_seconds_count",), commit),
        (("sipha_fsync_seconds_bucket", "+Inf"), commit),
        (
            ("sipha_admin_total", "refused too large"),
            lambda alone: alone.node.access.access.refused.update(["too_large"]),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_metrics_count_what_happens(alone: Alone, key: tuple[str, ...], grown: Callable[[Alone], object]) -> None:
    before = samples(alone).get(key, 0.0)
    grown(alone)
    assert samples(alone)[key] > before


def test_metrics_can_be_read_as_openmetrics_too(alone: Alone) -> None:
    text = generate_openmetrics(Metrics(alone.node.view)).decode()
    names = {family.name for family in read_openmetrics(text)}
    assert {"sipha_responses", "sipha_commit_seconds", "sipha_node"} <= names


@pytest.mark.parametrize("name", ["etc/prometheus/sipha.rules.yml", "etc/grafana/sipha.json", "docs/metrics.md"])
def test_dashboard_alerts_and_docs_name_metrics_that_there_are(alone: Alone, name: str) -> None:
    suffixes = {"counter": ["_total"], "histogram": ["", "_bucket"], "info": ["_info"], "gauge": [""]}
    found = Metrics(alone.node.view).collect()
    known = {family.name + suffix for family in found for suffix in suffixes[family.type]} | OTHERS
    named = set(re.findall(r"\b(?:sipha|process)_[a-z_]+[a-z]\b", (ROOT / name).read_text(encoding="utf-8")))
    assert len(named) > 5
    assert named <= known
