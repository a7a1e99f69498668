from collections.abc import Callable
from socket import socket

from sipha.sip.flow import Address, Flow

def drainer(
    flow: type[Flow], /
) -> Callable[[socket, Address, list[tuple[bytes, Flow]], int, int], tuple[int, int]]: ...
