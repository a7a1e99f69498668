from __future__ import annotations

from collections.abc import Iterator

import pytest

from sipha.transport.sockets import Listener
from tests.transport.node import HOST, Node


@pytest.fixture
def node() -> Iterator[Node]:
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
