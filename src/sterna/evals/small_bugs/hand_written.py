"""The ``hand-written`` split: twenty small broken projects written by people, kept as one text file.

A project begins with ``=== NAME: what is wrong``, then ``--- fix PATH`` with the broken line (once in that file) and the
right line below it, then ``--- PATH`` before the text of each file.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

from sterna.evals.small_bugs.project import Project

SPLIT = "hand-written"


def _parse(number: int, block: str) -> Project:
    head, *parts = re.split(r"^--- ", block, flags=re.MULTILINE)
    name, _, bug = head.strip().partition(": ")
    fix, broken_line, fixed_line = parts[0].rstrip("\n").split("\n")
    path = fix.removeprefix("fix ").strip()
    files: dict[str, str] = {}
    for part in parts[1:]:
        file_path, _, text = part.partition("\n")
        files[file_path.strip()] = text.strip("\n") + "\n"
    lines = files[path].split("\n")
    line = lines.index(broken_line) + 1
    lines[line - 1] = fixed_line
    return Project(
        name=name, split=SPLIT, seed=number, files=files, fixed_files={**files, path: "\n".join(lines)}, bug=bug,
        family=name, function=name, path=path, line=line, kind=SPLIT, source="written for this set",
    )  # fmt: skip


@lru_cache(maxsize=1)
def hand_written_projects() -> tuple[Project, ...]:
    """All of them, in the order of the file."""
    folder = resources.files("sterna.evals.small_bugs") / "data"
    text = (folder / "hand_written.txt").read_text(encoding="utf-8")
    blocks = [block for block in re.split(r"^=== ", text, flags=re.MULTILINE) if block.strip()]
    return tuple(_parse(number, block) for number, block in enumerate(blocks))
