"""Who computes when: streams beside long prompts, keys, priorities, cancellation in the middle of a pass."""

from __future__ import annotations

import pytest

from engine.test_engine import GREEDY, assert_nothing_leaks, drain, make_engine, reference
from sterna.engine.fairness import PATIENCE_TOKENS
from sterna.engine.long_pass import IDLE_SLICE_S, SLICE_PER_STEP, Pacer
from sterna.types import SamplingParams
from support.fake_backend import EOS

ENDLESS = SamplingParams(temperature=0.0, max_tokens=200, logit_bias={EOS: -100.0})


def prompt(length, first=1):
    return [first + i % 40 for i in range(length)]


def first_tokens(engine):
    """The order in which requests get their first tokens."""
    order = []
    while engine.has_work:
        for event in engine.step():
            if event.request_id not in order:
                order.append(event.request_id)
    return order


def test_a_stream_gets_a_token_after_every_slice_of_a_long_prompt():
    engine = make_engine(prefill_chunk_tokens=32)
    stream = engine.add_request([5, 6], ENDLESS)
    engine.step()
    long = engine.add_request(prompt(200), GREEDY)
    slices = 0
    while long not in (seen := [event.request_id for event in engine.step()]):
        assert seen == [stream]
        slices += 1
    # six chunks of four layers, a layer at a time; the last eight tokens ride along
    assert slices == 6 * 4
    sizes = [len(batch.token_ids) for batch in engine.backend.batches]
    assert sorted(set(sizes)) == [1, 2, 9, 32]


def test_a_short_prompt_rides_along():
    engine = make_engine(prefill_chunk_tokens=32)
    engine.add_request(prompt(200), GREEDY)
    engine.step()
    short = engine.add_request([7, 8, 9], GREEDY)
    assert [event.request_id for event in engine.step()] == [short]


def test_several_whole_prompts_share_a_long_pass():
    engine = make_engine(prefill_chunk_tokens=32, num_state_slots=16, max_num_seqs=4)
    for i in range(3):
        engine.add_request(prompt(15, first=1 + i), GREEDY)
    engine.step()
    assert [len(batch.token_ids) for batch in engine.backend.batches] == [15, 30]


@pytest.mark.parametrize("end", ["cancel", "finish"])
def test_ending_a_request_within_a_pass_frees_it_at_once_and_harms_no_other(end):
    engine = make_engine(num_blocks=100, prefill_chunk_tokens=160, num_state_slots=16)
    prompts = [prompt(70, first=1 + i) for i in range(2)]
    first, second = (engine.add_request(tokens, GREEDY) for tokens in prompts)
    engine.step()
    assert len(engine.long_pieces) == 2
    getattr(engine, end)(first)
    assert not engine.long_pieces
    audit = engine.cache.audit(engine.scheduler.running)
    assert (audit.lost_blocks, audit.lost_states, audit.used_blocks) == (0, 0, 0)
    outputs, _ = drain(engine)
    assert outputs[second] == reference(prompts[1], GREEDY)
    assert first not in outputs
    assert_nothing_leaks(engine)


def test_what_was_computed_before_a_cancelled_pass_is_not_computed_again():
    engine = make_engine(num_blocks=600, context=4096, prefill_chunk_tokens=512, snapshot_bytes=4)
    tokens = prompt(1500)
    request = engine.add_request(tokens, GREEDY)
    while engine.long_pieces == [] or engine.long_pieces[0].sequence.num_computed_tokens < 1024:
        engine.step()
    engine.cancel(request)
    again = engine.add_request(tokens, GREEDY)
    _, last = drain(engine)
    assert last[again].usage.cached_tokens == 1024


def test_a_change_inside_a_long_turn_replays_little():
    engine = make_engine(num_blocks=600, context=4096, prefill_chunk_tokens=512)
    tokens = prompt(2000)
    engine.add_request(tokens, GREEDY)
    drain(engine)
    request = engine.add_request([*tokens[:1900], 3, 3, 3], GREEDY)
    _, last = drain(engine)
    assert last[request].usage.cached_tokens == 1024


