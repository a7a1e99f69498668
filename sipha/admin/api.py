"""The admin's HTTP API: `/v1/status`, `/v1/bindings` and `/v1/accounts` in JSON (docs/admin-api.md).

Any node reads its own table. A write goes to the log, and its answer waits until it is applied; a node that doesn't
lead forwards it, once, to the one that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
import treq
from klein import Klein
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectError, ConnectionClosed, TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived
from twisted.web.resource import IResource
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from sipha.admin import views
from sipha.admin.interfaces import INode
from sipha.auth.domain import Domain, Domains
from sipha.errors import SiphaError, Unavailable
from sipha.state.entries import DeleteAccount, PutAccount, Record, RemoveBindings
from sipha.state.machine import Done, NotFound, Outcome, Rejected

MAX_PAGE = 1000
"""The AORs or accounts of one page."""

FORWARDED = "Sipha-Forwarded-By"
"""The header that bears the name of the node that forwarded a request; such a request isn't forwarded again."""

FORWARD_TIMEOUT = 5.0
"""Seconds that the leader has for its answer; longer than any proposal's deadline."""

_SCAN = 10_000
"""The items that are looked at before other work gets its turn."""

_AT_ONCE = 256
"""The proposals of one bulk request that are under way at a time."""

ItemT = TypeVar("ItemT")
BodyT = TypeVar("BodyT")


class Refusal(SiphaError):
    """A request that is answered with an HTTP error."""

    def __init__(self, status: int, detail: str, *, retry_after: int = 0, allow: str = "") -> None:
        super().__init__(detail)
        self.fault = views.FaultReply(views.Fault(status, detail))
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}
        if allow:
            self.headers["Allow"] = allow


class Api:
    """The routes, for a node and its domains; `http` carries what is forwarded to the leader."""

    _app = Klein()

    def __init__(self, reactor: IReactorTime, node: INode, domains: Domains, http: HTTPClient) -> None:
        self._reactor = reactor
        self._node = node
        self._domains = domains
        self._http = http

    def resource(self) -> IResource:
        """The resource that serves the routes; admin/site.py stands before it."""
        return self._app.resource()

    @_app.route("/v1/status", methods=["GET"])
    def _get_status(self, request: Request) -> bytes:
        _read_query(request)
        return reply(request, self._node.status())

    @_app.route("/v1/bindings", methods=["GET"])
    async def _get_bindings(self, request: Request) -> bytes:
        query = _read_query(request, "limit", "cursor", "prefix")
        prefix = "sip:" + query.get("prefix", "").removeprefix("sip:")
        aors = (aor for aor in self._node.aors() if aor.startswith(prefix))
        page, cursor = await self._page(aors, str, query)
        now = self._node.cluster_time()
        return reply(
            request,
            views.Bindings(
                tuple(views.binding_view(binding, now) for aor in page for binding in self._node.bindings(aor)), cursor
            ),
        )

    @_app.route("/v1/bindings/<path:aor>", methods=["GET"])
    def _get_bindings_of(self, request: Request, aor: str) -> bytes:
        _read_query(request)
        aor = self._locate(aor)[1]
        now = self._node.cluster_time()
        bindings = tuple(views.binding_view(binding, now) for binding in self._node.bindings(aor))
        if not bindings:
            raise Refusal(404, f"{aor} has no bindings")
        return reply(request, views.Bindings(bindings))

    @_app.route("/v1/bindings/<path:aor>", methods=["DELETE"])
    async def _delete_bindings(self, request: Request, aor: str) -> bytes:
        contact = _read_query(request, "contact").get("contact", "")
        aor = self._locate(aor)[1]
        if not self._node.leading():
            return await self._forward(request)
        outcome = await self._propose(RemoveBindings(aor, contact))
        if isinstance(outcome, NotFound):
            raise Refusal(404, f"{aor} has no binding {contact}" if contact else f"{aor} has no bindings")
        return reply(request, views.Removed(_count(outcome)))

    @_app.route("/v1/accounts", methods=["GET"])
    async def _get_accounts(self, request: Request) -> bytes:
        query = _read_query(request, "limit", "cursor", "domain")
        domain = query.get("domain")
        accounts = (account for account in self._node.accounts() if domain in {None, account.domain})
        page, cursor = await self._page(accounts, _identity, query)
        return reply(request, views.Accounts(tuple(views.account_view(account) for account in page), cursor))

    @_app.route("/v1/accounts", methods=["POST"])
    async def _post_accounts(self, request: Request) -> bytes:
        _read_query(request)
        body = _decode(request, views.NewAccount | list[views.NewAccount])
        several = isinstance(body, list)
        records = [self._new_account(account) for account in (body if several else [body])]
        if not self._node.leading():
            # Passwords go no further than the node that was asked.
            hashed = [
                views.NewAccount(
                    username=record.username, domain=record.domain, auth_name=record.auth_name, ha1=record.ha1
                )
                for record in records
            ]
            return await self._forward(request, hashed if several else hashed[0])
        if several:
            return reply(request, views.Results(await self._create_all(records)))
        outcome = await self._propose(records[0])
        fault = _creation_fault(records[0], outcome)
        if fault is not None:
            raise fault
        request.setResponseCode(201)
        return reply(request, views.account_view(records[0]))

    @_app.route("/v1/accounts/<path:identity>", methods=["GET"])
    def _get_account(self, request: Request, identity: str) -> bytes:
        _read_query(request)
        username, domain = self._account_named(identity)
        account = self._node.account(username, domain.name)
        if account is None:
            raise Refusal(404, f"there is no account {username}@{domain.name}")
        return reply(request, views.account_view(account))

    @_app.route("/v1/accounts/<path:identity>", methods=["PUT"])
    async def _put_account(self, request: Request, identity: str) -> bytes:
        _read_query(request)
        username, domain = self._account_named(identity)
        secret = _decode(request, views.Secret)
        account = self._node.account(username, domain.name)
        old_name = views.default_auth_name(username) if account is None else account.auth_name
        auth_name = secret.auth_name or old_name
        hashes = secret.hashes(auth_name, domain.realm)
        if not self._node.leading():
            return await self._forward(request, views.Secret(ha1=hashes, auth_name=auth_name))
        record = PutAccount(username, domain.name, auth_name, domain.realm, hashes, replace_only=True)
        outcome = await self._propose(record)
        if isinstance(outcome, NotFound):
            raise Refusal(404, f"there is no account {username}@{domain.name}")
        _refuse_rejection(outcome)
        return reply(request, views.account_view(record))

    @_app.route("/v1/accounts/<path:identity>", methods=["DELETE"])
    async def _delete_account(self, request: Request, identity: str) -> bytes:
        _read_query(request)
        username, domain = self._account_named(identity)
        if not self._node.leading():
            return await self._forward(request)
        outcome = await self._propose(DeleteAccount(username, domain.name))
        if isinstance(outcome, NotFound):
            raise Refusal(404, f"there is no account {username}@{domain.name}")
        return reply(request, views.Removed(_count(outcome)))

