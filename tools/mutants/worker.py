"""Runs tests against one mutant after the other: a job is a line of JSON in, a verdict one out.

Rule of this file: what is reported was really in force. This process has a private copy of the
project and a Python environment that knows no other one, so that whatever a test starts with its
own interpreter runs the mutant, too. It imports only what is not ours; each mutant gets a fork of
it, which imports the project and the tests afresh. Whatever a test leaves running is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphans of the tests become our children, so that we can end them."""
CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
"""unshare(2), mount(2): what a test mounts, as root, ends with its process."""
OPTIONS = ("-x", "-q", "-n0", "--assert=plain", "-p", "no:cacheprovider")
BUCKET = 4
"""Tests whose costs differ by less than this factor run file by file: modules share fixtures."""


@dataclass(eq=False)  # plugins are kept in a set
class Chosen:
    """A plugin: only these tests, in this order; the first failure is told at once."""

    tests: dict[str, float]
    scale: float
    tell: Callable[[dict[str, Any]], None]

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(
        self, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        """After all others have had their say on the order."""
        yield
        items[:] = sorted((i for i in items if i.nodeid in self.tests), key=self._turn)
        for item in items:
            limit = self.scale * (10 + 5 * self.tests[item.nodeid])
            item.add_marker(pytest.mark.timeout(limit), append=False)

    def _turn(self, item: pytest.Item) -> tuple[int, str]:
        bucket = 0
        while self.tests[item.nodeid] > 0.05 * BUCKET**bucket:
            bucket += 1
        return bucket, str(item.path)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            hung = "Timeout (>" in report.longreprtext
            self.tell({"verdict": "hung" if hung else "killed", "by": report.nodeid})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell({"verdict": "killed", "by": f"{report.nodeid} (cannot be imported)"})


class Worker:
    """One private copy, and the processes that use it."""

    def __init__(self, root: Path, package: str) -> None:
        self._root = root
        self._package = package
        self._version = int(time.time())
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def prepare(self) -> None:
        """Import what the tests import, except what may hold a mutant or know of one."""
        noted = self._root.parent / "modules"
        said = self._fork(lambda tell: tell({"pytest": self._note_modules(noted)}), limit=300)
        assert said.get("pytest") == 0, f"the tests cannot be collected: {said}"
        for name in noted.read_text().split():
            try:
                __import__(name)
            except Exception:
                continue
        assert threading.active_count() == 1, "a thread would not be in the forks"

    def _note_modules(self, path: Path) -> int:
        status = pytest.main(
            ["--collect-only", *OPTIONS, "--ignore=tests/kernel", "--ignore=tests/network"]
        )
        ours = (self._package, "tests", "tools", "conftest", "__main__", "__mp_main__")
        names = [n for n in sys.modules if n.partition(".")[0] not in ours and "test_" not in n]
        path.write_text("\n".join(names))
        return int(status)

    def run(self, job: dict[str, Any]) -> Any:
        file = self._root / job["file"]
        original = file.read_text()
        try:
            self._write(file, job["text"])
            verdict = self._fork(lambda tell: self._test(job, tell), job["limit"])
            if verdict["verdict"] == "ended":  # what is tested has ended the process of the tests
                by = f"every test (their process ended{self._log()})"
                return {"verdict": "killed", "by": by}
            return verdict
        finally:
            self._write(file, original)
            shutil.rmtree(self._root / ".hypothesis", ignore_errors=True)

    def _log(self) -> str:
        lines = (self._root.parent / "log").read_text(errors="replace").splitlines()
        return f", its last words: {lines[-1]}" if lines else ""

    def _write(self, file: Path, text: str) -> None:
        """Each version has a second of its own, or Python would take an old .pyc for it."""
        self._version += 1
        file.write_text(text)
        os.utime(file, (self._version, self._version))

    def _test(self, job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        chosen = Chosen(dict(job["tests"]), job["scale"], tell)
        files = sorted({test.partition("::")[0] for test in chosen.tests})
        base = f"--basetemp={self._root.parent / 't'}"
        status = pytest.main([*OPTIONS, base, *files], plugins=[chosen])
        if status == pytest.ExitCode.OK:
            tell({"verdict": "survived"})
        elif status == pytest.ExitCode.NO_TESTS_COLLECTED:
            tell({"verdict": "broken", "by": "none of its tests was found"})
        else:  # conftest.py cannot be imported, or our own pytest plugin is in pytest's way
            tell({"verdict": "killed", "by": "every test (pytest cannot start)"})

    def _fork(self, work: Callable[[Callable[[dict[str, Any]], None]], None], limit: float) -> Any:
        """Do this in a child; the first thing that it tells, and its end, are the end of it."""
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            _be_child(work, theirs, self._root)
        os.close(theirs)
        try:
            ready, _, _ = select.select([ours], [], [], limit)
            said = os.read(ours, 65536) if ready else b'{"verdict": "hung", "by": "the time limit"}'
            return json.loads(said.splitlines()[0]) if said else {"verdict": "ended"}
        finally:
            os.close(ours)
            _end_children()


def _be_child(
    work: Callable[[Callable[[dict[str, Any]], None]], None], pipe: int, root: Path
) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        have_own_mounts()
        os.chdir(root)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(root.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, at in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(fd, at)
        work(lambda said: _say(pipe, said))
        status = 0
    except BaseException:
        traceback.print_exc()
        _say(pipe, {"verdict": "broken", "by": traceback.format_exc(limit=-1)})
    finally:
        os._exit(status)


def have_own_mounts() -> None:
    """What root mounts from here on is seen by our children only, and ends with the last one."""
    libc = ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def _say(pipe: int, said: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(said).encode() + b"\n")


def _end_children() -> None:
    """Kill and reap all that is below us; what loses its parent becomes ours."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while below := children.read_text().split():
        for child in map(int, below):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def main(arguments: Sequence[str]) -> None:
    worker = Worker(Path(arguments[0]), arguments[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    worker.prepare()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
