from collections.abc import Iterator

import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer


@implementer(ILogObserver)
class _Failures(list[LogEvent]):
    """Keeps the failures that are logged."""

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.append(event)


@pytest.fixture(autouse=True)
def failures() -> Iterator[list[LogEvent]]:
    """The failures that are logged: none, but for a test that takes them from here."""
    failures = _Failures()
    globalLogPublisher.addObserver(failures)
    yield failures
    globalLogPublisher.removeObserver(failures)
    assert failures == []
