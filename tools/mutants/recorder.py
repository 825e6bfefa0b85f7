"""A pytest plugin that notes which test is running, what each test costs, and what it reaches.

Rule of this file: it runs inside other people's test processes, so it changes nothing there. Either
the coverage package starts itself in every process (see reach.py), and this names the contexts; or
the order names lines, and these get probes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tools.mutants import probes

_seconds: dict[str, float] = {}
_bad: set[str] = set()

probes.install()  # now: conftest.py is not imported yet, nor are the plugins of what is installed


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    probes.forget()
    coverage = sys.modules.get("coverage")
    measuring = coverage and coverage.Coverage.current()
    if measuring:
        measuring.switch_context(item.nodeid)
    try:
        return (yield)
    finally:
        if measuring:
            measuring.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.failed or report.skipped:
        _bad.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Only the process that hears of all tests writes: with pytest-xdist, not its workers.

    Tests that failed or were skipped are left out: they cannot tell a mutant.
    """
    if hasattr(session.config, "workerinput"):
        return
    file = Path(os.environ[probes.VARIABLE])
    passed = {name: seconds for name, seconds in _seconds.items() if name not in _bad}
    file.write_text(json.dumps({**json.loads(file.read_text()), "seconds": passed}))
