from collections.abc import Iterator, Sequence

from sipha.state.entries import Record, Register
from sipha.state.outcomes import Outcome

def first(
    shards: tuple[dict[str, bytes], ...],
    tombstones: tuple[dict[tuple[str, str], int], ...] | None,
    records: Sequence[Record | None],
    outcomes: list[Outcome],
    made: list[tuple[Register, int, bytes]],
    contact_ids: Iterator[int],
    version: int,
    time: int,
    default_expires: int,
    min_expires: int,
    max_expires: int,
    /,
) -> tuple[int, int]: ...
