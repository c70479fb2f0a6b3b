"""The sampler against brute-force definitions, its distribution, and its independence of everything but its inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.errors import BackendError, UsageError
from sterna.ops.sampling import Choice, gumbel_noise, philox4x32, probabilities, sample
from sterna.types import SamplingParams


def random_logits(seed: int, vocab: int = 50, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocab) * spread).astype(np.float32)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    assert philox4x32(np.array([counter], np.uint32), key=key)[0].tolist() == list(expected)


def brute_force(logits, params, prompt=(), output=()):
    """The documented order, one token at a time, in plain Python."""
    values = {i: float(x) for i, x in enumerate(logits)}
    for i, bias in params.logit_bias.items():
        values[i] += bias
    for i in set(prompt) | set(output):
        values[i] = values[i] / params.repetition_penalty if values[i] > 0 else values[i] * params.repetition_penalty
    for i in set(output):
        values[i] -= params.frequency_penalty * list(output).count(i) + params.presence_penalty
    ranked = sorted(((-x / params.temperature, i) for i, x in values.items()))
    if params.top_k:
        ranked = ranked[: params.top_k]
    weights = [(i, math.exp(ranked[0][0] - x)) for x, i in ranked]
    total = sum(w for _, w in weights)
    kept, cumulative = [], 0.0
    for i, w in weights:
        if params.top_p < 1.0 and cumulative >= params.top_p * total:
            break
        kept.append((i, w))
        cumulative += w
    kept = [(i, w) for i, w in kept if w >= params.min_p * kept[0][1]]
    total = sum(w for _, w in kept)
    return {i: w / total for i, w in kept}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 49, 500]),
    top_p=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.5]),
    presence=st.sampled_from([0.0, 1.5]),
    frequency=st.sampled_from([0.0, -0.7]),
    repetition=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_processors_match_their_definition(seed, temperature, top_k, top_p, min_p, presence, frequency, repetition):
    logits = random_logits(seed)
    prompt, output = [1, 2, 2, 3], [3, 4, 4, 4]
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, presence_penalty=presence,
        frequency_penalty=frequency, repetition_penalty=repetition, logit_bias={7: 1.5, 8: -3.0},
    )  # fmt: skip
    expected = brute_force(logits, params, prompt, output)
    found = probabilities(logits, params, prompt_ids=prompt, output_ids=output)
    assert found.keys() == expected.keys()
    for token_id, p in expected.items():
        assert found[token_id] == pytest.approx(p, rel=1e-9)


def test_nucleus_wider_than_the_first_guess_is_exact():
    logits = random_logits(3, vocab=5000, spread=0.1)
    params = SamplingParams(top_p=0.9)
    assert probabilities(logits, params).keys() == brute_force(logits, params).keys()
    assert len(probabilities(logits, params)) > 1024


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.7, top_k=12),
        SamplingParams(temperature=0.7, top_p=0.8, min_p=0.02),
    ],
)
def test_samples_follow_the_distribution(params):
    logits = random_logits(11, vocab=30, spread=1.0)
    expected = probabilities(logits, params)
    n = 6000
    counts = dict.fromkeys(expected, 0)
    for position in range(n):
        counts[sample(logits, params, seed=5, position=position).token_id] += 1
    chi2 = sum((counts[i] - n * p) ** 2 / (n * p) for i, p in expected.items())
    freedom = len(expected) - 1
    # Wilson-Hilferty: the 99.9 % quantile of chi-square
    bound = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi2 < bound


def test_seeds_and_positions_are_independent_draws():
    ids = np.arange(2000)
    noise = [gumbel_noise(ids, seed=s, position=p) for s, p in ((0, 0), (1, 0), (0, 1), (1 << 32, 0), (0, 1 << 32))]
    for i, a in enumerate(noise):
        assert a.mean() == pytest.approx(0.5772, abs=0.1)
        for b in noise[i + 1 :]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


def test_noise_of_a_token_does_not_depend_on_the_other_candidates():
    every = gumbel_noise(np.arange(1000), seed=9, position=77)
    some = gumbel_noise(np.array([3, 500, 999]), seed=9, position=77)
    assert some.tolist() == every[[3, 500, 999]].tolist()


def test_same_inputs_same_token_and_logits_untouched():
    logits = random_logits(2)
    before = logits.copy()
    params = SamplingParams(temperature=1.3, presence_penalty=1.0, logprobs=3)
    first = sample(logits, params, seed=4, position=10, output_ids=[1])
    assert first == sample(logits, params, seed=4, position=10, output_ids=[1])
    assert np.array_equal(before, logits)


def test_greedy_takes_the_lower_id_of_equals():
    assert sample(np.array([0, 3, 3, 1], np.float32), SamplingParams(temperature=0.0), seed=0, position=0).token_id == 1


def test_top_k_keeps_the_lower_ids_of_equals():
    assert probabilities(np.zeros(6, np.float32), SamplingParams(top_k=2)).keys() == {0, 1}


def test_presence_and_frequency_count_the_response_only_and_repetition_the_prompt_too():
    logits = np.array([2.0, 2.0, 2.0], np.float32)
    only_response = probabilities(logits, SamplingParams(presence_penalty=1.0), prompt_ids=[0], output_ids=[1, 1])
    assert only_response[0] == only_response[2] > only_response[1]
    per_use = probabilities(logits, SamplingParams(frequency_penalty=1.0), prompt_ids=[0], output_ids=[1, 1])
    assert math.log(per_use[0] / per_use[1]) == pytest.approx(2.0)
    both = probabilities(logits, SamplingParams(repetition_penalty=2.0), prompt_ids=[0], output_ids=[1])
    assert both[2] > both[0] == both[1]


def test_allowed_mask_wins_over_everything():
    logits = np.array([9.0, 0.0, 0.0], np.float32)
    allowed = np.array([False, False, True])
    for params in (SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=1, logit_bias={0: 50.0})):
        assert sample(logits, params, seed=0, position=0, allowed=allowed).token_id == 2


def test_logprobs_are_of_the_unprocessed_logits():
    logits = random_logits(8)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    choice = sample(logits, SamplingParams(temperature=0.0, logprobs=4, logit_bias={5: 100.0}), seed=0, position=0)
    assert choice.token_id == 5
    assert choice.logprob == pytest.approx(exact[5])
    assert [i for i, _ in choice.top_logprobs] == np.argsort(-exact, kind="stable")[:4].tolist()
    assert sample(logits, SamplingParams(temperature=0.0), seed=0, position=0) == Choice(int(np.argmax(logits)))
    assert sample(logits, SamplingParams(temperature=0.0, logprobs=0), seed=0, position=0).top_logprobs == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_invalid_logits_are_an_error(bad):
    logits = np.array([0.0, bad, 1.0], np.float32)
    with pytest.raises(BackendError, match="position 12 hold NaN or infinity"):
        sample(logits, SamplingParams(), seed=0, position=12)


def test_nothing_allowed_is_an_error():
    with pytest.raises(UsageError, match="no token is allowed at position 3"):
        sample(np.zeros(4, np.float32), SamplingParams(), seed=0, position=3, allowed=np.zeros(4, bool))


@pytest.mark.parametrize("token_id", [-1, 4])
def test_bias_on_a_token_that_does_not_exist_is_an_error(token_id):
    with pytest.raises(UsageError, match=f"names token {token_id}, allowed is 0 to 3"):
        sample(np.zeros(4, np.float32), SamplingParams(logit_bias={token_id: 1.0}), seed=0, position=0)
