"""What siphactl shows the nodes to say who it is, and whom it takes for one: options, or the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import click
from treq.client import HTTPClient
from twisted.web.iweb import IAgent

from sipha.admin.client import Bearer
from sipha.admin.tls import Verification
from sipha.errors import ConfigError

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_OPTIONS = {
    "token": ("SIPHA_TOKEN", "TOKEN", "Show a token, which others on this machine can see on the command line"),
    "token_file": ("SIPHA_TOKEN_FILE", "FILE", "Show the token in a file"),
    "cacert": ("SIPHA_CACERT", "FILE", "Trust these authorities, in PEM, and not the system's"),
    "cert": ("SIPHA_CERT", "FILE", "Show a certificate, in PEM"),
    "key": ("SIPHA_KEY", "FILE", "The key of that certificate"),
}
"""By the name of the option: the variable that does the same, what it takes, and its help."""


class Credentials(NamedTuple):
    """A token and a certificate, if there are any, and the authorities that are trusted: none for the system's."""

    token: str = ""
    authorities: tuple[Path, ...] = ()
    identity: tuple[Path, Path] | None = None

    def verification(self) -> Verification:
        """How servers are verified."""
        return Verification(self.authorities, self.identity)

    def client(self, agent: IAgent) -> HTTPClient:
        """What asks through an agent, with the token if there is one."""
        return HTTPClient(Bearer(agent, self.token) if self.token else agent)


def options(command: CommandT, note: Callable[[click.Context, str, str], None]) -> CommandT:
    """Let a command take what says who we are; `note` is told the name of each option that is used, and its value."""

    def noted(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value and parameter.name:
            note(context, parameter.name, value)

    for name, (variable, metavar, text) in reversed(_OPTIONS.items()):
        option = f"--{name.replace('_', '-')}"
        command = click.option(
            option, name, metavar=metavar, expose_value=False, callback=noted, help=f"{text}; {variable} does the same."
        )(command)
    return command


def read(said: Mapping[str, str]) -> Credentials:
    """Read what the options said, or else the environment; raises UsageError, and ConfigError for the files."""
    environment = {name: os.environ.get(variable, "") for name, (variable, _, _) in _OPTIONS.items()}
    token = _token(said) or _token(environment)
    found = {**environment, **said}
    if bool(found["cert"]) != bool(found["key"]):
        raise click.UsageError("--cert and --key go together")
    credentials = Credentials(
        token,
        (Path(found["cacert"]),) if found["cacert"] else (),
        (Path(found["cert"]), Path(found["key"])) if found["cert"] else None,
    )
    credentials.verification().creatorForNetloc(b"localhost", 443)  # what can't be used is told at once
    return credentials


def _token(said: Mapping[str, str]) -> str:
    file, token = said.get("token_file", ""), said.get("token", "")
    if file and token:
        raise click.UsageError("a token and a file with one are too many; leave one of them out")
    if not file:
        return token
    try:
        token = Path(file).read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        _no_token(file)
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        _no_token(file)
    return token


def _no_token(file: str) -> NoReturn:
    raise ConfigError(f"{file} doesn't hold a token and nothing else; siphactl token makes one")
