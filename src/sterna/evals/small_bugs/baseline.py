"""The baseline that a model must beat: random single-line mutations, as many test runs as the agent may have."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from sterna.evals.small_bugs.inprocess import run_inprocess
from sterna.evals.small_bugs.mutate import find_mutations
from sterna.evals.small_bugs.project import Project, run_tests, write_project

DEFAULT_TEST_RUNS = 6


def _run_for_real(project: Project, files: Mapping[str, str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        write_project(project, Path(folder))
        for path, text in files.items():
            (Path(folder) / path).write_text(text, encoding="utf-8")
        return run_tests(Path(folder))


def random_repair(
    project: Project, *, seed: int, test_runs: int = DEFAULT_TEST_RUNS,
    passes: Callable[[Project, Mapping[str, str]], bool] = _run_for_real,
) -> bool:  # fmt: skip
    """Whether one of ``test_runs`` different random mutations of the source files makes the tests pass.

    It knows which mutations exist (those that made the bugs of the generated splits), but not where the bug is.
    """
    rng = Random(f"baseline:{seed}:{project.name}")
    sources = sorted(path for path in project.files if path.endswith(".py") and not Path(path).name.startswith("test"))
    candidates = [(path, mutation) for path in sources for mutation in find_mutations(project.files[path])]
    for path, mutation in rng.sample(candidates, min(test_runs, len(candidates))):
        if passes(project, {path: mutation.apply(project.files[path])}):
            return True
    return False


def passes_inprocess(project: Project, files: Mapping[str, str]) -> bool:
    """The same check inside this process, for generated projects only; a change that does not compile fails."""
    try:
        return run_inprocess({**project.files, **files}).passed
    except SyntaxError:
        return False
