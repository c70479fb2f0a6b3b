"""The evaluation splits by name, and the tasks that each gives for a number."""

from __future__ import annotations

from sterna.errors import UsageError
from sterna.evals.small_bugs.generate import generate_from_families
from sterna.evals.small_bugs.hand_written import SPLIT as HAND_WRITTEN
from sterna.evals.small_bugs.hand_written import hand_written_projects
from sterna.evals.small_bugs.project import Project

SPLITS = ("unseen-instances", "unseen-families", "real-code", HAND_WRITTEN)
"""What ``sterna eval small-bugs --split`` accepts."""
TRAINING_SPLITS = ("training", "training-real-code")
DEFAULT_TASKS = 200
"""Tasks of a generated split; the hand-written one has as many as were written."""


def generate_project(seed: int, split: str) -> Project:
    """Task number ``seed`` of ``split``: the same for the same arguments (and version of Python, for real code).

    Raises:
        UsageError: no such split, or ``seed`` is beyond the hand-written projects.
    """
    if split == HAND_WRITTEN:
        projects = hand_written_projects()
        if not 0 <= seed < len(projects):
            raise UsageError(f"hand-written project {seed} was asked for, there are {len(projects)}, counted from 0")
        return projects[seed]
    if split not in SPLITS + TRAINING_SPLITS:
        raise UsageError(f"split is {split!r}, allowed are {', '.join(SPLITS)}")
    return generate_from_families(seed, split)


def split_projects(split: str, *, limit: int | None = None) -> list[Project]:
    """The tasks of a split in order, at most ``limit``."""
    size = len(hand_written_projects()) if split == HAND_WRITTEN else DEFAULT_TASKS
    return [generate_project(seed, split) for seed in range(size if limit is None else min(limit, size))]
