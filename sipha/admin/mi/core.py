"""The methods of OpenSIPS's core: the process, what it has counted, and what it can be asked."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from twisted.web.server import Request

from sipha.admin import access
from sipha.admin.access import Role
from sipha.admin.interfaces import INode
from sipha.admin.mi.location import TABLE
from sipha.admin.rpc import INVALID_PARAMS, Method, MethodGroup, Methods, RpcError
from sipha.admin.views import Status
from sipha.journal import Level

_LEVELS: Mapping[Level, int] = {"critical": -2, "error": -1, "warn": 1, "info": 3, "debug": 4}
"""The numbers that OpenSIPS has for these levels of the log."""

_PROCESS = "sipha"

_COUNTED: Mapping[str, str] = MappingProxyType(
    {
        "registrar:accepted_regs": "registrar_registered",
        "registrar:rejected_regs": "registrar_refused",
    }
)
"""What OpenSIPS counts, too, under its name."""


class CoreMethods:
    """The process of a node; `others` are the methods that there are besides."""

    methods = Methods()

    def __init__(self, node: INode, *others: MethodGroup) -> None:
        self._node = node
        self._others = others

    @methods.add("which", role=Role.READ)
    def which(self, command: str = "") -> Sequence[Any]:
        """The names of all methods; or of one's parameters, in each way in which they may be given."""
        methods = {name: method for group in (self, *self._others) for method in group.methods for name in method.names}
        if not command:
            return sorted(methods)
        if command not in methods:
            raise RpcError(404, "unknown MI command")
        return _ways(methods[command])

    @methods.add("get_statistics", "statistics:get", role=Role.READ)
    def get_statistics(self, statistics: list[str] | str) -> dict[str, int]:
        """What is counted of these names, of whole groups (`usrloc:`), or all."""
        known = _statistics(self._node.status())
        found: dict[str, int] = {}
        for wanted in [statistics] if isinstance(statistics, str) else statistics:
            found |= {
                name: value
                for name, value in known.items()
                if wanted in {"all", name, name.partition(":")[2]} or (wanted.endswith(":") and name.startswith(wanted))
            }
        if not found:
            raise RpcError(404, "Statistics Not Found")
        return found

    @methods.add("ps", role=Role.READ)
    def list_processes(self) -> dict[str, Any]:
        """The one process."""
        return {"Processes": [{"ID": 0, "PID": os.getpid(), "Type": _PROCESS}]}

    @methods.add("uptime", role=Role.READ)
    def uptime(self) -> dict[str, str]:
        """Since when the process runs."""
        now, seconds = time.time(), self._node.status().uptime
        return {"Now": time.ctime(now), "Up since": time.ctime(now - seconds), "Up time": f"{int(seconds)} [sec]"}

    @methods.add("version", role=Role.READ)
    def version(self) -> dict[str, str]:
        """Which release this is."""
        return {"Server": f"sipha ({self._node.status().version})"}

    @methods.add("log_level", role=Role.READ)
    def log_level(self, request: Request, level: int | None = None, pid: int | None = None) -> dict[str, Any]:
        """The level of the log; to change it needs the role operate."""
        if level is None and pid is None:
            process = {"PID": os.getpid(), "Log level": _LEVELS[self._node.log_level()], "Type": _PROCESS}
            return {"Processes": [process]}
        if level is None:
            raise RpcError(INVALID_PARAMS, "Invalid params: pid needs a level")
        if pid not in {None, os.getpid()}:
            raise RpcError(INVALID_PARAMS, "Invalid params: Bad PID")
        access.check(request, Role.OPERATE)
        chosen = _level(level)
        self._node.set_log_level(chosen)
        return {"New global log level" if pid is None else "Log level": _LEVELS[chosen]}


def _level(number: int) -> Level:
    """The highest level that shows no more than OpenSIPS shows at this one; its alerts are critical here."""
    return max((level for level in _LEVELS if _LEVELS[level] <= number), key=_LEVELS.__getitem__, default="critical")


def _ways(method: Method) -> Sequence[Sequence[str]]:
    """The lists of parameters that a method may be given: those that it must have, and with them one more each time."""
    parameters, least = method.parameters, len(method.required)
    return [parameters[:most] for most in range(least, len(parameters) + 1)]


def _statistics(status: Status) -> dict[str, int]:
    """All that is counted: under OpenSIPS's names what it counts, too, and each counter under its own."""
    counters = status.counters
    return {
        f"usrloc:{TABLE}-users": status.aors,
        f"usrloc:{TABLE}-contacts": status.bindings,
        "usrloc:registered_users": status.aors,
        "core:timestamp": int(status.uptime),
        **{name: counters[counter] for name, counter in _COUNTED.items() if counter in counters},
        **{f"sipha:{name}": value for name, value in counters.items()},
    }
