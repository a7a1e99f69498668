"""`siphactl init` and `join`: from an installed package to a node of a cluster."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import click
from pyroute2 import IPRoute

from sipha import config
from sipha.admin.views import NewNode
from sipha.cluster import tls
from sipha.cluster.authority import host_name
from sipha.cluster.tls import Credentials
from sipha.config.draft import CERTIFICATES, EXAMPLE, Draft
from sipha.config.texts import AbsolutePath, DomainName, NodeName, SocketAddress, VirtualIp
from sipha.ctl.nodes import add
from sipha.ctl.session import Session, leave, options
from sipha.errors import ConfigError, SiphaError
from sipha.toml import Text

PORT = 7000
"""Where nodes listen for each other, if nothing else is said."""

USER = "sipha"
"""Whose the files of a node are, if there is such a user."""

TextT = TypeVar("TextT", bound=Text)

_config = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default="/etc/sipha/sipha.toml",
    show_default=True,
    help="The node's configuration.",
)


@click.command()
@click.option("--name", metavar="NODE", help="This node, such as n1.")
@click.option("--address", metavar="HOST[:PORT]", help="Where the other nodes reach it.")
@click.option(
    "--virtual-address",
    "virtual",
    metavar="ADDRESS[%INTERFACE]",
    multiple=True,
    help="What phones use, and the leader has; several, repeated. The interface is that of --address if not said.",
)
@click.option("--domain", help="The domain of the phones.")
@click.option("--peer", "peers", metavar="NODE=HOST[:PORT]", multiple=True, help="Another node; several, repeated.")
@click.option("--cluster", metavar="NAME", default="sipha", show_default=True, help="The same on all nodes.")
@click.option(
    "--certificates",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where siphactl ca has put those of this node: they are copied beside the configuration.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), default="/var/lib/sipha", show_default=True)
@click.option("--admin", metavar="HOST:PORT", default="127.0.0.1:8080", show_default=True, help="Where siphactl asks.")
@click.option("--force", is_flag=True, help="Overwrite a configuration, and certificates.")
@_config
def init(  # noqa: PLR0917  one for each option
    name: str | None,
    address: str | None,
    virtual: tuple[str, ...],
    domain: str | None,
    peers: tuple[str, ...],
    cluster: str,
    certificates: Path | None,
    data_dir: Path,
    admin: str,
    force: bool,
    path: Path,
) -> None:
    """Write the configuration of a new node; what isn't given is asked for at a terminal.

    The example that a package installs is overwritten; anything else only with --force.
    """
    path = path.absolute()
    if not force and not _is_example(path):
        leave(f"{path} exists, and is not overwritten without --force")
    asks = _at_terminal() and None in {name, address, domain}
    own = _text(NodeName, "--name", name or _ask("--name", "Name of this node"))
    listen = _address("--address", address or _ask("--address", "Its address, where the other nodes reach it"))
    addresses = virtual or tuple(_ask("--virtual-address", "Virtual address, which phones use").split())
    called = _text(DomainName, "--domain", domain or _ask("--domain", "Domain of the phones"))
    if asks and not peers:
        peers = tuple(click.prompt("Other nodes, as in n2=192.0.2.12 n3=192.0.2.13", default="", err=True).split())
    on_machine = ip_address(listen.address[0]).is_loopback and certificates is None
    draft = Draft(
        own,
        _text(NodeName, "--cluster", cluster),
        listen,
        tuple(_placed(each, listen) for each in addresses),
        called,
        _text(SocketAddress, "--admin", admin),
        Path(_text(AbsolutePath, "--data-dir", str(data_dir))),
        None if on_machine else path.parent,
        dict(map(_peer, peers)),
    )
    try:
        _write(path, draft, certificates, force=force)
    except SiphaError as error:
        leave(str(error))
    except OSError as error:
        leave(f"{error.filename or path.parent} can't be written: {error.strerror}")
    click.echo(f"wrote {path}")
    if not on_machine and certificates is None:
        click.echo(f"put {', '.join(CERTIFICATES.values())} into {path.parent}: siphactl ca makes them")


@click.command()
@click.option(
    "--ssh",
    "hosts",
    metavar="HOST",
    multiple=True,
    help="Run siphactl node add on HOST through ssh; on several, repeated, until one has done it: it must lead.",
)
@click.option("--no-wait", is_flag=True, help="Don't wait until this node has caught up and votes.")
@_config
@options
@click.pass_obj
def join(session: Session, hosts: tuple[str, ...], no_wait: bool, path: Path) -> None:
    """Have this node, which must run, made a member of the cluster of those that its configuration names.

    The admin of one of them is asked: that of --url, or those in [[cluster.peers]]. Where admins listen on loopback
    addresses alone, use --ssh.
    """
    try:
        settings = config.load(path)
    except ConfigError as error:
        leave(str(error))
    new = NewNode(str(settings.node.name), str(settings.cluster.listen))
    words = ["siphactl", "node", "add", new.name, new.address, *["--no-wait"] * no_wait, *["--json"] * session.json]
    if hosts:
        if not any(_run_on(host, words) for host in hosts):
            leave(f"{new.name} is no member yet")
        return
    session.urls = session.urls or tuple(str(peer.admin) for peer in settings.cluster.peers if peer.admin)
    if not session.urls:
        leave(f"the configuration says of no other node where its admin is; on one of them, run {' '.join(words)}")
    add(session, new, no_wait=no_wait)


def _run_on(host: str, words: Sequence[str]) -> bool:
    """Run a command on another machine, and return True if it has done what it should."""
    # A host is no option, whatever it is called.
    return subprocess.run(["ssh", "--", host, *words], check=False).returncode == 0  # noqa: S603, S607


def _at_terminal() -> bool:
    return sys.stdin.isatty()


def _ask(flag: str, question: str) -> str:
    """What an operator answers; leaves with status 2 if there is none to be asked."""
    if not _at_terminal():
        raise click.UsageError(f"{flag} is missing, and there is no terminal to ask at")
    return str(click.prompt(question, err=True))


def _text(kind: type[TextT], flag: str, text: str) -> TextT:
    """A value as the configuration has it."""
    try:
        return kind.parse(text)
    except ValueError as error:
        raise click.UsageError(f"{flag}: {error}") from None


def _address(flag: str, text: str) -> SocketAddress:
    """Host and port, or the host alone."""
    with suppress(ValueError):
        literal = ip_address(text)
        text = f"[{literal}]:{PORT}" if literal.version == 6 else f"{literal}:{PORT}"
    return _text(SocketAddress, flag, text)


def _peer(text: str) -> tuple[NodeName, SocketAddress]:
    name, equals, address = text.partition("=")
    if not equals:
        raise click.UsageError(f"--peer: {text!r} is no node and its address; write one such as n2=192.0.2.12")
    return _text(NodeName, "--peer", name), _address("--peer", address)


def _placed(text: str, listen: SocketAddress) -> VirtualIp:
    """A virtual address with its interface: that of the node's own address, if none is named."""
    address = _text(VirtualIp, "--virtual-address", text)
    if address.placement.interface or address.placement.literal.is_loopback:
        return address
    host = ip_address(listen.address[0])
    with IPRoute() as kernel:
        for found in kernel.get_addr():
            if ip_address(found.get_attr("IFA_ADDRESS")) == host:
                [link] = kernel.get_links(found["index"])
                return _text(VirtualIp, "--virtual-address", f"{address}%{link.get_attr('IFLA_IFNAME')}")
    raise click.UsageError(
        f"--virtual-address: no interface of this machine has {host}; write which one is to have the virtual address, "
        f"as in {address}%eth0"
    )


