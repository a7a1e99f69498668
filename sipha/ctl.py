"""`siphactl`: look at the nodes, their bindings and accounts, and change them, through the admin's HTTP API.

Exit status: 0 done; 1 it wasn't done, or what was asked for doesn't exist; 2 the command line is wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import click
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import react
from twisted.web.client import Agent

from sipha import __version__
from sipha.admin import display
from sipha.admin.client import AdminClient, AdminError, Unreachable
from sipha.admin.views import Accounts, Bindings, NewAccount, Secret, Status

DEFAULT_URLS = ("http://127.0.0.1:8080", *(f"http://127.0.0.{host}:8080" for host in (11, 12, 13)))
"""Where nodes are looked for: the address in etc/sipha.toml, then the three of `make run`."""

CONNECT_TIMEOUT = 2.0
PROBE_DEADLINE = 3.0
"""Seconds in which a node must answer to be used."""

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
PageT = TypeVar("PageT", Bindings, Accounts)

Main = Callable[[HTTPClient, IReactorTime], Coroutine[Deferred[Any], Any, None]]


def run_in_reactor(main: Main) -> None:
    """Run the reactor until `main` is done, and leave the process with its exit status."""
    finished = False

    async def run(reactor: Any) -> None:
        nonlocal finished
        await main(HTTPClient(Agent(reactor, connectTimeout=CONNECT_TIMEOUT)), reactor)
        finished = True

    try:
        react(run)
    except SystemExit as leaving:
        # Ctrl-C stops the reactor, which is no failure to react.
        sys.exit(leaving.code or (0 if finished else 130))


@dataclass(slots=True)
class Session:
    """What holds for the whole command: where the nodes are, how to answer, and what runs the requests."""

    urls: tuple[str, ...] = ()
    json: bool = False
    run: Callable[[Main], None] = run_in_reactor

    def ask(self, command: Callable[[AdminClient], Coroutine[Deferred[Any], Any, None]]) -> None:
        """Run a command against the first node that answers; leaves with status 1 if it isn't done."""
        urls = self.urls or _urls(os.environ.get("SIPHA_URL", "")) or DEFAULT_URLS

        async def main(http: HTTPClient, clock: IReactorTime) -> None:
            try:
                await command(await _first(AdminClient(http, clock, url) for url in urls))
            except AdminError as error:
                _fail(str(error))
            except BrokenPipeError:
                # Who read our output has seen enough; the interpreter must not try to flush the rest.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(1) from None

        self.run(main)


async def _first(clients: Iterable[AdminClient]) -> AdminClient:
    """The first node that answers."""
    problems: list[str] = []
    for client in clients:
        try:
            await client.at(client.url, deadline=PROBE_DEADLINE).status()
        except AdminError as error:
            problems.append(str(error))
        else:
            return client
    raise Unreachable("no node answers: " + "; ".join(problems))


