"""A plugin of pytest for ``benchmarks.coverage``: which test ran a line, and how long it took."""

import json
import os
from pathlib import Path
from typing import Any

import coverage
import pytest

_times: dict[str, float] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    """What runs from here on is this test's."""
    tracer = coverage.Coverage.current()
    if tracer is not None:
        tracer.switch_context(item.nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    """Add up set-up, call and the rest."""
    _times[report.nodeid] = _times.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    """Write the seconds."""
    Path(os.environ["MMMLIB_TIMES"]).write_text(json.dumps(_times))
