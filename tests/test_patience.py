"""Bounds are written by patience() alone, and tests that run again are written down."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import kinds, patience
from tests.ledger import Ledger

TESTS = Path(__file__).parent
IN_GUESTS = TESTS / "kernel/image"
"""Programs that run in machines, far from tests.patience."""
PLACES = {
    "timeout": 0, "wait": 0, "join": 0, "settimeout": 0, "wait_for": 1, "eventually": 1, "until": 1,
    "stop": 1, "sh": 1, "until_state": 2, "until_wish": 3, "communicate": 1, "get": 1, "run": 99,
    "wait_event": 2, "acquire": 1, "result": 0, "select": 3,
}  # fmt: skip
"""Functions that wait, and at which place of their arguments the bound may stand."""
NO_BOUNDS = {
    ("test_claims.py", "wait_for"),  # how long a program waits for its turn
    ("test_client.py", "timeout"),  # how long nothing comes
    ("test_queue.py", "settimeout"),  # the same
    ("test_nodes.py", "until"),  # seconds of a clock that does not wait
    ("test_hooks.py", "run"),
}
"""Numbers that are no bounds: arguments of what is tested, and looks at what does not happen."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(TESTS.rglob("*.py")):
        if IN_GUESTS not in path.parents and "data" not in path.parts:
            yield path.name, ast.parse(path.read_text())


def number(node: ast.expr | None) -> float | None:
    """A bare number; 0.2 and less are no bounds but looks at what is so now."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value) if node.value > 0.2 else None  # type: ignore[operator,arg-type]
    return None


def bare_bounds(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            word = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if word not in PLACES or (name, word) in NO_BOUNDS:
                continue
            named = [k.value for k in node.keywords if k.arg == "timeout"]
            if any(number(value) for value in (*named, *node.args[PLACES[word] :][:1])):
                yield f"{name}:{node.lineno}: {ast.unparse(node)[:80]}"
        elif isinstance(node, ast.Compare) and "monotonic()" in ast.unparse(node.left):
            if any(number(bound) for bound in node.comparators):
                yield f"{name}:{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [a.arg for a in node.args.args][-len(node.args.defaults) :]
            defaults = dict(zip(names, node.args.defaults, strict=False))
            if number(defaults.get("timeout")):
                yield f"{name}:{node.lineno}: def {node.name}(timeout=…)"


def test_no_bound_is_a_bare_number() -> None:
    found = [bound for name, tree in sources() for bound in bare_bounds(name, tree)]
    assert not found, "write patience(seconds):\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "asyncio.timeout(5)",
        "await asyncio.wait_for(x, 5)",
        "await eventually(lambda: x, 5)",
        "process.communicate(timeout=5)",
        "subprocess.run(['x'], timeout=60)",
        "assert time.monotonic() - start < 40",
        "def until(condition, timeout: float = 120): ...",
    ],
)
def test_a_bare_number_is_found(source: str) -> None:
    wrapped = f"async def test():\n    {source}"
    assert list(bare_bounds("test_x.py", ast.parse(wrapped)))
    better = wrapped.replace("5)", "patience(5))").replace("40", "patience(40)")
    better = better.replace("=60", "=patience(60)").replace("= 120", "= patience(120)")
    assert not list(bare_bounds("test_x.py", ast.parse(better)))


def test_patience_grows_with_the_machine_and_never_shrinks() -> None:
    assert patience.patience(10) >= 10
    assert patience.patience(10) == pytest.approx(10 * patience.factor(), rel=0.5)
    assert 1 <= patience.factor() <= patience.MOST


def test_what_ran_again_is_written_down_and_printed(tmp_path: Path) -> None:
    file = tmp_path / "flakes.jsonl"
    ledger = Ledger(11, file)
    for outcome in ("passed", "rerun", "failed"):
        report = pytest.TestReport(
            "tests/network/test_x.py::test_y", ("x", 1, "y"), {}, outcome, "first\nE  too late",  # type: ignore[arg-type]
            "call",
        )  # fmt: skip
        ledger.pytest_runtest_logreport(report)
    (entry,) = map(json.loads, file.read_text().splitlines())
    assert entry["test"].endswith("test_y")
    assert entry["seed"] == 11
    assert entry["why"] == "E  too late"
    assert entry["load"] >= 0
    assert entry["factor"] >= 1


def test_a_test_has_the_kind_of_its_folder(request: pytest.FixtureRequest) -> None:
    assert kinds.kind_of(request.node) is kinds.UNIT
    assert request.node.get_closest_marker("unit")
    assert request.node.get_closest_marker("flaky") is None
    assert request.node.get_closest_marker("timeout").args[0] >= kinds.UNIT.seconds
