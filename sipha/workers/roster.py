"""The accounts that workers are told, and who among them knows which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sipha.state.accounts import Account
from sipha.state.accounts import Accounts as Table
from sipha.state.entries import PutAccount
from sipha.workers.messages import Accounts

PAGE = 200
"""Accounts that are told in one turn."""


class Roster:
    """Follows a table of accounts, and has `tell` tell all workers of what changes in it, in the turn after that.

    Each change makes a new `version`, which `begin` hears of at once.
    """

    def __init__(
        self, reactor: Any, table: Table, tell: Callable[[Accounts], None], begin: Callable[[int], None]
    ) -> None:
        self.version = 0
        self._reactor = reactor
        self._table = table
        self._tell = tell
        self._begin = begin
        self._changed: dict[str, int] = {}  # the version that has brought it, until all workers have that
        self._untold: dict[str, None] = {}
        self._told = 0  # the version without those

    def start(self) -> None:
        """Follow the table."""
        self._table.observer = self._note

    def stop(self) -> None:
        """Follow it no more."""
        self._table.observer = None

    def page(self, after: str) -> tuple[Accounts, str]:
        """What is to be told to who knows the accounts up to an identity, and up to which he knows them then.

        Empty if those are all.
        """
        accounts = self._table.page(after, PAGE)
        last = accounts[-1].identity if len(accounts) == PAGE else ""
        return Accounts([], list(map(_record, accounts)), self._told), last

    def changed_since(self, identity: str, version: int) -> bool:
        """Return True if who is at a version of the table doesn't know an account as it is."""
        return version != self.version and self._changed.get(identity, 0) > version

    def known(self, version: int) -> None:
        """Take note that all workers have this version."""
        if self._changed and version == self.version:
            self._changed.clear()

    def _note(self, identity: str) -> None:
        self.version += 1
        self._begin(self.version)
        self._changed[identity] = self.version
        if not self._untold:
            self._reactor.callLater(0, self._tell_changes)
        self._untold[identity] = None

    def _tell_changes(self) -> None:
        """All of them go before any comes back: one may have the login that another had."""
        identities, self._untold, self._told = list(self._untold), {}, self.version
        found = [self._table.get(*identity.rsplit("@", 1)) for identity in identities]
        self._tell(Accounts(identities, [_record(account) for account in found if account is not None], self.version))


def _record(account: Account) -> PutAccount:
    return PutAccount(account.username, account.domain, account.auth_name, account.realm, account.ha1)
