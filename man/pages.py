"""The man pages, as `python -m man.pages DIRECTORY` writes them.

siphactl(1) is made of its commands, sipha.toml(5) of the tables of the configuration; sipha(8) stands beside this.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from man import tables
from sipha import __version__, ctl

HERE = Path(__file__).parent

_TITLE = '.TH {name} {section} "" "sipha {version}" "sipha"\n.ad l\n.SH NAME\n{name} \\- {what}\n'
_ESCAPES = {"\\": "\\e", "-": "\\-", "'": "\\(aq", '"': "\\(dq", "`": "\\(ga", "|": "|\\:"}


def roff(text: str) -> str:
    """Text as it is, whatever roff makes of it."""
    escaped = "".join(_ESCAPES.get(character, character) for character in text)
    return re.sub(r"^\.", r"\\&.", escaped, flags=re.MULTILINE)


# The page of the commands


def siphactl() -> str:
    """The page of siphactl, with all that its own --help pages say."""
    head, _, exits = (ctl.__doc__ or "").rpartition("Exit status: ")
    lines = [
        _TITLE.format(
            name="siphactl", section=1, version=__version__, what="look at a cluster of sipha, and change it"
        ),
        ".SH SYNOPSIS",
        *_synopsis(["siphactl"], ctl.cli),
        ".SH DESCRIPTION",
        *_paragraphs(head.partition("\n\n")[2]),
        ".SH OPTIONS",
        *_options(ctl.cli),
        ".SH COMMANDS",
        "Each has",
        ".B \\-\\-help\nas well.",
        *(line for path, command in _commands(["siphactl"], ctl.cli) for line in _command(path, command)),
        ".SH EXIT STATUS",
        *(line for each in exits.strip(" .\n").split("; ") for line in _item(*each.split(" ", 1))),
        ".SH ENVIRONMENT",
        *_item("SIPHA_URL", "Admins of nodes, separated by spaces or commas; the first that answers is asked."),
        ".SH SEE ALSO",
        ".BR sipha (8),\n.BR sipha.toml (5)",
    ]
    return "\n".join(lines) + "\n"


def _commands(path: list[str], group: click.Group) -> Iterator[tuple[list[str], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands([*path, name], command)
        else:
            yield [*path, name], command


def _command(path: list[str], command: click.Command) -> Iterator[str]:
    yield f".SS {roff(' '.join(path[1:]))}"
    yield from _synopsis(path, command)
    yield from _paragraphs(command.help or "")
    own = {option.name for option in ctl.cli.params}
    yield from _options(command, own)


def _synopsis(path: list[str], command: click.Command) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(click.Context(command, info_name=path[-1])))
    yield f".B {roff(' '.join(path))}\n{roff(usage)}"


def _options(command: click.Command, but: Iterable[str | None] = ()) -> Iterator[str]:
    for option in command.params:
        record = option.get_help_record(click.Context(command))
        if record is not None and isinstance(option, click.Option) and option.name not in but:
            yield from _item(*record)


# The page of the configuration


def configuration() -> str:
    """The page of the configuration: each key with what it is for, what it may be, and its default."""
    lines = [
        _TITLE.format(name="sipha.toml", section=5, version=__version__, what="the configuration of a node of sipha"),
        ".SH SYNOPSIS",
        ".I /etc/sipha/sipha.toml",
        ".SH DESCRIPTION",
        *_paragraphs(tables.introduction()),
        *_paragraphs("Below, each key stands with its default, or with an example."),
        ".SH TABLES",
        *(line for table in tables.tables() for line in _table(table)),
        ".SH SEE ALSO",
        ".BR sipha (8),\n.BR siphactl (1)",
    ]
    return "\n".join(lines) + "\n"


def _table(table: tables.Table) -> Iterator[str]:
    yield f".SS {roff(table.heading)}"
    yield from _paragraphs(table.meaning)
    for entry in table.entries:
        yield from _item(f"{entry.name} = {entry.written}", entry.meaning)
        default = "required" if entry.default is None else f"{entry.default} by default"
        yield f".br\n{roff(f'({entry.kind}; {default}; {entry.taken_by})')}"


# Both


def _item(term: str, text: str) -> Iterator[str]:
    yield f".TP\n.B {roff(term)}"
    yield roff(text) or "\\&"


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in filter(None, re.split(r"\n\s*\n", text.strip())):
        yield ".PP"
        yield roff(" ".join(paragraph.split()))


PAGES: dict[str, Callable[[], str]] = {
    "siphactl.1": siphactl,
    "sipha.toml.5": configuration,
    "sipha.8": lambda: (HERE / "sipha.8").read_text("utf-8").replace("@VERSION@", __version__),
}


def main(directory: str) -> None:
    """Write them all."""
    for name, page in PAGES.items():
        Path(directory, name).write_text(page(), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
