"""The numpy references against formulas written out once more, on shapes where a mix-up cannot go unnoticed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sterna.config import RopeParameters, preset, read_model_config
from sterna.ops import tolerances
from sterna.ops.activations import sigmoid, silu, softmax, softplus
from sterna.ops.bfloat16 import from_bfloat16, to_bfloat16
from sterna.ops.causal_conv1d import causal_conv1d
from sterna.ops.embedding import embedding
from sterna.ops.gated_delta_rule import chunk_gated_delta_rule, gated_delta_rule
from sterna.ops.gqa_attention import causal_attention, gather_blocks
from sterna.ops.rms_norm import gated_rms_norm, l2_norm, rms_norm
from sterna.ops.rope import apply_rope, attention_factor, frequency_axes, inverse_frequencies, rope_cos_sin
from sterna.ops.sparse_moe import route
from support.golden import GOLDEN
from support.op_cases import delta_rule_case, relative_difference

RNG = np.random.default_rng(3)
TEXT = preset("qwen3.6-35b-a3b").text
YARN = RopeParameters(1e7, 0.25, (11, 11, 10), rope_type="yarn", factor=4.0, original_max_position_embeddings=262144)


@pytest.mark.parametrize("tokens", [1, 63, 65, 200])
def test_delta_rule_is_its_formula_for_every_head(tokens: int) -> None:
    case = delta_rule_case(tokens)
    out, final = gated_delta_rule(**case)
    group = case["v"].shape[1] // case["q"].shape[1]
    for head in range(case["v"].shape[1]):
        state = case["state"][head].T.copy()
        for t in range(tokens):
            q, k, v = case["q"][t, head // group], case["k"][t, head // group], case["v"][t, head]
            state = math.exp(case["g"][t, head]) * state
            state = state + np.outer(k, case["beta"][t, head] * (v - k @ state))
            np.testing.assert_allclose(out[t, head], q @ state, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(final[head], state.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 16, 64])
@pytest.mark.parametrize("tokens", [1, 63, 65, 1000])
def test_the_chunked_delta_rule_equals_the_recurrence(tokens: int, chunk_size: int) -> None:
    case = delta_rule_case(tokens)
    before = {name: value.copy() for name, value in case.items()}
    for got, expected in zip(
        chunk_gated_delta_rule(**case, chunk_size=chunk_size), gated_delta_rule(**case), strict=True
    ):
        assert relative_difference(got, expected) <= tolerances.FLOAT64_CHUNKED
    assert all(np.array_equal(case[name], value) for name, value in before.items())


def test_the_chunked_delta_rule_survives_strong_decay() -> None:
    case = delta_rule_case(130)
    case["g"] = case["g"] * 2000
    for got, expected in zip(chunk_gated_delta_rule(**case), gated_delta_rule(**case), strict=True):
        assert np.isfinite(got).all()
        assert relative_difference(got, expected) <= tolerances.FLOAT64_CHUNKED


@pytest.mark.parametrize("tokens", [1, 2, 3, 65])
def test_convolution_is_its_formula_and_keeps_the_last_inputs(tokens: int) -> None:
    x, weight, state = RNG.normal(size=(tokens, 5)), RNG.normal(size=(5, 4)), RNG.normal(size=(5, 3))
    y, new_state = causal_conv1d(x, weight, state)
    history = np.concatenate([state.T, x])
    for t in range(tokens):
        for c in range(5):
            assert y[t, c] == pytest.approx(silu(np.float64(sum(weight[c, j] * history[t + j, c] for j in range(4)))))
    assert np.array_equal(new_state, history[-3:].T)


def test_norms() -> None:
    x, weight, gate = RNG.normal(size=(3, 2, 8)), RNG.normal(size=8), RNG.normal(size=(3, 2, 8))
    unit = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(rms_norm(x, weight, 1e-6), unit * (1 + weight))
    np.testing.assert_allclose(gated_rms_norm(x, weight, gate, 1e-6), unit * weight * gate / (1 + np.exp(-gate)))
    np.testing.assert_allclose(l2_norm(x), x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6))
    assert not l2_norm(np.zeros((1, 1, 4))).any()


def test_activations_do_not_overflow() -> None:
    x = np.array([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(x).tolist()[0] == 0 and sigmoid(x).tolist()[-1] == 1
        assert softplus(x)[0] == 0 and softplus(x)[-1] == 1e4
    np.testing.assert_allclose(softplus(x[2:5].astype(float)), np.log1p(np.exp(x[2:5].astype(float))))
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4, -np.inf]])), [[0.5, 0.5, 0.0]])


def test_routing_ties_go_to_the_lower_id_and_shares_sum_to_one() -> None:
    chosen, shares = route(np.array([[1.0, 3.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0, 5.0]]), 2)
    assert chosen.tolist() == [[1, 2], [4, 0]]
    np.testing.assert_allclose(shares, [[0.5, 0.5], [1 / (1 + math.exp(-5)), 1 / (1 + math.exp(5))]])


def test_attention_is_its_formula_for_every_head() -> None:
    cached, tokens, heads, kv_heads, dim = 5, 3, 6, 2, 8
    q = RNG.normal(size=(tokens, heads, dim))
    keys, values = RNG.normal(size=(2, cached + tokens, kv_heads, dim))
    out = causal_attention(q, keys, values, cached)
    for t in range(tokens):
        for head in range(heads):
            visible = slice(0, cached + t + 1)
            scores = keys[visible, head // 3] @ q[t, head] / math.sqrt(dim)
            shares = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(out[t, head], shares @ values[visible, head // 3])


def test_blocks_are_gathered_in_table_order() -> None:
    cache = np.arange(5 * 4 * 1 * 2).reshape(5, 4, 1, 2)
    rows = gather_blocks(cache, np.array([3, 0, 4, -1]), 6)
    assert np.array_equal(rows, np.concatenate([cache[3], cache[0][:2]]))


def test_frequency_axes_of_the_official_sections() -> None:
    axes = frequency_axes((11, 11, 10))
    expected = [1 if i % 3 == 1 and i < 33 else 2 if i % 3 == 2 and i < 30 else 0 for i in range(32)]
    assert axes.tolist() == expected
    assert np.bincount(axes).tolist() == [11, 11, 10]


def test_rope_rotates_half_split_pairs_by_the_angle_of_their_axis() -> None:
    config = read_model_config(GOLDEN).text
    positions = np.array([[5, 100], [7, 2], [3, 50]], np.int32)
    cos, sin = rope_cos_sin(positions, config)
    x = RNG.normal(size=(2, 3, config.head_dim))
    rotated = apply_rope(x, cos, sin)
    axes = frequency_axes(config.rope_parameters.mrope_section)
    for t in range(2):
        for i in range(8):
            angle = positions[axes[i], t] * 1e7 ** (-i / 8)
            pair = complex(x[t, 1, i], x[t, 1, i + 8]) * complex(math.cos(angle), math.sin(angle))
            assert rotated[t, 1, i] == pytest.approx(pair.real, abs=1e-5)
            assert rotated[t, 1, i + 8] == pytest.approx(pair.imag, abs=1e-5)
    assert np.array_equal(rotated[..., 16:], x[..., 16:])


def test_yarn_frequencies_of_the_official_extension() -> None:
    base = inverse_frequencies(TEXT.rope_parameters, 64)
    scaled = inverse_frequencies(YARN, 64)
    np.testing.assert_allclose(base, 1e7 ** (-np.arange(32) / 32))
    ramp = np.clip((np.arange(32) - 14) / 8, 0, 1)
    np.testing.assert_allclose(scaled, base * (1 - ramp) + base / 4 * ramp, rtol=1e-12)
    assert np.array_equal(scaled[:15], base[:15])
    np.testing.assert_allclose(scaled[22:], base[22:] / 4)
    assert attention_factor(YARN) == pytest.approx(1.138629, abs=1e-6)
    assert attention_factor(TEXT.rope_parameters) == 1.0


def test_yarn_frequencies_of_the_reference() -> None:
    rope = RopeParameters(1e7, 0.5, (3, 3, 2), rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    with np.load(GOLDEN / "yarn.npz") as stored:
        ratio = inverse_frequencies(rope, 16) / stored["inv_freq"]
        assert np.abs(ratio - 1).max() <= tolerances.YARN_FREQUENCIES
        assert attention_factor(rope) == pytest.approx(float(stored["attention_factor"]))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80), (-2.0, 0xC000), (0.0, 0x0000), (-0.0, 0x8000), (np.inf, 0x7F80), (3.4e38, 0x7F80),
        (1 + 2**-8, 0x3F80), (1 + 3 * 2**-8, 0x3F82), (1 + 2**-8 + 2**-20, 0x3F81), (1e-40, 0x0001),
    ],
)  # fmt: skip
def test_bfloat16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert int(to_bfloat16(np.array([value], np.float32))[0]) == bits


def test_bfloat16_keeps_every_value_it_can_hold() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    numbers = every[~np.isnan(from_bfloat16(every))]
    assert np.array_equal(to_bfloat16(from_bfloat16(numbers)), numbers)
    assert np.isnan(from_bfloat16(to_bfloat16(np.array([np.nan, -np.nan], np.float32)))).all()
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(from_bfloat16(to_bfloat16(signalling))).all()


def test_embedding_refuses_ids_outside_the_table() -> None:
    table = RNG.normal(size=(4, 2))
    assert np.array_equal(embedding(np.array([3, 0], np.int32), table), table[[3, 0]])
    for bad in (-1, 4):
        with pytest.raises(IndexError, match="allowed is 0 to 3"):
            embedding(np.array([0, bad], np.int32), table)
