from __future__ import annotations

from collections.abc import Iterator

import pytest

from sipha.sip.flow import Flow
from sipha.transport.sockets import Listener
from tests.kernels import kernel
from tests.transport.node import HOST, Node


@pytest.fixture(params=[False, True], ids=["python", "kernel"])
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    if request.param:
        udp, overload = kernel("sipha.transport._udp"), kernel("sipha.sip._overload")
        monkeypatch.setattr("sipha.transport.udp._drain", udp.drainer(Flow))
        monkeypatch.setattr("sipha.transport.udp._send_many", udp.send_many)
        monkeypatch.setattr("sipha.sip.overload._sift", overload.sift)
        monkeypatch.setattr("sipha.sip.overload._refusals", overload.refusals)
    made = Node()
    yield made
    made.endpoint.stop()
    made.phone.close()


@pytest.fixture
def stream_node() -> Iterator[Node]:
    made = Node(Listener("UDP", HOST, 0), Listener("TCP", HOST, 0))
    yield made
    made.endpoint.stop()
    made.phone.close()
