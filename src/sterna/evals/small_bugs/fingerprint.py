"""Fingerprints of functions: by syntax tree with names and literals normalised, and exactly with them."""

from __future__ import annotations

import ast
import hashlib


class _Normalise(ast.NodeTransformer):
    """Numbers names in order of appearance and drops literals, docstrings and annotations."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def name(self, text: str) -> str:
        return self.names.setdefault(text, f"n{len(self.names)}")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.name(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self.name(node.arg))

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(type(node.value).__name__)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        _drop_docstring(node)
        node.returns = None
        node.name = self.name(node.name)
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        _drop_docstring(node)
        node.name = self.name(node.name)
        self.generic_visit(node)
        return node


def _drop_docstring(node: ast.FunctionDef | ast.ClassDef) -> None:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shape_fingerprint(source: str) -> str:
    """16 hex digits that two functions share when they differ only in names, literals and comments."""
    return _digest(ast.dump(_Normalise().visit(ast.parse(source))))


def shape_fingerprints(source: str) -> tuple[str, ...]:
    """``shape_fingerprint`` of every top-level function and class of a module, or of a family's body."""
    source = source.replace("\n%%%\n", "\n")
    tops = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return tuple(shape_fingerprint(ast.unparse(node)) for node in tops)


def instance_fingerprint(source: str) -> str:
    """16 hex digits of the exact syntax tree, names and literals included, docstring and layout left out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            _drop_docstring(node)
    return _digest(ast.dump(tree))
