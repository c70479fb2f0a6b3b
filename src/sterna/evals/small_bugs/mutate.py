"""Bugs by syntax-tree mutation: each candidate changes one line of the source text in place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

COMPARE = {"<": ("<=", ">"), "<=": ("<", ">="), ">": (">=", "<"), ">=": (">", "<="), "==": ("!=",), "!=": ("==",),
           "in": ("not in",), "not in": ("in",), "is": ("is not",), "is not": ("is",)}  # fmt: skip
ARITHMETIC = {"+": ("-", "*"), "-": ("+",), "*": ("+", "//"), "/": ("*", "//"), "//": ("/", "%"), "%": ("//",),
              "**": ("*",), "|": ("&",), "&": ("|",)}  # fmt: skip
CALLS = {
    "append": ("extend",), "extend": ("append",), "lower": ("upper",), "upper": ("lower",), "min": ("max",),
    "max": ("min",), "startswith": ("endswith",), "endswith": ("startswith",), "any": ("all",), "all": ("any",),
    "lstrip": ("rstrip",), "rstrip": ("lstrip",), "strip": ("lstrip", "rstrip"), "keys": ("values",),
    "values": ("keys",), "items": ("keys",), "find": ("rfind",), "rfind": ("find",), "index": ("count",), "sum": ("len", "max"),
    "len": ("sum",), "title": ("upper", "capitalize"), "capitalize": ("title", "lower"), "sorted": ("list",),
    "isdigit": ("isalpha",), "isalpha": ("isdigit",), "isupper": ("islower",), "islower": ("isupper",),
    "ljust": ("rjust",), "rjust": ("ljust",), "add": ("discard",), "split": ("rsplit",), "partition": ("rpartition",),
    "rpartition": ("partition",), "zip": ("map",), "set": ("list",), "ceil": ("floor",), "floor": ("ceil",),
    "removeprefix": ("removesuffix",), "removesuffix": ("removeprefix",),
}  # fmt: skip
DROPPED_METHODS = ("lower", "upper", "strip", "sort", "reverse", "copy", "title")
DROPPED_CALLS = ("abs", "sorted", "set", "len", "int", "str", "list", "reversed")


@dataclass(frozen=True, slots=True)
class Mutation:
    """Replace columns ``start`` to ``end`` of line ``line`` (from 1) by ``text``. ``kind`` names what went wrong."""

    kind: str
    line: int
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """``source`` with this one line changed."""
        lines = source.split("\n")
        old = lines[self.line - 1]
        lines[self.line - 1] = old[: self.start] + self.text + old[self.end :]
        return "\n".join(lines)


def _between(lines: list[str], before: ast.expr, after: ast.expr, operator: str) -> tuple[int, int, int] | None:
    """Line and columns of ``operator`` between two expressions, if all stands on one line."""
    if before.end_lineno != after.lineno or before.end_col_offset is None:
        return None
    gap = lines[after.lineno - 1][before.end_col_offset : after.col_offset]
    match = re.search(r"(?<![\w*/<>=!])" + re.escape(operator).replace(r"\ ", r"\s+") + r"(?![\w*/<>=!])", gap)
    if match is None:
        return None
    return after.lineno, before.end_col_offset + match.start(), before.end_col_offset + match.end()


_OPERATORS: dict[type[ast.AST], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.In: "in",
    ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/",
    ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**", ast.BitOr: "|", ast.BitAnd: "&", ast.And: "and", ast.Or: "or",
}  # fmt: skip


class _Finder:
    """Collects the candidates of one function or class."""

    def __init__(self, lines: list[str], scope: ast.AST) -> None:
        self.lines = lines
        self.found: list[Mutation] = []
        self.names = _local_names(scope)

    def text(self, node: ast.expr) -> str:
        return self.lines[node.lineno - 1][node.col_offset : node.end_col_offset]

    def add(self, kind: str, where: tuple[int, int, int], text: str) -> None:
        self.found.append(Mutation(kind, *where, text))

    def replace(self, kind: str, node: ast.expr, text: str) -> None:
        if node.lineno == node.end_lineno and node.end_col_offset is not None and self.text(node) != text:
            self.add(kind, (node.lineno, node.col_offset, node.end_col_offset), text)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr):  # Python before 3.12 reports wrong columns inside f-strings
            return
        method = getattr(self, "visit_" + type(node).__name__, None)
        if method is not None:
            method(node)
        for child in ast.iter_child_nodes(node):
            self.visit(child)

    def visit_Compare(self, node: ast.Compare) -> None:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            sign = _OPERATORS[type(operator)]
            where = _between(self.lines, left, right, sign)
            if where is not None:
                for other in COMPARE[sign]:
                    self.add("compare", where, other)
            left = right

    def visit_BinOp(self, node: ast.BinOp) -> None:
        sign = _OPERATORS.get(type(node.op))
        if sign is None:
            return
        where = _between(self.lines, node.left, node.right, sign)
        if where is not None:
            for other in ARITHMETIC[sign]:
                self.add("operator", where, other)
        one = isinstance(node.right, ast.Constant) and node.right.value == 1
        if one and sign in "+-" and node.lineno == node.end_lineno:
            self.replace("missing_one", node, self.text(node.left))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        sign = _OPERATORS.get(type(node.op))
        if sign is None or sign not in ARITHMETIC:
            return
        where = _between(self.lines, node.target, node.value, sign + "=")
        if where is not None:
            self.add("operator", where, ARITHMETIC[sign][0] + "=")
            self.add("accumulate", where, "=")

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        sign = _OPERATORS[type(node.op)]
        where = _between(self.lines, node.values[0], node.values[1], sign)
        if where is not None:
            self.add("and_or", where, "or" if sign == "and" else "and")

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.replace("not", node, self.text(node.operand))
        elif isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            self.replace("sign", node, "0" if node.operand.value == 1 else self.text(node.operand))

    def _negate(self, test: ast.expr) -> None:
        if isinstance(test, ast.Name | ast.Call | ast.Attribute | ast.Subscript):
            self.replace("not", test, "not " + self.text(test))

    def visit_If(self, node: ast.If) -> None:
        self._negate(node.test)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        if node.lineno == node.end_lineno:
            a, test, b = self.text(node.body), self.text(node.test), self.text(node.orelse)
            self.replace("branches", node, f"{b} if {test} else {a}")

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace("boolean", node, str(not value))
        elif isinstance(value, int):
            self.replace("number", node, str(value + 1))
            if value > 0:
                self.replace("number", node, str(value - 1))
        elif value == "" and self.text(node) in ('""', "''"):
            self.replace("string", node, '" "')
        elif value in (" ", ", ", "-", "_"):
            self.replace("string", node, '""' if value != ", " else '","')

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id in self.names:
            for other in self.names:
                if other != node.id:
                    self.replace("variable", node, other)

    def visit_Return(self, node: ast.Return) -> None:
        value = node.value
        if isinstance(value, ast.Call) and len(value.args) == 1 and not value.keywords and self._same_line(value):
            self.replace("return", value, self.text(value.args[0]))

    def _same_line(self, node: ast.expr) -> bool:
        return node.lineno == node.end_lineno

    def visit_Call(self, node: ast.Call) -> None:
        if not self._same_line(node):
            return
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        end = node.func.end_col_offset or 0
        for other in CALLS.get(name, ()):
            self.add("call", (node.lineno, end - len(name), end), other)
        if isinstance(node.func, ast.Attribute) and name in DROPPED_METHODS and not node.args and not node.keywords:
            self.replace("missing_call", node, self.text(node.func.value))
        if isinstance(node.func, ast.Name) and name in DROPPED_CALLS and len(node.args) == 1 and not node.keywords:
            if not isinstance(node.args[0], ast.GeneratorExp):
                self.replace("missing_call", node, self.text(node.args[0]))
        if name == "range":
            self._mutate_range(node)
        elif len(node.args) >= 2 and not any(isinstance(a, ast.Starred | ast.GeneratorExp) for a in node.args[:2]):
            a, b = node.args[:2]
            if self.text(a) != self.text(b) and name not in ("min", "max", "zip", "isinstance") and b.end_col_offset:
                line = self.lines[node.lineno - 1]
                swapped = self.text(b) + line[a.end_col_offset : b.col_offset] + self.text(a)
                self.add("swapped", (node.lineno, a.col_offset, b.end_col_offset), swapped)

    def _mutate_range(self, node: ast.Call) -> None:
        last = node.args[min(1, len(node.args) - 1)]
        if not isinstance(last, ast.Constant):
            for text in (f"{self.text(last)} - 1", f"{self.text(last)} + 1"):
                self.replace("range_end", last, text)
        if len(node.args) == 1:
            self.replace("range_start", node.args[0], f"1, {self.text(node.args[0])}")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        part = node.slice
        if isinstance(part, ast.Slice):
            if part.step is None and part.upper is not None and self._same_line(part.upper):
                self.replace("slice", part.upper, f"{self.text(part.upper)} + 1")
                self.replace("slice", part.upper, f"{self.text(part.upper)} - 1")
        elif isinstance(part, ast.Name | ast.BinOp) and self._same_line(part):
            self.replace("index", part, f"{self.text(part)} - 1")
            self.replace("index", part, f"{self.text(part)} + 1")

    def visit_Break(self, node: ast.Break) -> None:
        self.add("break", (node.lineno, node.col_offset, node.col_offset + 5), "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.add("break", (node.lineno, node.col_offset, node.col_offset + 8), "break")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        others = [name for name in self.names if name.startswith("self.")]
        text = self.text(node) if self._same_line(node) else ""
        if text in others and isinstance(node.ctx, ast.Load):
            for other in others:
                self.replace("variable", node, other)


def _local_names(scope: ast.AST) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.arg) and node.arg != "self":
            names[node.arg] = None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = None
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            names["self." + node.attr] = None
    return tuple(names)


def _scopes(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.FunctionDef):
                    yield child


def find_mutations(source: str, *, function: str | None = None) -> list[Mutation]:
    """All candidates in ``source``, or only those inside the top-level function or class ``function``."""
    tree = ast.parse(source)
    lines = source.split("\n")
    found: list[Mutation] = []
    for top in tree.body:
        if not isinstance(top, ast.FunctionDef | ast.ClassDef) or (function is not None and top.name != function):
            continue
        for scope in _scopes(ast.Module([top], [])):
            finder = _Finder(lines, top if isinstance(top, ast.ClassDef) else scope)
            if isinstance(top, ast.ClassDef):
                locals_here = set(_local_names(scope))
                finder.names = tuple(n for n in finder.names if n.startswith("self.") or n in locals_here)
            for default in scope.args.defaults:
                finder.visit(default)
            for statement in scope.body:
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                    finder.visit(statement)
            found += finder.found
    unique: dict[tuple[int, str], Mutation] = {}
    for mutation in found:
        text = lines[mutation.line - 1]
        changed = text[: mutation.start] + mutation.text + text[mutation.end :]
        if changed != text:
            unique.setdefault((mutation.line, changed), mutation)
    return list(unique.values())
