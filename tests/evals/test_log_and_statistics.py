"""Wilson intervals and the record of an evaluation."""

from __future__ import annotations

import pytest

from sterna.errors import UsageError
from sterna.evals.log import EvalLog, TaskResult
from sterna.evals.statistics import wilson_interval


@pytest.mark.parametrize(
    ("passed", "n", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_against_published_values(passed, n, low, high):
    assert wilson_interval(passed, n) == pytest.approx((low, high), abs=1e-4)


def test_more_passes_than_tasks_is_an_error():
    with pytest.raises(ValueError, match="passed is 3, allowed is 0 to 2"):
        wilson_interval(3, 2)


def test_a_killed_run_goes_on_without_its_half_written_line(tmp_path):
    log = EvalLog(tmp_path, {"seed": 1})
    log.add(TaskResult("a", "passed"))
    log.add(TaskResult("b", "error", "why"))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"name": "c", "outc')
    again = EvalLog(tmp_path, {"seed": 1})
    assert list(again.results) == ["a", "b"]
    again.add(TaskResult("c", "failed"))
    summary = EvalLog(tmp_path, {"seed": 1}).summary(task="t", split="s")
    assert (summary["n"], summary["passed"], summary["errors"]) == (3, 1, 1)


def test_other_settings_are_refused(tmp_path):
    EvalLog(tmp_path, {"seed": 1})
    with pytest.raises(UsageError, match="holds a run with seed = 1, this one has 2"):
        EvalLog(tmp_path, {"seed": 2})
