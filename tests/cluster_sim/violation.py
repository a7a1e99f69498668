"""What is raised when something is so that must never be."""

from __future__ import annotations


class Violation(BaseException):
    """Something that must never be is so; no `except Exception` on the way hides it."""
