"""Which tests reach a line, and what each of them costs: one run of the unit tests, measured.

Rule of this file: the result is kept by the digest of the tree, so nothing is measured twice. A
process that a test starts counts as that test: pytest names the test in the environment, and
coverage begins in every Python process of this environment that finds its variable set.

CI has no time for that: there the lines of a few mutants are ordered, and the run of the unit tests
that happens anyway notes who reaches those (see probes.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import coverage
from tests.patience import factor

from tools.mutants import probes
from tools.mutants.mutations import Mutant

HERE = Path(__file__).parents[2]
FOLDER = ".mutants"
"""Below the root of the project; git ignores it."""
LEFT_OUT = ("tests/kernel", "tests/network", "tests/test_site.py", "tests/test_dist.py")
"""Other machines, and what builds pages and packages."""
WARNINGS = "no-data-collected,module-not-measured,already-imported,couldnt-parse"
SETTINGS = """\
[run]
source = src
relative_files = true
parallel = true
sigterm = true
context = ${{PYTEST_CURRENT_TEST-}}
data_file = {folder}/raw/coverage
disable_warnings = {warnings}
"""


@dataclass(frozen=True)
class Reach:
    """Tests by file and line, and what each of them costs on a machine of usual speed."""

    root: Path
    seconds: dict[str, float]
    lines: Mapping[str, Mapping[int, Collection[str]]]

    def tests_of(self, mutant: Mutant) -> dict[str, float]:
        """Those that may notice it, with their seconds, the cheapest first."""
        if mutant.names:
            found = self._of_names(mutant)
        else:
            of_file = self.lines.get(mutant.file, {})
            found = set()
            for first, last in mutant.reach:
                found = found or {t for n in range(first, last + 1) for t in of_file.get(n, ())}
        in_order = sorted((self.seconds[test], test) for test in found)
        return {test: seconds for seconds, test in in_order}

    def _of_names(self, mutant: Mutant) -> set[str]:
        found: set[str] = set()
        for file, hits in self._uses(mutant):
            found.update(t for n in hits for t in self.lines.get(file, {}).get(n, ()))
            if file.startswith("tests/"):
                found.update(test for test in self.seconds if test.startswith(f"{file}::"))
        return found

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
                found[mutant.file].add(mutant.reach[-1][0])
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
    slowness = factor()
    costs = json.loads(file.read_text())["seconds"].items()
    seconds = {t: s / slowness for t, s in costs if not t.startswith(LEFT_OUT)}
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, line, test in probes.noted(file):
        if test in seconds:
            lines[name][line].add(test)
    return Reach(root, seconds, lines)


def load(root: Path, workers: int = 2) -> Reach:
    """What is kept for this tree; measured now if it is new."""
    kept = root / FOLDER / f"reach-{digest(root)}.json"
    if not kept.exists():
        print("measuring which tests reach which lines: one run of the unit tests", flush=True)
        _measure(root, workers)
    return _read(root, kept)


def _measure(root: Path, workers: int) -> None:
    """Run the unit tests, and keep what they reach."""
    folder = root / FOLDER
    for old in [*folder.glob("raw/*"), *folder.glob("reach-*.json"), folder / "coverage"]:
        old.unlink(missing_ok=True)
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "raw").chmod(0o1777)  # some tests start programs of other users
    settings = folder / "settings"
    settings.write_text(SETTINGS.format(folder=folder, warnings=WARNINGS))
    order(root, folder / "costs.json", ())
    tree, slowness = digest(root), factor()
    ignored = [f"--ignore={path}" for path in LEFT_OUT]
    command = ["-p", "tools.mutants.recorder", "-p", "no:cacheprovider", f"-n{workers}", "-q"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *command, "--dist=worksteal", *ignored, "tests"],
        cwd=root,
        env=_environment(root, settings, folder / "costs.json"),
        check=False,
    )
    _keep(folder, f"reach-{tree}.json", (slowness + factor()) / 2)


def _environment(root: Path, settings: Path, costs: Path) -> dict[str, str]:
    measured = {"COVERAGE_PROCESS_START": str(settings), probes.VARIABLE: str(costs)}
    if root != HERE:  # a project without this plugin
        measured["PYTHONPATH"] = f"{HERE}:{root / 'src'}"
    return {**os.environ, **measured}


def _keep(folder: Path, name: str, slowness: float) -> None:
    """Write as JSON what coverage has found; its own data stays for reports by file."""
    costs = json.loads((folder / "costs.json").read_text())["seconds"]
    seconds = {test: round(cost / slowness, 4) for test, cost in costs.items()}
    tests = {test: n for n, test in enumerate(seconds)}
    settings = str(folder / "settings")
    whole = coverage.Coverage(data_file=str(folder / "coverage"), config_file=settings)
    whole.combine([str(folder / "raw")])
    whole.save()
    data = whole.get_data()
    lines: dict[str, dict[int, list[int]]] = {}
    for file in data.measured_files():
        lines[file] = {
            line: sorted({tests[t] for t in map(_test, contexts) if t in tests})
            for line, contexts in data.contexts_by_lineno(file).items()
        }
    if not any(lines.values()):
        sys.exit("error: coverage has seen nothing of src/")
    (folder / name).write_text(json.dumps({"seconds": seconds, "lines": lines}))


def _test(context: str) -> str:
    """A child's is what pytest wrote, `test (call)`; what forks for many tests has two of them."""
    return re.sub(r" \((?:setup|call|teardown)\)$", "", context.rpartition("|")[2])


def _read(root: Path, kept: Path) -> Reach:
    found = json.loads(kept.read_text())
    tests = list(found["seconds"])
    lines = {
        file: {int(line): [tests[n] for n in numbers] for line, numbers in by_line.items()}
        for file, by_line in found["lines"].items()
    }
    return Reach(root, found["seconds"], lines)


def digest(root: Path) -> str:
    """Of everything that decides which test reaches what."""
    whole = hashlib.sha256()
    files = [*(root / "src").rglob("*.py"), *(root / "tests").rglob("*.py")]
    for file in sorted([*files, root / "pyproject.toml"]):
        if file.exists():
            whole.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return whole.hexdigest()[:16]
