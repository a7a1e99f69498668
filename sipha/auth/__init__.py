"""Digest authentication for registrar and proxy alike: challenge, verification, nonce-count window."""
