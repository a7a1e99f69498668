from __future__ import annotations

import pytest

from tests.admin.fakes import FakeNode
from tests.ctl.operator import Operator


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def operator(node: FakeNode) -> Operator:
    return Operator({"127.0.0.1:8080": node})
