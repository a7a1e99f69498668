from collections.abc import Callable
from socket import socket

from sipha.sip.flow import Address, Flow

def drainer(
    flow: type[Flow], /
) -> Callable[[socket, Address, list[tuple[bytes, Flow]], int, int], tuple[int, int]]: ...
def send_many(
    source: socket,
    local: Address,
    messages: list[tuple[bytes, Flow]],
    place: int,
    until: float,
    clock: Callable[[], float],
    together: int,
    /,
) -> int: ...
