"""The figures of the node, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from twisted.web.server import Request

from sipha.admin.access import Role
from sipha.admin.route import Routes


class Collector(Protocol):
    """What prometheus_client asks for the figures."""

    def collect(self) -> Iterable[Metric]:
        """All figures, as they are now."""


class MetricRoutes:
    """What a collector gathers, in Prometheus's text format, or in OpenMetrics for who asks for that."""

    routes = Routes("metrics")

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    @routes.get("/metrics", role=Role.READ, media="text/plain")
    def get_metrics(self, request: Request) -> None:
        """The figures of this node, for Prometheus."""
        encode, content_type = choose_encoder((request.getHeader(b"Accept") or b"").decode("ascii", "replace"))
        request.setHeader("Content-Type", content_type)
        request.setHeader("Cache-Control", "no-store")
        request.write(encode(self._collector))
