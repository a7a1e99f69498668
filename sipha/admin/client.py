"""A client of the admin's API: typed results, and errors that say what the node said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Literal, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec
import treq
from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.client import RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from sipha.admin.events import HEARTBEAT, Dropped, Messages, Start
from sipha.admin.history import History
from sipha.admin.imports import BroughtAll, DomainViews, NewBinding
from sipha.admin.log import Entries, LogView
from sipha.admin.messages import INDEX
from sipha.admin.queries import At, Filter, Page, Search, Span
from sipha.admin.route import segment
from sipha.admin.trace import LONGEST, Traced, TraceEnded
from sipha.admin.views import (
    Accounts,
    AccountView,
    Bindings,
    Duty,
    FaultReply,
    Leader,
    LogLevel,
    NewAccount,
    NewNode,
    Nodes,
    Online,
    Pings,
    Prefer,
    Reload,
    Reloaded,
    Removed,
    Results,
    Secret,
    Setting,
    Settings,
    SettingValue,
    Standby,
    Status,
    Transfer,
)
from sipha.errors import SiphaError
from sipha.events.event import AnyEvent
from sipha.journal import Level

DEADLINE = 10.0
"""Seconds that a node has for its answer."""

RELOAD_DEADLINE = 30.0
"""Seconds that it has to load its configuration: longer than the probation of that, and of the one before."""

ATTEMPTS = 5
"""How often a request is sent that the node puts off, because too much was asked before."""

_TROUBLE = {
    "certificate verify failed": (
        "its certificate is from no authority that is trusted here (siphactl --cacert, admin.ca), or not valid now"
    ),
    "wrong version number": "it talks in the clear; write http://",
    "tlsv1 alert unknown ca": "our certificate is from no authority that is trusted there",
    "tlsv1 alert decrypt error": "our certificate is from no authority that is trusted there",
    "sslv3 alert bad certificate": "our certificate isn't taken there",
    "sslv3 alert certificate expired": "our certificate has expired",
}
"""What OpenSSL's reasons mean to an operator."""

_CLEAR = "; perhaps it wants https://"

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


class Told(NamedTuple):
    """What a stream of events tells: the id after which to go on, empty if it hasn't one, and the event."""

    id: str
    event: AnyEvent | Start | Dropped


