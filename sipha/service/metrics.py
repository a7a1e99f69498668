"""The node's figures for Prometheus, gathered when they are asked for (docs/metrics.md).

What a leadership counts begins anew with the next one, on whichever node: to Prometheus that is a counter's reset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from sipha.admin.views import Status
from sipha.histogram import Histogram
from sipha.service.view import View

_ROLES = ("leader", "follower", "learner", "failed")
_ROOMS = (
    "registrar",
    "proxy",
    "takeover",
    "shadow",
    "transaction",
    "transport",
    "pings",
    "events",
    "history",
    "admin",
    "workers",
)

_DROPS = {
    "transport_malformed": "malformed",
    "transport_withheld": "no lease",
    "transport_unsent": "no way out",
    "transport_udp_stale": "came before leadership",
    "proxy_dropped": "belongs to nothing",
    "transaction_transactions_refused": "too many transactions",
}
"""Counters of messages that were dropped: the reason that they are shown under."""

_LATENCIES = {
    "register": "From a REGISTER, as it was read, to its 200 from the log.",
    "invite": "From an INVITE, as it was read, to its 100.",
    "commit": "From the first record of an entry, as it was proposed, to the outcome.",
    "fsync": "What bringing the log to the disk took.",
    "stall": "By how much the reactor was late, looked at four times a second.",
}


class Metrics:
    """A collector, as prometheus_client calls it, of what the `view` of a node sees."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        """All figures, as they are now."""
        status = self._view.status()
        yield _info(status)
        yield from _state(status)
        yield from _peers(status)
        yield from _counters(status.counters)
        yield self._responses()
        yield _labelled(
            CounterMetricFamily("sipha_dropped", "Messages that were dropped, by reason.", labels=["reason"]),
            {
                **{reason: status.counters.get(name, 0) for name, reason in _DROPS.items()},
                "no room in the kernel": self._view.parts.sip.dropped,
            },
        )
        yield self._shed()
        yield _gauge(
            "overloaded",
            "1 while requests are refused because more comes than can be served.",
            self._view.parts.sip.overloaded,
        )
        for name, histogram in self._histograms().items():
            yield _latency(name, histogram)
        yield _gauge("transactions", "SIP transactions.", self._view.parts.sip.transactions)
        yield from self._process.collect()

    def _responses(self) -> Metric:
        family = CounterMetricFamily(
            "sipha_responses", "SIP responses sent, by method of the request and status.", labels=["method", "code"]
        )
        for (method, code), count in sorted(self._view.parts.sip.responses().items()):
            family.add_metric([method, str(code)], count)
        return family

    def _shed(self) -> Metric:
        family = CounterMetricFamily(
            "sipha_shed",
            "Requests that were refused because more came than could be served, by priority, reason and answer.",
            labels=["priority", "reason", "answer"],
        )
        overload = self._view.parts.sip.overload
        for priority, tally in overload.tallies.items():
            family.add_metric([priority, "wait", "503"], tally.refused)
            family.add_metric([priority, "wait", "none"], tally.ignored)
        family.add_metric(["register", "log", "503"], overload.behind)
        return family

    def _histograms(self) -> Mapping[str, Histogram]:
        parts = self._view.parts
        return {
            **parts.sip.latencies(),
            "commit": parts.replication.replica.commit_latencies,
            "fsync": parts.replication.disk.syncs,
            "stall": parts.health.stalls,
        }


def _info(status: Status) -> Metric:
    values = {"node": status.node, "version": status.version, "cluster_id": status.cluster_id}
    return InfoMetricFamily("sipha_node", "Who this is.", value=values)


def _state(status: Status) -> Iterator[Metric]:
    """What the node is now."""
    yield _labelled(
        GaugeMetricFamily("sipha_role", "1 for the node's role in the cluster.", labels=["role"]),
        {role: int(role == status.role) for role in _ROLES},
    )
    yield _gauge("leading", "1 while the node serves phones.", status.leading)
    yield _gauge(
        "virtual_addresses_held", "1 while the node has the virtual addresses.", status.holds_virtual_addresses
    )
    yield _gauge("standby", "1 while an operator keeps the node from leading.", status.standby)
    yield _gauge("alarms", "Sentences that an operator must read: siphactl status.", len(status.alarms))
    yield _gauge("uptime_seconds", "Seconds since the start.", status.uptime)
    yield _gauge("term", "The term of the log.", status.term)
    if status.lease is not None:
        yield _gauge("lease_seconds", "For how long the node may lead without hearing from a majority.", status.lease)
    yield _labelled(
        GaugeMetricFamily("sipha_log_index", "How far the log has come, by what.", labels=["what"]),
        {
            "commit": status.commit_index,
            "applied": status.applied_index,
            "durable": status.durable_index,
            "first": status.first_index,
            "last": status.last_index,
            "snapshot": status.snapshot_index,
        },
    )
    yield _gauge("log_bytes", "The size of the log on the disk.", status.journal_bytes)
    yield _gauge("proposals", "Records that wait for a majority.", status.proposals)
    yield _gauge("aors", "Addresses-of-record with bindings.", status.aors)
    yield _gauge("bindings", "Bindings.", status.bindings)
    yield _gauge("accounts", "Accounts.", status.accounts)
    yield _gauge("connections", "Connections of phones over streams.", status.connections)
    reading = 0 if status.workers is None else status.workers.reading
    yield _gauge("workers_reading", "Workers that read phones' datagrams.", reading)
    yield _gauge("stream_calls", "Calls being set up over streams, which a failover ends.", status.stream_calls)


def _peers(status: Status) -> Iterator[Metric]:
    yield _labelled(
        GaugeMetricFamily("sipha_peer_connected", "1 if another node is connected.", labels=["peer"]),
        {peer.name: int(peer.connected) for peer in status.peers},
    )
    if status.role == "leader":
        yield _labelled(
            GaugeMetricFamily("sipha_follower_lag", "Committed entries that a follower lacks.", labels=["peer"]),
            {peer.name: max(status.commit_index - (peer.match or 0), 0) for peer in status.peers},
        )


def _counters(counters: Mapping[str, int]) -> Iterator[Metric]:
    """What has happened, by the room that counts it."""
    rooms: dict[str, dict[str, float]] = {room: {} for room in (*_ROOMS, "cluster")}
    for name, count in counters.items():
        room, _, event = name.partition("_")
        if room not in _ROOMS:
            room, event = "cluster", name
        rooms[room][event.replace("_", " ").replace("-", " ")] = count
    for room, events in rooms.items():
        family = CounterMetricFamily(f"sipha_{room}", f"What has happened in {room}, by event.", labels=["event"])
        yield _labelled(family, events)


def _latency(name: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(f"sipha_{name}_seconds", _LATENCIES[name])
    family.add_metric([], list(histogram.cumulative()), histogram.sum)
    return family


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sipha_{name}", what, value=value)


def _labelled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]) -> Metric:
    for label, value in values.items():
        family.add_metric([label], value)
    return family
