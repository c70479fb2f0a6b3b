"""The vision operations of every backend against the reference in float64, in shapes where swapped axes show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sterna import _native
from sterna.backends.native.opset import NativeOpSet
from sterna.backends.native.variants import variants
from sterna.backends.numpy.opset import NumpyOps
from sterna.backends.torch.opset import TorchOps
from sterna.ops import tolerances, vision
from sterna.ops.vision import AffineWeights, LayerNormWeights
from support.op_cases import random_matrix, relative_difference

HEADS, DIM = 3, 20
AVAILABLE = [variant["name"] for variant in variants(with_test_only=True) if variant["available"]]
OPSETS = {
    "torch": lambda: TorchOps(torch.device("cpu")),
    "numpy": NumpyOps,
    **{f"native-{name}": lambda name=name: NativeOpSet(variant=name) for name in AVAILABLE},
}


@pytest.fixture(params=sorted(OPSETS))
def ops(request: pytest.FixtureRequest) -> Any:
    _native.set_fill_nan(True)
    yield OPSETS[request.param]()
    _native.set_fill_nan(False)


def rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def assert_close(ops: Any, got: Any, expected: np.ndarray) -> None:
    assert relative_difference(ops.to_numpy(got), expected) <= tolerances.FLOAT32_OP


@pytest.mark.parametrize(("count", "width"), [(1, 1), (65, 15), (17, 1152)])
def test_layer_norm(ops: Any, count: int, width: int) -> None:
    x, weight, bias = 3 + rows(count, width), rows(1, width, 1)[0], rows(1, width, 2)[0]
    got = ops.layer_norm(ops.from_host(x), LayerNormWeights(ops.tensor(weight), ops.tensor(bias)), 1e-6)
    expected = vision.layer_norm(*(a.astype(np.float64) for a in (x, weight, bias)), 1e-6)
    assert_close(ops, got, expected)


@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("count", [1, 65])
def test_affine(ops: Any, count: int, activation: Any) -> None:
    x, weight, bias = 3 * rows(count, 37), random_matrix(np.random.default_rng(1), 29, 37), rows(1, 29, 2)[0]
    got = ops.affine(ops.from_host(x), AffineWeights(ops.pack_linear(weight), ops.tensor(bias)), activation)
    assert_close(ops, got, vision.affine(*(a.astype(np.float64) for a in (x, weight, bias)), activation))


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_activations_far_out(ops: Any, activation: Any) -> None:
    x = np.array([[-200, -20, -6, -1e-3, 0, 1e-3, 6, 20, 200]], np.float32)
    eye = AffineWeights(ops.pack_linear(np.eye(9, dtype=np.float32)), ops.tensor(np.zeros(9, np.float32)))
    got = ops.to_numpy(ops.affine(ops.from_host(x), eye, activation))
    expected = vision.affine(x.astype(np.float64), np.eye(9), np.zeros(9), activation)
    assert np.abs(got - expected).max() <= 1e-6 * 200
    assert np.abs(got - expected)[0, 3:6].max() <= 1e-9


# Fewer and more patches than the 60 queries and the 256 keys that the native kernel takes at a time.
@pytest.mark.parametrize(("frames", "grid"), [(1, (2, 2)), (3, (6, 10)), (2, (14, 20)), (1, (2, 130))])
def test_attention_stays_within_each_frame(ops: Any, frames: int, grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    rope = vision.rope_angles(*grid, merge=2, head_dim=DIM)
    qkv = 2 * rows(frames * patches, 3 * HEADS * DIM)
    got = ops.vision_attention(ops.from_host(qkv), rope, heads=HEADS, frame_patches=patches)
    expected = vision.vision_attention(qkv.astype(np.float64), rope, heads=HEADS, frame_patches=patches)
    assert_close(ops, got, expected)


def test_merge_rows(ops: Any) -> None:
    x = rows(12, 5)
    assert np.array_equal(ops.to_numpy(ops.merge_rows(ops.from_host(x), 4)), x.reshape(3, 20))


def test_a_frame_has_the_same_bits_alone_and_in_a_video() -> None:
    ops = NativeOpSet()
    rope = vision.rope_angles(6, 10, merge=2, head_dim=DIM)
    qkv = rows(180, 3 * HEADS * DIM)
    video = ops.vision_attention(ops.from_host(qkv), rope, heads=HEADS, frame_patches=60).numpy()
    alone = ops.vision_attention(ops.from_host(qkv[60:120]), rope, heads=HEADS, frame_patches=60).numpy()
    assert np.array_equal(video[60:120], alone)


def test_threads_do_not_change_bits() -> None:
    results = []
    for threads in (1, 2, 3):
        ops = NativeOpSet(num_threads=threads)
        rope = vision.rope_angles(14, 20, merge=2, head_dim=DIM)
        qkv = ops.from_host(rows(280, 3 * HEADS * DIM))
        results.append(ops.vision_attention(qkv, rope, heads=HEADS, frame_patches=280).numpy())
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_native_checks_shapes() -> None:
    ops = NativeOpSet()
    with pytest.raises(ValueError, match="columns of qkv is 10"):
        ops.vision_attention(ops.from_host(rows(4, 10)), rows(4, 2), heads=1, frame_patches=4)
    with pytest.raises(ValueError, match="whole frames"):
        ops.vision_attention(ops.from_host(rows(5, 12)), rows(4, 2), heads=1, frame_patches=4)
    with pytest.raises(ValueError, match="no activation relu"):
        eye = AffineWeights(ops.pack_linear(np.eye(3, dtype=np.float32)), ops.tensor(np.zeros(3, np.float32)))
        ops.affine(ops.from_host(rows(1, 3)), eye, "relu")  # type: ignore[arg-type]


# the reference itself ------------------------------------------------------------------------------------------------


def test_block_order() -> None:
    row, column = vision.block_order(4, 6, 2)
    assert list(zip(row.tolist(), column.tolist(), strict=True))[:6] == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]


def test_rope_angles_at_a_known_place() -> None:
    angles = vision.rope_angles(4, 6, merge=2, head_dim=72)
    # Patch 4 of the order is row 0, column 2.
    assert np.allclose(angles[4, :18], 0) and angles[4, 18] == 2 and angles.shape == (24, 36)
    assert angles[4, 19] == pytest.approx(2 * 10_000 ** (-2 / 36))


def test_position_embedding_is_exact_at_the_corners_and_between() -> None:
    table = rows(9, 5)
    whole = vision.position_embedding(table, 3, 3, 1)
    assert np.allclose(whole, table, atol=1e-6)
    finer = vision.position_embedding(table, 5, 5, 1).reshape(5, 5, 5)
    grid = table.reshape(3, 3, 5)
    assert np.allclose(finer[::2, ::2], grid, atol=1e-6)
    assert np.allclose(finer[1, 0], (grid[0, 0] + grid[1, 0]) / 2, atol=1e-6)
    assert np.allclose(vision.position_embedding(table, 1, 1, 1)[0], table[0])
