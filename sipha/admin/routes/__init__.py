"""The routes of the API, a module for each noun."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from sipha.admin.elsewhere import Elsewhere
from sipha.admin.interfaces import INode
from sipha.admin.route import Group
from sipha.admin.routes.accounts import AccountRoutes
from sipha.admin.routes.backup import BackupRoutes
from sipha.admin.routes.bindings import BindingRoutes
from sipha.admin.routes.configuration import ConfigurationRoutes
from sipha.admin.routes.domains import DomainRoutes
from sipha.admin.routes.events import EventRoutes
from sipha.admin.routes.log import LogRoutes
from sipha.admin.routes.mi import ManagementRoutes
from sipha.admin.routes.nodes import NodeRoutes
from sipha.admin.routes.page import PageRoutes
from sipha.admin.routes.settings import SettingRoutes
from sipha.admin.routes.status import StatusRoutes
from sipha.auth.domain import Domains


def groups(reactor: IReactorTime, node: INode, domains: Domains, elsewhere: Elsewhere) -> tuple[Group, ...]:
    """All groups of routes that need nothing but a node, its domains and the other nodes."""
    return (
        StatusRoutes(node),
        BindingRoutes(reactor, node, domains),
        AccountRoutes(node, domains),
        DomainRoutes(domains),
        NodeRoutes(node),
        LogRoutes(node),
        SettingRoutes(node),
        ConfigurationRoutes(node),
        EventRoutes(reactor, node, domains),
        BackupRoutes(node),
        ManagementRoutes(reactor, node, domains, elsewhere),
        PageRoutes(),
    )