@implementer(IAgent)
class Bearer:
    """Shows a token with each request, which fails with AdminError if others could read it on the way."""

    def __init__(self, agent: IAgent, token: str) -> None:
        self._agent = agent
        self._authorization = f"Bearer {token}"

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        url = urlsplit(uri.decode("ascii"))
        if url.scheme != "https" and not _is_here(url.hostname or ""):
            return fail(AdminError(f"{url.scheme}://{url.netloc} would be told the token in the clear; write https://"))
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders("Authorization", [self._authorization])
        return self._agent.request(method, uri, headers, bodyProducer)


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

    async def status(self, node: str = "") -> Status:
        """What the node is, and what it sees; or what another one says to it of itself."""
        return await self._request("GET", "/v1/status", Status, params=At(node=node).parameters())

    async def bindings(self, aor: str) -> Bindings:
        """The bindings of one AOR; Refused with 404 if it has none."""
        return await self._request("GET", f"/v1/bindings/{segment(aor)}", Bindings)

    async def page_of_bindings(self, search: Search = Search()) -> Bindings:  # noqa: B008  frozen
        """A page of the bindings that match."""
        return await self._request("GET", "/v1/bindings", Bindings, params=search.parameters())

    async def remove_bindings(self, aor: str, contact: str = "") -> Removed:
        """Remove all bindings of an AOR, or the one to a contact URI."""
        params = {"contact": contact} if contact else {}
        return await self._request("DELETE", f"/v1/bindings/{segment(aor)}", Removed, params=params)

    async def page_of_accounts(self, page: Page = Page()) -> Accounts:  # noqa: B008  frozen
        """A page of the accounts."""
        return await self._request("GET", "/v1/accounts", Accounts, params=page.parameters())

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

    async def log(self) -> LogView:
        """Where the node's log is."""
        return await self._request("GET", "/v1/log", LogView)

    async def log_entries(self, span: Span = Span()) -> Entries:  # noqa: B008  frozen
        """Entries of the log, the newest first."""
        return await self._request("GET", "/v1/log/entries", Entries, params=span.parameters())

    async def settings(self) -> Settings:
        """The settings of the cluster."""
        return await self._request("GET", "/v1/settings", Settings)

    async def setting(self, name: str) -> Setting:
        """One setting; Refused with 404 if there is none of the name."""
        return await self._request("GET", f"/v1/settings/{segment(name)}", Setting)

    async def put_setting(self, name: str, value: str) -> Setting:
        """Give a setting another value; Refused with 422 if it can't have that."""
        return await self._request("PUT", f"/v1/settings/{segment(name)}", Setting, body=SettingValue(value))

    async def put_in_standby(self, name: str, *, force: bool = False) -> Duty:
        """Let a node lead no more; Refused with 409 if no other could lead."""
        return await self._request("POST", f"/v1/nodes/{segment(name)}/standby", Duty, body=Standby(force))

    async def bring_online(self, name: str) -> Duty:
        """Let a node lead again."""
        return await self._request("POST", f"/v1/nodes/{segment(name)}/online", Duty, body=Online())

    async def prefer(self, name: str | None) -> Prefer:
        """Let a node lead whenever it can, or any."""
        return await self._request("PUT", "/v1/prefer", Prefer, body=Prefer(name))

    async def reload(self) -> Reloaded:
        """Have the node load its configuration file again; Refused with 409 if it can't run under that."""
        return await self._request("POST", "/v1/reload", Reloaded, body=Reload(), deadline=RELOAD_DEADLINE)

    async def log_level(self) -> LogLevel:
        """The level of the node's log."""
        return await self._request("GET", "/v1/log-level", LogLevel)

    async def set_log_level(self, level: Level) -> LogLevel:
        """Give the node's log another level until its configuration is loaded again."""
        return await self._request("PUT", "/v1/log-level", LogLevel, body=LogLevel(level))

    async def history(self, aor: str, cursor: str = "", limit: int = 1000) -> History:
        """What has become of an AOR, the latest first; Refused with 404 if the node keeps no history."""
        params = {"cursor": cursor, "limit": str(limit)}
        return await self._request("GET", f"/v1/history/{segment(aor)}", History, params=params)

    async def events(
        self, take: Callable[[Told], object], *, since: str = "", kinds: Iterable[str] = (), aor: str = ""
    ) -> None:
        """Give what happens to `take`, from the event `since` or from now on, until the node tells no more.

        `kinds` are all but plain refreshes if none is named. A kind that this release doesn't know is left out.
        """
        wanted = {"since": since, "kinds": ",".join(kinds), "aor": aor}
        messages = Messages()

        def took(data: bytes) -> None:
            for message in messages.feed(data):
                with suppress(msgspec.ValidationError):
                    take(Told(message.id, msgspec.json.decode(message.data, type=AnyEvent | Start | Dropped)))

        params = {name: value for name, value in wanted.items() if value}
        await self._stream("/v1/events", params, took, max(self._deadline, 2.5 * HEARTBEAT))

    async def trace(self, aor: str, take: Callable[[Traced | TraceEnded], object]) -> None:
        """Give the messages of an AOR to `take` as they pass; Refused with 409 if another node serves phones."""
        rest = b""

        def took(data: bytes) -> None:
            nonlocal rest
            *lines, rest = (rest + data).split(b"\n")
            for line in filter(None, lines):
                take(msgspec.json.decode(line, type=Traced | TraceEnded))

        await self._stream(f"/v1/trace/{segment(aor)}", {}, took, LONGEST + self._deadline)

    async def backup(self, take: Callable[[bytes], object]) -> int:
        """Give the pieces of a backup to `take`, and return the index at which it was made."""
        return await self._collect("/v1/backup", {}, take)

    async def export(self, form: Literal["jsonl", "csv"], wanted: Filter, take: Callable[[bytes], object]) -> int:
        """Give the pieces of all bindings that match to `take`, and return the index at which they were so."""
        return await self._collect(f"/v1/bindings.{form}", wanted.parameters(), take)

    async def _collect(self, path: str, params: Mapping[str, str], take: Callable[[bytes], object]) -> int:
        """Give the pieces of a long answer to `take`, and return the index of the table that it is of."""
        headers = await self._stream(path, params, take, self._deadline)
        return int(headers.getRawHeaders(INDEX, ["0"])[0])

    async def _stream(
        self, path: str, params: Mapping[str, str], take: Callable[[bytes], object], patience: float
    ) -> Headers:
        """Give what comes to `take` until it ends, and return the headers; raises what `take` raises.

        Unreachable if nothing comes for `patience` seconds.
        """
        url = self.url + path
        headers = Headers()
        failures: list[Exception] = []

        async def ask() -> None:
            nonlocal headers
            response = await self._http.request("GET", url, params=dict(params), unbuffered=True, allow_redirects=False)
            headers = response.headers
            if response.code != 200:
                self._refused(Answer(response.code, headers, await treq.content(response)))
            await treq.collect(response, took)

        def took(piece: bytes) -> None:
            if failures:
                return
            stalled.reset(patience)
            try:
                take(piece)
            except Exception as error:  # noqa: BLE001  Twisted would swallow it
                failures.append(error)
                stalled.reset(0)

        stalled = self.clock.callLater(patience, lambda: asked.cancel())  # noqa: PLW0108  it is made below
        asked = Deferred.fromCoroutine(ask())
        try:
            await asked
        except CancelledError:
            if failures:
                raise failures[0] from None
            raise Unreachable(f"{url} sent nothing for {patience:g} s") from None
        except _FAILURES as error:
            raise _unreachable(url, error) from error
        finally:
            if stalled.active():
                stalled.cancel()
        return headers

    async def _request(
        self,
        method: str,
        path: str,
        kind: type[ResultT],
        *,
        params: dict[str, str] | None = None,
        body: msgspec.Struct | Sequence[msgspec.Struct] | None = None,
        deadline: float | None = None,
    ) -> ResultT:
        url = self.url + path
        content = b"" if body is None else msgspec.json.encode(body)
        for _ in range(ATTEMPTS):
            answer = await exchange(
                self._http, self.clock, method, url, params=params, content=content, deadline=deadline or self._deadline
            )
            if answer.status != 429:
                break
            wait = answer.headers.getRawHeaders("Retry-After", [""])[0]
            await deferLater(self.clock, float(wait) if wait.isdigit() else 1.0)
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
    for failure in getattr(error, "reasons", ()):
        match failure.value:
            case VerificationError() | CertificateError():
                return Unreachable(f"{url} shows a certificate that isn't for this host")
            case SSL.Error(args=((*_, (*_, reason)),)):
                return Unreachable(f"{url} can't be talked to under TLS: {_TROUBLE.get(str(reason), reason)}")
    return Unreachable(f"{url} hung up before it had answered" + (_CLEAR if url.startswith("http://") else ""))


def _is_here(host: str) -> bool:
    """True if what is sent there doesn't leave this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
