"""Named sampling settings. A preset changes the sampling and the thinking switch of the template, nothing else.

``thinking``, ``thinking-coding`` and ``instruct`` are the model card's; ``agent`` is the card's setting for coding
agents (a presence penalty would punish the copying that edits need); ``greedy`` is for comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from sterna.chat.messages import ChatRequest
from sterna.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Sampling numbers under a name. ``enable_thinking`` ``None`` leaves the request's switch as it is."""

    name: str
    description: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    enable_thinking: bool | None = None

    def apply(self, request: ChatRequest) -> ChatRequest:
        """The request with this preset's numbers; seed, limits, stop strings and messages stay the request's own."""
        sampling = replace(
            request.sampling,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
        )
        thinking = request.enable_thinking if self.enable_thinking is None else self.enable_thinking
        return replace(request, sampling=sampling, enable_thinking=thinking)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                name="thinking",
                description="general use, with reasoning",
                temperature=1.0,
                top_p=0.95,
                top_k=20,
                presence_penalty=1.5,
                enable_thinking=True,
            ),
            Preset(
                name="thinking-coding",
                description="precise coding, with reasoning",
                temperature=0.6,
                top_p=0.95,
                top_k=20,
                enable_thinking=True,
            ),
            Preset(
                name="instruct",
                description="general use, without reasoning",
                temperature=0.7,
                top_p=0.8,
                top_k=20,
                presence_penalty=1.5,
                enable_thinking=False,
            ),
            Preset(name="agent", description="coding agent", temperature=1.0, top_p=0.95, top_k=20),
            Preset(name="greedy", description="always the likeliest token", temperature=0.0, top_p=1.0, top_k=0),
        )
    }
)


def get_preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        UsageError: no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}, allowed are {', '.join(PRESETS)}")
    return PRESETS[name]
