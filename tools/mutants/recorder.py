"""A pytest plugin that notes which test is running for coverage, and what each test costs.

Rule of this file: it runs inside other people's test processes, so it changes nothing there. The
coverage package starts itself in every process (see reach.py); this only names the contexts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator

import coverage
import pytest

VARIABLE = "MUTANTS_COSTS"
"""Environment variable: the file that gets one JSON line for each test."""

_seconds: dict[str, float] = {}
_bad: set[str] = set()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    measuring = coverage.Coverage.current()
    if measuring is not None:
        measuring.switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        if measuring is not None:
            measuring.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.failed or report.skipped:
        _bad.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Only the process that hears of all tests writes: with pytest-xdist, not its workers."""
    if hasattr(session.config, "workerinput"):
        return
    with open(os.environ[VARIABLE], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump({name: s for name, s in _seconds.items() if name not in _bad}, file)
