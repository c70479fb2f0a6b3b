"""Who tries to repair a project: the agent with a model, or random mutation as the bar to clear."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.agent.environment import Environment
from sterna.agent.events import Finished, Outcome
from sterna.agent.loop import Agent, AgentLimits, Model
from sterna.agent.sandbox import Sandbox
from sterna.errors import SternaError
from sterna.evals.log import TaskResult
from sterna.evals.project_tests import restore_tests, run_project_tests
from sterna.evals.small_bugs.baseline import random_repair
from sterna.evals.small_bugs.project import Project, write_project

TASK = "Fix the bug. The tests must pass."
Solver = Callable[[Project, Environment], TaskResult]


def solve(project: Project, solver: Solver, sandbox: Sandbox) -> TaskResult:
    """Give the project to the solver in a fresh directory, then judge it by its own tests as they were."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sterna-eval-") as root:
        workspace = Path(root) / "project"
        write_project(project, workspace)
        try:
            with Environment(workspace, sandbox=sandbox) as environment:
                attempt = solver(project, environment)
                restore_tests(workspace, _tests_of(project))
                passed = run_project_tests(environment)
        except (SternaError, OSError) as error:
            return TaskResult(project.name, "error", str(error), duration_s=time.monotonic() - start)
    outcome = attempt.outcome if attempt.outcome == "error" else "passed" if passed else "failed"
    return TaskResult(
        project.name,
        outcome,
        attempt.detail,
        attempt.steps,
        attempt.completion_tokens,
        round(time.monotonic() - start, 3),
    )


def _tests_of(project: Project) -> dict[str, str]:
    return {path: text for path, text in project.files.items() if Path(path).name.startswith("test")}


@dataclass(frozen=True, slots=True)
class AgentSolver:
    """The agent; one trajectory per project in ``trajectories``."""

    model: Model
    limits: AgentLimits
    trajectories: Path
    settings: dict[str, Any]

    def __call__(self, project: Project, environment: Environment) -> TaskResult:
        path = self.trajectories / f"{project.name}.json"
        agent = Agent(self.model, environment, limits=self.limits, trajectory_path=path, settings=self.settings)
        finished: Finished | None = None
        for event in agent.run(TASK):
            if isinstance(event, Finished):
                finished = event
        assert finished is not None, "the agent ended without its last event"
        if finished.outcome is Outcome.INTERRUPTED:
            raise KeyboardInterrupt
        outcome = "error" if finished.outcome is Outcome.ERROR else "failed"
        return TaskResult(
            project.name,
            outcome,
            f"{finished.outcome}: {finished.detail}",
            finished.steps,
            finished.usage.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class RandomMutation:
    """Random single-line mutations, each tried in the sandbox and put back: see `random_repair`."""

    attempts: int
    seed: int

    def __call__(self, project: Project, environment: Environment) -> TaskResult:
        tried = 0

        def passes(project: Project, files: Mapping[str, str]) -> bool:
            nonlocal tried
            tried += 1
            for path in files:
                (environment.workspace / path).write_text(files[path], encoding="utf-8")
            if run_project_tests(environment, timeout_s=10.0):
                return True
            for path in files:
                (environment.workspace / path).write_text(project.files[path], encoding="utf-8")
            return False

        repaired = random_repair(project, seed=self.seed, test_runs=self.attempts, passes=passes)
        return TaskResult(project.name, "passed" if repaired else "failed", "random mutation", steps=tried)
