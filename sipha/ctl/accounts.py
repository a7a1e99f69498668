"""`siphactl user`: the accounts."""

from __future__ import annotations

import sys

import click

from sipha.admin import display
from sipha.admin.client import AdminClient
from sipha.admin.queries import Page
from sipha.admin.views import NewAccount, Secret
from sipha.ctl.pages import pages
from sipha.ctl.session import Session, options


@click.group()
@options
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
@options
@click.pass_obj
def user_add(session: Session, account: str, auth_name: str, password_stdin: bool) -> None:
    """Create an account; the password is asked for."""
    username, domain = _split(account)
    new = NewAccount(
        username=username, domain=domain, password=_read_password(from_stdin=password_stdin), auth_name=auth_name
    )

    async def command(client: AdminClient) -> None:
        created = await client.create_account(new)
        session.answer(created, f"created {created.identity}, which authenticates as {created.auth_name}")

    session.ask(command)


@user.command("passwd")
@click.argument("account", metavar="USER@DOMAIN")
@_auth_name
@_password_stdin
@options
@click.pass_obj
def user_passwd(session: Session, account: str, auth_name: str, password_stdin: bool) -> None:
    """Give an account another password."""
    _split(account)
    secret = Secret(password=_read_password(from_stdin=password_stdin), auth_name=auth_name)

    async def command(client: AdminClient) -> None:
        changed = await client.change_account(account, secret)
        session.answer(changed, f"changed the password of {changed.identity}")

    session.ask(command)


@user.command("list")
@options
@click.pass_obj
def user_list(session: Session) -> None:
    """List the accounts."""

    async def command(client: AdminClient) -> None:
        found = (page.accounts async for page in pages(client.page_of_accounts, Page()))
        await display.pages("accounts", found, display.accounts, json=session.json)

    session.ask(command)


@user.command("rm")
@click.argument("account", metavar="USER@DOMAIN")
@options
@click.pass_obj
def user_rm(session: Session, account: str) -> None:
    """Remove an account; its bindings stay until they expire or `siphactl rm` removes them."""
    _split(account)

    async def command(client: AdminClient) -> None:
        removed = await client.delete_account(account)
        session.answer(removed, f"removed {account}")

    session.ask(command)


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
