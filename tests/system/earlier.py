"""Runs a command as the release of sipha before would have, which knew no later schema of the log than the first."""

from __future__ import annotations

import runpy
import sys

from sipha.state import entries

entries.SCHEMA = 1  # before anything else has read it

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
