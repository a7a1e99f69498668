"""Phones behind NAT: how they are recognised, and kept reachable."""
