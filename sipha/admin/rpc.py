"""JSON-RPC 2.0: calls of methods, alone or in a batch, and their answers (https://www.jsonrpc.org/specification).

    class Location:
        methods = Methods()

        @methods.add("ul_rm", "usrloc:rm", role=Role.OPERATE)
        async def remove(self, table_name: str, aor: str) -> str:

What a call gives, by position or by name, goes to the function's parameters; `request` is for who must see the request
itself. A result is JSON, now or later, or a Stream of the bytes of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Signature, isawaitable
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.server import Request

from sipha.admin import access
from sipha.admin.access import Role
from sipha.admin.messages import Refusal
from sipha.admin.outflow import PAUSE
from sipha.admin.route import Stream
from sipha.errors import SiphaError, Unavailable

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

MAX_BATCH = 100
"""The calls of one batch."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_encode = msgspec.json.Encoder().encode


class RpcError(SiphaError):
    """A call that is answered with an error: one of JSON-RPC's own, which are negative, or as OpenSIPS has them."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Call(msgspec.Struct, frozen=True):
    """One call; a notification has no `id`, and no answer."""

    jsonrpc: Literal["2.0"]
    method: str
    params: list[Any] | dict[str, Any] | None = None
    id: str | int | float | UnsetType | None = UNSET


@dataclass(frozen=True, slots=True)
class Method:
    """A method, under all its names, and the function that answers; `role` is what who calls must have."""

    names: Sequence[str]
    role: Role
    respond: Callable[..., Any]
    signature: Signature
    kinds: Mapping[str, Any]
    sees_request: bool

    @property
    def parameters(self) -> Sequence[str]:
        """The names of what a call may give."""
        return tuple(self.signature.parameters)

    @property
    def required(self) -> Sequence[str]:
        """The names of what a call must give."""
        return tuple(
            name for name, parameter in self.signature.parameters.items() if parameter.default is parameter.empty
        )

    def read(self, params: list[Any] | dict[str, Any] | None) -> dict[str, Any]:
        """What a call gives, by name; raises RpcError."""
        try:
            bound = self.signature.bind(**params) if isinstance(params, dict) else self.signature.bind(*params or ())
        except TypeError:
            optional = [f"[{name}]" for name in self.parameters if name not in self.required]
            right = ", ".join([*self.required, *optional]) or "none"
            raise RpcError(INVALID_PARAMS, f"Invalid params: {self.names[0]} has {right}") from None
        return {name: self._convert(name, value) for name, value in bound.arguments.items()}

    def _convert(self, name: str, value: Any) -> Any:
        kind = self.kinds[name]
        # Some scripts write numbers as texts, and some texts as numbers.
        if kind is str and isinstance(value, int | float):
            return str(value)
        try:
            return msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            raise RpcError(INVALID_PARAMS, f"Invalid params: {name}: {error}") from error


class Methods(list[Method]):
    """The methods of one group."""

    def add(self, *names: str, role: Role) -> Callable[[FunctionT], FunctionT]:
        """Let the function that is decorated answer calls of these names, for who has the `role`."""

        def decorate(function: FunctionT) -> FunctionT:
            own = list(inspect.signature(function).parameters.values())[1:]
            given = [parameter for parameter in own if parameter.name != "request"]
            kinds = get_type_hints(function)
            self.append(Method(names, role, function, Signature(given), kinds, sees_request=len(given) < len(own)))
            return function

        return decorate


class MethodGroup(Protocol):
    """What answers a group of methods."""

    methods: Methods


class _Bound(NamedTuple):
    """A method of a group."""

    method: Method
    group: MethodGroup


class Dispatcher:
    """Answers calls of the methods of these groups."""

    def __init__(self, reactor: IReactorTime, *groups: MethodGroup) -> None:
        self._reactor = reactor
        self._bound = {
            name: _Bound(method, group) for group in groups for method in group.methods for name in method.names
        }
        self._log = Logger(namespace="sipha.admin")

    async def answer(self, request: Request, content: bytes) -> bytes | Stream:
        """The answer to a call or a batch; empty if none wants one.

        The calls of a batch are made one after the other, each in a turn of the reactor.
        """
        try:
            message = msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _failure(None, PARSE_ERROR, f"Parse error: {error}")
        if not isinstance(message, list):
            return await self._answer(request, message, alone=True) or b""
        if not 1 <= len(message) <= MAX_BATCH:
            return _failure(None, INVALID_REQUEST, f"Invalid Request: a batch has 1 to {MAX_BATCH} calls")
        answers: list[bytes | Stream] = []
        try:
            for place, call in enumerate(message):
                if place:
                    await deferLater(self._reactor, PAUSE)
                # A stream holds what the table was until it has been taken: one at a time.
                answer = await self._answer(request, call, alone=not _streams(answers))
                if answer is not None:
                    answers.append(answer)
        except BaseException:  # who has called is gone
            for stream in _streams(answers):
                stream.close()
            raise
        return _joined(answers)

    async def _answer(self, request: Request, message: object, *, alone: bool) -> bytes | Stream | None:
        """The answer to one call; a stream only if it is to be the only one."""
        try:
            call = msgspec.convert(message, Call)
        except msgspec.ValidationError as error:
            return _failure(None, INVALID_REQUEST, f"Invalid Request: {error}")
        try:
            result = await self._call(request, call)
        except CancelledError:
            raise
        except RpcError as error:
            answer: bytes | Stream = _failure(call.id, error.code, error.message)
        except Refusal as refusal:
            answer = _failure(call.id, refusal.fault.error.status, refusal.fault.error.detail)
        except Unavailable as error:
            answer = _failure(call.id, 503, error.detail)
        except SiphaError as error:
            answer = _failure(call.id, 409, str(error))
        except Exception:  # noqa: BLE001  the other calls of the batch were made, and are to be answered
            self._log.failure("{method} failed", method=call.method)
            answer = _failure(call.id, INTERNAL_ERROR, "sipha has failed here, which is a bug; its log says how")
        else:
            answer = _success(call.id, result)
            if isinstance(answer, Stream) and (not alone or call.id is UNSET):
                answer.close()
                answer = _failure(call.id, INVALID_REQUEST, "Invalid Request: a batch can have one dump")
        return None if call.id is UNSET else answer

    async def _call(self, request: Request, call: Call) -> Any:
        bound = self._bound.get(call.method)
        if bound is None:
            raise RpcError(METHOD_NOT_FOUND, "Method not found")
        method, group = bound
        access.check(request, method.role)
        given = method.read(call.params)
        if method.sees_request:
            given["request"] = request
        result = method.respond(group, **given)
        return await result if isawaitable(result) else result


def _success(id_: Any, result: Any) -> bytes | Stream:
    head, tail = b'{"jsonrpc":"2.0","result":', b',"id":' + _encode(None if id_ is UNSET else id_) + b"}"
    if not isinstance(result, Stream):
        return head + _encode(result) + tail
    return Stream(_between(head, result.chunks, tail), result.close)


def _failure(id_: Any, code: int, message: str) -> bytes:
    answer = {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": None if id_ is UNSET else id_}
    return _encode(answer)


def _streams(answers: Sequence[bytes | Stream]) -> list[Stream]:
    return [answer for answer in answers if isinstance(answer, Stream)]


def _joined(answers: Sequence[bytes | Stream]) -> bytes | Stream:
    """The answer to a batch."""
    if not answers:
        return b""
    plain = [answer for answer in answers if isinstance(answer, bytes)]
    if len(plain) == len(answers):
        return b"[" + b",".join(plain) + b"]"
    (stream,) = _streams(answers)
    place = next(place for place, answer in enumerate(answers) if answer is stream)
    head = b"[" + b"".join([answer + b"," for answer in plain[:place]])
    tail = b"".join([b"," + answer for answer in plain[place:]]) + b"]"
    return Stream(_between(head, stream.chunks, tail), stream.close)


def _between(head: bytes, chunks: Iterator[bytes], tail: bytes) -> Iterator[bytes]:
    yield head
    yield from chunks
    yield tail
