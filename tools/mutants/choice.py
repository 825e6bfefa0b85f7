"""Which mutants are tried: of which files and lines, which of them by lot, and which are no faults.

Rule of this file: the same seed and the same tree give the same sample.
"""

from __future__ import annotations

import random
import re
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from tools.mutants.mutations import Mutant, mutants_of

NOT_CORE = ("*/__init__.py", "*/__main__.py", "*/cli/app.py", "*/cli/demo.py", "*/doctor/*")
"""Names, texts, advice and a show: all else below src/ is the core."""
EQUIVALENT = Path(__file__).parent.parent / "equivalent.toml"
Lines = Mapping[str, set[int]]


def core(root: Path) -> list[str]:
    files = (str(path.relative_to(root)) for path in (root / "src").rglob("*.py"))
    return sorted(file for file in files if not any(fnmatch(file, p) for p in NOT_CORE))


def mutants(root: Path, files: Iterable[str], only: Lines | None = None) -> list[Mutant]:
    """All of these files; of changed lines alone if those are given."""
    found = [m for file in files for m in mutants_of(file, (root / file).read_text())]
    if only is None:
        return found
    return [m for m in found if not only.get(m.file, set()).isdisjoint(range(*_span(m)))]


def _span(mutant: Mutant) -> tuple[int, int]:
    return mutant.lines[0], mutant.lines[1] + 1


def draw(found: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """By lot, one of each statement before a second one of any: a table of numbers is one place."""
    chance = random.Random(seed)
    places: dict[tuple[str, str, str, int], list[Mutant]] = defaultdict(list)
    for mutant in found:
        places[mutant.file, mutant.function, mutant.before, mutant.reach].append(mutant)
    turns = [chance.sample(group, len(group)) for group in places.values()]
    drawn: list[Mutant] = []
    while len(drawn) < count and turns:
        chance.shuffle(turns)
        drawn += [group.pop() for group in turns[: count - len(drawn)]]
        turns = [group for group in turns if group]
    return drawn


class Equivalents:
    """Mutants that do the same as the original, each with the reason why.

    Their place is the function and the text, so that they outlive moved lines and moved files.
    """

    def __init__(self, file: Path = EQUIVALENT) -> None:
        entries = tomllib.loads(file.read_text())["equivalent"] if file.exists() else []
        self.reasons = {(e["function"], e["before"], e["after"]): e["reason"] for e in entries}

    def reason(self, mutant: Mutant) -> str | None:
        return self.reasons.get((mutant.function, mutant.before, mutant.after))


def changed_lines(root: Path, since: str = "") -> tuple[str, dict[str, set[int]]] | None:
    """The commit, by default the newest tag, and the lines of src/ that are new since.

    None if there is no tag. A line that the same change took away elsewhere has only moved.
    """
    if not since:
        newest = _git(root, "for-each-ref", "--sort=-creatordate", "--count=1", "refs/tags").split()
        if not newest:
            return None
        since = newest[-1].removeprefix("refs/tags/")
    command = ("diff", "-M", "-w", "-U0", "--no-color", "--no-ext-diff", since, "--", "src")
    return since, new_lines(_git(root, *command))


def new_lines(diff: str) -> dict[str, set[int]]:
    """By file, from what `git diff -U0` prints."""
    gone = {line[1:].strip() for line in diff.splitlines() if re.match(r"-(?!-- )", line)}
    found: dict[str, set[int]] = defaultdict(set)
    file, number = "", 0
    for line in diff.splitlines():
        if head := re.match(r"\+\+\+ b/(.*)", line):
            file = head[1]
        elif hunk := re.match(r"@@ \S+ \+(\d+)", line):
            number = int(hunk[1])
        elif line.startswith("+"):
            text = line[1:].strip()
            if text and not text.startswith("#") and text not in gone:
                found[file].add(number)
            number += 1
    return found


def _git(root: Path, *words: str) -> str:
    command = ["git", "-c", "safe.directory=*", *words]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
