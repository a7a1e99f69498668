from collections.abc import Sequence

from sipha.state.entries import Record, Refresh, Register
from sipha.state.outcomes import Outcome

def refresh(
    shards: tuple[dict[str, bytes], ...],
    records: Sequence[Record | None],
    outcomes: list[Outcome],
    replaced: list[tuple[str, bytes]] | None,
    version: int,
    time: int,
    default_expires: int,
    min_expires: int,
    max_expires: int,
    /,
) -> tuple[int, int]: ...
def shortened(row: bytes, request: Register, /) -> Refresh | None: ...
def load(data: bytes, /) -> tuple[bytes, str] | None: ...
