"""A pass over long prompts that is computed a few layers at a time, so that decode steps run in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sterna.backends.base import ForwardPass
from sterna.engine.scheduler import Piece

# A slice beside decode steps may take so many times as long as such a step: the time between two tokens at most triples.
SLICE_PER_STEP = 2.0
# Seconds of a slice when nobody decodes; a request that arrives waits no longer than this.
IDLE_SLICE_S = 0.1
# Shorter passes would read all weights for too few rows.
MIN_ROWS = 64
# How much one new measurement counts.
SMOOTHING = 0.3


@dataclass(slots=True)
class LongPass:
    """The pieces of a pass and how far it is."""

    pieces: list[Piece]
    running: ForwardPass

    @property
    def rows(self) -> int:
        """Its tokens."""
        return sum(piece.num_tokens for piece in self.pieces)


class Pacer:
    """Chooses how long passes are cut, from what layers and decode steps took so far: by layers, and where a single layer takes
    too long beside a stream, by rows."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._step_s = 0.0
        self._layer_row_s = 0.0

    def rows(self, limit: int, *, beside_steps: bool) -> int:
        """Tokens of the next long pass, at most ``limit``: so few that a layer fits into a slice, but not very few."""
        if not beside_steps or not self._layer_row_s:
            return limit
        fitting = int(SLICE_PER_STEP * self._step_s / self._layer_row_s)
        return min(limit, max(MIN_ROWS, fitting // MIN_ROWS * MIN_ROWS))

    def layers(self, rows: int, *, beside_steps: bool) -> int:
        """Layers of the next slice of a pass with so many rows, at least one."""
        budget = SLICE_PER_STEP * self._step_s if beside_steps else IDLE_SLICE_S
        return max(1, int(budget / (self._layer_row_s * rows))) if self._layer_row_s else 1

    def step_took(self, seconds: float) -> None:
        """A pass of decode steps and short prompts was computed."""
        self._step_s = _smooth(self._step_s, seconds)

    def layers_took(self, layers: int, rows: int, seconds: float) -> None:
        """A slice was computed."""
        self._layer_row_s = _smooth(self._layer_row_s, seconds / (layers * rows))


def _smooth(known: float, new: float) -> float:
    return new if not known else known + SMOOTHING * (new - known)
