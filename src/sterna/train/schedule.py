"""Learning-rate schedule: linear warm-up, constant, linear decay to zero at a horizon in tokens or in hours of training."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Exactly one of ``horizon_tokens`` and ``horizon_s`` is set; time counts training only, not pauses between runs."""

    peak: float
    warmup_steps: int
    decay_fraction: float
    horizon_tokens: int | None = None
    horizon_s: float | None = None

    def __post_init__(self) -> None:
        if (self.horizon_tokens is None) == (self.horizon_s is None):
            raise UsageError("give the length of the training either in tokens or in hours", hint="--hours 6")

    def progress(self, *, tokens: int, seconds: float) -> float:
        """0 at the start, 1 when training is over."""
        if self.horizon_tokens is not None:
            return tokens / self.horizon_tokens
        assert self.horizon_s is not None
        return seconds / self.horizon_s

    def learning_rate(self, *, step: int, progress: float) -> float:
        """Rate of optimizer step ``step`` (from 0)."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay = min(1.0, max(0.0, 1.0 - progress) / self.decay_fraction)
        return self.peak * warmup * decay
