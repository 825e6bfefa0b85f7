"""Which tests reach a mutant, and what each of them costs: noted while the unit tests run.

Rule of this file: only the mutants that were drawn are looked for, so a run costs no more than
usual, and in CI it is the one that happens anyway. A fork of a test's process counts as that test,
and so does a Python that it starts anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.patience import factor

from tools.mutants import probes
from tools.mutants.mutations import Mutant

HERE = Path(__file__).parents[2]
FOLDER = ".mutants"
"""Below the root of the project; git ignores it."""
LEFT_OUT = ("tests/kernel", "tests/network", "tests/test_site.py", "tests/test_dist.py")
"""Other machines, and what builds pages and packages."""


@dataclass(frozen=True)
class Reach:
    """Tests by file and line, and what each of them costs on a machine of usual speed."""

    root: Path
    seconds: dict[str, float]
    lines: Mapping[str, Mapping[int, Collection[str]]]

    def tests_of(self, mutant: Mutant) -> dict[str, float]:
        """Those that may notice it, with their seconds, the cheapest first."""
        if mutant.names:
            found = self._of_names(mutant) or self._of_module(mutant)
        else:
            found = set(self.lines.get(mutant.file, {}).get(mutant.reach, ()))
        in_order = sorted((self.seconds[test], test) for test in found)
        return {test: seconds for seconds, test in in_order}

    def _of_names(self, mutant: Mutant) -> set[str]:
        found: set[str] = set()
        for file, hits in self._uses(mutant):
            found.update(t for n in hits for t in self.lines.get(file, {}).get(n, ()))
            if file.startswith("tests/"):
                found.update(test for test in self.seconds if test.startswith(f"{file}::"))
        return found

    def _of_module(self, mutant: Mutant) -> set[str]:
        """What nobody names is met by those who use its module."""
        word = re.compile(rf"\b{Path(mutant.file).stem}\b")
        files = {f"{f}::" for f, text in self._texts.items() if f.startswith("tests/")
                 and word.search(text)}  # fmt: skip
        return {test for test in self.seconds if test.startswith(tuple(files))}

    def _uses(self, mutant: Mutant) -> Iterator[tuple[str, set[int]]]:
        """What only an import runs is reached where it is used: by its name, here and in tests."""
        word = re.compile(rf"^(?!from |import ).*\b(?:{'|'.join(mutant.names)})\b")
        for file, text in self._texts.items():
            hits = {n for n, line in enumerate(text.splitlines(), 1) if word.search(line)}
            if file == mutant.file:
                hits -= set(range(mutant.lines[0], mutant.lines[1] + 1))
            if hits:
                yield file, hits

    def places(self, chosen: Iterable[Mutant]) -> dict[str, list[int]]:
        """The lines by file that decide which tests these mutants get."""
        found: dict[str, set[int]] = defaultdict(set)
        for mutant in chosen:
            if mutant.names:
                for file, hits in self._uses(mutant):
                    found[file] |= hits
            else:
                found[mutant.file].add(mutant.reach)
        return {file: sorted(lines) for file, lines in found.items() if file.startswith("src/")}

    @cached_property
    def _texts(self) -> dict[str, str]:
        files = [*(self.root / "src").rglob("*.py"), *(self.root / "tests").glob("*.py")]
        return {str(file.relative_to(self.root)): file.read_text() for file in files}


def order(root: Path, file: Path, chosen: Iterable[Mutant]) -> None:
    """Write down what a run with the plugin is to note: who reaches these."""
    file.parent.mkdir(parents=True, exist_ok=True)
    wanted = Reach(root, {}, {}).places(chosen)
    file.write_text(json.dumps({"root": str(root), "wanted": wanted}))
    log = probes.log_of(file)
    log.write_text("")
    log.chmod(0o666)  # some tests start programs of other users


def noted(root: Path, file: Path) -> Reach:
    """What such a run has noted."""
    found = json.loads(file.read_text())
    if "slowness" not in found:  # the run has just ended
        found["slowness"] = factor()
        file.write_text(json.dumps(found))
    costs = found["seconds"].items()
    seconds = {t: s / found["slowness"] for t, s in costs if not t.startswith(LEFT_OUT)}
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, line, test in probes.noted(file):
        if test in seconds:
            lines[name][line].add(test)
    return Reach(root, seconds, lines)


def load(root: Path, chosen: Sequence[Mutant], workers: int = 2) -> Reach:
    """What is kept for these and this tree; one run of the unit tests notes it if it is new."""
    file = root / FOLDER / f"reach-{_digest(root, chosen)}.json"
    if not file.exists() or "seconds" not in json.loads(file.read_text()):
        print("one run of the unit tests, to note which of them reaches what", flush=True)
        for old in file.parent.glob("reach-*"):
            old.unlink()
        order(root, file, chosen)
        _run(root, file, workers)
    return noted(root, file)


def _run(root: Path, file: Path, workers: int) -> None:
    """Some tests may fail: they will not be used."""
    environment = {**os.environ, probes.VARIABLE: str(file)}
    if root != HERE:  # a project without this plugin
        environment["PYTHONPATH"] = f"{HERE}:{root / 'src'}"
    ignored = [f"--ignore={path}" for path in LEFT_OUT]
    command = ["-p", "tools.mutants.recorder", "-p", "no:cacheprovider", f"-n{workers}", "-q"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *command, "--dist=worksteal", *ignored, "tests"],
        cwd=root, env=environment, check=False,
    )  # fmt: skip


def _digest(root: Path, chosen: Sequence[Mutant]) -> str:
    """Of everything that decides which test reaches what."""
    whole = hashlib.sha256(repr(chosen).encode())
    files = [*(root / "src").rglob("*.py"), *(root / "tests").rglob("*.py")]
    for file in sorted([*files, root / "pyproject.toml"]):
        whole.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return whole.hexdigest()[:16]
