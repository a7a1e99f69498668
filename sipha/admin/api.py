"""The admin's HTTP API, in JSON (docs/admin-api.md).

Any node reads its own table. A write goes to the log, and its answer waits until it is applied; which node is asked
doesn't matter. What only the leader can do is forwarded there, once, by a node that doesn't lead.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from klein import Klein
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from sipha.admin import views
from sipha.admin.backup import INDEX, Outflow
from sipha.admin.client import Unreachable, exchange, segment
from sipha.admin.imports import SCHEMA, BroughtAll, NewBinding, brought, domain_views, import_of
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal, decode, read_limit, read_query, refuse, reply
from sipha.auth.domain import Domain, Domains
from sipha.errors import MalformedMessage, SiphaError, Unavailable
from sipha.sip.uri import parse_uri
from sipha.state.entries import DeleteAccount, PutAccount, Record, RemoveBindings
from sipha.state.outcomes import Conflict, Done, NotFound, Outcome

FORWARDED = "Sipha-Forwarded-By"
"""The header that bears the name of the node that forwarded a request; such a request isn't forwarded again."""

FORWARD_DEADLINE = 5.0
"""Seconds that the leader has for its answer; longer than it waits for a majority itself."""

_AT_ONCE = 256
"""The proposals of one bulk request that are under way at a time."""


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
        read_query(request)
        return reply(request, self._node.status())

    @_app.route("/v1/bindings", methods=["GET"])
    def _get_bindings(self, request: Request) -> bytes:
        query = read_query(request, "limit", "cursor", "prefix")
        limit = read_limit(query)
        prefix = "sip:" + query.get("prefix", "").removeprefix("sip:")
        found = self._node.aors(max(query.get("cursor", ""), _before(prefix)), limit)
        aors = [aor for aor in found if aor.startswith(prefix)]
        now = self._node.cluster_time()
        bindings = (views.binding_view(binding, now) for aor in aors for binding in self._node.bindings(aor))
        return reply(request, views.Bindings(tuple(bindings), aors[-1] if len(aors) == limit else None))

    @_app.route("/v1/bindings", methods=["POST"])
    async def _post_bindings(self, request: Request) -> bytes:
        read_query(request)
        records = [import_of(binding, self._domains) for binding in decode(request, list[NewBinding])]
        if (schema := self._node.status().schema) < SCHEMA:
            raise Refusal(409, f"the log is of schema {schema} yet: upgrade all nodes before you import bindings")
        outcomes = await self._outcomes(records)
        return reply(request, BroughtAll(tuple(map(brought, records, outcomes))))

    @_app.route("/v1/domains", methods=["GET"])
    def _get_domains(self, request: Request) -> bytes:
        read_query(request)
        return reply(request, domain_views(self._domains))

    @_app.route("/v1/bindings/<path:aor>", methods=["GET"])
    def _get_bindings_of(self, request: Request, aor: str) -> bytes:
        read_query(request)
        aor = self._locate(aor)[1]
        now = self._node.cluster_time()
        bindings = tuple(views.binding_view(binding, now) for binding in self._node.bindings(aor))
        if not bindings:
            raise Refusal(404, f"{aor} has no bindings")
        return reply(request, views.Bindings(bindings))

    @_app.route("/v1/bindings/<path:aor>", methods=["DELETE"])
    async def _delete_bindings(self, request: Request, aor: str) -> bytes:
        query = read_query(request, "contact")
        contact = query.get("contact", "")
        if query and not contact:
            raise Refusal(400, "contact is empty; leave it out to remove all bindings")
        aor = self._locate(aor)[1]
        outcome = await self._propose(RemoveBindings(aor, contact))
        if isinstance(outcome, NotFound):
            raise Refusal(404, f"{aor} has no binding {contact}" if contact else f"{aor} has no bindings")
        return reply(request, views.Removed(_count(outcome)))

    @_app.route("/v1/accounts", methods=["GET"])
    def _get_accounts(self, request: Request) -> bytes:
        query = read_query(request, "limit", "cursor")
        limit = read_limit(query)
        accounts = self._node.accounts(query.get("cursor", ""), limit)
        cursor = accounts[-1].identity if len(accounts) == limit else None
        return reply(request, views.Accounts(tuple(views.account_view(account) for account in accounts), cursor))

    @_app.route("/v1/accounts", methods=["POST"])
    async def _post_accounts(self, request: Request) -> bytes:
        read_query(request)
        body = decode(request, views.NewAccount | list[views.NewAccount])
        several = isinstance(body, list)
        records = [self._new_account(account) for account in (body if several else [body])]
        if several:
            return reply(request, views.Results(await self._create_all(records)))
        result = _created(records[0], await self._propose(records[0]))
        if result.status != 201:
            raise Refusal(result.status, result.detail)
        request.setResponseCode(201)
        return reply(request, views.account_view(records[0]))

    @_app.route("/v1/accounts/<path:identity>", methods=["GET"])
    def _get_account(self, request: Request, identity: str) -> bytes:
        read_query(request)
        username, domain = self._account_named(identity)
        account = self._node.account(username, domain.name)
        if account is None:
            raise Refusal(404, f"there is no account {username}@{domain.name}")
        return reply(request, views.account_view(account))

    @_app.route("/v1/accounts/<path:identity>", methods=["PUT"])
    async def _put_account(self, request: Request, identity: str) -> bytes:
        read_query(request)
        username, domain = self._account_named(identity)
        secret = decode(request, views.Secret)
        account = self._node.account(username, domain.name)
        old_name = views.default_auth_name(username) if account is None else account.auth_name
        auth_name = secret.auth_name or old_name
        hashes = secret.hashes(auth_name, domain.realm)
        record = PutAccount(username, domain.name, auth_name, domain.realm, hashes, replace_only=True)
        outcome = await self._propose(record)
        if isinstance(outcome, NotFound):
            raise Refusal(404, f"there is no account {username}@{domain.name}")
        if isinstance(outcome, Conflict):
            raise Refusal(409, outcome.detail)
        _count(outcome)
        return reply(request, views.account_view(record))

    @_app.route("/v1/accounts/<path:identity>", methods=["DELETE"])
    async def _delete_account(self, request: Request, identity: str) -> bytes:
        read_query(request)
        username, domain = self._account_named(identity)
        outcome = await self._propose(DeleteAccount(username, domain.name))
        if isinstance(outcome, NotFound):
            raise Refusal(404, f"there is no account {username}@{domain.name}")
        return reply(request, views.Removed(_count(outcome)))

    @_app.route("/v1/nodes", methods=["GET"])
    def _get_nodes(self, request: Request) -> bytes:
        read_query(request)
        return reply(request, views.Nodes(tuple(self._node.nodes()), self._node.successor()))

    @_app.route("/v1/nodes", methods=["POST"])
    async def _post_nodes(self, request: Request) -> bytes:
        read_query(request)
        new = decode(request, views.NewNode)
        if not self._node.leading():
            return await self._forward(request, "/v1/nodes", new)
        try:
            await self._node.add_node(new.name, new.address)
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        request.setResponseCode(201)
        return reply(request, new)

    @_app.route("/v1/nodes/<name>", methods=["DELETE"])
    async def _delete_node(self, request: Request, name: str) -> bytes:
        read_query(request)
        if not self._node.leading():
            return await self._forward(request, f"/v1/nodes/{segment(name)}")
        await self._node.remove_node(name)
        return reply(request, views.Removed(1))

    @_app.route("/v1/nodes/<name>/standby", methods=["POST"])
    async def _post_standby(self, request: Request, name: str) -> bytes:
        read_query(request)
        wanted = decode(request, views.Standby)
        if not self._node.leads_log():
            return await self._forward(request, f"/v1/nodes/{segment(name)}/standby", wanted)
        leader = await self._node.put_in_standby(name, force=wanted.force)
        return reply(request, views.Duty(name, standby=True, leader=leader))

    @_app.route("/v1/nodes/<name>/online", methods=["POST"])
    async def _post_online(self, request: Request, name: str) -> bytes:
        read_query(request)
        wanted = decode(request, views.Online)
        # A leader that serves no phones can be brought back only by itself.
        if not self._node.leads_log():
            return await self._forward(request, f"/v1/nodes/{segment(name)}/online", wanted)
        await self._node.bring_online(name)
        return reply(request, views.Duty(name, standby=False, leader=self._node.status().leader))

    @_app.route("/v1/prefer", methods=["PUT"])
    async def _put_prefer(self, request: Request) -> bytes:
        read_query(request)
        wanted = decode(request, views.Prefer)
        if not self._node.leads_log():
            return await self._forward(request, "/v1/prefer", wanted)
        await self._node.prefer(wanted.node)
        return reply(request, wanted)

    @_app.route("/v1/transfer", methods=["POST"])
    async def _post_transfer(self, request: Request) -> bytes:
        read_query(request)
        wanted = decode(request, views.Transfer)
        if not self._node.leading():
            return await self._forward(request, "/v1/transfer", wanted)
        return reply(request, views.Leader(await self._node.transfer(wanted.to)))

    @_app.route("/v1/pings", methods=["GET"])
    def _get_pings(self, request: Request) -> bytes:
        read_query(request)
        return reply(request, views.Pings(self._node.pings()))

    @_app.route("/v1/pings", methods=["PUT"])
    async def _put_pings(self, request: Request) -> bytes:
        read_query(request)
        wanted = decode(request, views.Pings)
        turned: Deferred[Outcome | Unavailable] = Deferred()
        self._node.turn_pings(turned.callback, on=wanted.on)
        _count(_available(await turned))
        return reply(request, wanted)

    @_app.route("/v1/backup", methods=["GET"])
    async def _get_backup(self, request: Request) -> None:
        read_query(request)
        frozen = self._node.backup()
        try:
            request.setHeader("Content-Type", "application/octet-stream")
            request.setHeader("Cache-Control", "no-store")
            request.setHeader(INDEX, str(frozen.header.index))
            if request.method != b"HEAD":
                await Outflow(self._reactor, request, frozen).start()
        finally:
            self._node.free(frozen)

    @_app.handle_errors(Refusal, SiphaError, HTTPException)
    def _failed(self, request: IRequest, failure: Failure) -> bytes:
        match failure.value:
            case Refusal() as refusal:
                return refuse(request, refusal)
            case Unavailable() as error:
                return refuse(request, Refusal(503, error.detail, retry_after=error.retry_after))
            case SiphaError() as error:
                return refuse(request, Refusal(409, str(error)))
            case MethodNotAllowed() as error:
                allow = ", ".join(sorted(error.valid_methods or ()))
                return refuse(request, Refusal(405, f"this resource has {allow} only", allow=allow))
            case _:
                routes = "/v1/status, domains, bindings, accounts, nodes, transfer, prefer, pings and backup"
                return refuse(request, Refusal(404, f"there is no such resource; there are {routes}"))

    def _locate(self, text: str) -> tuple[Domain, str]:
        """The domain and AOR that `alice@sipha.test` or `sip:alice@sipha.test` names."""
        try:
            located = self._domains.locate(parse_uri(text if text.lower().startswith("sip:") else f"sip:{text}"))
        except MalformedMessage:
            located = None
        if located is None:
            raise Refusal(404, f"{text[:80]!r} is not user@domain in a domain of this node")
        return located

    def _account_named(self, identity: str) -> tuple[str, Domain]:
        """The username and domain that `alice@sipha.test` names: those of its AOR."""
        domain, aor = self._locate(identity)
        return aor.removeprefix("sip:").rpartition("@")[0], domain

    def _new_account(self, account: views.NewAccount) -> PutAccount:
        if self._domains.find(account.domain) is None:
            raise Refusal(422, f"{account.domain!r} is not a domain of this node; add it to the configuration first")
        if not 1 <= len(account.username) <= 255 or "@" in account.username or ":" in account.username:
            raise Refusal(422, f"{account.username!r} is not the user of a SIP URI: up to 255 characters, no @ or :")
        try:
            username, domain = self._account_named(f"{account.username}@{account.domain}")
        except Refusal as refusal:
            raise Refusal(422, f"{account.username!r} is not the user of a SIP URI; escape it as there") from refusal
        auth_name = account.auth_name or views.default_auth_name(username)
        hashes = account.hashes(auth_name, domain.realm)
        return PutAccount(username, domain.name, auth_name, domain.realm, hashes, create_only=True)

    async def _create_all(self, records: Sequence[PutAccount]) -> tuple[views.Result, ...]:
        return tuple(map(_created, records, await self._outcomes(records)))

    async def _outcomes(self, records: Sequence[Record]) -> list[Outcome | Unavailable]:
        """Propose many records, some at a time, and return what became of each."""
        outcomes: list[Outcome | Unavailable] = []
        for start in range(0, len(records), _AT_ONCE):
            outcomes += await gatherResults([self._outcome(record) for record in records[start : start + _AT_ONCE]])
        return outcomes

    def _outcome(self, record: Record) -> Deferred[Outcome | Unavailable]:
        """Propose a record; the Deferred fires with what apply returned, or why it didn't come."""
        deferred: Deferred[Outcome | Unavailable] = Deferred()
        self._node.propose(record, deferred.callback)
        return deferred

    async def _propose(self, record: Record) -> Outcome:
        """Propose a record and return what apply returned; raises Unavailable."""
        return _available(await self._outcome(record))

    async def _forward(self, request: Request, path: str, body: msgspec.Struct | None = None) -> bytes:
        """Let the leader answer the request: what was understood of it goes there, not what came."""
        if request.getHeader(FORWARDED.encode()) is not None:
            raise Refusal(503, "the leader has just changed", retry_after=1)
        status, url = self._node.status(), self._node.leader_admin()
        if status.leader in {None, status.node}:
            raise Refusal(503, "no node leads at present", retry_after=1)
        if url is None:
            raise Refusal(
                409,
                f"{status.leader} leads, and no [[cluster.peers]] says here where its admin is: ask that node itself",
            )
        try:
            answer = await exchange(
                self._http,
                self._reactor,
                request.method.decode("ascii"),
                url + path,
                content=b"" if body is None else msgspec.json.encode(body),
                headers={FORWARDED: status.node},
                deadline=FORWARD_DEADLINE,
            )
        except Unreachable as error:
            raise Refusal(
                503,
                f"{status.leader} leads, and {error}; the change may still be made, or ask that node itself",
                retry_after=1,
            ) from error
        request.setResponseCode(answer.status)
        for retry_after in answer.headers.getRawHeaders("Retry-After", []):
            request.setHeader("Retry-After", retry_after)
        request.setHeader("Content-Type", "application/json")
        return answer.content


def _before(prefix: str) -> str:
    """A text that sorts just before all that begin with the prefix."""
    last = ord(prefix[-1])
    return prefix[:-1] + chr(last - 1) + "\U0010ffff" if last else prefix[:-1]


def _available(outcome: Outcome | Unavailable) -> Outcome:
    if isinstance(outcome, Unavailable):
        raise outcome
    return outcome


def _count(outcome: Outcome) -> int:
    if not isinstance(outcome, Done):
        raise Refusal(500, f"the log answered {outcome!r}")
    return outcome.count


def _created(record: PutAccount, outcome: Outcome | Unavailable) -> views.Result:
    """What became of an account that was to be created."""
    identity = f"{record.username}@{record.domain}"
    if isinstance(outcome, Unavailable):
        return views.Result(identity, 503, outcome.detail)
    if isinstance(outcome, Conflict):
        return views.Result(identity, 409, outcome.detail)
    _count(outcome)
    return views.Result(identity, 201)
