"""Two runs over the same tasks: who solved what, and whether the difference could be chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sterna.errors import UsageError
from sterna.evals.log import EvalLog
from sterna.evals.statistics import bootstrap_mean, mcnemar_exact


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rates are of the ``n`` tasks that both runs hold; ``p_value`` is McNemar's, exact and two-sided."""

    n: int
    first_passed: int
    second_passed: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    difference: float
    ci95: tuple[float, float]
    p_value: float
    not_shared: tuple[str, ...]
    different_settings: dict[str, tuple[Any, Any]]

    def as_json(self) -> dict[str, Any]:
        """For ``sterna eval compare --json``."""
        return asdict(self)


def compare_runs(first: EvalLog, second: EvalLog) -> Comparison:
    """Compare task by task; ``difference`` is second minus first, its interval a paired bootstrap over tasks.

    Raises `UsageError` when the runs have no task in common.
    """
    shared = sorted(first.results.keys() & second.results.keys())
    if not shared:
        raise UsageError(
            f"{first.directory} and {second.directory} have no task in common",
            hint="compare runs of the same benchmark and split",
        )
    passed = [tuple(log.results[name].outcome == "passed" for log in (first, second)) for name in shared]
    only_first = tuple(name for name, (a, b) in zip(shared, passed, strict=True) if a and not b)
    only_second = tuple(name for name, (a, b) in zip(shared, passed, strict=True) if b and not a)
    differences = [float(b) - float(a) for a, b in passed]
    keys = sorted(first.settings.keys() | second.settings.keys())
    return Comparison(
        n=len(shared),
        first_passed=sum(a for a, _ in passed),
        second_passed=sum(b for _, b in passed),
        only_first=only_first,
        only_second=only_second,
        difference=sum(differences) / len(shared),
        ci95=bootstrap_mean(differences),
        p_value=mcnemar_exact(len(only_first), len(only_second)),
        not_shared=tuple(sorted(first.results.keys() ^ second.results.keys())),
        different_settings={
            key: (first.settings.get(key), second.settings.get(key))
            for key in keys
            if first.settings.get(key) != second.settings.get(key)
        },
    )
