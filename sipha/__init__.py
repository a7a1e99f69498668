"""sipha: a SIP registrar and proxy that replicates its location table through a Raft log."""

from importlib.util import find_spec

__version__ = "0.1.0"

RELEASE = __version__ if find_spec("sipha.compiled__mypyc") is None else f"{__version__}+compiled"
"""What runs, in a word; it says if its modules are compiled (docs/performance.md)."""
