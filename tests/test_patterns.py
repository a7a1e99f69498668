"""What the regular expressions of sipha/ may not have."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
POSSESSIVE_GROUP = re.compile(r"\)(?:[*+?]|\{+[0-9,]+\}+)\+")

GUARDED = {
    "sipha/migration/dump.py": 3,  # what an alternative takes before it fails is one character, whose place is kept
    "sipha/registrar/plain.py": 1,  # what comes next must be at the beginning of a line
}
"""How many possessive groups there are that lose nothing by it, and why."""


def test_no_group_is_possessive() -> None:
    """Python before 3.11.5, Debian 12's among them, goes on where the last try of such a group failed.

    So `(?:;[a-z]++)*+\\Z` matches `;a;`. Whoever needs one looks behind it, or sees to it that a try fails at once.
    """
    found = Counter(
        {
            str(path.relative_to(ROOT)): len(POSSESSIVE_GROUP.findall(path.read_text("utf-8")))
            for path in (ROOT / "sipha").rglob("*.py")
        }
    )
    assert +found == GUARDED
