from sipha.sip.flow import Flow
from sipha.sip.overload import Sifted

def sift(
    datagrams: list[tuple[bytes, Flow]],
    first: int,
    known: int,
    credit: float,
    earning: tuple[float, float],
    admission: tuple[int, int],
    /,
) -> Sifted: ...
def refusals(datagrams: list[tuple[bytes, Flow]], least: int, spread: int, /) -> list[bytes | None]: ...
