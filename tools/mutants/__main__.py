"""`make mutants`: plant small faults, one at a time, and see which of them the tests notice.

We found no tool that draws a sample by a seed, keeps to lines that are new since a tag, and reaches
code outside of functions. We tried mutmut 3.8 on two files: no seed, no code outside of functions,
and 313 lines became 7,688, while some of our tests read our sources. Of pytest-gremlins, cosmic-ray
and mutatest we have only read the documentation.

A mutant is tried with tests that reach it, cheapest first, as many as `--seconds` has room for. One
that survives might have been noticed by a dearer test, so the figure is rather too low.

Who reaches what is noted by a run of the unit tests: one of its own, or (in CI) the one that
happens anyway, with `--order FILE` before, `--noted FILE` after, and the same choice both times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from tools.mutants import choice, probes, reach
from tools.mutants.bench import Bench, Result, within
from tools.mutants.mutations import Mutant
from tools.mutants.reach import Reach

WORKERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    root = options.root.resolve()
    began = time.monotonic()
    chosen = _chosen(root, options)
    if options.order:
        reach.order(root, options.order, chosen)
        return 0
    known = reach.noted(root, options.noted) if options.noted else reach.load(root, chosen)
    results = try_all(root, chosen, known, options.seconds, until=began + options.budget)
    done: list[Result] = []
    with (root / "mutants.jsonl").open("w") as file:
        for result in results:
            done.append(result)
            if result.verdict != "untried":
                print(said(result), flush=True)
                file.write(_record(result))
                file.flush()
    rows, share = table(done)
    print("", *rows, sep="\n")
    tried = sum(result.verdict != "untried" for result in done)
    took = f"{time.monotonic() - began:.0f} s"
    print(f"seed {options.seed}: tried {tried} of {len(done)}, {took}; each is in mutants.jsonl")
    if share < options.at_least:
        print(f"error: fewer than {options.at_least:g} % were noticed", file=sys.stderr)
        return 1
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants")
    add = parser.add_argument
    add("files", nargs="*", help="of src/; default: the core")
    add("--count", type=int, default=300, help="how many to try; default: 300")
    add("--seed", type=int, default=int(time.time()) % 100_000, help="default: by the clock")
    add("--seconds", type=float, default=60.0, help="of tests for each mutant; default: 60")
    add("--at-least", type=float, default=0.0, metavar="PERCENT", help="else exit status 1")
    add("--changed-since", nargs="?", const="", metavar="REV",
        help="only lines that are new since then; without REV: since the newest tag")  # fmt: skip
    add("--order", type=Path, metavar="FILE",
        help=f"only write what is to be noted, for a run with {probes.VARIABLE}=FILE")  # fmt: skip
    add("--noted", type=Path, metavar="FILE", help="what such a run has noted")
    add("--budget", type=float, default=math.inf, help="start none after so many seconds")
    add("--root", type=Path, default=reach.HERE, help="of the project; default: this one")
    return parser.parse_args(arguments)


def _chosen(root: Path, options: argparse.Namespace) -> list[Mutant]:
    lines = None
    files = options.files or choice.core(root)
    if options.changed_since is not None:
        if changed := choice.changed_lines(root, options.changed_since):
            since, lines = changed
            print(f"{sum(map(len, lines.values()))} new lines since {since}")
        else:
            print("no tag yet: all lines count as new")
    found = choice.mutants(root, files, lines)
    chosen = choice.draw(found, options.count, options.seed)
    print(f"seed {options.seed}: {len(chosen)} of {len(found)} mutants, in {len(files)} files")
    return chosen


def try_all(
    root: Path,
    chosen: Sequence[Mutant],
    known: Reach,
    seconds: float,
    *,
    equivalent: Path = choice.EQUIVALENT,
    until: float = math.inf,
    workers: int = WORKERS,
) -> Iterator[Result]:
    """Results as they come; none is started after `until` (time.monotonic)."""
    if not chosen:
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants-")))
        benches: SimpleQueue[Bench] = SimpleQueue()
        package = next(path.parent.name for path in (root / "src").glob("*/__init__.py"))
        for number in range(min(workers, len(chosen))):
            (folder / str(number)).mkdir()
            bench = Bench(root, folder / str(number), package)
            stack.callback(bench.close)
            benches.put(bench)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        list(pool.map(lambda _: _get_ready(benches, chosen, known), range(benches.qsize())))
        work = Work(benches, known, seconds, until, choice.Equivalents(equivalent))
        yield from pool.map(work.attempt, chosen)


def _get_ready(benches: SimpleQueue[Bench], chosen: Sequence[Mutant], known: Reach) -> None:
    """A worker that does not notice a planted fault would make all results worthless."""
    bench = benches.get()
    bench.wait_until_ready()
    for mutant in chosen:
        if tests := within(known.tests_of(mutant), 0.0):
            module = mutant.file.removeprefix("src/").removesuffix(".py").replace("/", ".")
            bench.check(mutant.file, module.removesuffix(".__init__"), tests)
            break
    benches.put(bench)


@dataclasses.dataclass(frozen=True)
class Work:
    benches: SimpleQueue[Bench]
    known: Reach
    seconds: float
    until: float
    equivalents: choice.Equivalents

    def attempt(self, mutant: Mutant) -> Result:
        if reason := self.equivalents.reason(mutant):
            return Result(mutant, "equivalent", reason)
        if time.monotonic() > self.until:
            return Result(mutant, "untried")
        reaching = self.known.tests_of(mutant)
        bench = self.benches.get()
        try:
            tests = within(reaching, self.seconds)
            return bench.attempt(mutant, tests, len(reaching))
        finally:
            self.benches.put(bench)


def said(result: Result) -> str:
    mutant, by = result.mutant, result.by.splitlines()[-1] if result.by else ""
    outcome = {
        "killed": f"killed by {by}",
        "hung": f"hung: {by}",
        "survived": "\n        ".join(
            [f"SURVIVED {result.tried} of {result.reaching} tests:", *result.nearest]
        ),
        "unreached": "NO UNIT TEST REACHES IT in a process that is measured",
        "equivalent": f"equivalent: {by}",
        "broken": f"BROKEN: {by}",
    }[result.verdict]
    return f"{mutant.place} {mutant.function}: {mutant.change} ({result.seconds} s)\n    {outcome}"


def _record(result: Result) -> str:
    mutant = result.mutant
    kept = {
        "file": mutant.file, "line": mutant.lines[0], "function": mutant.function,
        "before": mutant.before, "after": mutant.after, "verdict": result.verdict,
        "by": result.by, "seconds": result.seconds, "nearest": result.nearest,
        "tried": result.tried, "reaching": result.reaching,
    }  # fmt: skip
    return json.dumps(kept) + "\n"


def table(results: Sequence[Result]) -> tuple[list[str], float]:
    """The lines of the table, and the share in percent that was noticed."""
    by_file: dict[str, list[Result]] = defaultdict(list)
    counted = [result for result in results if result.counts]
    for result in counted:
        by_file[result.mutant.file].append(result)
    rows = [_row(file, by_file[file]) for file in sorted(by_file)]
    left = Counter(result.verdict for result in results)
    rows += [_row("all", counted), ", ".join(f"{left[word]} {word}" for word in sorted(left))]
    noticed = sum(result.is_noticed for result in counted)
    return rows, 100 * noticed / len(counted) if counted else 100.0


def _row(file: str, results: Sequence[Result]) -> str:
    noticed, all_ = sum(result.is_noticed for result in results), len(results)
    return f"{noticed:4}/{all_:<4} {100 * noticed / max(all_, 1):4.0f} %  {file}"


if __name__ == "__main__":
    sys.exit(main())
