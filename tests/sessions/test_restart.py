"""The whole service, stopped and started again: real arithmetic, real templates, histories as clients send them."""

from __future__ import annotations

import pytest

from sterna.chat.messages import ChatRequest, Message
from sterna.config import EngineConfig
from sterna.llm import LLM
from sterna.types import SamplingParams
from support.tiny_checkpoint import write_tiny_checkpoint

CONFIG = EngineConfig(max_model_len=2048)
TALK = "tell me about the parser " * 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def load(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("STERNA_NUM_THREADS", "1")
    return lambda **options: LLM.load(checkpoint, backend="native", engine_config=CONFIG, **options)


def answer(llm, *messages, namespace="key"):
    sampling = SamplingParams(seed=3, max_tokens=24)
    return list(llm.chat(ChatRequest(messages, sampling=sampling), namespace=namespace))[-1]


def test_after_a_restart_nothing_is_read_again_although_the_client_drops_reasoning(load, tmp_path):
    history = [Message("system", "You answer. " * 9), Message("user", TALK)]
    with load(sessions=tmp_path) as llm:
        for question in ("and then?", "why?"):
            end = answer(llm, *history)
            history += [Message("assistant", end.message.content), Message("user", question)]
    with load(sessions=tmp_path) as llm:
        restored = answer(llm, *history)
    with load() as llm:
        assert answer(llm, *history).message.token_ids != restored.message.token_ids
        whole = llm.prepare(ChatRequest(tuple(history))).prompt.token_ids
    usage = restored.usage
    assert usage.healed_turns == 2
    assert usage.cached_tokens == end.usage.prompt_tokens + end.usage.completion_tokens - 1
    assert usage.prompt_tokens > len(whole)


def test_restored_bits_are_continuous_bits(load, tmp_path):
    history = [Message("user", TALK)]
    with load() as llm:
        first = answer(llm, *history)
        expected = answer(llm, *history, first.message, Message("user", "go on"))
    with load(sessions=tmp_path) as llm:
        answer(llm, *history)
    with load(sessions=tmp_path) as llm:
        found = answer(llm, *history, first.message, Message("user", "go on"))
    assert found.usage.cached_tokens == expected.usage.cached_tokens > 0
    assert found.message == expected.message


def test_a_turn_survives_in_the_manifest_of_a_branch(load, tmp_path):
    history = [Message("user", TALK)]
    with load(sessions=tmp_path) as llm:
        first = answer(llm, *history)
        for question in ("one " * 40, "two " * 40):
            answer(llm, *history, first.message, Message("user", question))
        llm.keeper.flush()
        assert [len(session.turns) for session in llm.keeper.store.sessions("key")] == [2, 2]
        assert llm.keeper.turns("another key") == []
    with load(sessions=tmp_path, heal="off") as llm:
        stripped = Message("assistant", first.message.content)
        assert answer(llm, *history, stripped, Message("user", "one " * 40)).usage.healed_turns == 0
