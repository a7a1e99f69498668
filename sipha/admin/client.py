"""A client of the admin's API: typed results, and errors that say what the node said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn, TypeVar
from urllib.parse import quote

import msgspec
import treq
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.web.client import RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers

from sipha.admin.backup import INDEX
from sipha.admin.imports import BroughtAll, DomainViews, NewBinding
from sipha.admin.views import (
    Accounts,
    AccountView,
    Bindings,
    Duty,
    FaultReply,
    Leader,
    NewAccount,
    NewNode,
    Nodes,
    Online,
    Pings,
    Prefer,
    Removed,
    Results,
    Secret,
    Standby,
    Status,
    Transfer,
)
from sipha.errors import SiphaError

DEADLINE = 10.0
"""Seconds that a node has for its answer."""

ResultT = TypeVar("ResultT", bound=msgspec.Struct)

_FAILURES = (ConnectError, ConnectionClosed, RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived)


class AdminError(SiphaError):
    """A node did not do what it was asked."""


class Unreachable(AdminError):
    """No answer came; a write may have been done all the same."""


class Refused(AdminError):
    """The node answered with an error: `status` is that of HTTP."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Answer(NamedTuple):
    """What came back, whatever its status."""

    status: int
    headers: Headers
    content: bytes


class AdminClient:
    """The admin of one node, at `url`; every method raises AdminError when it isn't done."""

    def __init__(self, http: HTTPClient, clock: IReactorTime, url: str, *, deadline: float = DEADLINE) -> None:
        self._http = http
        self.clock = clock
        self.url = url.rstrip("/")
        self._deadline = deadline

    def at(self, url: str, *, deadline: float = DEADLINE) -> AdminClient:
        """A client of another node."""
        return AdminClient(self._http, self.clock, url, deadline=deadline)

    async def status(self) -> Status:
        """What the node is, and what it sees."""
        return await self._request("GET", "/v1/status", Status)

    async def bindings(self, aor: str) -> Bindings:
        """The bindings of one AOR; Refused with 404 if it has none."""
        return await self._request("GET", f"/v1/bindings/{segment(aor)}", Bindings)

    async def page_of_bindings(self, cursor: str = "", limit: int = 1000) -> Bindings:
        """The bindings of the AORs after a cursor."""
        return await self._request("GET", "/v1/bindings", Bindings, params={"cursor": cursor, "limit": str(limit)})

    async def remove_bindings(self, aor: str, contact: str = "") -> Removed:
        """Remove all bindings of an AOR, or the one to a contact URI."""
        params = {"contact": contact} if contact else {}
        return await self._request("DELETE", f"/v1/bindings/{segment(aor)}", Removed, params=params)

    async def page_of_accounts(self, cursor: str = "", limit: int = 1000) -> Accounts:
        """The accounts after a cursor."""
        return await self._request("GET", "/v1/accounts", Accounts, params={"cursor": cursor, "limit": str(limit)})

    async def create_account(self, account: NewAccount) -> AccountView:
        """Create an account; Refused with 409 if it exists."""
        return await self._request("POST", "/v1/accounts", AccountView, body=account)

    async def create_accounts(self, accounts: Sequence[NewAccount]) -> Results:
        """Create accounts; Refused with 422, and none is created, if one is not as it should be."""
        return await self._request("POST", "/v1/accounts", Results, body=accounts)

    async def bring_bindings(self, bindings: Sequence[NewBinding]) -> BroughtAll:
        """Bring bindings from another registrar; Refused with 422, and none comes, if one is not as it should be."""
        return await self._request("POST", "/v1/bindings", BroughtAll, body=bindings)

    async def domains(self) -> DomainViews:
        """The domains that are served."""
        return await self._request("GET", "/v1/domains", DomainViews)

    async def change_account(self, identity: str, secret: Secret) -> AccountView:
        """Give the account `user@domain` another password."""
        return await self._request("PUT", f"/v1/accounts/{segment(identity)}", AccountView, body=secret)

    async def delete_account(self, identity: str) -> Removed:
        """Delete the account `user@domain`."""
        return await self._request("DELETE", f"/v1/accounts/{segment(identity)}", Removed)

    async def nodes(self) -> Nodes:
        """The members of the cluster."""
        return await self._request("GET", "/v1/nodes", Nodes)

    async def add_node(self, node: NewNode) -> NewNode:
        """Make a node a member, which will vote when it has caught up; Refused with 409 if it can't be now."""
        return await self._request("POST", "/v1/nodes", NewNode, body=node)

    async def remove_node(self, name: str) -> Removed:
        """Make a node no member any more; Refused with 409 if the others could not go on without it."""
        return await self._request("DELETE", f"/v1/nodes/{segment(name)}", Removed)

    async def transfer(self, to: str | None = None) -> Leader:
        """Hand leadership to a voter, or to any that is up to date; Refused with 409 if it wasn't."""
        return await self._request("POST", "/v1/transfer", Leader, body=Transfer(to))

    async def pings(self, *, on: bool) -> Pings:
        """Turn the pings of the cluster on or off."""
        return await self._request("PUT", "/v1/pings", Pings, body=Pings(on))

    async def put_in_standby(self, name: str, *, force: bool = False) -> Duty:
        """Let a node lead no more; Refused with 409 if no other could lead."""
        return await self._request("POST", f"/v1/nodes/{segment(name)}/standby", Duty, body=Standby(force))

    async def bring_online(self, name: str) -> Duty:
        """Let a node lead again."""
        return await self._request("POST", f"/v1/nodes/{segment(name)}/online", Duty, body=Online())

    async def prefer(self, name: str | None) -> Prefer:
        """Let a node lead whenever it can, or any."""
        return await self._request("PUT", "/v1/prefer", Prefer, body=Prefer(name))

    async def backup(self, take: Callable[[bytes], object]) -> int:
        """Give the pieces of a backup to `take`, and return the index at which it was made."""
        url = f"{self.url}/v1/backup"
        index = 0

        async def ask() -> None:
            nonlocal index
            response = await self._http.request("GET", url, unbuffered=True)
            if response.code != 200:
                self._refused(Answer(response.code, response.headers, await treq.content(response)))
            index = int(response.headers.getRawHeaders(INDEX, ["0"])[0])
            await treq.collect(response, took)

        def took(piece: bytes) -> None:
            stalled.reset(self._deadline)
            take(piece)

        asked = Deferred.fromCoroutine(ask())
        stalled = self.clock.callLater(self._deadline, asked.cancel)
        try:
            await asked
        except CancelledError:
            raise Unreachable(f"{url} sent nothing for {self._deadline:g} s") from None
        except _FAILURES as error:
            raise _unreachable(url, error) from error
        finally:
            if stalled.active():
                stalled.cancel()
        return index

    async def _request(
        self,
        method: str,
        path: str,
        kind: type[ResultT],
        *,
        params: dict[str, str] | None = None,
        body: msgspec.Struct | Sequence[msgspec.Struct] | None = None,
    ) -> ResultT:
        url = self.url + path
        content = b"" if body is None else msgspec.json.encode(body)
        answer = await exchange(
            self._http, self.clock, method, url, params=params, content=content, deadline=self._deadline
        )
        return self._read(answer, kind)

    def _read(self, answer: Answer, kind: type[ResultT]) -> ResultT:
        if answer.status >= 400:
            self._refused(answer)
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._odd(answer) from error

    def _refused(self, answer: Answer) -> NoReturn:
        try:
            fault = msgspec.json.decode(answer.content, type=FaultReply).error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._odd(answer) from error
        raise Refused(answer.status, fault.detail)

    def _odd(self, answer: Answer) -> AdminError:
        return AdminError(f"{self.url} answered {answer.status}, but not as sipha's admin does")


async def exchange(
    http: HTTPClient,
    clock: IReactorTime,
    method: str,
    url: str,
    *,
    deadline: float,
    content: bytes = b"",
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a request with a JSON body and return the whole answer; raises Unreachable if none comes in time."""

    async def ask() -> Answer:
        response = await http.request(
            method,
            url,
            params=params or {},
            headers=Headers({"Content-Type": ["application/json"], **{k: [v] for k, v in (headers or {}).items()}}),
            data=content,
            allow_redirects=False,
        )
        return Answer(response.code, response.headers, await treq.content(response))

    def give_up(_: object, __: float) -> NoReturn:
        raise Unreachable(f"{url} didn't answer within {deadline:g} s")

    try:
        return await Deferred.fromCoroutine(ask()).addTimeout(deadline, clock, give_up)
    except _FAILURES as error:
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: Exception) -> Unreachable:
    if isinstance(error, ConnectError):
        return Unreachable(f"{url} can't be reached: {error}")
    return Unreachable(f"{url} hung up before it had answered")


def segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="@:")
