"""The one place that knows all rooms of the house and wires them: what runs in the process of a node."""

from sipha.service.daemon import Daemon

__all__ = ["Daemon"]
