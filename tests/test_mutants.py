"""`make mutants`: which faults it plants, which it does not, and that a planted one is in force."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest
from tools.mutants import choice, probes, reach
from tools.mutants.__main__ import Work, main, said, table, try_all
from tools.mutants.bench import Result
from tools.mutants.mutations import mutants_of
from tools.mutants.reach import Reach

FILE = "src/sample/sums.py"
SOURCE = '''\
"""A page of arithmetic."""

MOST = 10


def clip(value: int, least: int = 0) -> int:
    """Not above MOST, and not below that."""
    if value > MOST:
        return MOST
    return value if value > least else least


def of_a_process(text: str) -> int:
    return int(text) * 3
'''
TESTS = """\
import subprocess, sys
from sample.sums import clip

def test_top():
    assert clip(50) == 10

def test_top_again():
    assert clip(60) == 10

def test_that_fails():
    assert clip(70) == 11

def test_process():
    code = "from sample import sums; print(sums.of_a_process('5'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "15\\n"
"""
SETTINGS = """\
[tool.pytest.ini_options]
addopts = ["--import-mode=importlib"]
asyncio_default_fixture_loop_scope = "function"
pythonpath = ["src"]
"""
TOP, AGAIN, PROCESS = (
    f"tests/test_sums.py::test_{name}" for name in ("top", "top_again", "process")
)
BOTH = {TOP, AGAIN}


def changes(code: str) -> set[str]:
    """What the statements of this code become."""
    source = "def it():\n" + "".join(f"    {line}\n" for line in code.splitlines())
    found = mutants_of("it.py", source)
    for mutant in found:
        compile(mutant.planted(source), "it.py", "exec")
    return {mutant.after for mutant in found}


@pytest.mark.parametrize(
    ("code", "faults"),
    [
        ("x = a < b", {"x = a <= b", "x = a >= b"}),
        ("x = a == b", {"x = a != b"}),
        ("x = a is None", {"x = a is not None"}),
        ("x = a and b", {"x = a or b"}),
        ("x = not a", {"x = a"}),
        ("x = a + b", {"x = a - b"}),
        ("x = 3", {"x = 4", "x = 2"}),
        ("x = 1000", {"x = 2000", "x = 500"}),
        ("x = 'key'", {"x = 'key~'"}),
        ("x = True", {"x = False"}),
        ("x = [y for y in z if y]", {"x = [y for y in z if not y]"}),
        ("f(x)", {"pass"}),
        ("await f(x)", {"pass"}),
        ("self.x = y", {"pass"}),
        ("x += y", {"pass", "x -= y"}),
        ("return x", {"return None"}),
        ("return False", {"return True"}),
        ("while a:\n    break", {"while not a:", "continue"}),
        ("def g(x=1): pass", {"def g(x=2):", "def g(x=0):"}),
    ],
)
def test_each_kind_of_fault_is_planted(code: str, faults: set[str]) -> None:
    assert changes(code) == faults


@pytest.mark.parametrize(
    "code",
    [
        '"""A docstring."""',
        '"docstring"',
        "log.info('at_port', 3)",
        "raise errors.Busy('in_use', hint='wait')",
        "x: Literal['a', 3]",
        "x: dict[str, 'Y'] = y",
        "x = cast('Y', y)",
        "x = 'a text for people'",
        "x = f'{1 + 1}'",
        "x = path / 'name with space'",
        "x = str | None",
        "assert x > 3",
        "if TYPE_CHECKING:\n    x = 3",
        "def __repr__(self): return 'it'",
        "@cache(maxsize=3)\ndef g(): pass",
        "...",
    ],
)
def test_what_only_people_or_type_checkers_read_is_left_alone(code: str) -> None:
    assert changes(code) == set()


def test_a_mutant_moves_no_other_line() -> None:
    source = "x = (\n    a and\n    b\n)\ny = 1\n"
    (either,) = (m for m in mutants_of("it.py", source) if "or" in m.after)
    assert either.planted(source).splitlines()[4] == "y = 1"


def test_each_of_several_constants_on_one_line_is_looked_for_by_its_name() -> None:
    assert {m.names for m in mutants_of("it.py", "LEAST, MOST = 1, 9\n")} == {("LEAST", "MOST")}


def test_the_same_seed_draws_the_same_mutants_and_another_one_does_not() -> None:
    found = mutants_of(FILE, SOURCE)
    shuffled = random.Random(5).sample(found, len(found))
    assert choice.draw(found, 6, 1) == choice.draw(found, 6, 1)
    assert choice.draw(found, 6, 1) != choice.draw(found, 6, 2)
    assert {m.before for m in choice.draw(shuffled, 6, 1)} == {m.before for m in found}


def test_the_core_is_all_but_names_texts_advice_and_a_show() -> None:
    files = choice.core(reach.HERE)
    assert any(file.endswith("/vhci.py") for file in files)
    left_out = ("__init__.py", "/cli/app.py", "/demo.py")
    assert not [file for file in files if file.endswith(left_out) or "/doctor/" in file]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one file, with a test in this process and one of another."""
    root = tmp_path_factory.mktemp("project")
    files = {FILE: SOURCE, "src/sample/__init__.py": "", "tests/test_sums.py": TESTS}
    for name, text in {**files, "pyproject.toml": SETTINGS}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    git(root, "tag", "v1")
    return root


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=root, check=True)


