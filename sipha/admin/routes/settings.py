"""The settings that the cluster has in its log, and the pings, which are one of them."""

from __future__ import annotations

from collections.abc import Iterator

from sipha.admin import views
from sipha.admin.access import Role
from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.admin.outcomes import turn_pings
from sipha.admin.queries import Read
from sipha.admin.route import Place, Routes

_ON = {"on": True, "off": False}
_STANDBY = "standby/"


class SettingRoutes:
    """The settings, as a node knows them."""

    routes = Routes("settings")

    def __init__(self, node: INode) -> None:
        self._node = node

    @routes.get("/v1/settings", role=Role.READ, query=Read)
    def list_settings(self) -> views.Settings:
        """The settings that hold for the whole cluster and survive restarts."""
        return views.Settings(tuple(self._settings()))

    @routes.get("/v1/settings/<path:name>", role=Role.READ, query=Read, errors=(404,))
    def get_setting(self, name: str) -> views.Setting:
        """One setting."""
        return self._setting(name)

    @routes.put("/v1/settings/<path:name>", role=Role.OPERATE, errors=(404, 409, 503), place=Place.LOG_LEADER)
    async def put_setting(self, name: str, body: views.SettingValue) -> views.Setting:
        """Give a setting another value; what it may be is said with the setting."""
        setting = self._setting(name)
        if name == "preferred":
            await self._node.prefer(body.value or None)
        elif body.value not in _ON:
            raise Refusal(422, f"{name} is on or off, not {body.value[:80]!r}")
        elif name == "pings":
            await turn_pings(self._node, on=_ON[body.value])
        elif _ON[body.value]:
            await self._node.put_in_standby(name.removeprefix(_STANDBY), force=False)
        else:
            await self._node.bring_online(name.removeprefix(_STANDBY))
        return views.Setting(name, body.value, setting.default, setting.about)

    @routes.get("/v1/pings", role=Role.READ, query=Read)
    def get_pings(self) -> views.Pings:
        """Whether the cluster pings phones behind NAT."""
        return views.Pings(self._node.pings())

    @routes.put("/v1/pings", role=Role.OPERATE, errors=(503,))
    async def put_pings(self, body: views.Pings) -> views.Pings:
        """Have the cluster ping phones behind NAT, or not."""
        await turn_pings(self._node, on=body.on)
        return body

    def _settings(self) -> Iterator[views.Setting]:
        nodes = self._node.nodes()
        preferred = next((node.name for node in nodes if node.preferred), "")
        yield views.Setting("pings", _word(self._node.pings()), "on", "whether phones behind NAT are pinged: on, off")
        yield views.Setting("preferred", preferred, "", "the node that is to lead whenever it can; empty for any")
        for node in nodes:
            about = f"whether {node.name} is to lead no more: on, off"
            yield views.Setting(_STANDBY + node.name, _word(node.standby), "off", about)

    def _setting(self, name: str) -> views.Setting:
        found = {setting.name: setting for setting in self._settings()}
        if name not in found:
            raise Refusal(404, f"there is no setting {name[:80]!r}; there are {', '.join(found)}")
        return found[name]


def _word(on: bool) -> str:
    return "on" if on else "off"
