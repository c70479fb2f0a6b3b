"""Branching reuse: on the fake backend, whose logits depend on the true prefix and which checks every block and state."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.test_engine import GREEDY, assert_nothing_leaks, drain, make_engine, reference
from sterna.types import SamplingParams

SYSTEM = [7, 8, 9, 10, 11, 12]


def ask(engine, prompt, turn_starts=(), namespace="", max_tokens=3):
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    request = engine.add_request(prompt, params, turn_starts=turn_starts, namespace=namespace)
    outputs, last = drain(engine)
    assert outputs[request] == reference(prompt, params)
    return outputs[request], last[request].usage


def test_prompts_share_system_and_tools_and_compute_only_the_rest():
    engine = make_engine()
    ask(engine, [*SYSTEM, 20, 21, 22], [0, 6])
    _, usage = ask(engine, [*SYSTEM, 30, 31, 32], [0, 6])
    assert (usage.cached_tokens, usage.computed_tokens) == (6, 3)
    assert usage.cache_miss_reason == "differs from the cached prefix at token 6: cached 20, prompt 30"
    assert_nothing_leaks(engine)


def test_an_edited_turn_goes_on_from_its_start():
    engine = make_engine()
    first, turns = [*SYSTEM, 20, 21], [0, 6]
    output, _ = ask(engine, first, turns)
    second = [*first, *output, 30, 31, 32]
    turns = [*turns, len(first) + len(output)]
    ask(engine, second, turns)
    _, usage = ask(engine, [*second[:-2], 40, 41], turns)
    assert usage.cached_tokens == turns[-1]


def test_interleaved_contexts_lose_nothing():
    engine = make_engine(num_state_slots=24)
    chats = [[*SYSTEM, i] for i in (20, 30, 40)]
    for turn in range(3):
        for i, tokens in enumerate(chats):
            output, usage = ask(engine, tokens, [0, 6])
            assert usage.computed_tokens <= (7 if turn == 0 else 2)
            chats[i] = [*tokens, *output, 50 + i]


def test_a_prefix_in_progress_is_computed_once():
    engine = make_engine(prefill_chunk_tokens=8)
    common = [1 + i % 40 for i in range(30)]
    ids = [engine.add_request([*common, 50 + i], GREEDY) for i in range(3)]
    outputs, last = drain(engine)
    for i, request in enumerate(ids):
        assert outputs[request] == reference([*common, 50 + i], GREEDY)
    assert [last[request].usage.cached_tokens for request in ids] == [0, 30, 30]
    assert_nothing_leaks(engine)


def test_the_place_where_two_prompts_parted_is_remembered():
    engine = make_engine()
    for tail, expected in ((20, 0), (21, 0), (22, 10)):
        _, usage = ask(engine, [*range(1, 11), tail, tail])
        assert usage.cached_tokens == expected
    assert usage.cache_miss_reason.startswith("differs from the cached prefix at token 10")


def test_namespaces_see_nothing_of_each_other():
    engine = make_engine()
    ask(engine, [*SYSTEM, 20, 21], [0, 6], namespace="a")
    _, usage = ask(engine, [*SYSTEM, 20, 21], [0, 6], namespace="b")
    assert usage.cached_tokens == 0
    assert usage.cache_miss_reason == "nothing was cached yet"
    assert ask(engine, [*SYSTEM, 20, 21], [0, 6], namespace="a")[1].cached_tokens == 6


def test_eviction_is_told():
    engine = make_engine(num_blocks=8)
    ask(engine, [*SYSTEM, 20, 21, 22, 23, 24, 25], [0, 6])
    ask(engine, [30 + i % 20 for i in range(24)])
    _, usage = ask(engine, [*SYSTEM, 20, 21, 22, 23, 24, 25], [0, 6])
    assert "evicted to stay within the budget" in usage.cache_miss_reason


@pytest.mark.parametrize("budget", [0, 2])
def test_snapshots_stay_within_their_bytes(budget):
    engine = make_engine(snapshot_bytes=budget)
    for tail in range(20, 26):
        ask(engine, [*SYSTEM, tail, tail], [0, 6])
        assert engine.cache.prefixes.num_snapshots <= budget
    assert_nothing_leaks(engine)


def test_the_context_never_exceeds_the_model():
    assert make_engine(num_blocks=100, context=64, max_model_len=4096).max_model_len == 64


TREES = st.lists(st.integers(1, 3), min_size=1, max_size=24)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), TREES, st.integers(1, 9), st.sets(st.integers(0, 23), max_size=4)),
        st.tuples(st.just("continue"), st.integers(0, 9), st.integers(1, 9), st.sets(st.integers(0, 23), max_size=4)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0), st.just(set())),
        st.tuples(st.just("finish"), st.integers(0, 9), st.just(0), st.just(set())),
        st.tuples(st.just("step"), st.integers(1, 6), st.just(0), st.just(set())),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(
    actions=ACTIONS, num_blocks=st.integers(8, 40), slots=st.integers(1, 9), seqs=st.integers(1, 4),
    budget=st.integers(0, 9),
)  # fmt: skip
def test_any_branching_history_gives_the_right_text_and_leaks_nothing(actions, num_blocks, slots, seqs, budget):
    engine = make_engine(num_blocks=num_blocks, num_state_slots=slots, max_num_seqs=seqs, snapshot_bytes=budget)
    prompts, params, outputs, ended = {}, {}, defaultdict(list), set()

    def add(prompt, seed, turns):
        if len(prompt) < engine.max_model_len:
            p = SamplingParams(seed=seed, max_tokens=6)
            request = engine.add_request(prompt, p, turn_starts=sorted(turns), namespace="ab"[seed % 2])
            prompts[request], params[request] = prompt, p

    def steps(n):
        for _ in range(n):
            for event in engine.step():
                outputs[event.request_id].append(event.token.token_id)

    for kind, value, number, turns in actions:
        if kind == "add":
            add(value, number, turns)
        elif kind == "step":
            steps(value)
        elif value in prompts:
            if kind == "continue":
                add([*prompts[value], *outputs[value], number], number, turns)
            else:
                getattr(engine, kind)(value)
                ended.add(value)
    for _ in range(2000):
        if not engine.has_work:
            break
        steps(1)
    assert not engine.has_work
    for request, prompt in prompts.items():
        expected = reference(prompt, params[request], limit=engine.max_model_len - len(prompt))
        found = outputs[request]
        assert found == (expected[: len(found)] if request in ended else expected)
    assert_nothing_leaks(engine)
