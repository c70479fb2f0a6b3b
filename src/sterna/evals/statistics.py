"""Intervals, paired tests and sample sizes for pass rates. Everything here is a pure function of its arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

Z_95 = 1.959963984540054
RESAMPLES = 10_000


def wilson_interval(passed: int, n: int, *, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % by default; (0, 1) without any trial.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not 0 <= passed <= n:
        raise ValueError(f"passed is {passed}, allowed is 0 to {n}")
    if n == 0:
        return 0.0, 1.0
    rate = passed / n
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # at the ends the formula gives exactly 0 and 1, up to rounding
    return (0.0 if passed == 0 else low), (1.0 if passed == n else high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p value for "both solve equally many", from the tasks that only one of the two solved.

    Source: Q. McNemar, Psychometrika 12 (1947), in its exact form: under the hypothesis each such task is a fair coin.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts are {only_first} and {only_second}, allowed is 0 or more")
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n)


def bootstrap_mean(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values``, resampled with replacement.

    One value per cluster: with k runs of each task give the rate of each task, since runs of one task are not
    independent. For a paired comparison give the difference of each task.
    """
    if not values:
        raise ValueError("there are no values, allowed is one or more")
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.array([array[generator.integers(0, array.size, array.size)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def tasks_for_difference(first: float, second: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """Tasks that each of two independent runs needs, to tell pass rates ``first`` and ``second`` apart.

    Normal approximation with unpooled variance (J. L. Fleiss, "Statistical Methods for Rates and Proportions", 1981).
    A paired comparison on the same tasks needs fewer.
    """
    if first == second:
        raise ValueError(f"both rates are {first}, allowed are two different ones")
    for rate in (first, second):
        if not 0 <= rate <= 1:
            raise ValueError(f"a rate is {rate}, allowed is 0 to 1")
    z = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(power)
    variance = first * (1 - first) + second * (1 - second)
    return max(1, math.ceil(z * z * variance / (first - second) ** 2))
