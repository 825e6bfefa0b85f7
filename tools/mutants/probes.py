"""Notes which test reaches a few lines, within a run of the tests that happens anyway.

Rule of this file: it runs inside other people's test processes, so it changes nothing there but
the functions around those lines, and moves no line of them. A probe is one call before a statement;
what a test has reached before costs a look into a set.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from tools.mutants.mutations import Function, lines_of

VARIABLE = "MUTANTS_REACH"
"""Environment variable: a JSON file with `root` and `wanted`, the lines by file."""
PROBE = "__mutants_note__"

_seen: set[str] = set()
_log = ""


def log_of(file: Path) -> Path:
    return file.with_suffix(".log")


def install() -> None:
    """From now on modules with such lines are imported with probes, also in forks of us."""
    global _log
    file = Path(os.environ[VARIABLE])
    order = json.loads(file.read_text())
    _log = str(log_of(file))
    if order["wanted"]:
        setattr(builtins, PROBE, note)
        sys.meta_path.insert(0, _Finder(order["root"], order["wanted"]))


def note(place: str) -> None:
    """Append it, and the test that pytest names, to what all processes write."""
    if place not in _seen:
        _seen.add(place)
        if test := os.environ.get("PYTEST_CURRENT_TEST"):
            # a process may have lost the right to write, or every free descriptor
            with contextlib.suppress(OSError), open(_log, "a", encoding="utf-8") as file:  # noqa: PTH123
                file.write(f"{place} {test}\n")


def forget() -> None:
    """Another test begins."""
    _seen.clear()


def noted(file: Path) -> Iterator[tuple[str, int, str]]:
    """File, line and test of each note."""
    for entry in log_of(file).read_text().splitlines():
        place, _, test = entry.partition(" ")
        name, _, line = place.rpartition(":")
        yield name, int(line), test.rpartition(" (")[0]


class _Finder(MetaPathFinder):
    def __init__(self, root: str, wanted: dict[str, list[int]]) -> None:
        self._wanted = {f"{root}/{file}": (file, lines) for file, lines in wanted.items()}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.origin and (place := self._wanted.get(os.path.realpath(spec.origin))):
            spec.loader = _Loader(name, spec.origin, *place)
            return spec
        return None


class _Loader(SourceFileLoader):
    """Compiles anew: a .pyc has no probes, and none with probes is left behind."""

    def __init__(self, name: str, path: str, file: str, lines: Collection[int]) -> None:
        super().__init__(name, path)
        self._file, self._lines = file, lines

    def get_code(self, fullname: str) -> CodeType:
        tree = with_probes(Path(self.path).read_text(), self._file, self._lines)
        return compile(tree, self.path, "exec", dont_inherit=True)


def with_probes(source: str, file: str, lines: Collection[int]) -> ast.Module:
    """The module, with a probe before each statement of a function that has one of these lines."""
    tree = ast.parse(source)
    _put(tree, file, lines, in_function=False)
    return tree


def _put(node: ast.AST, file: str, lines: Collection[int], *, in_function: bool) -> None:
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        parts = getattr(node, field, None)
        if not isinstance(parts, list):  # there is none, or it is a lambda's
            continue
        for part in parts:
            _put(part, file, lines, in_function=in_function or isinstance(part, Function))
        if in_function and isinstance(parts[0] if parts else None, ast.stmt):
            setattr(node, field, list(_probed(parts, file, lines)))
    if isinstance(node, Function):  # its head runs before, and what that decides is met inside
        told = int(ast.get_docstring(node, clean=False) is not None)
        first = node.body[min(told, len(node.body) - 1)]
        head = (n for n in range(node.lineno, first.lineno) if n in lines)
        node.body[told:told] = [_probe(first, file, n) for n in head]


def _probed(body: list[ast.stmt], file: str, lines: Collection[int]) -> Iterator[ast.stmt]:
    for statement in body:
        first, last = lines_of(statement)
        if not isinstance(statement, Function) and not _is_text(statement):
            yield from (_probe(statement, file, n) for n in range(first, last + 1) if n in lines)
        yield statement


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _probe(before: ast.stmt, file: str, line: int) -> ast.stmt:
    call = ast.Call(ast.Name(PROBE, ast.Load()), [ast.Constant(f"{file}:{line}")], [])
    return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), before))
