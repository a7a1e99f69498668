from collections.abc import Callable

from sipha.registrar.plain import Plain
from sipha.sip.digest import Credentials
from sipha.sip.origin import Origin

def reader(
    plain: type[Plain], origin: type[Origin], credentials: type[Credentials], /
) -> Callable[[bytes, str, int], Plain | None]: ...
