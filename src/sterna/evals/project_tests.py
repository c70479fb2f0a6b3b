"""Run the unit tests of a project that a model has changed: in the sandbox, and with the tests as they were."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from sterna.agent.environment import Environment

# -B because a stale .pyc of the same second and size would hide an edit
TEST_COMMAND = "python -B -m unittest -f"
_RAN = re.compile(r"^Ran ([1-9]\d*) tests? in ", re.MULTILINE)


def restore_tests(workspace: Path, files: Mapping[str, str]) -> None:
    """Write the original test files again, so that editing them gains nothing; other new files stay."""
    for name, text in files.items():
        target = workspace / name
        if target.is_symlink() or target.is_dir():
            _clear_place(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _clear_place(target: Path) -> None:
    if target.is_symlink():
        target.unlink()
    else:
        shutil.rmtree(target)


def run_project_tests(environment: Environment, *, timeout_s: float = 60.0) -> bool:
    """Whether at least one test runs in the workspace and all pass within the time."""
    environment.cwd = str(environment.workspace)
    result = environment.run(f"{TEST_COMMAND} 2>&1", timeout_s=timeout_s)
    return result.exit_code == 0 and not result.timed_out and _RAN.search(result.output) is not None
