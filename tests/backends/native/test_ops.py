"""Each op of each variant that this machine can run, against its float64 oracle, on shapes that are all tails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from sterna.backends.native import NativeOpSet, variants
from sterna.backends.numpy.opset import NumpyOps
from sterna.checkpoint.random import RandomCheckpoint
from sterna.config import TextConfig
from sterna.models.weights import WeightLoader
from sterna.ops import tolerances
from sterna.ops.base import SparseMoeWeights, StepContext
from sterna.ops.bfloat16 import from_bfloat16, to_bfloat16
from support.odd_model import ODD, odd_config

AVAILABLE = [variant["name"] for variant in variants(with_test_only=True) if variant["available"]]
ROW_COUNTS = (1, 2, 5, 6, 7, 63, 131)
ORACLE = NumpyOps(np.float64)
RNG = np.random.default_rng(7)


@pytest.fixture(params=AVAILABLE)
def ops(request: pytest.FixtureRequest) -> NativeOpSet:
    return NativeOpSet(variant=request.param, kv_dtype="float32", num_threads=2)


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float = tolerances.FLOAT32_OP) -> None:
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


def rows(count: int, width: int) -> np.ndarray:
    return RNG.standard_normal((count, width)).astype(np.float32)


def store(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return to_bfloat16(values)
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 2), (33, 73), (150, 64), (5, 3)])
def test_linear_in_every_storage_type(ops: NativeOpSet, dtype: str, n: int, k: int) -> None:
    weight = store(rows(n, k), dtype)
    packed, expected = ops.pack_linear(weight), ORACLE.pack_linear(weight)
    for count in ROW_COUNTS:
        x = rows(count, k)
        assert_close(ops.to_numpy(ops.linear(ops.tensor(x), packed)), ORACLE.linear(x, expected))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_embedding_gives_the_stored_values(ops: NativeOpSet, dtype: str) -> None:
    table = store(rows(37, 19), dtype)
    ids = np.array([36, 0, 17, 17], np.int32)
    got = ops.to_numpy(ops.embedding(ids, ops.pack_linear(table)))
    assert np.array_equal(got, ORACLE.pack_linear(table)[ids].astype(np.float32))


def test_every_float16_value_is_read_exactly(ops: NativeOpSet) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits[np.isfinite(bits.view(np.float16))].view(np.float16)
    table = np.resize(values, (1024, values.size // 1024))
    got = ops.to_numpy(ops.embedding(np.arange(1024, dtype=np.int32), ops.pack_linear(table)))
    assert np.array_equal(got, table.astype(np.float32))
    one = ops.to_numpy(ops.linear(ops.tensor(np.ones((1, 1), np.float32)), ops.pack_linear(table.reshape(-1, 1))))
    assert np.array_equal(one[0], table.astype(np.float32).reshape(-1))


def test_norm_add_concat_and_rows(ops: NativeOpSet) -> None:
    for count in ROW_COUNTS:
        x, y, weight = rows(count, 45), rows(count, 45), rows(1, 45)[0]
        a, b = ops.tensor(x), ops.tensor(y)
        assert_close(ops.to_numpy(ops.rms_norm(a, ops.tensor(weight), 1e-6)), ORACLE.rms_norm(x, weight, 1e-6))
        assert np.array_equal(ops.to_numpy(ops.concat(a, b)), np.concatenate([x, y], 1))
        picked = np.array([count - 1, 0, 0], np.int32)
        assert np.array_equal(ops.to_numpy(ops.take_rows(a, picked)), x[picked])
        changed = ops.set_rows(ops.tensor(x), picked[:1], y[:1])
        assert np.array_equal(ops.to_numpy(changed), ORACLE.set_rows(x.copy(), picked[:1], y[:1]))
        assert np.array_equal(ops.to_numpy(ops.add(a, b)), x + y)


def layer_weights(kind: str, config: TextConfig, opset: Any, dtype: str = "BF16") -> Any:
    loader = WeightLoader(opset, RandomCheckpoint(replace(odd_config(), text=config), dtype=dtype), config)
    index = config.layer_types.index(kind)
    return loader.layer(f"model.language_model.layers.{index}", kind)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_sparse_moe_with_ragged_groups(ops: NativeOpSet, dtype: str) -> None:
    native, oracle = (layer_weights("linear_attention", ODD, opset, dtype).mlp for opset in (ops, ORACLE))
    for count in ROW_COUNTS:
        u = rows(count, ODD.hidden_size)
        assert_close(ops.to_numpy(ops.sparse_moe(ops.tensor(u), native, ODD)), ORACLE.sparse_moe(u, oracle, ODD))


def test_equal_router_logits_choose_the_lower_experts(ops: NativeOpSet) -> None:
    native, oracle = (layer_weights("linear_attention", ODD, opset).mlp for opset in (ops, ORACLE))
    flat = np.zeros((ODD.num_experts, ODD.hidden_size), np.float32)
    u = rows(4, ODD.hidden_size)
    expected = ORACLE.sparse_moe(u, with_gate(oracle, ORACLE.pack_linear(flat)), ODD)
    got = ops.sparse_moe(ops.tensor(u), with_gate(native, ops.pack_linear(flat)), ODD)
    assert_close(ops.to_numpy(got), expected)


def with_gate(weights: SparseMoeWeights, gate: Any) -> SparseMoeWeights:
    return SparseMoeWeights(**{f.name: gate if f.name == "gate" else getattr(weights, f.name) for f in fields(weights)})


def context_of(lengths: list[int], cached: list[int], *, block_size: int, blocks_each: int) -> StepContext:
    """Sequences with interleaved blocks, state slots from the end, rotary angles that differ per row."""
    count = len(lengths)
    tables = np.arange(count * blocks_each, dtype=np.int32).reshape(blocks_each, count).T.copy()
    slots = [
        tables[b, i // block_size] * block_size + i % block_size
        for b in range(count)
        for i in range(cached[b], cached[b] + lengths[b])
    ]
    angles = RNG.uniform(-3, 3, (sum(lengths), ODD.rotary_dim // 2))
    return StepContext(
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int32),
        context_lens=np.array(cached, np.int32),
        block_tables=tables,
        slot_mapping=np.array(slots, np.int32),
        state_slots=np.arange(count, 0, -1).astype(np.int32),
        snapshot_at=np.zeros((0, 2), np.int32),
        cos=np.cos(angles).astype(np.float32),
        sin=np.sin(angles).astype(np.float32),
    )


@pytest.mark.parametrize(("lengths", "cached"), [([1], [5]), ([63, 1, 7], [9, 40, 1]), ([130], [2])])
def test_gated_delta_net_from_a_state_with_snapshots(ops: NativeOpSet, lengths: list[int], cached: list[int]) -> None:
    native, oracle = (layer_weights("linear_attention", ODD, opset).mixer for opset in (ops, ORACLE))
    slots = 8
    context = context_of(lengths, cached, block_size=16, blocks_each=16)
    total = sum(lengths)
    context = replace(context, snapshot_at=np.array([[total - 1, 6], [0, 7], [total // 2, 5]], np.int32))
    states = [opset.allocate_state(slots, ODD) for opset in (ops, ORACLE)]
    for slot in range(slots):
        recurrent, conv = (rows(1, part.size).reshape(part.shape) for part in ORACLE.read_state(states[1], slot))
        for opset, state in zip((ops, ORACLE), states, strict=True):
            opset.write_state(state, slot, recurrent, conv)
    u = rows(total, ODD.hidden_size)
    got = ops.gated_delta_net(ops.tensor(u), native, states[0], ops.prepare(context), ODD)
    assert_close(ops.to_numpy(got), ORACLE.gated_delta_net(u, oracle, states[1], context, ODD))
    for slot in range(slots):
        for ours, theirs in zip(ops.read_state(states[0], slot), ORACLE.read_state(states[1], slot), strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("lengths", "cached"), [([1], [0]), ([1, 1], [255, 700]), ([63, 1, 70], [0, 256, 250]), ([300], [290])]
)
def test_attention_over_blocks_and_chunks(ops: NativeOpSet, lengths: list[int], cached: list[int]) -> None:
    native, oracle = (layer_weights("full_attention", ODD, opset).mixer for opset in (ops, ORACLE))
    context = context_of(lengths, cached, block_size=48, blocks_each=16)
    caches = [opset.allocate_kv(48, 48, ODD) for opset in (ops, ORACLE)]
    for block in range(48):
        data = rows(1, 2 * 48 * 2 * ODD.head_dim).reshape(2, 48, 2, ODD.head_dim)
        for opset, cache in zip((ops, ORACLE), caches, strict=True):
            opset.write_kv(cache, block, data)
    u = rows(sum(lengths), ODD.hidden_size)
    got = ops.gqa_attention(ops.tensor(u), native, caches[0], ops.prepare(context), ODD)
    assert_close(ops.to_numpy(got), ORACLE.gqa_attention(u, oracle, caches[1], context, ODD))
    for block in range(48):
        assert_close(ops.read_kv(caches[0], block), ORACLE.read_kv(caches[1], block))


def test_stale_not_a_number_behind_the_last_token_is_never_read(ops: NativeOpSet) -> None:
    native = layer_weights("full_attention", ODD, ops).mixer
    context = context_of([5], [18], block_size=16, blocks_each=2)
    results = []
    for stale in (0.0, np.nan):
        cache = ops.allocate_kv(2, 16, ODD)
        data = np.full((2, 2, 16, 2, ODD.head_dim), stale, np.float32)
        visible = np.random.default_rng(3).standard_normal((2, 18, 2, ODD.head_dim)).astype(np.float32)
        data[0], data[1, :, :2] = visible[:, :16], visible[:, 16:]
        for block in range(2):
            ops.write_kv(cache, block, data[block])
        u = np.random.default_rng(4).standard_normal((5, ODD.hidden_size)).astype(np.float32)
        results.append(ops.to_numpy(ops.gqa_attention(ops.tensor(u), native, cache, ops.prepare(context), ODD)))
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float32"])
def test_storage_is_lossless(kv_dtype: Any) -> None:
    ops = NativeOpSet(kv_dtype=kv_dtype)
    cache = ops.allocate_kv(3, 32, ODD)
    values = rows(1, 2 * 32 * 2 * ODD.head_dim).reshape(2, 32, 2, ODD.head_dim)
    data = to_bfloat16(values) if kv_dtype == "bfloat16" else values
    ops.write_kv(cache, 1, data)
    ops.copy_kv(cache, 1, 2)
    for block in (1, 2):
        assert np.array_equal(ops.read_kv(cache, block), data)
    assert not ops.read_kv(cache, 0).any()
    state = ops.allocate_state(3, ODD)
    recurrent, conv = (rows(1, part.size).reshape(part.shape) for part in ops.read_state(state, 0))
    ops.write_state(state, 1, recurrent, conv)
    ops.copy_state(state, 1, 2)
    assert all(map(np.array_equal, ops.read_state(state, 2), (recurrent, conv)))
    ops.copy_state(state, -1, 1)
    assert not any(part.any() for part in ops.read_state(state, 1))


def test_bfloat16_cache_rounds_before_its_own_row_reads(ops: NativeOpSet) -> None:
    rounding = NativeOpSet(variant=ops.variant, kv_dtype="bfloat16")
    native = layer_weights("full_attention", ODD, ops).mixer
    context = ops.prepare(context_of([40], [0], block_size=16, blocks_each=4))
    u = ops.tensor(rows(40, ODD.hidden_size))
    exact, rounded = ops.allocate_kv(4, 16, ODD), rounding.allocate_kv(4, 16, ODD)
    plain = ops.to_numpy(ops.gqa_attention(u, native, exact, context, ODD))
    first = rounding.to_numpy(rounding.gqa_attention(u, native, rounded, context, ODD))
    for block in range(4):
        expected = to_bfloat16(ops.read_kv(exact, block))
        assert np.array_equal(rounding.read_kv(rounded, block), expected)
        ops.write_kv(exact, block, from_bfloat16(expected))
    assert not np.array_equal(first, plain)
    assert_close(first, plain, 2e-2)


def refuses(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_shapes_are_refused_with_their_values() -> None:
    ops = NativeOpSet()
    x, weight = ops.tensor(rows(3, 8)), ops.pack_linear(rows(5, 9))
    refuses(lambda: ops.linear(x, weight), "columns of the weight is 9, expected is 8")
    refuses(lambda: ops.add(x, ops.tensor(rows(2, 8))), "rows of y is 2, expected is 3")
    refuses(lambda: ops.rms_norm(x, ops.tensor(rows(1, 7)[0]), 1e-6), "length of the norm weight is 7, expected is 8")
    refuses(lambda: ops.take_rows(x, np.array([3], np.int32)), "row is 3, allowed is 0 to 2")
    refuses(lambda: ops.embedding(np.array([5], np.int32), weight), "token id is 5, allowed is 0 to 4")
    refuses(lambda: ops.pack_linear(rows(2, 2).astype(np.float64)), "allowed are float32, float16 and uint16")
    cache = ops.allocate_kv(2, 16, ODD)
    refuses(lambda: ops.read_kv(cache, 2), "block is 2, allowed is 0 to 1")
    refuses(lambda: ops.copy_state(ops.allocate_state(2, ODD), 0, 2), "target slot is 2, allowed is 0 to 1")
    mixer = layer_weights("full_attention", ODD, ops).mixer
    context = ops.prepare(context_of([1], [40], block_size=16, blocks_each=3))
    u = ops.tensor(rows(1, ODD.hidden_size))
    refuses(lambda: ops.gqa_attention(u, mixer, cache, context, ODD), "slot_mapping is 40, allowed is 0 to 31")
