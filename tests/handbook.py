"""README.md and docs/: their blocks, and the commands that they show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

_PROMPT = re.compile(r"(?P<prompt>n\d#|\$) (?P<text>.*)")


@dataclass(frozen=True)
class Command:
    """A command by its prompt, and what the page says that it prints.

    The prompt is that of root on a node (`n1#`), or an operator's on the node that leads, or where the page says (`$`).
    """

    prompt: str
    text: str
    printed: tuple[str, ...]

    def prints(self, output: str) -> bool:
        """True if the lines that the page shows are among those of an output, in order; … stands for anything."""
        lines = map(_even, output.splitlines())
        patterns = [re.escape(_even(line)).replace("…", ".*") for line in self.printed]
        return all(any(re.fullmatch(pattern, line) for line in lines) for pattern in patterns)


@dataclass(frozen=True)
class Block:
    """A fenced block below a heading; `page` is the file's name without its suffix."""

    page: str
    heading: str
    language: str
    text: str

    def commands(self) -> Iterator[Command]:
        """The commands of a console block; raises ValueError if it doesn't begin with one."""
        prompt, text, printed = "", "", list[str]()
        for line in self.text.splitlines():
            if text.endswith("\\"):
                text = f"{text}\n{line}"
            elif match := _PROMPT.fullmatch(line):
                if prompt:
                    yield Command(prompt, text, tuple(printed))
                prompt, text, printed = match["prompt"], match["text"], []
            elif prompt:
                printed.append(line)
            else:
                raise ValueError(f"{self.page}, {self.heading}: {line!r} stands before the first prompt")
        yield Command(prompt, text, tuple(printed))


def _even(line: str) -> str:
    return " ".join(line.split())


class Script:
    """The commands of console blocks, which are to be typed in order."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.left = [command for block in blocks for command in block.commands()]

    def until(self, text: str) -> list[Command]:
        """Those before the first in which a text stands."""
        place = next(place for place, command in enumerate(self.left) if text in command.text)
        taken, self.left = self.left[:place], self.left[place:]
        return taken

    def rest(self) -> list[Command]:
        """All that are left."""
        taken, self.left = self.left, []
        return taken


def blocks(page: str, language: str, *headings: str) -> list[Block]:
    """The blocks of a page in a language, in order; below some headings alone, if any are given."""
    path = next(path for path in PAGES if path.stem == page)
    found = [block for block in _blocks(path) if block.language == language]
    return [block for block in found if not headings or block.heading in headings]


def all_blocks() -> list[Block]:
    """Those of all pages."""
    return [block for page in PAGES for block in _blocks(page)]


def _blocks(page: Path) -> Iterator[Block]:
    heading = language = ""
    lines: list[str] | None = None
    for line in page.read_text("utf-8").splitlines():
        if lines is not None and line == "```":
            yield Block(page.stem, heading, language, "".join(f"{each}\n" for each in lines))
            lines = None
        elif lines is not None:
            lines.append(line)
        elif line.startswith("```"):
            language, lines = line[3:], []
        elif line.startswith("#"):
            heading = line.lstrip("# ")
