"""What holds for all tests."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.handbook import Script, blocks

# How long an example takes says more of the machine than of what is tested.
settings.register_profile("sipha", deadline=None)
settings.load_profile("sipha")


@pytest.fixture
def script(request: pytest.FixtureRequest) -> Iterator[Script]:
    """The commands of the sections that a test follows, by its marks; it must type them all."""
    marks = [mark.args for mark in request.node.iter_markers("follows")]
    script = Script(block for page, *headings in marks for block in blocks(page, "console", *headings))
    yield script
    assert not script.left, "the test hasn't typed these"
