"""Intervals for pass rates."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054


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
