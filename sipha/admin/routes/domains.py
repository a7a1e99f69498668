"""The domains."""

from __future__ import annotations

from sipha.admin.access import Role
from sipha.admin.imports import DomainViews, domain_views
from sipha.admin.route import Routes
from sipha.auth.domain import Domains


class DomainRoutes:
    """The domains that a node serves."""

    routes = Routes("domains")

    def __init__(self, domains: Domains) -> None:
        self._domains = domains

    @routes.get("/v1/domains", role=Role.READ)
    def list_domains(self) -> DomainViews:
        """The domains that are served, the default one first."""
        return domain_views(self._domains)
