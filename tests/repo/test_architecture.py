"""Imports point down only. The rule is data; every import statement of the package is checked, lazy ones too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "sterna"

# From the bottom up. A module may import from lower levels and from its own unit.
LEVELS = (
    ("errors", "types", "config", "env"),
    ("ops", "quant", "checkpoint", "vision"),
    ("accounting", "backends.base", "backends.host_memory", "backends.planner"),
    ("fit",),
    ("models", "hub"),
    ("backends.common",),
    ("backends.native", "backends.torch", "backends.numpy"),
    ("engine", "chat"),
    ("sessions",),
    ("locate", "llm"),
    ("server", "agent", "evals", "delegate", "train", "verify", "doctor", "bench"),
    ("cli",),
)
RANK = {unit: rank for rank, level in enumerate(LEVELS) for unit in level}
# Imports within a level that are meant.
SIDEWAYS = {
    ("checkpoint", "ops"), ("checkpoint", "quant"),
    ("types", "errors"), ("config", "errors"), ("env", "errors"),
    ("accounting", "backends.planner"),
    ("backends.planner", "backends.base"), ("backends.planner", "backends.host_memory"),
    ("llm", "locate"),
    ("evals", "agent"), ("train", "evals"), ("train", "agent"),
    ("delegate", "verify"),
}  # fmt: skip
# `locate` names the backends as text and imports one when asked; nothing else above them knows an implementation.
ABOVE_BACKENDS_MAY_NOT_KNOW = ("backends.native", "backends.torch", "backends.numpy", "backends.common")
MAY_KNOW_BACKENDS = {"locate", "cli", "train"}


def unit_of(module: str) -> str | None:
    """``sterna.engine.cache`` -> ``engine``; ``None`` for the package itself and for ``__main__``."""
    parts = module.split(".")[1:]
    if not parts or parts[0] == "__main__":
        return None
    return ".".join(parts[:2]) if parts[0] == "backends" and len(parts) > 1 else parts[0]


def imports_of(path: Path) -> set[str]:
    """Every ``sterna`` module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found.add(module)
            found |= {f"{module}.{alias.name}" for alias in node.names if is_module(f"{module}.{alias.name}")}
    return {module for module in found if module == "sterna" or module.startswith("sterna.")}


def is_module(name: str) -> bool:
    path = SOURCE.parent / name.replace(".", "/")
    return path.with_suffix(".py").exists() or path.is_dir()


def files() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if "data" not in path.relative_to(SOURCE).parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", files(), ids=module_name)
def test_imports_point_down(path):
    own = unit_of(module_name(path))
    if own in (None, "backends"):
        return
    assert own in RANK, f"{own} has no place in LEVELS"
    for module in imports_of(path):
        unit = unit_of(module)
        if unit in (None, own, "backends"):
            continue
        assert RANK[unit] < RANK[own] or (own, unit) in SIDEWAYS, f"{module_name(path)} may not import {module}"
        if RANK[own] > RANK["backends.torch"] and unit in ABOVE_BACKENDS_MAY_NOT_KNOW:
            assert own in MAY_KNOW_BACKENDS, f"{module_name(path)} may not know {module}"


def test_the_rule_notices_an_upward_import(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from sterna.engine import scheduler\n    import sterna.cli.main\n")
    assert {"sterna.engine.scheduler", "sterna.cli.main"} <= imports_of(path)


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules)\n{statement}\nprint('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_sterna_is_light():
    modules = loaded_by("import sterna")
    roots = {name.partition(".")[0] for name in modules}
    assert roots <= {"sterna", *sys.stdlib_module_names}
    assert len(modules) < 30


def test_the_service_needs_no_torch():
    modules = loaded_by("import sterna.llm, sterna.cli.main, sterna.agent.loop, sterna.backends.numpy")
    assert not {"torch", "transformers", "matplotlib"} & {name.partition(".")[0] for name in modules}
