"""sipha: a SIP registrar and proxy that replicates its location table through a Raft log."""

__version__ = "0.1.0"