def _is_example(path: Path) -> bool:
    """True if there is no configuration yet, or only the one that decides nothing."""
    if not os.path.lexists(path):
        return True
    try:
        return config.load(path) == EXAMPLE
    except ConfigError:
        return False


def _write(path: Path, draft: Draft, certificates: Path | None, *, force: bool) -> None:
    """Have the configuration, and the certificates beside it, once the daemon would take them."""
    files: Mapping[Path, bytes] = {}
    if certificates is not None:
        found = {key: certificates / file for key, file in CERTIFICATES.items()}
        tls.load(Credentials(**found), host_name(draft.name, draft.cluster))
        files = {path.parent / file: (certificates / file).read_bytes() for file in CERTIFICATES.values()}
    for file in files:
        if os.path.lexists(file) and not force:
            leave(f"{file} exists, and is not overwritten without --force")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(draft.text(), encoding="utf-8")
        new.chmod(0o644)  # the guard, another user, reads it as well
        try:
            config.load(new)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix(f"{new}: ")) from None
        for file, data in files.items():
            _install(file, data)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _install(file: Path, data: bytes) -> None:
    """Put a file in its place, for the daemon's eyes alone."""
    new = file.with_name(f".{file.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(data)
    if os.geteuid() == 0:
        with suppress(KeyError):
            user = pwd.getpwnam(USER)
            os.chown(new, user.pw_uid, user.pw_gid)
    new.replace(file)
