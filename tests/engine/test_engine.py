"""The engine on a fake backend that checks that blocks and states belong together."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.config import EngineConfig
from sterna.engine.engine import Engine
from sterna.errors import ContextOverflowError, UsageError
from sterna.ops.sampling import sample
from sterna.types import FinishReason, SamplingParams
from support.fake_backend import EOS, VOCAB, FakeBackend, logits_of, prefix_hash

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def make_engine(*, num_blocks=64, num_state_slots=8, context=1024, **config) -> Engine:
    backend = FakeBackend(num_blocks=num_blocks, num_state_slots=num_state_slots, context=context)
    return Engine(backend, EngineConfig(**({"block_size": 4, "prefill_chunk_tokens": 8} | config)))


def reference(prompt, params, *, limit=10_000):
    """What a sequence alone must give, without any engine."""
    tokens = list(prompt)
    for _ in range(min(params.max_tokens or limit, limit)):
        choice = sample(
            logits_of(prefix_hash(tokens)), params, seed=params.seed or 0, position=len(tokens),
            prompt_ids=prompt, output_ids=tokens[len(prompt) :],
        )  # fmt: skip
        tokens.append(choice.token_id)
        if choice.token_id == EOS or choice.token_id in params.stop_token_ids:
            break
    return tokens[len(prompt) :]


def drain(engine):
    outputs, last = defaultdict(list), {}
    while engine.has_work:
        for event in engine.step():
            outputs[event.request_id].append(event.token.token_id)
            last[event.request_id] = event
    return outputs, last


def run_one(engine, prompt, params=GREEDY):
    request = engine.add_request(prompt, params)
    outputs, last = drain(engine)
    return outputs[request], last[request]


def assert_nothing_leaks(engine):
    assert not engine.scheduler.running and not engine.scheduler.waiting
    engine.cache.clear()
    assert engine.cache.prefixes.num_snapshots == 0
    assert engine.cache.blocks.num_free == engine.cache.blocks.num_blocks
    assert engine.cache.states.num_free == engine.cache.states.num_slots


@pytest.mark.parametrize("length", [1, 4, 7, 8, 9, 33])
def test_a_sequence_alone(length):
    engine = make_engine()
    prompt = [1 + i % 50 for i in range(length)]
    output, last = run_one(engine, prompt)
    assert output == reference(prompt, GREEDY)
    assert last.usage.prompt_tokens == last.usage.computed_tokens == length
    assert last.usage.completion_tokens == len(output)
    assert last.token.finish_reason is (FinishReason.STOP if output[-1] == EOS else FinishReason.LENGTH)
    assert_nothing_leaks(engine)


def test_prefill_is_cut_into_chunks_and_decodes_go_on_meanwhile():
    engine = make_engine(prefill_chunk_tokens=8)
    first = engine.add_request([5, 6], SamplingParams(temperature=0.0, max_tokens=50, logit_bias={EOS: -100.0}))
    engine.step()
    engine.add_request(list(range(1, 41)), GREEDY)
    while engine.has_work:
        events = engine.step()
        if not engine.is_active(first):
            break
        assert first in [event.request_id for event in events]
        assert len(engine.backend.batches[-1].token_ids) <= 8


def test_text_does_not_depend_on_the_company():
    params = [SamplingParams(seed=s, max_tokens=20, presence_penalty=0.5, repetition_penalty=1.2) for s in range(6)]
    prompts = [[1 + s, 2, 3 + s] * (s + 1) for s in range(6)]
    engine = make_engine()
    ids = [engine.add_request(p, q) for p, q in zip(prompts, params, strict=True)]
    outputs, _ = drain(engine)
    for i, p, q in zip(ids, prompts, params, strict=True):
        assert outputs[i] == reference(p, q)
    assert_nothing_leaks(engine)


def test_preemption_changes_no_text():
    engine = make_engine(num_blocks=8, max_num_seqs=3)
    params = [SamplingParams(seed=s, max_tokens=18, logit_bias={EOS: -100.0}) for s in range(3)]
    ids = [engine.add_request([10 + s], q) for s, q in enumerate(params)]
    outputs, last = drain(engine)
    assert engine.scheduler.num_preemptions > 0
    for s, i in enumerate(ids):
        assert outputs[i] == reference([10 + s], params[s])
        assert last[i].usage.computed_tokens == 1
    assert_nothing_leaks(engine)


def test_a_conversation_computes_only_new_tokens():
    engine = make_engine()
    tokens, previous = [3, 4, 5], 0
    for turn in range(4):
        output, last = run_one(engine, tokens)
        assert output == reference(tokens, GREEDY)
        expected = 0 if turn == 0 else previous - 1
        assert last.usage.cached_tokens == expected
        assert last.usage.computed_tokens == len(tokens) - expected
        computed = sum(len(batch.token_ids) for batch in engine.backend.batches)
        assert computed == len(tokens) - expected + len(output) - 1
        engine.backend.batches.clear()
        tokens = tokens + output
        previous = len(tokens)
        tokens = [*tokens, 7, 8, 9]
    assert_nothing_leaks(engine)


def test_several_conversations_stay_alive():
    engine = make_engine(num_state_slots=8)
    chats = [[i, i + 1] for i in (10, 20, 30)]
    for _ in range(3):
        for i, tokens in enumerate(chats):
            output, last = run_one(engine, tokens)
            chats[i] = tokens + output + [40 + i]
            final = last.usage
            assert output == reference(tokens, GREEDY)
    assert final.cached_tokens > 0


def test_the_least_recently_used_conversation_gives_way():
    engine = make_engine(num_state_slots=2)
    a, _ = run_one(engine, [10, 11])
    b, _ = run_one(engine, [20, 21])
    run_one(engine, [30, 31])
    _, last = run_one(engine, [20, 21, *b, 5])
    assert last.usage.cached_tokens == 1 + len(b)
    _, last = run_one(engine, [10, 11, *a, 5])
    assert last.usage.cached_tokens == 0
    assert last.usage.cache_miss_reason == f"no state snapshot between tokens 0 and {len(a) + 1}"


def test_repeating_a_prompt_reuses_nothing_but_is_right():
    engine = make_engine()
    first, _ = run_one(engine, [1, 2, 3])
    second, last = run_one(engine, [1, 2, 3])
    assert first == second
    assert last.usage.cached_tokens == 0


def test_cancel_frees_at_once():
    engine = make_engine(max_num_seqs=1)
    running = engine.add_request([1] * 20, GREEDY)
    waiting = engine.add_request([2] * 20, GREEDY)
    engine.step()
    engine.cancel(waiting)
    engine.cancel(running)
    engine.cancel(running)
    assert not engine.has_work
    assert_nothing_leaks(engine)


def test_finish_early_keeps_the_cache():
    engine = make_engine()
    request = engine.add_request([1, 2, 3], GREEDY)
    (event,) = engine.step()
    engine.finish(request)
    _, last = run_one(engine, [1, 2, 3, event.token.token_id, 9])
    assert last.usage.cached_tokens == 3


def test_context_overflow_names_both_numbers_before_any_work():
    engine = make_engine(context=32)
    with pytest.raises(ContextOverflowError, match="prompt has 32 tokens, context is 32") as error:
        engine.add_request([1] * 32, GREEDY)
    assert "max-model-len" in error.value.hint
    assert not engine.has_work and not engine.backend.batches


def test_output_is_clamped_to_the_context():
    engine = make_engine(context=32)
    output, last = run_one(engine, [1] * 30, SamplingParams(max_tokens=500, seed=1, logit_bias={EOS: -100.0}))
    assert len(output) == 2
    assert last.token.finish_reason is FinishReason.LENGTH


def test_the_pool_bounds_the_context():
    assert make_engine(num_blocks=5, context=1024).max_model_len == 20


def test_stop_token_ids_end_with_stop():
    expected = reference([9], GREEDY)
    params = SamplingParams(temperature=0.0, max_tokens=12, stop_token_ids=(expected[3],))
    output, last = run_one(make_engine(), [9], params)
    assert output == expected[: expected.index(expected[3]) + 1]
    assert last.token.finish_reason is FinishReason.STOP


def test_without_a_seed_runs_differ():
    engine = make_engine()
    params = SamplingParams(max_tokens=30, logit_bias={EOS: -100.0})
    assert run_one(engine, [1, 2], params)[0] != run_one(engine, [1, 2], params)[0]


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], GREEDY, "the prompt is empty"),
        ([1, VOCAB], GREEDY, f"the prompt holds token {VOCAB}, allowed is 0 to {VOCAB - 1}"),
        ([-1], GREEDY, "the prompt holds token -1"),
        ([1], SamplingParams(logit_bias={999: 1.0}), "logit_bias holds token 999"),
    ],
)
def test_bad_requests_are_refused_by_value(prompt, params, message):
    engine = make_engine()
    with pytest.raises(UsageError, match=message):
        engine.add_request(prompt, params)
    assert not engine.has_work


def test_a_chunk_smaller_than_the_batch_is_refused():
    with pytest.raises(UsageError, match="prefill_chunk_tokens is 2, allowed is max_num_seqs = 4 or more"):
        make_engine(prefill_chunk_tokens=2)


def test_a_failing_backend_leaves_an_empty_engine():
    engine = make_engine()
    engine.backend.fail_at = 2
    engine.add_request([1] * 20, GREEDY)
    engine.step()
    with pytest.raises(RuntimeError, match="told to fail"):
        engine.step()
    assert_nothing_leaks(engine)
    assert run_one(engine, [1, 2])[0] == reference([1, 2], GREEDY)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=20), st.integers(1, 9)),
        st.tuples(st.just("continue"), st.integers(0, 9), st.integers(1, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("finish"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=120, deadline=None)
@given(actions=ACTIONS, num_blocks=st.integers(10, 30), slots=st.integers(1, 4), seqs=st.integers(1, 4))
def test_any_history_gives_the_right_text_and_leaks_nothing(actions, num_blocks, slots, seqs):
    engine = make_engine(num_blocks=num_blocks, num_state_slots=slots, max_num_seqs=seqs)
    prompts, params, outputs, ended = {}, {}, defaultdict(list), set()

    def add(prompt, seed):
        if len(prompt) < engine.max_model_len:
            p = SamplingParams(seed=seed, max_tokens=8)
            request = engine.add_request(prompt, p)
            prompts[request], params[request] = prompt, p

    def steps(n):
        for _ in range(n):
            for event in engine.step():
                outputs[event.request_id].append(event.token.token_id)

    for kind, value, number in actions:
        if kind == "add":
            add(value, number)
        elif kind == "step":
            steps(value)
        elif value in prompts:
            if kind == "continue":
                add([*prompts[value], *outputs[value], number], number)
            else:
                getattr(engine, kind)(value)
                ended.add(value)
    while engine.has_work:
        steps(1)
    for request, prompt in prompts.items():
        expected = reference(prompt, params[request], limit=engine.max_model_len - len(prompt))
        found = outputs[request]
        assert found == (expected[: len(found)] if request in ended else expected)
    assert_nothing_leaks(engine)