def _options(command: CommandT) -> CommandT:
    """Let a command take --url and --json, wherever on the command line they stand."""

    def set_urls(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> None:
        if values:
            context.ensure_object(Session).urls = _urls(",".join(values))

    def set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.ensure_object(Session).json = True

    command = click.option(
        "--url",
        multiple=True,
        metavar="URL",
        expose_value=False,
        callback=set_urls,
        help="Admin of a node; several, repeated or with commas, are tried in turn. SIPHA_URL does the same.",
    )(command)
    return click.option(
        "--json", is_flag=True, expose_value=False, callback=set_json, help="Answer in JSON, for programs."
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@_options
@click.pass_context
def cli(context: click.Context) -> None:
    """Look at a cluster of sipha nodes, its bindings and accounts, and change them."""
    context.ensure_object(Session)


@cli.command()
@_options
@click.pass_obj
def status(session: Session) -> None:
    """Show every node: role, term, table, lease. Exit status 1 if none leads, or if tables differ."""

    async def command(client: AdminClient) -> None:
        own = await client.status()
        peers = [client.at(peer.admin, deadline=PROBE_DEADLINE) for peer in own.peers if peer.admin]
        others = await gatherResults([Deferred.fromCoroutine(_status_or_none(peer)) for peer in peers])
        found = {node.node: node for node in (own, *others) if node is not None}
        names = sorted({own.node, *(peer.name for peer in own.peers)})
        if session.json:
            display.json({"nodes": [found.get(name, {"node": name, "role": "unreachable"}) for name in names]})
        else:
            display.nodes((name, found.get(name)) for name in names)
        _judge(found.values())

    session.ask(command)


@cli.command()
@click.argument("aor", required=False)
@_options
@click.pass_obj
def show(session: Session, aor: str | None) -> None:
    """Show all bindings, or all that is known of those of one AOR (alice@sipha.test)."""

    async def all_of_them(client: AdminClient) -> None:
        pages = _pages(client.page_of_bindings)
        await display.pages("bindings", (page.bindings async for page in pages), display.bindings, json=session.json)

    async def of_one(client: AdminClient) -> None:
        found = await client.bindings(aor or "")
        if session.json:
            display.json(found)
        else:
            display.details(found.bindings)

    session.ask(of_one if aor else all_of_them)


@cli.command()
@click.argument("aor")
@click.option("--contact", metavar="URI", default="", help="Only the binding to this contact.")
@_options
@click.pass_obj
def rm(session: Session, aor: str, contact: str) -> None:
    """Remove the bindings of an AOR; its phones stay unreachable until they register again."""

    async def command(client: AdminClient) -> None:
        removed = (await client.remove_bindings(aor, contact)).removed
        _answer(
            session, {"removed": removed}, f"removed {removed} {'binding' if removed == 1 else 'bindings'} of {aor}"
        )

    session.ask(command)


@cli.group()
@_options
def user() -> None:
    """Create, change, list and remove accounts."""


_password_stdin = click.option(
    "--password-stdin", is_flag=True, help="Read the password from the first line of standard input."
)
_auth_name = click.option("--auth-name", metavar="NAME", default="", help="What the phone authenticates as.")


@user.command("add")
@click.argument("account", metavar="USER@DOMAIN")
@_auth_name
@_password_stdin
@_options
@click.pass_obj
def user_add(session: Session, account: str, auth_name: str, password_stdin: bool) -> None:
    """Create an account; the password is asked for."""
    username, domain = _split(account)
    new = NewAccount(
        username=username, domain=domain, password=_read_password(from_stdin=password_stdin), auth_name=auth_name
    )

    async def command(client: AdminClient) -> None:
        created = await client.create_account(new)
        _answer(session, created, f"created {created.identity}, which authenticates as {created.auth_name}")

    session.ask(command)


@user.command("passwd")
@click.argument("account", metavar="USER@DOMAIN")
@_auth_name
@_password_stdin
@_options
@click.pass_obj
def user_passwd(session: Session, account: str, auth_name: str, password_stdin: bool) -> None:
    """Give an account another password."""
    _split(account)
    secret = Secret(password=_read_password(from_stdin=password_stdin), auth_name=auth_name)

    async def command(client: AdminClient) -> None:
        changed = await client.change_account(account, secret)
        _answer(session, changed, f"changed the password of {changed.identity}")

    session.ask(command)


@user.command("list")
@_options
@click.pass_obj
def user_list(session: Session) -> None:
    """List the accounts."""

    async def command(client: AdminClient) -> None:
        pages = _pages(client.page_of_accounts)
        await display.pages("accounts", (page.accounts async for page in pages), display.accounts, json=session.json)

    session.ask(command)


@user.command("rm")
@click.argument("account", metavar="USER@DOMAIN")
@_options
@click.pass_obj
def user_rm(session: Session, account: str) -> None:
    """Remove an account; its bindings stay until they expire or `siphactl rm` removes them."""
    _split(account)

    async def command(client: AdminClient) -> None:
        removed = await client.delete_account(account)
        _answer(session, removed, f"removed {account}")

    session.ask(command)


def main() -> None:
    """Run siphactl."""
    cli(prog_name="siphactl")


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(text.replace(",", " ").split())
    for url in urls:
        if not url.startswith("http://"):
            raise click.UsageError(f"{url!r} is not the URL of an admin; write one such as http://127.0.0.1:8080")
    return urls


def _split(account: str) -> tuple[str, str]:
    username, at, domain = account.removeprefix("sip:").rpartition("@")
    if not (username and at and domain):
        raise click.UsageError(f"{account!r} is not an account; write user@domain, such as alice@sipha.test")
    return username, domain


def _read_password(*, from_stdin: bool) -> str:
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        raise click.UsageError("there is no terminal to ask for the password; use --password-stdin")
    if not password:
        raise click.UsageError("the password is empty")
    return password


async def _pages(next_page: Callable[[str], Coroutine[Deferred[Any], Any, PageT]]) -> AsyncIterator[PageT]:
    cursor: str | None = ""
    while cursor is not None:
        page = await next_page(cursor)
        yield page
        cursor = page.cursor


async def _status_or_none(client: AdminClient) -> Status | None:
    try:
        return await client.status()
    except AdminError:
        return None


def _judge(nodes: Iterable[Status]) -> None:
    """Leave with status 1 if no node leads, or if two have applied the same and have it differently."""
    tables: dict[int, str] = {}
    leading = False
    for node in nodes:
        leading = leading or node.leading
        if tables.setdefault(node.applied_index, node.hash) != node.hash:
            _fail(
                f"the tables of two nodes differ at index {node.applied_index}: this must not be; keep their data_dir"
            )
    if not leading:
        _fail("no node leads: a majority must run and reach each other")


def _answer(session: Session, result: Any, sentence: str) -> None:
    if session.json:
        display.json(result)
    else:
        click.echo(sentence)


def _fail(problem: str) -> NoReturn:
    click.echo(f"siphactl: {problem}", err=True)
    raise SystemExit(1)
