"""What has become of an AOR: who bound and removed it, when, and why."""

from __future__ import annotations

import msgspec

from sipha.admin.interfaces import INode
from sipha.admin.messages import Refusal
from sipha.admin.queries import Pages
from sipha.events.event import AnyEvent
from sipha.events.history import HistoryError, HistoryOff


class History(msgspec.Struct, frozen=True):
    """Events of an AOR, the latest first, and the cursor of the next page, None on the last one.

    Gaps are among them. `begins` is the wall time of the earliest event that the node keeps of any AOR.
    """

    events: tuple[AnyEvent, ...]
    cursor: str | None = None
    begins: str | None = None


async def read_history(node: INode, aor: str, query: Pages) -> History:
    """A page of the history of an AOR, as `query` asks for it; raises Refusal."""
    try:
        page = await node.history(aor, query.cursor, query.limit)
    except HistoryOff as error:
        raise Refusal(404, str(error)) from error
    except HistoryError as error:
        raise Refusal(503, str(error), retry_after=5) from error
    except ValueError as error:
        raise Refusal(400, f"cursor: {error}") from error
    return History(*page)
