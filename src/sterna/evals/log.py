"""The record of one evaluation on disk: its settings and one line per task, appended as they finish."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sterna.errors import UsageError
from sterna.evals.statistics import wilson_interval


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What one task came to: ``outcome`` is ``passed``, ``failed`` or ``error``; an error counts as not passed."""

    name: str
    outcome: str
    detail: str = ""
    steps: int = 0
    completion_tokens: int = 0
    duration_s: float = 0.0

    @property
    def failure(self) -> str:
        """Why it did not pass, one of `FAILURES`; empty for a task that passed."""
        if self.outcome == "passed":
            return ""
        if self.outcome == "error":
            return "infrastructure"
        return _FAILURE_OF.get(self.detail.split(":", 1)[0], "no submission")


FAILURES = ("wrong", "no submission", "context", "step limit", "time limit", "infrastructure")
"""Classes of failure. ``wrong``: the model said it was done, and its work does not pass."""
_FAILURE_OF = {
    "submitted": "wrong",
    "answered": "wrong",
    "random mutation": "wrong",
    "step_limit": "step limit",
    "time_limit": "time limit",
    "context_overflow": "context",
    "token_limit": "context",
}


class EvalLog:
    """``settings.json`` and ``results.jsonl`` in a directory; a second run with the same settings goes on from there.

    Raises `UsageError` when the directory holds a run with other settings.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self.directory = directory
        self.settings = dict(settings)
        self.results: dict[str, TaskResult] = {}
        directory.mkdir(parents=True, exist_ok=True)
        stored = directory / "settings.json"
        if stored.exists():
            self._check(json.loads(stored.read_text()))
            self._read()
        else:
            stored.write_text(json.dumps(self.settings, indent=1) + "\n")

    def add(self, result: TaskResult) -> None:
        """Record a finished task; it is on disk when this returns."""
        self.results[result.name] = result
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    @classmethod
    def read(cls, directory: Path) -> EvalLog:
        """The run in ``directory`` as it is. Raises `UsageError` when there is none."""
        stored = directory / "settings.json"
        try:
            settings = json.loads(stored.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{directory} holds no evaluation: {error}", hint="give the directory that `sterna eval` named"
            ) from error
        if not isinstance(settings, dict):
            raise UsageError(f"{stored} holds {type(settings).__name__}, allowed is an object")
        return cls(directory, settings)

    def summary(self, *, task: str, split: str) -> dict[str, Any]:
        """The object that ``sterna eval --json`` prints."""
        results = self.results.values()
        passed = sum(result.outcome == "passed" for result in results)
        n = len(results)
        failures = Counter(result.failure for result in results)
        return {
            "task": task,
            "split": split,
            "n": n,
            "passed": passed,
            "pass_rate": passed / n if n else 0.0,
            "ci95": list(wilson_interval(passed, n)),
            "errors": sum(result.outcome == "error" for result in results),
            "failures": {name: count for name in FAILURES if (count := failures[name])},
            "completion_tokens": sum(result.completion_tokens for result in results),
            "duration_s": round(sum(result.duration_s for result in results), 3),
            "settings": self.settings,
        }

    @property
    def _path(self) -> Path:
        return self.directory / "results.jsonl"

    def _check(self, stored: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(self.settings))
        different = sorted(key for key in wanted.keys() | stored.keys() if wanted.get(key) != stored.get(key))
        if different:
            key = different[0]
            raise UsageError(
                f"{self.directory} holds a run with {key} = {stored.get(key)!r}, this one has {wanted.get(key)!r}",
                hint="choose another directory: `--out DIR`",
            )

    def _read(self) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole:
            result = TaskResult(**json.loads(line))
            self.results[result.name] = result
        if len(whole) < len(lines):
            # killed while writing: the unfinished line goes, its task runs again
            self._path.write_text("".join(whole))
