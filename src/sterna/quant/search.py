"""Search for the scale (and lower end) of a group that minimises the weighted squared error after rounding.

Both searches try shrunken and stretched ranges, round, and replace each trial by the least-squares fit to its own codes.
Groups are the last axis of the arguments; everything before it is a batch. Inside, a batch is cut into pieces that stay in the
cache and turned so that the group is the first axis, because numpy sums that axis with full vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from sterna.quant.base import Float32

Zero = Literal["below", "inside"]
Snap = Callable[[Float32, Float32, Float32], tuple[Float32, Float32]]

AFFINE_STARTS = ((0.8, -0.2), (-0.2, 0.8), (0.2, 0.2))
"""By how many steps the first range of a trial is cut at the lower and at the upper end (negative: widened)."""

AFFINE_MOVES = ((1.0, 0.4), (1.0, -0.4), (0.96, 0.0), (1.04, 0.0), (1.0, 0.2), (1.0, -0.2))
"""Further trials around the best so far: factor of the scale, and shift of the range's middle in steps."""

SYMMETRIC_TRIALS = (-0.12, -0.08, -0.04, 0.0, 0.04, 0.08, 0.12)
"""By what share of its largest element the first range of a trial is widened (negative: cut)."""

_PIECE = 1 << 16


def affine_search(
    x: Float32,
    weight: Float32 | None,
    *,
    levels: int,
    zero: Zero,
    snap: Snap | None = None,
    unit: Float32 | None = None,
) -> tuple[Float32, Float32]:
    """(scale, low), float32 [...], of the best ``low + scale * q``, q in 0…levels, for x and weight [..., G].

    ``zero`` says what the format can store: "below" keeps low ≤ 0 (a minimum that is subtracted), "inside" keeps 0 between low and
    the highest code (a zero point among the codes). ``snap`` maps a trial (scale, low) and the
    group's ``unit`` [...] to the nearest (scale, low) that can be stored, so that trials compete by what the file will hold.
    """
    shape = x.shape[:-1]
    groups, spread = _flat(x), None if weight is None else _flat(weight)
    units = None if unit is None else np.broadcast_to(unit, shape).reshape(-1)
    scale, low = np.empty(len(groups), np.float32), np.empty(len(groups), np.float32)
    step = max(1, _PIECE // x.shape[-1])
    for start in range(0, len(groups), step):
        part = slice(start, start + step)
        piece = _AffinePiece(groups[part], None if spread is None else spread[part], levels)
        bound = None
        if snap is not None and units is not None:
            bound = _bind(snap, units[part])
        scale[part], low[part] = piece.search(zero=zero, snap=bound)
    return scale.reshape(shape), low.reshape(shape)


def symmetric_search(x: Float32, weight: Float32, *, low: int, high: int) -> Float32:
    """Scale float32 [...] of the best ``scale * q``, q in low…high, for x and weight [..., G]. The scale may be negative."""
    groups, spread = _flat(x), _flat(weight)
    best = np.empty(len(groups), np.float32)
    step = max(1, _PIECE // x.shape[-1])
    for start in range(0, len(groups), step):
        part = slice(start, start + step)
        best[part] = _symmetric_piece(_turn(groups[part]), _turn(spread[part]), low, high)
    return best.reshape(x.shape[:-1])


def _flat(array: Float32) -> Float32:
    return array.reshape(-1, array.shape[-1])


def _turn(groups: Float32) -> Float32:
    return np.ascontiguousarray(groups.T)


def _bind(snap: Snap, unit: Float32) -> Callable[[Float32, Float32], tuple[Float32, Float32]]:
    return lambda scale, low: snap(scale, low, unit)


def _symmetric_piece(x: Float32, weight: Float32, low: int, high: int) -> Float32:
    index = np.argmax(np.abs(x), axis=0)[None]
    largest = np.take_along_axis(x, index, axis=0)[0]
    best_error, best = np.full(largest.shape, np.inf, np.float32), np.zeros_like(largest)
    weighted = weight * x
    for trial in SYMMETRIC_TRIALS:
        q = _round_symmetric(x, largest / np.float32(low * (1 - trial)), low, high)
        norm = (weight * q * q).sum(axis=0)
        scale = np.divide((weighted * q).sum(axis=0), norm, out=np.zeros_like(norm), where=norm > 0)
        q = _round_symmetric(x, scale, low, high)
        q *= -scale
        q += x
        q *= q
        error = (weight * q).sum(axis=0)
        better = error < best_error
        best_error, best = np.where(better, error, best_error), np.where(better, scale, best)
    return best


def _round_symmetric(x: Float32, scale: Float32, low: int, high: int) -> Float32:
    q = x * _inverse(scale)
    return np.clip(np.rint(q, out=q), low, high, out=q)


def _inverse(scale: Float32) -> Float32:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


class _AffinePiece:
    """One cache-sized piece of the affine search: x and weight [G, n], and what all trials share."""

    def __init__(self, groups: Float32, weight: Float32 | None, levels: int) -> None:
        self.x, self.levels = _turn(groups), np.float32(levels)
        self.weight = None if weight is None else _turn(weight)
        self.total = np.float32(groups.shape[-1]) if self.weight is None else self.weight.sum(axis=0)
        self.mean_x = self._mean(self.x)

    def search(
        self, *, zero: Zero, snap: Callable[[Float32, Float32], tuple[Float32, Float32]] | None
    ) -> tuple[Float32, Float32]:
        least = np.minimum(self.x.min(axis=0), 0)
        most = self.x.max(axis=0)
        span = (np.maximum(most, 0) if zero == "inside" else most) - least
        best_error = np.full(span.shape, np.inf, np.float32)
        best_scale, best_low = np.zeros_like(span), np.zeros_like(span)

        def consider(scale: Float32, low: Float32, *, fit: bool = True) -> None:
            nonlocal best_error, best_scale, best_low
            if fit:
                scale, low = self._fit(self._round(scale, low), scale)
            low = np.minimum(low, 0)
            if snap is not None:
                scale, low = snap(scale, low)
            error = self._error(self._round(scale, low), scale, low)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best_scale, best_low = np.where(better, scale, best_scale), np.where(better, low, best_low)

        # The whole range as it is can always be stored; a fit may leave what the format can hold (groups of one sign).
        consider(span / self.levels, least, fit=False)
        for below, above in AFFINE_STARTS:
            scale = span / (self.levels + np.float32(below + above))
            consider(scale, least + scale * np.float32(below))
        for factor, shift in AFFINE_MOVES:
            middle = best_low + best_scale * (self.levels / 2 + np.float32(shift))
            scale = best_scale * np.float32(factor)
            consider(scale, middle - scale * (self.levels / 2))
        return best_scale, best_low

    def _mean(self, values: Float32) -> Float32:
        weighted = values if self.weight is None else values * self.weight
        return weighted.sum(axis=0) / self.total

    def _round(self, scale: Float32, low: Float32) -> Float32:
        q = self.x - low
        q *= _inverse(scale)
        return np.clip(np.rint(q, out=q), 0, self.levels, out=q)

    def _fit(self, q: Float32, fallback: Float32) -> tuple[Float32, Float32]:
        mean_q = self._mean(q)
        covariance = self._mean(q * self.x) - mean_q * self.mean_x
        q *= q
        variance = self._mean(q) - mean_q * mean_q
        scale = np.divide(covariance, variance, out=fallback.copy(), where=variance > 1e-4)
        scale = np.where(scale > 0, scale, fallback)
        return scale, (self.mean_x - scale * mean_q).astype(np.float32)

    def _error(self, q: Float32, scale: Float32, low: Float32) -> Float32:
        q *= scale
        q += low
        q -= self.x
        q *= q
        return self._mean(q)
