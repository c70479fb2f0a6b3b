"""A small broken project, writing it to disk and running its tests for real."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TEST_COMMAND = ("-B", "-m", "unittest", "-f")
"""The arguments of the interpreter; ``-B`` because a stale ``.pyc`` of the same second and size would hide an edit."""


@dataclass(frozen=True, slots=True)
class Project:
    """One task. ``files`` is the broken state by relative path, ``fixed_files`` the state before the bug."""

    name: str
    split: str
    seed: int
    files: Mapping[str, str]
    fixed_files: Mapping[str, str]
    bug: str
    family: str
    function: str
    path: str
    line: int
    kind: str
    source: str = "generated"
    licence: str = "Apache-2.0"
    fingerprints: tuple[str, ...] = field(default=())

    @property
    def broken_line(self) -> str:
        """The line with the bug."""
        return self.files[self.path].split("\n")[self.line - 1]

    @property
    def fixed_line(self) -> str:
        """The same line before the bug."""
        return self.fixed_files[self.path].split("\n")[self.line - 1]


def write_project(project: Project, folder: Path, *, fixed: bool = False) -> None:
    """Write the broken (or the fixed) files under ``folder``, which is made if needed."""
    for path, text in (project.fixed_files if fixed else project.files).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def run_tests(folder: Path, *, timeout_s: float = 20.0, python: str | None = None) -> bool:
    """Whether ``python -m unittest`` in ``folder`` runs at least one test and all pass within ``timeout_s``."""
    try:
        done = subprocess.run(
            [python or sys.executable, *TEST_COMMAND],
            cwd=folder, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    ran = [line for line in done.stderr.splitlines() if line.startswith("Ran ")]
    return done.returncode == 0 and bool(ran) and not ran[-1].startswith("Ran 0 ")
