"""One evaluation as a page: rate with interval, why tasks failed, cost, settings, every task with its trajectory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from sterna.evals.log import EvalLog, TaskResult

STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
table { border-collapse: collapse } td, th { border: 1px solid; padding: .2rem .6rem; text-align: left }
pre { overflow-x: auto }
"""


def write_report(log: EvalLog) -> tuple[Path, Path]:
    """``report.md`` and ``report.html`` in the directory of the run; links to trajectories are relative to it."""
    blocks = _blocks(log)
    markdown, html = log.directory / "report.md", log.directory / "report.html"
    markdown.write_text("\n\n".join(_markdown(*block) for block in blocks) + "\n", encoding="utf-8")
    body = "\n".join(_html(*block) for block in blocks)
    title = escape(_title(log.settings))
    html.write_text(
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n{body}\n</html>\n",
        encoding="utf-8",
    )
    return markdown, html


def command_of(settings: Mapping[str, Any]) -> str:
    """The command that repeats a run with these settings."""
    words = ["sterna", "eval", str(settings.get("task", "small-bugs"))]
    for key in ("split", "baseline", "attempts", "preset", "temperature", "top_p", "top_k", "presence_penalty",
                "max_tokens", "max_steps", "seed", "backend", "sandbox"):  # fmt: skip
        if key in settings:
            words += [f"--{key.replace('_', '-')}", str(settings[key])]
    if "thinking" in settings:
        words.append("--thinking" if settings["thinking"] else "--no-thinking")
    return shlex.join(words)


def _title(settings: Mapping[str, Any]) -> str:
    who = settings.get("model") or settings.get("baseline") or "run"
    return f"{settings.get('task', '')} {settings.get('split', '')}: {who}"


Cell = str | tuple[str, str]
"""Text, or text and the address it links to."""
Block = tuple[str, Any]


def _blocks(log: EvalLog) -> list[Block]:
    settings = log.settings
    summary = log.summary(task=str(settings.get("task", "")), split=str(settings.get("split", "")))
    low, high = summary["ci95"]
    figures: list[list[Cell]] = [
        ["passed", f"{summary['passed']} of {summary['n']}"],
        ["rate", f"{summary['pass_rate']:.1%} (95 % interval {low:.1%} to {high:.1%}, Wilson)"],
        ["tokens generated", f"{summary['completion_tokens']:,}"],
        ["time", f"{summary['duration_s'] / 3600:.2f} h"],
    ]
    failures: list[list[Cell]] = [[name, str(count)] for name, count in summary["failures"].items()]
    tasks = [_task_row(log, result) for result in log.results.values()]
    return [
        ("heading", _title(settings)),
        ("table", (["measure", "value"], figures)),
        ("subheading", "Why tasks failed"),
        ("table", (["class", "tasks"], failures)) if failures else ("text", "None failed."),
        ("subheading", "Settings"),
        ("table", (["setting", "value"], [[key, str(value)] for key, value in settings.items()])),
        ("text", "This repeats the run:"),
        ("code", command_of(settings)),
        ("subheading", "Tasks"),
        ("table", (["task", "outcome", "steps", "tokens", "seconds", "detail"], tasks)),
    ]


def _task_row(log: EvalLog, result: TaskResult) -> list[Cell]:
    trajectory = Path("trajectories") / f"{result.name}.json"
    name: Cell = (result.name, trajectory.as_posix()) if (log.directory / trajectory).exists() else result.name
    outcome = result.outcome if result.outcome == "passed" else f"{result.outcome}: {result.failure}"
    steps, tokens, seconds = str(result.steps), str(result.completion_tokens), f"{result.duration_s:.1f}"
    return [name, outcome, steps, tokens, seconds, result.detail]


def _markdown(kind: str, content: Any) -> str:
    if kind == "heading":
        return f"# {content}"
    if kind == "subheading":
        return f"## {content}"
    if kind == "code":
        return f"```sh\n{content}\n```"
    if kind == "text":
        return str(content)
    head, rows = content
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_markdown_cell(cell) for cell in line) + " |" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return f"[{_markdown_cell(cell[0])}]({cell[1]})"
    # a task's detail may quote whatever the model wrote: it must not end the cell or the line, nor become markup
    return escape(" ".join(cell.split()), quote=False).replace("|", "\\|")


def _html(kind: str, content: Any) -> str:
    if kind == "table":
        head, rows = content
        lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{_html_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        return "<table>\n" + "\n".join(lines) + "\n</table>"
    tag = {"heading": "h1", "subheading": "h2", "code": "pre", "text": "p"}[kind]
    return f"<{tag}>{escape(content)}</{tag}>"


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return f'<a href="{escape(cell[1])}">{escape(cell[0])}</a>'
    return escape(cell)
