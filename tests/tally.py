"""Counts what the tests of reliability try, for ``python -m benchmarks.reliability``."""

import atexit
import json
import os
from collections import Counter
from pathlib import Path

COUNTS: Counter[str] = Counter()


def count(kind: str, number: int = 1) -> None:
    """Add to a count, which is written at the end where ``MMMLIB_TALLY`` names a file."""
    COUNTS[kind] += number


def _write() -> None:
    path = os.environ.get("MMMLIB_TALLY")
    if path and COUNTS:
        Path(path).write_text(json.dumps(COUNTS, indent=2) + "\n")


atexit.register(_write)


def many(few: int) -> int:
    """How many examples to try: few, and ``MMMLIB_EXAMPLES`` times as many if that is set."""
    return few * int(os.environ.get("MMMLIB_EXAMPLES", "1"))
