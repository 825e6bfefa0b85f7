"""Which small faults can be planted in a source file: text in, mutants out.

Rule of this file: pure. A mutant changes what the code does; texts for people (docstrings, logs,
errors and their hints, `__repr__`) and types are left alone, as is what only a type checker reads.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

TEXTS = frozenset(["hint", "help", "message", "description", "title", "reason", "note", "epilog"])
"""Keyword arguments that are read by people."""
TALKERS = frozenset(["log", "logger", "logging", "warnings"])
"""What calls of these objects say is for people."""
TYPES = frozenset(["TypeVar", "NewType", "ParamSpec", "cast", "getLogger", "Literal", "print"])
"""Calls that do nothing that a test should see."""

CODECS = frozenset(["ascii", "utf-8", "big", "little", "replace", "ignore", "surrogateescape"])
"""Another one is an error at once."""
LARGE = 64
"""Numbers above are doubled and halved."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.Div: ast.Mult,
}  # fmt: skip

_NO_CODE = ("decorator_list", "annotation", "returns", "args", "bases", "keywords", "type")
_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
_Statement = ast.stmt | ast.ExceptHandler | ast.match_case
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        function: the classes and functions around it, "" at the top of the module.
        lines: from the first line of what was changed to the last.
        reach: the line of the statement that a test has to reach.
        names: instead, for code that only an import runs: the names that it gives values to.
        before, after: the statement, or the head of a compound one, on one line.
        span, code: what replaces these bytes of the file.

    """

    file: str
    function: str
    lines: tuple[int, int]
    reach: int
    names: tuple[str, ...]
    before: str
    after: str
    span: tuple[int, int]
    code: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.lines[0]}"

    @property
    def change(self) -> str:
        """What differs, with as much around it as a line holds."""
        pairs = enumerate(zip(self.before, self.after, strict=False))
        same = next((n for n, (a, b) in pairs if a != b), 0)
        start = max(0, same - 40)
        cut = "…" if start else ""
        before, after = (text[start : same + 60] for text in (self.before, self.after))
        return f"{cut}{before}  ->  {cut}{after}"

    def planted(self, source: str) -> str:
        """The file with this fault; all other lines stay where they are."""
        old = source.encode()
        return (old[: self.span[0]] + self.code.encode() + old[self.span[1] :]).decode()


def mutants_of(file: str, source: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines."""
    finder = _Finder(file, source)
    return list(finder.in_body(ast.parse(source).body, (), in_function=False))


@dataclass(frozen=True)
class _Place:
    """The statement that is being searched, and what is around it."""

    names: tuple[str, ...]
    in_function: bool
    statement: ast.stmt


