"""The ledger of flaky tests: each test that ran again, with what may explain it.

What belongs here: what is written to flakes.jsonl, and what is printed of it at the end. A test
that failed once and passed then is a fault that has not been found yet.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.patience import factor

DETAILS = 10_000
"""Characters of a failure that are kept, and as many of what the test printed."""
FILE = Path(__file__).parent.parent / "flakes.jsonl"


class Ledger:
    """A pytest plugin of the process that collects the reports.

    Args:
        seed: what random choices of this run began with.
        file: where the entries are appended.

    """

    def __init__(self, seed: int, file: Path = FILE) -> None:
        self._seed = seed
        self._file = file
        self._entries: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if str(report.outcome) != "rerun":  # pytest-rerunfailures' own outcome
            return
        entry = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "test": report.nodeid,
            "seed": self._seed,
            "load": round(os.getloadavg()[0], 1),
            "factor": round(factor(), 1),
            "why": report.longreprtext.strip().rpartition("\n")[2][:300],
            "report": report.longreprtext[-DETAILS:] + report.capstdout[-DETAILS:],
        }
        self._entries.append(entry)
        with self._file.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._entries:
            terminalreporter.section(f"{len(self._entries)} ran again, see {self._file.name}")
        for entry in self._entries:
            words = "{test}: {why} (load {load}, {factor} times slower than usual, seed {seed})"
            terminalreporter.write_line(words.format_map(entry))
