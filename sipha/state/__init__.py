"""What the log decides: the replicated table, changed by entries alone.

Pure: no clock, no I/O, no random number; `Machine.apply` is total and deterministic, so that every node that has
applied index n has, byte for byte, the same table at n.
"""