class _Finder:
    def __init__(self, file: str, source: str) -> None:
        self._file = file
        self._starts = [0]
        for line in source.encode().splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def in_body(
        self, body: list[ast.stmt], names: tuple[str, ...], *, in_function: bool
    ) -> Iterator[Mutant]:
        for statement in body:
            if not _is_ignored(statement):
                yield from self._in_statement(statement, _Place(names, in_function, statement))

    def _in_statement(self, node: ast.stmt, place: _Place) -> Iterator[Mutant]:
        if place.in_function:
            yield from self._mutants(node, _instead_of_statement(node), place)
        if isinstance(node, ast.If | ast.While):
            yield from self._mutants(node.test, _negated(node.test), place)
        names, in_function = place.names, place.in_function
        if isinstance(node, ast.ClassDef | Function):
            names, in_function = (*names, node.name), isinstance(node, Function)
        if isinstance(node, Function):
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                if default is not None:
                    yield from self._in_expression(default, place)
        for field, value in ast.iter_fields(node):
            parts = value if isinstance(value, list) else [value]
            for part in parts if field not in _NO_CODE else []:
                if isinstance(part, ast.ExceptHandler | ast.match_case):
                    yield from self.in_body(part.body, names, in_function=in_function)
                elif isinstance(part, ast.expr):
                    yield from self._in_expression(part, place)
                elif isinstance(part, ast.withitem):
                    yield from self._in_expression(part.context_expr, place)
            if field in _BODIES:
                statements = [part for part in parts if isinstance(part, ast.stmt)]
                yield from self.in_body(statements, names, in_function=in_function)

    def _in_expression(
        self, node: ast.AST, place: _Place, *, for_people: bool = False
    ) -> Iterator[Mutant]:
        if _is_left_alone(node):
            return
        if isinstance(node, ast.expr) and not (for_people and _is_string(node)):
            yield from self._mutants(node, _instead_of(node), place)
        for_people = for_people or _makes_error(node)
        if isinstance(node, ast.Lambda):
            yield from self._in_expression(node.body, place, for_people=for_people)
            return
        for test in _conditions(node):
            yield from self._mutants(test, _negated(test), place)
        for child in ast.iter_child_nodes(node):
            yield from self._in_expression(child, place, for_people=for_people)

    def _mutants(
        self, node: ast.expr | ast.stmt, changes: Iterator[ast.AST], place: _Place
    ) -> Iterator[Mutant]:
        for changed in changes:
            head = _head(place.statement)
            memo = {id(node): changed}  # a copy has this instead of the node
            after = changed if node is place.statement else copy.deepcopy(head, memo)
            yield Mutant(
                file=self._file,
                function=".".join(place.names),
                lines=lines_of(node),
                reach=_reach(place),
                names=() if place.in_function else _names(place),
                before=_on_one_line(head),
                after=_on_one_line(after),
                span=self._span(node),
                code=_code(node, changed),
            )

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset


