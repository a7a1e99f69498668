"""The whole table, to be restored."""

from __future__ import annotations

from functools import partial

from sipha.admin.access import Role
from sipha.admin.interfaces import INode
from sipha.admin.messages import INDEX
from sipha.admin.route import Routes, Stream


class BackupRoutes:
    """The backups of a node."""

    routes = Routes("backup")

    def __init__(self, node: INode) -> None:
        self._node = node

    @routes.get("/v1/backup", role=Role.ADMIN, media="application/octet-stream", errors=(409,))
    def get_backup(self) -> Stream:
        """The whole table as of one entry of the log, whose index is in `Sipha-Index`: for `siphactl restore`."""
        frozen = self._node.backup()
        return Stream(frozen, partial(self._node.free, frozen), {INDEX: str(frozen.header.index)})
