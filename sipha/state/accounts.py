"""The accounts of the log: who may authenticate, as whom, and with which hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from sipha.state.entries import DeleteAccount, PutAccount
from sipha.state.multiset import digest
from sipha.state.outcomes import Conflict, Done, NotFound
from sipha.state.table import Digested, FrozenTable, Shards, Table

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class Account(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One account: the identity `username@domain`, and what the phone authenticates as in `realm`.

    `ha1` maps the digest algorithm (`MD5`, `SHA-256`, …) to the hex of H(auth_name:realm:password). Username and
    domain are spelt as in the canonical AOR.
    """

    username: str
    domain: str
    auth_name: str
    realm: str
    ha1: dict[str, str]

    @property
    def identity(self) -> str:
        """`username@domain`."""
        return f"{self.username}@{self.domain}"

    @property
    def aor(self) -> str:
        """The AOR that the account may register and be called as."""
        return f"sip:{self.username}@{self.domain}"


_decode = msgspec.msgpack.Decoder(Account).decode


class Accounts:
    """The accounts, by identity and by what they authenticate as."""

    def __init__(self) -> None:
        self._by_identity: Table[str, Account] = Table()
        self._by_login: Shards[tuple[str, str], Account] = Shards()
        self.hash = 0
        self.observer: Callable[[str], None] | None = None
        """Told the identity of each account that is put or deleted; never raises."""

    def __len__(self) -> int:
        """How many accounts there are."""
        return len(self._by_identity)

    def credential(self, auth_name: str, realm: str) -> Account | None:
        """The account that authenticates as `auth_name` in `realm`."""
        return self._by_login.get((auth_name, realm))

    def get(self, username: str, domain: str) -> Account | None:
        """The account whose identity is `username@domain`."""
        return self._by_identity.get(f"{username}@{domain}")

    def known(self, aor: str) -> bool:
        """True if an account has this canonical AOR (`sip:user@domain`) as its identity."""
        return aor.startswith("sip:") and self._by_identity.get(aor[4:]) is not None

    def page(self, after: str = "", limit: int = 100) -> list[Account]:
        """The first `limit` accounts, by identity, whose identity comes after `after`."""
        return self._by_identity.after(after, limit)

    def put(self, record: PutAccount) -> Done | NotFound | Conflict:
        """Create or replace an account."""
        account = Account(record.username, record.domain, record.auth_name, record.realm, record.ha1)
        identity, login = account.identity, (account.auth_name, account.realm)
        before = self._by_identity.get(identity)
        if record.create_only and before is not None:
            return Conflict(f"account {identity} exists")
        if record.replace_only and before is None:
            return NotFound(f"no account {identity}")
        holder = self._by_login.get(login)
        if holder is not None and holder is not before:
            return Conflict(f"account {holder.identity} already authenticates as {login[0]} in realm {login[1]}")
        summand = _digest(account)
        if before is None:
            self._by_identity.add(identity, account)
        else:
            summand -= _digest(before)
            self._by_login.pop((before.auth_name, before.realm))
            self._by_identity.replace(identity, before, account)
        self._by_login.put(login, account)
        self.hash += summand
        if self.observer is not None:
            self.observer(identity)
        return Done(1)

    def delete(self, record: DeleteAccount) -> Done | NotFound:
        """Delete an account."""
        identity = f"{record.username}@{record.domain}"
        account = self._by_identity.get(identity)
        if account is None:
            return NotFound(f"no account {identity}")
        summand = _digest(account)
        self._by_login.pop((account.auth_name, account.realm))
        self._by_identity.remove(identity, account)
        self.hash -= summand
        if self.observer is not None:
            self.observer(identity)
        return Done(1)

    def freeze(self) -> FrozenTable[str, Account]:
        """The accounts as they are now, for a snapshot."""
        return self._by_identity.freeze(_record)

    def load(self, records: Sequence[bytes]) -> None:
        """Add what a snapshot holds, in order; raises one of UNDECODABLE or ValueError."""
        accounts = [_decode(data) for data in records]
        for account in accounts:
            login = account.auth_name, account.realm
            if self._by_login.get(login) is not None:
                raise ValueError("two accounts of one login")
            self._by_login.put(login, account)
            self.hash += _digest(account)
        self._by_identity.extend((account.identity, account) for account in accounts)

    def dismantle(self) -> Iterator[None]:
        """Free all, a little with each step."""
        yield from self._by_identity.dismantle()
        yield from self._by_login.dismantle()


def _record(account: Account) -> Digested:
    return _encode(account), _digest(account)


def _digest(account: Account) -> int:
    ha1 = sorted(account.ha1.items())
    return digest(_encode(("account", account.username, account.domain, account.auth_name, account.realm, ha1)))
