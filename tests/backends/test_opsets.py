"""Every op set against the numpy oracle in float64, on shapes that differ in every dimension, from non-zero states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sterna.backends.numpy.opset import NumpyOps
from sterna.ops import tolerances
from sterna.ops.base import OpSet
from sterna.ops.bfloat16 import to_bfloat16
from support.golden import BACKENDS
from support.op_cases import (
    BLOCK_SIZE,
    CONFIG,
    attention_weights,
    delta_net_weights,
    moe_weights,
    random_matrix,
    relative_difference,
    step_context,
)

ORACLE = NumpyOps(np.float64)
NUM_BLOCKS = 600


@pytest.fixture(params=BACKENDS, scope="module")
def ops(request: pytest.FixtureRequest) -> OpSet:
    return BACKENDS[request.param]().ops


def rows(tokens: int, width: int = CONFIG.hidden_size, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tokens, width)).astype(np.float32)


def hidden(ops: OpSet, tokens: int) -> object:
    """Rows as the op set's own tensor, by way of its embedding."""
    return ops.embedding(np.arange(tokens, dtype=np.int32), ops.pack_linear(rows(tokens)))


def assert_same(ops: OpSet, compute: Callable[[OpSet], list[object]]) -> None:
    for got, expected in zip(compute(ops), compute(ORACLE), strict=True):
        host = [x if isinstance(x, np.ndarray) else each.to_numpy(x) for x, each in ((got, ops), (expected, ORACLE))]
        assert relative_difference(*host) <= tolerances.FLOAT32_OP


@pytest.mark.parametrize("tokens", [1, 65])
def test_row_operations(ops: OpSet, tokens: int) -> None:
    last = np.array([tokens - 1, 0], np.int32)

    def compute(each: OpSet) -> list[object]:
        x = hidden(each, tokens)
        y = each.rms_norm(x, each.tensor(rows(1)[0]), 1e-6)
        doubled = each.linear(each.concat(y, x), each.pack_linear(random_matrix(np.random.default_rng(5), 9, 48)))
        replaced = each.set_rows(hidden(each, tokens), last[:1], rows(1, seed=8))
        return [y, doubled, each.take_rows(y, last), replaced, each.add(hidden(each, tokens), y)]

    assert_same(ops, compute)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.uint16])
def test_weights_in_every_storage_type(ops: OpSet, kind: type) -> None:
    matrix = random_matrix(np.random.default_rng(4), 33, CONFIG.hidden_size)
    stored = to_bfloat16(matrix) if kind is np.uint16 else matrix.astype(kind)

    def compute(each: OpSet) -> list[object]:
        weight = each.pack_linear(stored)
        return [each.linear(hidden(each, 5), weight), each.embedding(np.array([32, 0, 7], np.int32), weight)]

    assert_same(ops, compute)


@pytest.mark.parametrize("tokens", [1, 63, 65, 300])
def test_sparse_moe(ops: OpSet, tokens: int) -> None:
    assert_same(ops, lambda each: [each.sparse_moe(hidden(each, tokens), moe_weights(each), CONFIG)])


@pytest.mark.parametrize("lengths", [[1], [63], [65, 1, 4], [2, 1000]])
def test_gated_delta_net(ops: OpSet, lengths: list[int]) -> None:
    rng = np.random.default_rng(6)
    heads, value, key = CONFIG.linear_num_value_heads, CONFIG.linear_value_head_dim, CONFIG.linear_key_head_dim
    states = rng.normal(size=(8, heads, value, key)).astype(np.float32)
    convs = rng.normal(size=(8, CONFIG.conv_dim, CONFIG.linear_conv_kernel_dim - 1)).astype(np.float32)
    slots = [5, 0, 3][: len(lengths)]
    snapshots = [(0, 6), (sum(lengths) - 1, 7)]

    def compute(each: OpSet) -> list[object]:
        state = each.allocate_state(8, CONFIG)
        for slot in range(8):
            each.write_state(state, slot, states[slot], convs[slot])
        context = step_context(each, lengths, [9] * len(lengths), slots, snapshots)
        out = each.gated_delta_net(hidden(each, sum(lengths)), delta_net_weights(each), state, context, CONFIG)
        return [out, *(part for slot in range(8) for part in each.read_state(state, slot))]

    assert_same(ops, compute)


@pytest.mark.parametrize(
    ("lengths", "cached"), [([1], [0]), ([63], [0]), ([65, 1, 4], [3, 70, 0]), ([2, 1000], [15, 16])]
)
def test_gqa_attention(ops: OpSet, lengths: list[int], cached: list[int]) -> None:
    rng = np.random.default_rng(7)
    shape = (NUM_BLOCKS, 2, BLOCK_SIZE, CONFIG.num_key_value_heads, CONFIG.head_dim)
    stored = rng.normal(size=shape).astype(np.float32)
    used = [*range(30), 299]

    def compute(each: OpSet) -> list[object]:
        cache = each.allocate_kv(NUM_BLOCKS, BLOCK_SIZE, CONFIG)
        for block in range(300):
            each.write_kv(cache, block, stored[block].astype(each.read_kv(cache, block).dtype))
        context = step_context(each, lengths, cached, [0] * len(lengths))
        out = each.gqa_attention(hidden(each, sum(lengths)), attention_weights(each), cache, context, CONFIG)
        return [out, *(each.read_kv(cache, block) for block in used)]

    assert_same(ops, compute)


def test_storage_round_trips_are_lossless(ops: OpSet) -> None:
    rng = np.random.default_rng(9)
    state, cache = ops.allocate_state(3, CONFIG), ops.allocate_kv(3, BLOCK_SIZE, CONFIG)
    zero = [part.copy() for part in ops.read_state(state, 0)]
    assert not any(part.any() for part in zero)
    parts = [rng.normal(size=part.shape).astype(np.float32) for part in zero]
    ops.write_state(state, 1, *parts)
    ops.copy_state(state, 1, 2)
    ops.copy_state(state, -1, 1)
    assert all(map(np.array_equal, ops.read_state(state, 2), parts))
    assert all(map(np.array_equal, ops.read_state(state, 1), zero))
    assert all(map(np.array_equal, ops.read_state(state, 0), zero))

    empty = ops.read_kv(cache, 0).copy()
    assert not empty.any()
    block = rng.normal(size=empty.shape).astype(np.float32).astype(empty.dtype)
    ops.write_kv(cache, 1, block)
    ops.copy_kv(cache, 1, 2)
    assert np.array_equal(ops.read_kv(cache, 2), block)
    assert np.array_equal(ops.read_kv(cache, 0), empty)
