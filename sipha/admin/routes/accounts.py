"""The accounts."""

from __future__ import annotations

from collections.abc import Sequence

from sipha.admin import views
from sipha.admin.access import Role
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.admin.names import account_named
from sipha.admin.outcomes import count, outcomes_of, propose
from sipha.admin.queries import Page, Read
from sipha.admin.route import Routes
from sipha.auth.domain import Domains
from sipha.errors import Unavailable
from sipha.state.entries import DeleteAccount, PutAccount
from sipha.state.outcomes import Conflict, NotFound, Outcome


class AccountRoutes:
    """The accounts of a node's domains."""

    routes = Routes("accounts")

    def __init__(self, node: INode, domains: Domains) -> None:
        self._node = node
        self._domains = domains

    @routes.get("/v1/accounts", role=Role.READ)
    def list_accounts(self, query: Page) -> views.Accounts:
        """Accounts by the order of `user@domain`, without their hashes."""
        accounts = self._node.accounts(query.cursor, query.limit)
        cursor = accounts[-1].identity if len(accounts) == query.limit else None
        return views.Accounts(tuple(views.account_view(account) for account in accounts), cursor)

    @routes.post(
        "/v1/accounts", role=Role.ADMIN, answers={201: views.AccountView, 200: views.Results}, errors=(409, 503)
    )
    async def create_accounts(self, body: views.NewAccount | list[views.NewAccount]) -> object:
        """Create the account, or those of an array: 200 then, with a result for each.

        An array is checked as a whole before any account is created.
        """
        if isinstance(body, list):
            return views.Results(await self._create_all([self._new_account(account) for account in body]))
        record = self._new_account(body)
        result = _created(record, await propose(self._node, record))
        if result.status != 201:
            raise Refusal(result.status, result.detail)
        return views.account_view(record)

    @routes.get("/v1/accounts/<path:identity>", role=Role.READ, query=Read, errors=(404,))
    def get_account(self, identity: str) -> views.AccountView:
        """One account, without its hashes."""
        username, domain = account_named(self._domains, identity)
        account = self._node.account(username, domain.name)
        if account is None:
            raise Refusal(404, f"there is no account {username}@{domain.name}")
        return views.account_view(account)

    @routes.put("/v1/accounts/<path:identity>", role=Role.ADMIN, errors=(404, 409, 503))
    async def change_account(self, identity: str, body: views.Secret) -> views.AccountView:
        """Give the account another password, and `auth_name` if there is one."""
        username, domain = account_named(self._domains, identity)
        account = self._node.account(username, domain.name)
        old_name = views.default_auth_name(username) if account is None else account.auth_name
        auth_name = body.auth_name or old_name
        hashes = body.hashes(auth_name, domain.realm)
        record = PutAccount(username, domain.name, auth_name, domain.realm, hashes, replace_only=True)
        outcome = await propose(self._node, record)
        if isinstance(outcome, NotFound):
            raise Refusal(404, f"there is no account {username}@{domain.name}")
        if isinstance(outcome, Conflict):
            raise Refusal(409, outcome.detail)
        count(outcome)
        return views.account_view(record)

    @routes.delete("/v1/accounts/<path:identity>", role=Role.ADMIN, errors=(404, 503))
    async def delete_account(self, identity: str) -> views.Removed:
        """Delete the account; its bindings expire."""
        username, domain = account_named(self._domains, identity)
        outcome = await propose(self._node, DeleteAccount(username, domain.name))
        if isinstance(outcome, NotFound):
            raise Refusal(404, f"there is no account {username}@{domain.name}")
        return views.Removed(count(outcome))

    def _new_account(self, account: views.NewAccount) -> PutAccount:
        if self._domains.find(account.domain) is None:
            raise Refusal(422, f"{account.domain!r} is not a domain of this node; add it to the configuration first")
        if not 1 <= len(account.username) <= 255 or "@" in account.username or ":" in account.username:
            raise Refusal(422, f"{account.username!r} is not the user of a SIP URI: up to 255 characters, no @ or :")
        try:
            username, domain = account_named(self._domains, f"{account.username}@{account.domain}")
        except Refusal as refusal:
            raise Refusal(422, f"{account.username!r} is not the user of a SIP URI; escape it as there") from refusal
        auth_name = account.auth_name or views.default_auth_name(username)
        hashes = account.hashes(auth_name, domain.realm)
        return PutAccount(username, domain.name, auth_name, domain.realm, hashes, create_only=True)

    async def _create_all(self, records: Sequence[PutAccount]) -> tuple[views.Result, ...]:
        return tuple(map(_created, records, await outcomes_of(self._node, records)))


def _created(record: PutAccount, outcome: Outcome | Unavailable) -> views.Result:
    """What became of an account that was to be created."""
    identity = f"{record.username}@{record.domain}"
    if isinstance(outcome, Unavailable):
        return views.Result(identity, 503, outcome.detail)
    if isinstance(outcome, Conflict):
        return views.Result(identity, 409, outcome.detail)
    count(outcome)
    return views.Result(identity, 201)
