"""The HTTP admin of a node: its API, and the client that siphactl uses."""
