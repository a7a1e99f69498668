"""The figures of a node in Prometheus's text format, or in OpenMetrics for who asks for that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from klein import Klein
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from twisted.web.server import Request

from sipha.admin.messages import read_query


class Collector(Protocol):
    """What prometheus_client asks for the figures."""

    def collect(self) -> Iterable[Metric]:
        """All figures, as they are now."""


def add_metrics(app: Klein, collector: Collector) -> None:
    """Let an application have the route /metrics."""

    @app.route("/metrics", methods=["GET"])
    def get_metrics(request: Request) -> bytes:
        read_query(request)
        encode, content_type = choose_encoder((request.getHeader(b"Accept") or b"").decode("ascii", "replace"))
        request.setHeader("Content-Type", content_type)
        request.setHeader("Cache-Control", "no-store")
        text: bytes = encode(collector)
        return text
