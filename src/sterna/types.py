"""Plain values that cross the public interface: standard library only, frozen, no behaviour beyond validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sterna.errors import UsageError


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen (DESIGN §3b, "Sampling"). Neutral defaults: plain sampling at temperature 1.

    ``temperature`` 0 means greedy. ``top_k`` 0 and ``top_p`` 1 switch the filter off. Presence and frequency penalties
    count tokens of this response; the repetition penalty counts the prompt too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0), ("top_p", 0.0, 1.0), ("top_k", 0, 2**31 - 1), ("min_p", 0.0, 1.0),
            ("presence_penalty", -2.0, 2.0), ("frequency_penalty", -2.0, 2.0), ("repetition_penalty", 0.01, 100.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}, allowed is {low} to {high}")
        if self.top_p == 0.0:
            raise UsageError("top_p is 0, allowed is above 0 up to 1", hint="for greedy decoding set temperature to 0")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}, allowed is 1 or more")
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise UsageError(f"logprobs is {self.logprobs}, allowed is 0 to 20")


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request; ``cached_tokens`` of the prompt came from the cache, ``computed_tokens`` did not.

    ``cache_miss_reason`` says in words why not more came from the cache, where more was conceivable.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    reasoning_tokens: int = 0
    cache_miss_reason: str | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One sampled token; ``top_logprobs`` maps token ids to natural-log probabilities when they were asked for."""

    token_id: int
    logprob: float | None = None
    top_logprobs: Mapping[int, float] = field(default_factory=dict)
    finish_reason: FinishReason | None = None
