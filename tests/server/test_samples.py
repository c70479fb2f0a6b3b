"""Requests that real clients sent, which lie beside the repository: each is parsed, rendered and answered."""

from __future__ import annotations

import itertools
import json

import pytest

from sterna.chat.format import ChatFormat
from sterna.server import anthropic_messages, openai_chat, openai_responses
from sterna.server.turns import TurnStore
from support.chat import chat_format, shared_directory

DIRECTORY = shared_directory("clients/samples")
SAMPLES = sorted(DIRECTORY.glob("*.json")) if DIRECTORY else []
pytestmark = pytest.mark.skipif(not SAMPLES, reason="the recorded requests do not lie beside this repository")


def load(path):
    return json.loads(path.read_text())


def parse(sample):
    body, turns = sample["body"], TurnStore()
    if "/messages" in sample["path"]:
        return anthropic_messages.parse(body, turns)
    if "/responses" in sample["path"]:
        return openai_responses.parse(body, turns)
    return openai_chat.parse(body, turns, max_choices=8)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_understood(path):
    sample = load(path)
    parsed = parse(sample)
    form: ChatFormat = chat_format()
    prompt = form.render(parsed.request)
    assert prompt.text.startswith("<|im_start|>")
    assert "x-anthropic-billing-header" not in prompt.text and "cache_control" not in prompt.text
    assert bool(parsed.warnings) == ("image" in sample.get("tags", ()))


@pytest.mark.parametrize(
    "names",
    [
        # its recorded second turn is a resumed process, which lists the folder anew in its first message
        ("qwen_1_first", "qwen_3_history"),
        ("codex_1_first", "codex_2_tools", "codex_3_history"),
        ("claude_2_tools", "claude_3_history", "claude_4_second_user_turn"),
        ("opencode_1_first", "opencode_3_history", "opencode_4_second_user_turn"),
        ("pi_1_first", "pi_3_history", "pi_4_second_user_turn"),
        ("mini_1_first", "mini_2_tools", "mini_3_history"),
        ("inspect_1_first", "inspect_2_tools", "inspect_3_history"),
    ],
    ids=lambda names: names[0].partition("_")[0],
)
def test_a_conversation_only_grows(names):
    """What a prefix cache sees: every prompt begins with the one before it, up to the opening of the answer."""
    if not all((DIRECTORY / f"{name}.json").exists() for name in names):
        pytest.skip("not all requests of this conversation were recorded")
    texts = [chat_format().render(parse(load(DIRECTORY / f"{name}.json")).request).text for name in names]
    for before, after in itertools.pairwise(texts):
        opening = before.rindex("<|im_start|>assistant\n")
        assert after.startswith(before[:opening])
