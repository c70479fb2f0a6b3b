"""Intervals and tests against closed forms and published values."""

from __future__ import annotations

import math

import pytest

from sterna.evals.statistics import bootstrap_mean, mcnemar_exact, tasks_for_difference, wilson_interval


@pytest.mark.parametrize(
    ("passed", "n", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_against_published_values(passed: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(passed, n) == pytest.approx((low, high), abs=1e-4)


def test_more_passes_than_tasks_is_an_error() -> None:
    with pytest.raises(ValueError, match="passed is 3, allowed is 0 to 2"):
        wilson_interval(3, 2)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (1, 0, 1.0), (0, 5, 2 / 32), (1, 5, 2 * 7 / 64), (10, 0, 2 / 1024)],
)
def test_mcnemar_is_twice_the_tail_of_a_fair_coin(first: int, second: int, p: float) -> None:
    assert mcnemar_exact(first, second) == pytest.approx(p)
    assert mcnemar_exact(second, first) == mcnemar_exact(first, second)


def test_bootstrap_of_a_proportion_is_near_the_normal_interval() -> None:
    values = [1.0] * 120 + [0.0] * 80
    low, high = bootstrap_mean(values, seed=1)
    spread = 1.96 * math.sqrt(0.6 * 0.4 / 200)
    assert (low, high) == pytest.approx((0.6 - spread, 0.6 + spread), abs=0.01)
    assert bootstrap_mean(values, seed=1) == (low, high)


def test_bootstrap_without_spread_is_a_point() -> None:
    assert bootstrap_mean([0.25] * 7) == (0.25, 0.25)
    with pytest.raises(ValueError, match="there are no values"):
        bootstrap_mean([])


def test_tasks_for_a_difference() -> None:
    # z² = (1.959964 + 0.841621)² = 7.848880; 7.848880 × (0.24 + 0.25) / 0.01 = 384.6
    assert tasks_for_difference(0.6, 0.5) == 385
    assert tasks_for_difference(0.5, 0.6) == 385
    for first, second, message in ((0.5, 0.5, "two different"), (0.5, 1.5, "a rate is 1.5")):
        with pytest.raises(ValueError, match=message):
            tasks_for_difference(first, second)
