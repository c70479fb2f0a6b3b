"""The splits of the benchmark, each a fixed sequence of projects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from sterna.errors import UsageError
from sterna.evals.small_bugs.generate import generate_from_families
from sterna.evals.small_bugs.project import Project

DEFAULT_SIZE = 200


def _generated(split: str) -> Iterator[Project]:
    for seed in range(DEFAULT_SIZE):
        yield generate_from_families(seed, split)


SPLITS: Mapping[str, Callable[[], Iterator[Project]]] = {
    "unseen-instances": lambda: _generated("unseen-instances"),
    "unseen-families": lambda: _generated("unseen-families"),
}


def load_split(split: str, *, limit: int | None = None) -> list[Project]:
    """The first ``limit`` projects of a split, the same every time. Raises `UsageError` for an unknown name."""
    if split not in SPLITS:
        raise UsageError(f"split is {split!r}, allowed is {', '.join(SPLITS)}")
    return list(islice(SPLITS[split](), limit))