def test_lower_numbers_go_first():
    engine = make_engine(max_num_seqs=1)
    requests = [engine.add_request([10 + i], GREEDY, priority=p) for i, p in enumerate((1, 2, 0))]
    assert first_tokens(engine) == [requests[2], requests[0], requests[1]]


def test_an_urgent_request_displaces_and_the_other_goes_on_where_it_was():
    engine = make_engine(max_num_seqs=1)
    side = engine.add_request([10, 11], ENDLESS, priority=1)
    engine.step()
    outputs = []
    urgent = engine.add_request([20, 21], GREEDY)
    while engine.is_active(urgent):
        outputs += [event.request_id for event in engine.step()]
    assert set(outputs) == {urgent}
    computed = sum(len(batch.token_ids) for batch in engine.backend.batches)
    events, _ = drain(engine)
    assert len(events[side]) == 199
    assert sum(len(batch.token_ids) for batch in engine.backend.batches) == computed + 199


def test_waiting_makes_urgent():
    engine = make_engine(max_num_seqs=1)
    patient = engine.add_request([10], GREEDY, priority=1)
    engine.scheduler.fairness._total += PATIENCE_TOKENS
    urgent = engine.add_request([20], GREEDY)
    assert first_tokens(engine) == [patient, urgent]


def test_a_key_with_many_requests_does_not_hold_up_another():
    engine = make_engine(max_num_seqs=1)
    greedy = [engine.add_request([10 + i], GREEDY, namespace="many") for i in range(6)]
    other = engine.add_request([30], GREEDY, namespace="one")
    assert first_tokens(engine)[:2] == [greedy[0], other]


def test_long_prompts_of_two_keys_take_turns():
    engine = make_engine(num_blocks=400, prefill_chunk_tokens=32)
    engine.add_request(prompt(400), GREEDY, namespace="a")
    engine.step()
    second = engine.add_request(prompt(64), GREEDY, namespace="b")
    assert first_tokens(engine)[0] == second


def test_a_key_that_comes_back_has_saved_nothing_up():
    engine = make_engine(max_num_seqs=1)
    drain_one = engine.add_request([1], GREEDY, namespace="early")
    drain(engine)
    for i in range(5):
        engine.add_request([10 + i] * 30, GREEDY, namespace="busy")
        drain(engine)
    busy = [engine.add_request([40 + i], GREEDY, namespace="busy") for i in range(2)]
    early = [engine.add_request([50 + i], GREEDY, namespace="early") for i in range(2)]
    order = first_tokens(engine)
    assert set(order[:2]) == {busy[0], early[0]} and drain_one not in order


def test_images_of_one_size_are_told_apart():
    engine = make_engine()
    tokens = [1, 2, 9, 9, 9, 3, 4]
    keys = {2: -11, 3: -12, 4: -13}
    engine.add_request(tokens, GREEDY, content_keys=keys)
    drain(engine)
    same = engine.add_request([*tokens, 5], GREEDY, content_keys=keys)
    other = engine.add_request([*tokens, 5], GREEDY, content_keys={position: key - 9 for position, key in keys.items()})
    _, last = drain(engine)
    assert last[same].usage.cached_tokens == 7
    assert last[other].usage.cached_tokens == 0
    assert "at token 2" in last[other].usage.cache_miss_reason


def test_slices_follow_what_was_measured():
    pacer = Pacer()
    assert pacer.layers(beside_steps=True) == 1
    pacer.layers_took(2, 0.002)
    pacer.step_took(0.008)
    assert pacer.layers(beside_steps=True) == int(SLICE_PER_STEP * 8)
    assert pacer.layers(beside_steps=False) == int(IDLE_SLICE_S / 0.001)
