"""Limits and habits of the source: sizes, docstrings, no global switches in disguise."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "sterna"
MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 100
MAX_KERNEL_LINES = 600


def python_files() -> list[Path]:
    return sorted(p for p in (*SOURCE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")) if "data" not in p.parts)


def source_files() -> list[Path]:
    return [path for path in python_files() if path.is_relative_to(SOURCE)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked_files() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ROOT / path for path in done.stdout.split("\0") if path and (ROOT / path).is_file()]


@pytest.mark.parametrize("path", python_files(), ids=name)
def test_files_and_functions_are_small(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.*")), ids=name)
def test_kernel_files_are_small(path):
    assert path.read_text().count("\n") <= MAX_KERNEL_LINES


@pytest.mark.parametrize("path", source_files(), ids=name)
def test_public_names_have_docstrings(path):
    text = path.read_text()
    if not text:
        assert path.name == "__init__.py"
        return
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the module has no docstring"
    missing = [label for label, node in public_definitions(tree) if not ast.get_docstring(node)]
    assert [label for label in missing if label.partition(".")[2] not in documented_by_protocol()] == []


@cache
def documented_by_protocol() -> set[str]:
    """Methods whose contract stands in a protocol, and ``forward``, which torch documents."""
    names = {"forward"}
    for path in ("ops/base.py", "ops/vision.py", "backends/base.py"):
        for label, node in public_definitions(ast.parse((SOURCE / path).read_text())):
            if ast.get_docstring(node):
                names.add(label.partition(".")[2])
    return names - {""}


def public_definitions(tree: ast.Module):
    """Public functions and classes, and the public methods of public classes, except overrides of object's own."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                    yield f"{node.name}.{item.name}", item


WORKPLACE = re.compile(r"(?<![\w.])/work/|\.library/|/opt/(?:wheels|pypi)|^\s*--?(?:extra-)?index-url")


def test_nothing_names_a_machine_or_a_workplace():
    offending = []
    for path in tracked_files():
        if path == Path(__file__) or path.suffix in {".safetensors", ".npz", ".npy", ".png"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if WORKPLACE.search(line):
                offending.append(f"{name(path)}:{number}: {line.strip()[:80]}")
    assert not offending


def test_comments_hold_no_open_ends():
    marker = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b")
    offending = [
        f"{name(path)}:{number}"
        for path in source_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marker.search(line)
    ]
    assert not offending


def test_only_the_table_reads_our_variables():
    """Every STERNA_* variable that the code names stands in the table of ``env``."""
    from sterna.env import VARIABLES

    known = {variable.name for variable in VARIABLES}
    named = {
        match
        for path in (*source_files(), *(ROOT / "csrc").rglob("*.*"))
        for match in re.findall(r"\bgetenv\(\"(STERNA_[A-Z_]+)|[\"'](STERNA_[A-Z_]+)[\"']", path.read_text())
        for match in match
        if match and not match.endswith("_")
    }
    assert named <= known
