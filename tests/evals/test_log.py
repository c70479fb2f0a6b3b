"""The record of an evaluation, comparisons and reports made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.errors import UsageError
from sterna.evals.compare import compare_runs
from sterna.evals.log import EvalLog, TaskResult
from sterna.evals.report import command_of, write_report


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


@pytest.mark.parametrize(
    ("outcome", "detail", "failure"),
    [
        ("passed", "submitted: done", ""),
        ("failed", "submitted: done", "wrong"),
        ("failed", "step_limit: the limit of 30 steps is reached", "step limit"),
        ("failed", "time_limit: late", "time limit"),
        ("failed", "context_overflow: full", "context"),
        ("failed", "format_errors: three in a row", "no submission"),
        ("error", "[Errno 28] No space left on device", "infrastructure"),
    ],
)
def test_failures_have_classes(outcome: str, detail: str, failure: str) -> None:
    assert TaskResult("a", outcome, detail).failure == failure


def _run(directory: Path, outcomes: str, **settings: object) -> EvalLog:
    log = EvalLog(directory, {"task": "small-bugs", "split": "s", **settings})
    for number, letter in enumerate(outcomes):
        log.add(TaskResult(f"t{number}", "passed" if letter == "+" else "failed", "submitted: done", 3, 100, 1.5))
    return log


def test_comparison_is_task_by_task(tmp_path: Path) -> None:
    first = _run(tmp_path / "a", "++--++--", preset="agent")
    second = _run(tmp_path / "b", "+++-+++", preset="greedy")
    result = compare_runs(EvalLog.read(tmp_path / "a"), second)
    assert (result.n, result.first_passed, result.second_passed) == (7, 4, 6)
    assert (result.only_first, result.only_second) == ((), ("t2", "t6"))
    assert result.difference == pytest.approx(2 / 7)
    assert result.ci95[0] <= result.difference <= result.ci95[1]
    assert result.p_value == 0.5
    assert result.not_shared == ("t7",)
    assert result.different_settings == {"preset": ("agent", "greedy")}
    assert compare_runs(first, first).p_value == 1.0


def test_runs_without_a_common_task_cannot_be_compared(tmp_path: Path) -> None:
    other = EvalLog(tmp_path / "b", {})
    other.add(TaskResult("elsewhere", "passed"))
    with pytest.raises(UsageError, match="have no task in common"):
        compare_runs(_run(tmp_path / "a", "+"), other)
    with pytest.raises(UsageError, match="holds no evaluation"):
        EvalLog.read(tmp_path)


def test_report_escapes_what_the_model_wrote(tmp_path: Path) -> None:
    log = _run(tmp_path, "+-", model="m", preset="agent", thinking=False)
    log.add(TaskResult("evil", "failed", "submitted: <script>alert(1)</script> | a\nb"))
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories" / "t0.json").write_text("{}")
    markdown, html = (path.read_text() for path in write_report(log))
    assert "| rate | 33.3% (95 % interval 6.1% to 79.2%, Wilson) |" in markdown
    assert "[t0](trajectories/t0.json)" in markdown and '<a href="trajectories/t0.json">t0</a>' in html
    assert "| wrong | 2 |" in markdown
    for page in (markdown, html):
        assert "<script>" not in page and "&lt;script&gt;" in page
        assert "sterna eval small-bugs --split s --preset agent --no-thinking" in page


def test_the_command_quotes_what_a_shell_would_change() -> None:
    assert command_of({"task": "t", "split": "a b"}) == "sterna eval t --split 'a b'"