def _instead_of_statement(node: ast.stmt) -> Iterator[ast.AST]:
    """What a whole statement may become."""
    match node:
        case ast.Expr(value=ast.Yield() | ast.YieldFrom()):
            pass  # the heart of a context manager
        case ast.Expr(value=value):
            if not _is_left_alone(value):
                yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.AnnAssign(target=ast.Attribute() | ast.Subscript(), value=ast.expr()):
            yield ast.Pass()
        case ast.AugAssign(target=target, op=op, value=value):
            yield ast.Pass()
            if type(op) in ARITHMETIC and not _is_text(value):
                yield ast.AugAssign(target, ARITHMETIC[type(op)](), value)
        case ast.Delete(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Return(value=ast.expr() as value) if not (_is_none(value) or _is_false(value)):
            yield ast.Return(ast.Constant(None))
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


def _instead_of(node: ast.expr) -> Iterator[ast.AST]:
    """What an expression may become."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=right):
            for other in COMPARISONS[type(op)]:
                yield ast.Compare(left, [other()], right)
        case ast.Compare(left=left, ops=ops, comparators=right):  # 0 <= x < y
            for n, op in enumerate(ops):
                other = COMPARISONS[type(op)][0]
                yield ast.Compare(left, [*ops[:n], other(), *ops[n + 1 :]], right)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=op, right=right) if _is_arithmetic(node):
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield from map(_number, _other_numbers(value))
        case ast.Constant(value=str(text)) if not _is_prose(text) and text not in CODECS:
            yield ast.Constant(text + "~" if text else "~")
        case ast.Constant(value=bytes(data)) if len(data) < 40:
            yield ast.Constant(data + b"~")


def _other_numbers(value: float) -> tuple[float, float]:
    """One more and one less; nobody would notice that of a large number."""
    return (value + 1, value - 1) if value <= LARGE else (value * 2, value // 2)


def _number(value: float) -> ast.expr:
    return ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))


def _is_prose(text: str) -> bool:
    """What has a space in it is for people."""
    return any(map(str.isspace, text.strip("\n")))


def _conditions(node: ast.AST) -> list[ast.expr]:
    match node:
        case ast.IfExp(test=test):
            return [test]
        case ast.comprehension(ifs=tests):
            return tests
        case _:
            return []


def _negated(test: ast.expr) -> Iterator[ast.AST]:
    """A condition in which nothing else is turned round."""
    if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr | ast.Await):
        yield ast.UnaryOp(ast.Not(), test)


def _is_arithmetic(node: ast.BinOp) -> bool:
    """Not on texts, paths and types: there the other operator is no fault but nonsense."""
    sides = (node.left, node.right)
    if type(node.op) not in ARITHMETIC or any(map(_is_text, sides)):
        return False
    if isinstance(node.op, ast.Div):
        return any(isinstance(s, ast.Constant | ast.Call | ast.BinOp) for s in sides)
    if isinstance(node.op, ast.BitOr):
        return not any(_is_none(s) or _is_type(s) for s in sides)
    return True


def _is_text(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, str | bytes)
        case ast.BinOp(left=left, right=right):
            return _is_text(left) or _is_text(right)
        case _:
            return isinstance(node, ast.JoinedStr | ast.List | ast.ListComp | ast.Tuple)


def _is_type(node: ast.expr) -> bool:
    match node:
        case ast.Subscript(value=inner) | ast.BinOp(op=ast.BitOr(), right=inner):
            return _is_type(inner)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            is_class = name[:1].isupper() and not name.isupper()
            return is_class or name in ("str", "int", "float", "bytes", "bool")
        case _:
            return False


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_false(node: ast.expr) -> bool:
    """None in its place is as untrue, and no type checker lets it pass."""
    return isinstance(node, ast.Constant) and node.value is False


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_ignored(node: ast.stmt) -> bool:
    """Statements without a mutant."""
    match node:
        case ast.FunctionDef(name="__repr__") | ast.Expr(value=ast.Constant()):
            return True
        case ast.If(test=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name == "TYPE_CHECKING"
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
        case _:
            return isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.Raise)


def _is_left_alone(node: ast.AST) -> bool:
    """Parts of an expression that are for people or for a type checker."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name))) if name in TALKERS:
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in TYPES:
            return True
        case ast.keyword(arg=name) if name in TEXTS:
            return True
        case ast.Await(value=value):
            return _is_left_alone(value)
        case ast.Subscript(value=value):
            return _is_type(value)
        case _:  # Python 3.11 does not know where the parts of an f-string stand
            return isinstance(node, ast.JoinedStr | ast.expr_context)


def _makes_error(node: ast.AST) -> bool:
    """Its strings are a message then."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="errors"))):
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name.endswith(("Error", "Exception"))
        case _:
            return False


def _head(node: ast.stmt) -> ast.stmt:
    """The statement without those that it holds."""
    head = copy.copy(node)
    for name in (*_BODIES, "decorator_list"):
        if hasattr(head, name):
            setattr(head, name, [])
    return head


def _on_one_line(node: ast.AST) -> str:
    return " ".join(line.strip() for line in ast.unparse(node).splitlines())


def _code(node: ast.expr | ast.stmt, changed: ast.AST) -> str:
    """In as many lines as it had."""
    first, last = node.lineno, node.end_lineno or node.lineno
    if isinstance(node, ast.expr):
        return f"({ast.unparse(changed)}" + "\n" * (last - first) + ")"
    return ast.unparse(changed) + "\n" * (last - first)


def lines_of(node: ast.expr | ast.stmt) -> tuple[int, int]:
    """The first and the last; those of a compound statement end with its head."""
    body = getattr(node, "body", None)
    if isinstance(node, ast.Match):
        return node.lineno, max(node.lineno, node.cases[0].pattern.lineno - 1)
    if isinstance(node, ast.stmt) and isinstance(body, list) and body:
        return node.lineno, max(node.lineno, body[0].lineno - 1)
    return node.lineno, node.end_lineno or node.lineno


def _reach(place: _Place) -> int:
    """A default value is reached with the function that has it."""
    if isinstance(place.statement, Function):
        return place.statement.body[0].lineno
    return place.statement.lineno


def _names(place: _Place) -> tuple[str, ...]:
    match place.statement:
        case ast.Assign(targets=targets):
            parts = (part for target in targets for part in ast.walk(target))
            return tuple(part.id for part in parts if isinstance(part, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            return (name,)
        case _:
            return ()