@pytest.fixture(scope="module")
def results(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """All mutants of the project, tried; one of them is said to be none."""
    known = Reach(project, {TOP: 0.01, PROCESS: 0.1}, {FILE: lines_reached()})
    (same,) = (m for m in mutants_of(FILE, SOURCE) if m.after == "if value >= MOST:")
    entry = {"function": same.function, "before": same.before, "after": same.after}
    equivalent = tmp_path_factory.mktemp("mutants") / "equivalent.toml"
    pairs = "\n".join(f'{key} = "{text}"' for key, text in entry.items())
    equivalent.write_text(f'[[equivalent]]\n{pairs}\nreason = "MOST is MOST"\n')
    found = mutants_of(FILE, SOURCE)
    tried = list(try_all(project, found, known, 60, equivalent=equivalent, workers=1))
    return {result.mutant.after: result for result in tried}


def lines_reached() -> dict[int, list[str]]:
    return {7: [TOP], 8: [TOP], 9: [TOP], 10: [], 14: [PROCESS]}


def test_a_fault_that_a_test_notices_is_killed_by_it(results: dict[str, Result]) -> None:
    killed = results["if value <= MOST:"]
    assert (killed.verdict, killed.by) == ("killed", TOP)


def test_a_constant_is_tried_with_the_tests_of_where_it_is_used(results: dict[str, Result]) -> None:
    assert (results["MOST = 11"].verdict, results["MOST = 11"].by) == ("killed", TOP)


def test_a_fault_is_in_force_in_processes_that_a_test_starts(results: dict[str, Result]) -> None:
    killed = results["return int(text) * 4"]
    assert (killed.verdict, killed.by) == ("killed", PROCESS)


def test_what_no_test_notices_survives_and_what_none_reaches_is_told(
    results: dict[str, Result],
) -> None:
    survivor = results["def clip(value: int, least: int=1) -> int:"]
    assert (survivor.verdict, survivor.nearest) == ("survived", (TOP,))
    unreached = results["return value if value >= least else least"]
    assert unreached.verdict == "unreached"
    assert ("SURVIVED" in said(survivor), TOP in said(survivor)) == (True, True)
    assert "NO UNIT TEST REACHES IT" in said(unreached)


def test_what_is_named_equivalent_is_not_tried_and_does_not_count(
    results: dict[str, Result],
) -> None:
    assert results["if value >= MOST:"].by == "MOST is MOST"
    rows, share = table([results["if value >= MOST:"], results["MOST = 11"]])
    assert share == 100
    assert rows[0].split() == ["1/1", "100", "%", FILE]


def test_one_run_notes_which_tests_reach_what_was_drawn(project: Path) -> None:
    found = mutants_of(FILE, SOURCE)
    known = reach.load(project, found, workers=1)
    by_line = {m.lines[0]: set(known.tests_of(m)) for m in found}
    # a test that fails tells nothing; a Python that a test starts anew has probes, too
    assert by_line == {3: BOTH, 6: BOTH, 8: BOTH, 9: BOTH, 10: set(), 14: {PROCESS}}
    assert reach.load(project, found).seconds == known.seconds  # kept: noted by no second run


def test_tests_that_need_another_machine_are_not_tried(tmp_path: Path) -> None:
    notes, seconds = tmp_path / "notes.json", {TOP: 2.0, "tests/network/test_x.py::test_it": 1.0}
    notes.write_text(json.dumps({"seconds": seconds, "slowness": 2.0}))
    probes.log_of(notes).write_text("".join(f"{FILE}:8 {test} (call)\n" for test in seconds))
    (mutant, *_) = (m for m in mutants_of(FILE, SOURCE) if m.reach == 8)
    assert reach.noted(tmp_path, notes).tests_of(mutant) == {TOP: 1.0}


PROBED = """\
def f(x=1):
    "text"
    while x < 3:
        x += 1
    else:
        x = lambda: 5
    match x():
        case 5:
            def inner(): return 7
    try:
        return inner()
    finally:
        pass
if f:
    f()
"""


def test_a_probe_is_met_where_its_line_runs_and_moves_no_other() -> None:
    met: list[str] = []
    lines = range(1, 16)
    tree = probes.with_probes(PROBED, "it.py", lines)
    exec(compile(tree, "it.py", "exec"), {probes.PROBE: met.append})
    # not 5, 8 and 12, which are no statements, nor 14 and 15, which are in no function
    assert [int(place.removeprefix("it.py:")) for place in met] == [
        1, 2, 3, 4, 4, 6, 7, 10, 11, 9, 13,
    ]  # fmt: skip
    assert isinstance(tree.body[0], ast.FunctionDef)
    assert ast.get_docstring(tree.body[0]) == "text"
    bare = compile(probes.with_probes(PROBED, "it.py", ()), "it.py", "exec")
    assert bare.co_code == compile(PROBED, "it.py", "exec").co_code


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_what_a_killed_test_had_mounted_is_not_left_behind(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from tools.mutants import worker; worker.have_own_mounts()\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'tiny', sys.argv[1]], check=True)\n"
        "assert sys.argv[1] in open('/proc/self/mounts').read()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_none_is_started_after_the_time(tmp_path: Path) -> None:
    late = Work(
        benches=SimpleQueue(), known=Reach(tmp_path, {}, {}), seconds=1.0, until=0.0,
        equivalents=choice.Equivalents(tmp_path / "none"),
    )  # fmt: skip
    result = late.attempt(mutants_of(FILE, SOURCE)[0])
    assert (result.verdict, table([result])[1]) == ("untried", 100)


def test_without_a_tag_all_lines_are_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text(SOURCE)
    git(tmp_path, "init", "--quiet")
    notes = tmp_path / "notes.json"
    words = ["--root", str(tmp_path), "--changed-since", "--seed", "1", "--order", str(notes)]
    assert main(words) == 0
    assert "no tag yet" in capsys.readouterr().out
    assert json.loads(notes.read_text())["wanted"] == {FILE: [7, 8, 9, 10, 14]}


def test_only_new_lines_count_not_those_that_moved(project: Path) -> None:
    new = project / "src/sample/moved.py"
    (project / FILE).rename(new)
    new.write_text(SOURCE.replace("* 3", "* 7").replace("MOST = 10", "# said\n\nMOST  =  10"))
    git(project, "add", "--intent-to-add", ".")
    try:
        lines = {"src/sample/moved.py": {16}}
        assert choice.changed_lines(project) == ("v1", lines)
        found = choice.mutants(project, ["src/sample/moved.py"], lines)
        assert {m.before for m in found} == {"return int(text) * 7"}
    finally:
        new.rename(project / FILE)
        git(project, "checkout", "--quiet", ".")
