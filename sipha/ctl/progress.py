"""How far long work has come, shown to who waits for it at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def progress(what: str, size: float) -> Iterator[Callable[[float], None]]:
    """Show a bar, which is moved by telling how much of `size` is done; 0 is an unknown size.

    It goes to standard error if that is a terminal, and nowhere otherwise.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=size or None)
        yield lambda done: shown.update(task, completed=done)
