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
# How much one new measurement counts.
SMOOTHING = 0.3


@dataclass(slots=True)
class LongPass:
    """The pieces of a pass and how far it is."""

    pieces: list[Piece]
    running: ForwardPass


class Pacer:
    """Chooses how many layers to compute in a slice, from what layers and decode steps took so far."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._step_s = 0.0
        self._layer_s = 0.0

    def layers(self, *, beside_steps: bool) -> int:
        """Layers of the next slice, at least one."""
        budget = SLICE_PER_STEP * self._step_s if beside_steps else IDLE_SLICE_S
        return max(1, int(budget / self._layer_s)) if self._layer_s else 1

    def step_took(self, seconds: float) -> None:
        """A pass of decode steps and short prompts was computed."""
        self._step_s = _smooth(self._step_s, seconds)

    def layers_took(self, layers: int, seconds: float) -> None:
        """A slice was computed."""
        self._layer_s = _smooth(self._layer_s, seconds / layers)


def _smooth(known: float, new: float) -> float:
    return new if not known else known + SMOOTHING * (new - known)
