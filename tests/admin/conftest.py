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
def _nothing_fails_in_the_log() -> Iterator[None]:
    failures = _Failures()
    globalLogPublisher.addObserver(failures)
    yield
    globalLogPublisher.removeObserver(failures)
    assert failures == []
