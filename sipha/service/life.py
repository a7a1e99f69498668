"""The life of a configuration: read, compared with what runs, applied, on probation, and then kept or taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from sipha import config
from sipha.admin.views import ConfigurationStatus, Reloaded
from sipha.config import lastgood
from sipha.config.changes import Key, compare
from sipha.errors import ConfigError
from sipha.service.probation import Probation

T = TypeVar("T")


class Runs(Protocol):
    """What runs under a configuration: a node."""

    def reconfigure(self, new: config.Config) -> None:
        """Run under another configuration, of which only live keys differ; raises ConfigError, and nothing is changed.

        Listeners that it doesn't have stay open until `settle`.
        """

    def settle(self) -> None:
        """Close what the configuration doesn't have."""

    def must_serve(self) -> bool:
        """Return True if phones are to be served here: the node leads, and no tool has the addresses elsewhere."""

    def questions(self) -> int:
        """The number of the last question that the node has asked itself."""

    def trouble(self, since: int) -> str:
        """Why phones aren't served, to judge by the questions after that of this number; empty if they are."""

    def keep(self, name: str, data: bytes, done: Callable[[Exception | None], None]) -> None:
        """Write a file in the data directory, and tell what went wrong, if anything."""

    def leave(self, reason: str) -> None:
        """End the process."""


