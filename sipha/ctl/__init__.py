"""`siphactl`: look at the nodes, their bindings and accounts, and change them, through the admin's HTTP API.

What is done to a node whose daemon is stopped (cluster init, recover, restore, disk) goes to its data directory itself;
`check` reads a configuration file alone. init, join and ca are for new nodes.

Exit status: 0 done; 1 it wasn't done, or what was asked for doesn't exist; 2 the command line is wrong; 130 Ctrl-C.
"""

from __future__ import annotations

import click

from sipha import RELEASE
from sipha.ctl import session
from sipha.ctl.accounts import user
from sipha.ctl.backup import backup
from sipha.ctl.bindings import bindings, export, rm, show
from sipha.ctl.ca import ca
from sipha.ctl.configuration import check, log_level, reload
from sipha.ctl.drill import drill
from sipha.ctl.events import events, history
from sipha.ctl.imports import import_
from sipha.ctl.log import log
from sipha.ctl.nodes import node, online, prefer, standby, transfer
from sipha.ctl.offline import cluster, disk, recover, restore
from sipha.ctl.pings import pings
from sipha.ctl.settings import settings
from sipha.ctl.setup import init, join
from sipha.ctl.status import status, watch
from sipha.ctl.token import token
from sipha.ctl.trace import trace


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(RELEASE)
@session.options
@click.pass_context
def cli(context: click.Context) -> None:
    """Look at a cluster of sipha nodes, its bindings and accounts, and change them."""
    context.ensure_object(session.Session)


for command in (
    status,
    watch,
    bindings,
    show,
    rm,
    export,
    history,
    trace,
    events,
    user,
    node,
    transfer,
    standby,
    online,
    prefer,
    drill,
    pings,
    settings,
    log,
    backup,
    check,
    reload,
    log_level,
    import_,
    init,
    join,
    cluster,
    restore,
    recover,
    disk,
    ca,
    token,
):
    cli.add_command(command)


def main() -> None:
    """Run siphactl."""
    cli(prog_name="siphactl")
