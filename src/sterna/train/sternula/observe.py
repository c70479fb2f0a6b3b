"""What the agent's tools print in a generated project, computed without running them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from sterna.evals.small_bugs.inprocess import ROOT, TestRun

TEST = "python -m unittest -f 2>&1 | tail -n 20"
FIRST = "ls && " + TEST
FOLDERS = ("/tmp/{}", "/tmp/{}", "/tmp/sterna-{}", "/tmp/demo-{}", "/tmp/tmp{}", "/home/user/{}", "/workspace/{}",
           "/root/{}", "/app", "/home/dev/src/{}")  # fmt: skip
PYTHONS = ("3.10", "3.11", "3.11", "3.11", "3.11", "3.13", "3.13")
"""Minor versions whose output differs for small projects; 3.12 prints as 3.11, 3.14 as 3.13."""


def folder_name(rng: Random) -> str:
    """An absolute path for the workspace."""
    return rng.choice(FOLDERS).format("".join(rng.choice("abcdefghijklmnopqrstuvwxyz0123456789_") for _ in range(8)))


def _marks_3_13(code: str, marks: str) -> str:
    """The marker line as Python 3.13 draws it: a call is ``~~~~^^^^``, name first and then its arguments."""
    start = len(marks) - len(marks.lstrip())
    if set(marks.strip()) != {"^"}:
        return marks
    marked = code[start : len(marks)]
    opening = re.match(r"[\w.]+(?=\(.*\)$)", marked)
    if opening is None:
        return marks
    return " " * start + "~" * opening.end() + "^" * (len(marked) - opening.end())


def _as_python(output: str, version: str) -> str:
    """Output of Python 3.11 as ``version`` prints it."""
    if version == "3.11":
        return output
    lines: list[str] = []
    rows = output.split("\n")
    for number, row in enumerate(rows):
        is_marks = bool(re.fullmatch(r" {4,}[~^]+", row)) and number > 0 and rows[number - 2].startswith("  File ")
        if version == "3.10":
            if not is_marks:
                lines.append(re.sub(r"^(FAIL|ERROR): (\w+) \(([\w.]+)\.\2\)", r"\1: \2 (\3)", row))
            continue
        lines.append(_marks_3_13(rows[number - 1], row) if is_marks else row)
        after = rows[number + 1] if number + 1 < len(rows) else ""
        whole_call = re.fullmatch(r"    (self\.\w+)(\(.*\))", row)
        if whole_call and number and rows[number - 1].startswith("  File ") and not re.fullmatch(r" {4,}[~^]+", after):
            lines.append("    " + "~" * len(whole_call[1]) + "^" * len(whole_call[2]))
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Shell:
    """The workspace as the tools see it: its absolute path and the Python that runs in it."""

    root: str
    python: str

    def tests(self, run: TestRun, rng: Random) -> str:
        """What ``TEST`` prints after ``run``."""
        output = re.sub(
            r"in \d+\.\d+s", f"in 0.00{rng.choice('00011')}s", run.output.replace(ROOT + "/", self.root + "/")
        )
        return "\n".join(_as_python(output, self.python).rstrip("\n").split("\n")[-20:]).strip("\n")

    def listing(self, files: Mapping[str, str]) -> str:
        """What ``ls`` prints."""
        return "\n".join(sorted(files))


def read_command(paths: list[str]) -> str:
    """The command that prints the files; several get a line with the name above each."""
    return f"cat {paths[0]}" if len(paths) == 1 else f"tail -n +1 {' '.join(paths)}"


def read_output(files: Mapping[str, str], paths: list[str]) -> str:
    """What `read_command` prints, without the last newline."""
    if len(paths) == 1:
        return files[paths[0]].rstrip("\n")
    return "\n".join(f"==> {path} <==\n{files[path]}" for path in paths).rstrip("\n")
