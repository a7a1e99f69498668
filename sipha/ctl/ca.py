"""`siphactl ca`: make the certificates with which the nodes know each other, and operators. It talks to no node."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import click

from sipha.cluster import authority
from sipha.cluster.authority import Issued
from sipha.ctl.session import leave
from sipha.errors import SiphaError

CERTIFICATES = "ca.pem"
KEY = "ca-key.pem"

_days = click.IntRange(1, 36500)


@click.group()
def ca() -> None:
    """Make the certificates with which the nodes know each other, and operators; see docs/cluster-tls.md."""


@ca.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=".",
    show_default=True,
    help="Where to put the files.",
)
@click.option("--name", metavar="CLUSTER", default="sipha", show_default=True, help="The cluster, as in cluster.name.")
@click.option(
    "--days", type=_days, default=authority.AUTHORITY_DAYS, show_default=True, help="How long it is good for."
)
@click.argument("nodes", metavar="[NODE]...", nargs=-1)
def init(directory: Path, name: str, days: int, nodes: tuple[str, ...]) -> None:
    """Make the certificate authority of a cluster: ca.pem, and ca-key.pem, which no node needs.

    The certificates of the NODEs are made at once, each in a directory of its name, as issue does.
    """
    try:
        made = authority.found(name, datetime.now(UTC), days)
    except SiphaError as error:
        leave(str(error))
    _write(directory, {KEY: made.key}, {CERTIFICATES: made.certificate})
    click.echo(f"made the authority of cluster {name} in {directory}; keep {KEY} secret, and off the nodes")
    for node in nodes:
        _issue_node(directory, node, directory / node, authority.NODE_DAYS)


_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=".",
    show_default=True,
    help="Where the authority's files are.",
)


@ca.command()
@click.argument("node")
@_directory
@click.option("--out", type=click.Path(path_type=Path), help="Where to put the node's files, if not in DIR/NODE.")
@click.option("--days", type=_days, default=authority.NODE_DAYS, show_default=True, help="How long it is good for.")
@click.option("--address", "addresses", multiple=True, metavar="IP", help="Where its admin is asked; may be repeated.")
def issue(node: str, directory: Path, out: Path | None, days: int, addresses: tuple[str, ...]) -> None:
    """Make the certificate of a node: cert.pem, key.pem, and a copy of ca.pem."""
    try:
        literals = [ip_address(address) for address in addresses]
    except ValueError as error:
        raise click.UsageError(f"--address: {error}") from error
    _issue_node(directory, node, directory / node if out is None else out, days, literals)


def _issue_node(
    directory: Path, node: str, out: Path, days: int, addresses: Sequence[IPv4Address | IPv6Address] = ()
) -> None:
    _issue(directory, out, lambda own: authority.issue(own, node, datetime.now(UTC), days, addresses))
    click.echo(
        f"made the certificate of node {node} in {out}; install {CERTIFICATES}, cert.pem and key.pem on the node"
    )


@ca.command()
@click.argument("name")
@_directory
@click.option("--out", type=click.Path(path_type=Path), help="Where to put the files, if not in DIR/operators/NAME.")
@click.option("--days", type=_days, default=authority.OPERATOR_DAYS, show_default=True, help="How long it is good for.")
def operator(name: str, directory: Path, out: Path | None, days: int) -> None:
    """Make the certificate of an operator, for siphactl --cert and --key."""
    out = directory / "operators" / name if out is None else out
    made = _issue(directory, out, lambda own: authority.issue_operator(own, name, datetime.now(UTC), days))
    click.echo(
        f"made the certificate of {made} in {out}; add this to the configuration of all nodes, and reload them:\n"
    )
    click.echo(f'[[admin.clients]]\nname = "{made}"\nrole = "read"    # or "operate", or "admin"')


def _issue(directory: Path, out: Path, make: Callable[[Issued], Issued]) -> str:
    """Let the authority in a directory issue a certificate, and write what belongs to it; returns the name in it."""
    own = Issued(_read(directory / CERTIFICATES), _read(directory / KEY))
    try:
        made = make(own)
    except SiphaError as error:
        leave(str(error))
    _write(out, {"key.pem": made.key}, {"cert.pem": made.certificate, CERTIFICATES: own.certificate})
    return authority.name_in(made)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        leave(f"{path} can't be read: {error.strerror}; siphactl ca init makes it")


def _write(directory: Path, secret: dict[str, bytes], public: dict[str, bytes]) -> None:
    """Write new files, the secret ones for their owner's eyes alone; what is there already is left as it is."""
    for name in (*secret, *public):
        if os.path.lexists(directory / name):
            leave(f"{directory / name} exists, and is not overwritten; move it away, or name another directory")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for files, mode in ((secret, 0o600), (public, 0o644)):
            for name, data in files.items():
                with os.fdopen(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                    file.write(data)
    except OSError as error:
        leave(f"{error.filename or directory} can't be written: {error.strerror}")
