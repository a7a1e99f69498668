"""What the commands of siphactl have in common: which nodes they ask, how they answer, and how they fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import click
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import react
from twisted.web.client import Agent

from sipha.admin import display
from sipha.admin.client import AdminClient, AdminError, Refused, Unreachable
from sipha.ctl import credentials
from sipha.ctl.credentials import Credentials
from sipha.errors import ConfigError

DEFAULT_URLS = ("http://127.0.0.1:8080", *(f"http://127.0.0.{host}:8080" for host in (11, 12, 13)))
"""Where nodes are looked for: the address in etc/sipha.toml, then the three of `make run`."""

CONNECT_TIMEOUT = 2.0
PROBE_DEADLINE = 3.0
"""Seconds in which a node must answer to be used."""

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

Main = Callable[[HTTPClient, IReactorTime], Coroutine[Deferred[Any], Any, None]]


def run_in_reactor(main: Main, shown: Credentials) -> None:
    """Run the reactor until `main` is done, and leave the process with its exit status."""
    finished = False

    async def run(reactor: Any) -> None:
        nonlocal finished
        agent = Agent(reactor, shown.verification(), connectTimeout=CONNECT_TIMEOUT)
        await main(shown.client(agent), reactor)
        finished = True

    try:
        react(run)
    except SystemExit as leaving:
        # Ctrl-C stops the reactor, which is no failure to react.
        sys.exit(leaving.code or (0 if finished else 130))


@dataclass(slots=True)
class Session:
    """What holds for the whole command: where the nodes are, who asks, how to answer, and what runs the requests."""

    urls: tuple[str, ...] = ()
    json: bool = False
    said: dict[str, str] = field(default_factory=dict)
    run: Callable[[Main, Credentials], None] = run_in_reactor

    def ask(self, command: Callable[[AdminClient], Coroutine[Deferred[Any], Any, None]]) -> None:
        """Run a command against the first node that answers; leaves with status 1 if it isn't done."""
        urls = self.urls or _urls(os.environ.get("SIPHA_URL", "")) or DEFAULT_URLS

        async def main(http: HTTPClient, clock: IReactorTime) -> None:
            try:
                await command(await _first(AdminClient(http, clock, url) for url in urls))
            except AdminError as error:
                leave(str(error))
            except BrokenPipeError:
                # Who read our output has seen enough; the interpreter must not try to flush the rest.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(1) from None

        try:
            shown = credentials.read(self.said)
        except ConfigError as error:
            leave(str(error))
        self.run(main, shown)

    def answer(self, result: Any, sentence: str) -> None:
        """Say what was done: the result in JSON, or a sentence."""
        if self.json:
            display.json(result)
        else:
            click.echo(sentence)


async def _first(clients: Iterable[AdminClient]) -> AdminClient:
    """The first node that answers, and lets us look."""
    problems: list[str] = []
    refused: Refused | None = None
    for client in clients:
        try:
            await client.at(client.url, deadline=PROBE_DEADLINE).status()
        except Refused as error:
            refused = refused or error
        except AdminError as error:
            problems.append(str(error))
        else:
            return client
    if refused is not None:
        raise refused
    raise Unreachable("no node answers: " + "; ".join(problems))


def json_option(command: CommandT) -> CommandT:
    """Let a command take --json, wherever on the command line it stands."""

    def set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.ensure_object(Session).json = True

    return click.option(
        "--json", is_flag=True, expose_value=False, callback=set_json, help="Answer in JSON, for programs."
    )(command)


def options(command: CommandT) -> CommandT:
    """Let a command that asks nodes take --url, --json and credentials, wherever on the command line they stand."""

    def set_urls(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> None:
        if values:
            context.ensure_object(Session).urls = _urls(",".join(values))

    def note(context: click.Context, name: str, value: str) -> None:
        context.ensure_object(Session).said[name] = value

    command = click.option(
        "--url",
        multiple=True,
        metavar="URL",
        expose_value=False,
        callback=set_urls,
        help="Admin of a node; several, repeated or with commas, are tried in turn. SIPHA_URL does the same.",
    )(command)
    return json_option(credentials.options(command, note))


def leave(problem: str) -> NoReturn:
    """Leave with status 1: it wasn't done."""
    click.echo(f"siphactl: {problem}", err=True)
    raise SystemExit(1)


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(text.replace(",", " ").split())
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise click.UsageError(f"{url!r} is not the URL of an admin; write one such as http://127.0.0.1:8080")
    return urls
