"""The service on a tiny random checkpoint: every layer from text to text, with the numpy backend."""

from __future__ import annotations

import gc

import pytest

from sterna.chat.messages import ChatRequest, End, Message, ReasoningDelta
from sterna.config import EngineConfig
from sterna.errors import BackendError, CheckpointError, ContextOverflowError, UsageError
from sterna.llm import LLM
from sterna.locate import locate_model, make_backend
from sterna.types import FinishReason, SamplingParams
from support.tiny_checkpoint import write_tiny_checkpoint

SAMPLING = SamplingParams(seed=3, max_tokens=16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(checkpoint):
    with LLM.load(checkpoint, backend="numpy", engine_config=EngineConfig(max_model_len=512)) as loaded:
        yield loaded


def chat(llm, *messages, sampling=SAMPLING, namespace=""):
    return list(llm.chat(ChatRequest(messages, sampling=sampling), namespace=namespace))


def test_a_chat_turn_ends_with_the_whole_message(llm):
    events = chat(llm, Message("user", "hello"), namespace="alone")
    end = events[-1]
    assert isinstance(end, End)
    assert end.message.reasoning == "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    assert len(end.message.token_ids) == end.usage.completion_tokens
    assert end.usage.computed_tokens == end.usage.prompt_tokens


def test_same_seed_same_text_and_another_seed_another(llm):
    first, second = (chat(llm, Message("user", "hello"))[-1].message for _ in range(2))
    assert first.token_ids == second.token_ids
    other = chat(llm, Message("user", "hello"), sampling=SamplingParams(seed=4, max_tokens=16))[-1].message
    assert other.token_ids != first.token_ids


def test_the_next_turn_computes_only_what_is_new(llm):
    history, known = [Message("user", "hello")], 0
    for turn in range(3):
        end = chat(llm, *history, namespace="turns")[-1]
        assert end.usage.cached_tokens == known
        assert turn == 0 or end.usage.computed_tokens < 40
        # the last sampled token has not been through the model
        known = end.usage.prompt_tokens + end.usage.completion_tokens - 1
        history += [end.message, Message("user", "go on")]


def test_a_turn_without_token_ids_is_tokenised_and_still_right(llm):
    end = chat(llm, Message("user", "hello"))[-1]
    message = Message("assistant", end.message.content, reasoning=end.message.reasoning)
    assert chat(llm, Message("user", "hello"), message, Message("user", "go on"))[-1].usage.prompt_tokens > 0


def test_dropped_reasoning_is_healed_and_nothing_is_read_twice(llm):
    first = chat(llm, Message("user", "hello"), namespace="heal")[-1]
    known = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    sent = Message("assistant", f"  {first.message.content}")
    history = (Message("user", "hello"), sent, Message("user", "go on"))
    usage = chat(llm, *history, namespace="heal")[-1].usage
    assert (usage.healed_turns, usage.cached_tokens) == (1, known)
    usage = chat(llm, *history, namespace="another key")[-1].usage
    assert (usage.healed_turns, usage.cached_tokens) == (0, 0)


def test_complete_is_the_decoded_stream(llm):
    prompt = llm.chat_format.tokenizer.encode("once upon")
    ids = [event.token_id for event in llm.generate(prompt, SAMPLING)]
    text = "".join(llm.complete("once upon", SAMPLING))
    assert text == llm.chat_format.tokenizer.decode(ids, skip_special=True)


def test_streams_share_passes_and_text_does_not_change(llm):
    prompts = [llm.chat_format.tokenizer.encode(text) for text in ("one", "two words", "three more words")]
    alone = [[event.token_id for event in llm.generate(prompt, SAMPLING)] for prompt in prompts]
    streams = [llm.generate(prompt, SAMPLING) for prompt in prompts]
    together = [[], [], []]
    for _ in range(SAMPLING.max_tokens):
        for tokens, stream in zip(together, streams, strict=True):
            event = next(stream, None)
            if event is not None:
                tokens.append(event.token_id)
    assert together == alone


def test_stop_strings_end_the_text_before_them(llm):
    text = "".join(llm.complete("once upon", SAMPLING))
    stop = text[5:7]
    cut = "".join(llm.complete("once upon", SamplingParams(seed=3, max_tokens=16, stop=(stop,))))
    assert cut == text[: text.index(stop)]
    events = chat(llm, Message("user", "hello"))
    reasoning = events[-1].message.reasoning
    stop = reasoning[4:6]
    events = chat(llm, Message("user", "hello"), sampling=SamplingParams(seed=3, max_tokens=16, stop=(stop,)))
    assert events[-1].message.reasoning == reasoning[: reasoning.index(stop)].rstrip()
    assert events[-1].finish_reason is FinishReason.STOP


def test_logprobs_come_with_the_tokens(llm):
    event = next(llm.generate([5, 6], SamplingParams(temperature=0.0, max_tokens=1, logprobs=3)))
    assert len(event.top_logprobs) == 3
    assert event.logprob == max(event.top_logprobs.values())


def test_closing_frees_at_once(llm):
    stream = llm.chat(ChatRequest((Message("user", "hello"),), sampling=SAMPLING))
    next(stream)
    assert llm.engine.has_work
    stream.close()
    assert not llm.engine.has_work


def test_a_dropped_stream_frees_too(llm):
    llm.generate([5, 6], SAMPLING)
    gc.collect()
    assert not llm.engine.has_work


def test_bad_requests_raise_before_any_work(llm):
    with pytest.raises(UsageError, match="the prompt is empty"):
        llm.complete("", SAMPLING)
    with pytest.raises(ContextOverflowError, match=r"prompt has 1,\d+ tokens, context is 512"):
        llm.chat(ChatRequest((Message("user", "a b " * 600),), sampling=SAMPLING))
    assert not llm.engine.has_work


def test_a_failing_pass_reaches_every_stream(llm, monkeypatch):
    first, second = llm.generate([5, 6], SAMPLING), llm.generate([7, 8], SAMPLING)
    with monkeypatch.context() as patch:
        patch.setattr(llm.backend, "forward", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(first)
    with pytest.raises(BackendError, match="dropped because the backend failed"):
        next(second)
    assert next(llm.generate([5, 6], SAMPLING)).token_id >= 0


def test_the_first_line_on_standard_error_says_which(checkpoint, capsys):
    LLM.load(checkpoint, backend="numpy").close()
    assert capsys.readouterr().err.startswith(f"model: {checkpoint} (as asked), backend numpy (as asked)\n")


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a checkpoint, it has no config\.json"):
        locate_model(tmp_path)


def test_model_order_is_flag_variable_pulled(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("STERNA_HOME", str(tmp_path))
    pulled = write_tiny_checkpoint(tmp_path / "models" / "big")
    assert locate_model().path == pulled
    monkeypatch.setenv("STERNA_MODEL", str(checkpoint))
    assert locate_model().path == checkpoint
    assert locate_model(pulled).path == pulled


def test_an_unknown_backend_is_refused():
    with pytest.raises(UsageError, match="backend is 'cuda', allowed is auto, native, torch, numpy"):
        make_backend("cuda")


def test_auto_says_why_others_were_passed_over(monkeypatch):
    monkeypatch.setitem(
        __import__("sterna.locate", fromlist=["BACKENDS"]).BACKENDS, "native", ("sterna.no_such_module", "X")
    )
    _, why = make_backend("auto")
    assert "backend native cannot be used" in why
