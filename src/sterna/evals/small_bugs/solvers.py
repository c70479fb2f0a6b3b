"""Who tries to repair a project: the agent with a model, or random mutation as the bar to clear."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from sterna.agent.environment import Environment
from sterna.agent.events import Finished, Outcome
from sterna.agent.loop import Agent, AgentLimits, Model
from sterna.agent.sandbox import Sandbox
from sterna.errors import SternaError
from sterna.evals.log import TaskResult
from sterna.evals.project_tests import restore_tests, run_project_tests
from sterna.evals.small_bugs.mutate import Mutation, find_mutations
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
    return {path: text for path, text in project.files.items() if _is_test(path)}


def _is_test(path: str) -> bool:
    return Path(path).name.startswith("test")


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
    """Change one random place as the bug generator does, run the tests, put it back, up to ``attempts`` times."""

    attempts: int
    seed: int

    def __call__(self, project: Project, environment: Environment) -> TaskResult:
        rng = Random(f"{self.seed}:{project.name}")
        places = [
            (path, mutation)
            for path, text in sorted(project.files.items())
            if path.endswith(".py") and not _is_test(path)
            for mutation in find_mutations(text)
        ]
        chosen = rng.sample(places, min(self.attempts, len(places)))
        for attempt, (path, mutation) in enumerate(chosen, 1):
            if self._passes(project, environment, path, mutation):
                return TaskResult(project.name, "passed", f"{mutation.kind} in {path}", steps=attempt)
        return TaskResult(project.name, "failed", f"{len(places)} places", steps=len(chosen))

    def _passes(self, project: Project, environment: Environment, path: str, mutation: Mutation) -> bool:
        target = environment.workspace / path
        target.write_text(mutation.apply(project.files[path]), encoding="utf-8")
        if run_project_tests(environment, timeout_s=10.0):
            return True
        target.write_text(project.files[path], encoding="utf-8")
        return False
