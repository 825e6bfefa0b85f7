"""A pytest plugin that puts the probes in place, and notes what each test costs.

Rule of this file: it runs inside other people's test processes, so it changes nothing there but
PYTHONPATH, which brings the probes into each Python that a test starts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tools.mutants import probes

_seconds: dict[str, float] = {}
_bad: set[str] = set()

START = Path(__file__).with_name("start")

_for_programs = (str(START), os.environ.get("PYTHONPATH"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _for_programs))
probes.install()  # now: conftest.py is not imported yet, nor are the plugins of what is installed


def pytest_runtest_logstart() -> None:
    probes.forget()


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
