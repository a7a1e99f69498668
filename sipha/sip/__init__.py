"""SIP without I/O: messages, URIs, transactions, digest and keyed tokens.

Nothing here opens a socket, reads a clock or draws a random number: bytes and `now` (seconds, monotonic)
are arguments, bytes and events are results. Only the standard library is imported.
"""