class Life:
    """What runs in this process of what has been in the file `path`.

    `good` is the last configuration that has passed its probation. If what runs first fails it, `restart` is called to
    make another node of what runs then. Raises ConfigError if there is neither a sound file nor a last good copy.
    """

    log = Logger()

    def __init__(self, reactor: Any, path: Path, restart: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.good = lastgood.find(path)
        self._reactor = reactor
        self._restart = restart
        self._node: Runs | None = None
        self._probation: Probation | None = None
        self._generation = 1
        self._loaded_at = datetime.now(UTC)
        self._from_file = True
        self._failure = ""  # of the last one that was tried, until one is loaded
        self._unkept = ""
        self._mark: tuple[int, ...] | None = ()
        self._seen = ("", "")
        try:
            self.running = config.load_source(path)
        except ConfigError as error:
            if self.good is None:
                raise
            self.running, self._from_file = self.good, False
            problem = f"{error}; the node starts on the last good copy"
            self.log.error("{problem}", problem=problem)  # noqa: TRY400  a traceback tells an operator nothing

    @property
    def proven(self) -> bool:
        """True if what runs has passed its probation."""
        return self.good is not None and self.good.config == self.running.config

    @property
    def file(self) -> Path:
        """The file that says what runs, for processes of ours that read it themselves."""
        return self.path if self._from_file else self.running.config.node.data_dir.path / lastgood.NAME

    def status(self) -> ConfigurationStatus:
        """What an operator may want to know of it."""
        return ConfigurationStatus(
            file=str(self.path),
            source="file" if self._from_file else "last good copy",
            generation=self._generation,
            loaded_at=self._loaded_at.isoformat(timespec="seconds"),
            proven=self.proven,
        )

    def alarms(self) -> Iterator[str]:
        """What an operator must know."""
        if self._failure:
            yield self._failure
        broken, difference = self._look()
        if broken:
            yield broken
        elif difference and not self._failure:
            yield difference
        if self._unkept:
            yield self._unkept

    def begin(self, node: Runs) -> None:
        """The node has started under what runs."""
        self._node = node
        if not self.proven:
            self._try(node, patient=True).addCallbacks(self._judge_start, lambda failure: failure.trap(CancelledError))

    def fall_back(self, reason: str) -> bool:
        """Let the last good configuration be what runs from now on, for another node; False if it can't help."""
        if self.good is None or self.proven:
            return False
        self.end()
        self._fail(f"{reason}; the node runs on the last good copy")
        self._taken(self.good, from_file=False)
        return True

    def cannot_serve(self, reason: str) -> bool:
        """The node's listeners can't be opened: True if another is made of the last good configuration."""
        fallen_back = self.fall_back(reason)
        if fallen_back:
            self._restart()
        return fallen_back

    def end(self) -> None:
        """The node is stopped."""
        self._node = None
        if self._probation is not None:
            self._probation.cancel()

    def reload(self) -> Deferred[Reloaded]:
        """Run under what the file says now, all of it or nothing; fires once that has passed its probation.

        What is on probation comes to its end first. Fails with ConfigError if it is refused, or taken back.
        """
        if self._probation is not None:
            return self._after(self._probation).addCallback(lambda _: self.reload())
        before = self.running
        try:
            node, changed = self._take_up()
        except ConfigError as error:
            self.log.error("{problem}", problem=f"the configuration is not reloaded: {error}")  # noqa: TRY400
            return fail(error)

        def stopped(failure: Failure) -> NoReturn:
            failure.trap(CancelledError)
            raise ConfigError("the node is being stopped")

        return self._try(node).addCallbacks(self._judge, stopped, callbackArgs=(node, before, changed))

    def _after(self, probation: Probation) -> Deferred[None]:
        """Fires when a probation has come to its end, and what follows from that is done."""
        over: Deferred[None] = Deferred()

        def ended(verdict: T) -> T:
            self._reactor.callLater(0, over.callback, None)
            return verdict

        probation.verdict.addBoth(ended)
        return over

    def _take_up(self) -> tuple[Runs, Sequence[Key]]:
        node = self._node
        if node is None or self._probation is not None:
            raise ConfigError("the node is being started or stopped; try again in 10 s")
        source = config.load_source(self.path)
        changed = compare(self.running.config, source.config)
        if fixed := [key.path for key in changed if not key.live]:
            raise ConfigError(
                f"{self.path}: {', '.join(fixed)} can't change while the node runs: restart it (systemctl restart "
                "sipha) or put back what was there; nothing of the file has been applied"
            )
        try:
            node.reconfigure(source.config)
        except ConfigError as error:
            self._failure = self._failed(f"{error}; what ran before goes on")
            raise
        self._taken(source, from_file=True)
        return node, changed

    def _try(self, node: Runs, *, patient: bool = False) -> Deferred[str]:
        since = node.questions()
        self._probation = probation = Probation(
            self._reactor, node.must_serve, lambda: node.trouble(since), patient=patient
        )

        def over(verdict: T) -> T:
            self._probation = None
            return verdict

        return probation.verdict.addBoth(over)

    def _judge(self, verdict: str, node: Runs, before: config.Source, changed: Sequence[Key]) -> Reloaded:
        if verdict:
            self._fail(f"{verdict}; what ran before goes on")
            self._take_back(node, before)
            raise ConfigError(f"{self.path}: failed its probation, and was taken back: {verdict}")
        node.settle()
        self._prove(node)
        names = tuple(key.path for key in changed)
        self.log.info(
            "configuration {number} loaded from {path}: {changed}",
            number=self._generation,
            path=str(self.path),
            changed=", ".join(names) or "nothing has changed",
        )
        return Reloaded(str(self.path), self._generation, names)

    def _take_back(self, node: Runs, before: config.Source) -> None:
        try:
            node.reconfigure(before.config)
        except ConfigError as error:
            node.leave(f"what ran before can't be applied again: {error}")
            return
        node.settle()
        self._taken(before, from_file=self._from_file)

    def _judge_start(self, verdict: str) -> None:
        assert self._node is not None  # noqa: S101  else the probation were over
        if not verdict:
            self._prove(self._node)
        elif self.fall_back(verdict):
            self._restart()
        else:
            self._fail(f"{verdict}; there is no last good copy to go back to")

    def _prove(self, node: Runs) -> None:
        self._failure = ""
        self.good = self.running

        def done(error: Exception | None) -> None:
            self._unkept = f"the last good copy of the configuration can't be written: {error}" if error else ""

        node.keep(lastgood.NAME, lastgood.copy_of(self.path, self.running.text), done)

    def _taken(self, source: config.Source, *, from_file: bool) -> None:
        self._generation += source.config != self.running.config
        self.running, self._from_file = source, from_file
        self._loaded_at = datetime.now(UTC)
        self._mark = ()

    def _fail(self, problem: str) -> None:
        self._failure = self._failed(problem)
        self.log.error("{problem}", problem=self._failure)

    def _failed(self, problem: str) -> str:
        return (
            f"the configuration in {self.path} failed: {problem}; mend the file, and run siphactl reload, or restart "
            "the node where that is refused"
        )

    def _look(self) -> tuple[str, str]:
        """What is wrong with the file as it is now, and what is different in it."""
        mark = _mark(self.path)
        if mark != self._mark:
            self._mark = mark
            self._seen = self._read()
        return self._seen

    def _read(self) -> tuple[str, str]:
        runs = "what was loaded before goes on" if self._from_file else "the node runs on the last good copy"
        try:
            source = config.load_source(self.path)
        except ConfigError as error:
            return f"{error}; {runs}: mend the file, and run siphactl reload", ""
        changed = compare(self.running.config, source.config)
        if not changed:
            return "", ""
        names = ", ".join(key.path for key in changed)
        how = "siphactl reload applies it" if all(key.live for key in changed) else "that takes a restart"
        return "", f"{self.path} says something else than what runs in {names}: {how}"


def _mark(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None if it isn't there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
