"""The workers seen from outside: their private copies, and one mutant tried with its tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.patience import factor

from tools.mutants import worker
from tools.mutants.mutations import Mutant
from tools.mutants.reach import HERE

FIRST = 1.5
"""Seconds of tests that run before the others are even imported: most mutants die there."""
DEAR = 1.0
"""A test that costs more seconds waits for things: its failure is checked without the mutant."""
PLANTED = '\nraise SystemError("a fault planted by tools.mutants")\n'


@dataclass(frozen=True)
class Result:
    """What became of a mutant.

    Attributes:
        verdict: killed, hung (killed, too), survived, unreached, equivalent, untried or broken.
        by: the test that noticed it, or why it counts as equivalent.
        nearest: the cheapest tests that reach it.
        tried, reaching: how many tests ran at most, and how many there are.

    """

    mutant: Mutant
    verdict: str
    by: str = ""
    seconds: float = 0.0
    nearest: tuple[str, ...] = ()
    tried: int = 0
    reaching: int = 0

    @property
    def is_noticed(self) -> bool:
        return self.verdict in ("killed", "hung")

    @property
    def counts(self) -> bool:
        return self.verdict not in ("equivalent", "untried")


class Bench:
    """One worker with its copy of the project."""

    def __init__(self, root: Path, folder: Path, package: str) -> None:
        self._copy = folder / "p"  # short: unix sockets have 108 bytes for their paths
        _copy(root, self._copy)
        self._python = _environment(folder, self._copy, root)
        self._process = subprocess.Popen(
            [self._python, "-P", worker.__file__, self._copy, package],
            cwd=self._copy, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        self._answer()

    def close(self) -> None:
        """Also for who was interrupted: a worker ends with its input."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def check(self, file: str, module: str, tests: dict[str, float]) -> None:
        """Show that the copy is what runs: sound tests pass, a planted fault is met everywhere."""
        source = (self._copy / file).read_text()
        sound = self.run(file, source, tests)
        assert sound["verdict"] == "survived", f"without a mutant: {sound}\n{self._log()}"
        planted = self.run(file, source + PLANTED, tests)
        assert planted["verdict"] == "killed", f"a planted fault was not in force: {planted}"
        told = subprocess.run(
            [self._python, "-c", f"import {module} as it; print(it.__file__)"],
            cwd="/", capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert told.stdout.strip() == str(self._copy / file), f"children run {told.stdout}"

    def attempt(self, mutant: Mutant, tests: dict[str, float], reaching: int) -> Result:
        """Run these tests, cheapest first, until one fails."""
        began = time.monotonic()
        source = (self._copy / mutant.file).read_text()
        said: dict[str, Any] = {"verdict": "unreached"}
        left, room = dict(tests), FIRST
        while left:
            part = within(left, room)
            said = self.run(mutant.file, mutant.planted(source), part)
            by = said.get("by", "")
            if said["verdict"] in ("killed", "hung"):
                if self._is_to_blame(mutant.file, source, said, tests):
                    break
                part = {by: tests[by]}
                said = {"verdict": "survived"}
            left = {test: cost for test, cost in left.items() if test not in part}
            room = float("inf")
        seconds = round(time.monotonic() - began, 2)
        nearest, by = tuple(tests)[:3], said.get("by", "")
        return Result(mutant, said["verdict"], by, seconds, nearest, len(tests), reaching)

    def _is_to_blame(
        self, file: str, source: str, said: dict[str, Any], tests: dict[str, float]
    ) -> bool:
        """Whether the mutant is: a test that waits may fail because the machine is busy."""
        cost = tests.get(said["by"], 0.0)
        if (said["verdict"] == "killed" and cost <= DEAR) or said["by"] not in tests:
            return True
        return bool(self.run(file, source, {said["by"]: cost})["verdict"] == "survived")

    def run(self, file: str, text: str, tests: dict[str, float]) -> dict[str, Any]:
        scale = factor()
        limit = scale * (30 + 5 * sum(tests.values()))
        job = {"file": file, "text": text, "tests": tests, "scale": scale, "limit": limit}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _log(self) -> str:
        return (self._copy.parent / "log").read_text()[-4000:]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"a worker ended: {self._log()}"
        answer: dict[str, Any] = json.loads(line)
        return answer


def within(tests: dict[str, float], seconds: float) -> dict[str, float]:
    """As many of the first as this time has room for, and at least one if there is one."""
    chosen: dict[str, float] = {}
    for test, cost in tests.items():
        if chosen and sum(chosen.values()) + cost > seconds:
            break
        chosen[test] = cost
    return chosen


def _copy(root: Path, to: Path) -> None:
    """What git knows or would know, as it is now."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)


def _environment(folder: Path, copy: Path, root: Path) -> Path:
    """A Python that finds the copy, and else what this one has installed.

    Paths in a .pth file are not searched for further .pth files: it does not see the project's
    editable install.
    """
    venv.create(folder / "v", symlinks=True)
    (site,) = (folder / "v/lib").glob("python*/site-packages")
    (installed,) = Path(sys.prefix, "lib").glob("python*/site-packages")
    paths = [copy / "src", installed]
    if root != HERE:  # what is installed has a pytest plugin that is in our sources
        paths.append(HERE / "src")
    (site / "project.pth").write_text("\n".join(map(str, paths)))
    return folder / "v/bin/python"
