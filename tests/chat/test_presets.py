"""Presets hold the card's numbers and change nothing but sampling and the thinking switch."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from sterna.chat.messages import ChatRequest, Message
from sterna.chat.presets import PRESETS, get_preset
from sterna.errors import UsageError
from sterna.types import SamplingParams

# temperature, top_p, top_k, min_p, presence, repetition, thinking
CARD = {
    "thinking": (1.0, 0.95, 20, 0.0, 1.5, 1.0, True),
    "thinking-coding": (0.6, 0.95, 20, 0.0, 0.0, 1.0, True),
    "instruct": (0.7, 0.8, 20, 0.0, 1.5, 1.0, False),
    "agent": (1.0, 0.95, 20, 0.0, 0.0, 1.0, None),
    "greedy": (0.0, 1.0, 0, 0.0, 0.0, 1.0, None),
}


def test_all_are_here() -> None:
    assert set(PRESETS) == set(CARD)


@pytest.mark.parametrize("name", CARD)
@pytest.mark.parametrize("thinking", [True, False])
def test_numbers_and_nothing_else(name: str, thinking: bool) -> None:
    own = SamplingParams(
        temperature=0.1,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        repetition_penalty=2.0,
        min_p=0.3,
        seed=7,
        max_tokens=9,
        stop=("x",),
        stop_token_ids=(1,),
        logprobs=2,
        logit_bias={3: 1.0},
    )
    request = ChatRequest((Message("user", "u"),), sampling=own, enable_thinking=thinking, preserve_thinking=False)
    result = get_preset(name).apply(request)
    s = result.sampling
    temperature, top_p, top_k, min_p, presence, repetition, switch = CARD[name]
    assert (s.temperature, s.top_p, s.top_k, s.min_p) == (temperature, top_p, top_k, min_p)
    assert (s.presence_penalty, s.repetition_penalty, s.frequency_penalty) == (presence, repetition, 0.0)
    assert result.enable_thinking is (thinking if switch is None else switch)
    changed = {"temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty", "frequency_penalty"}
    for entry in fields(SamplingParams):
        if entry.name not in changed:
            assert getattr(s, entry.name) == getattr(own, entry.name)
    assert replace(result, sampling=own, enable_thinking=thinking) == request


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="unknown preset 'hot', allowed are thinking, thinking-coding, instruct"):
        get_preset("hot")
