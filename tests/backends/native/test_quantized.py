"""Quantised products of each variant against the numpy decoders, and equality of bits for any batch and number of threads."""

from __future__ import annotations

import mmap
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sterna import _native
from sterna.backends.native import NativeOpSet, variants
from sterna.backends.native.opset import QUANTIZED_FORMATS
from sterna.backends.numpy.opset import NumpyOps
from sterna.errors import BackendError
from sterna.ops.base import SparseMoeWeights
from sterna.quant import FORMATS
from sterna.quant.tensor import QuantizedTensor
from support.odd_model import odd_config

AVAILABLE = [variant["name"] for variant in variants(with_test_only=True) if variant["available"]]
KERNEL_FORMATS = tuple(QUANTIZED_FORMATS)
# Where formats that we cannot write keep their float16 scale.
READ_ONLY = {"Q3_K": 108, "IQ4_XS": 0}
# Rows beyond whole tiles; 24 groups are one chunk of unpacked groups and half of another.
SHAPES = ((1, 256), (16, 512), (33, 768))
ROW_COUNTS = (2, 5, 6, 7, 13, 97, 131)
GROUP = 32
ROUTERS = (("gate", 5), ("shared_expert_gate", 1))


@pytest.fixture(params=AVAILABLE)
def ops(request: pytest.FixtureRequest) -> NativeOpSet:
    return NativeOpSet(variant=request.param, num_threads=2)


@cache
def activations(k: int) -> np.ndarray:
    """Rows of very different size, a group of zeros among them."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((max(ROW_COUNTS), k)) * rng.lognormal(0, 2, (max(ROW_COUNTS), 1))
    x[1, GROUP : 2 * GROUP] = 0
    return x.astype(np.float32)


@cache
def quantized(form: str, shape: tuple[int, ...]) -> QuantizedTensor:
    """Heavy-tailed weights in a format."""
    rng = np.random.default_rng(len(form) + sum(shape))
    if form in READ_ONLY:
        data = rng.integers(0, 256, FORMATS[form].nbytes(shape)).astype(np.uint8)
        blocks, at = data.reshape(-1, FORMATS[form].block_bytes), READ_ONLY[form]
        scales = rng.lognormal(-4, 1, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
        return QuantizedTensor("w", FORMATS[form], shape, data)
    weights = rng.standard_t(4, shape).astype(np.float32)
    return QuantizedTensor("w", FORMATS[form], shape, FORMATS[form].quantize(weights))


def rounded(x: np.ndarray) -> np.ndarray:
    """What the kernels make of activations: int8 times a float32 scale per group of 32, as float64."""
    groups = x.reshape(*x.shape[:-1], -1, GROUP)
    largest = np.abs(groups).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.rint(groups * inverse)
    return (codes.astype(np.float64) * (largest / np.float32(127))).reshape(x.shape)


def close(got: np.ndarray, expected: np.ndarray, sizes: np.ndarray) -> bool:
    """Within float32 rounding of the sum of absolute products, element by element."""
    return bool((np.abs(got - expected) <= 3e-6 * sizes + 1e-30).all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", KERNEL_FORMATS)
def test_linear_against_the_decoder_and_rows_alone_against_batches(
    ops: NativeOpSet, form: str, shape: tuple[int, int]
) -> None:
    weight, x = quantized(form, shape), activations(shape[1])
    packed, decoded = ops.pack_linear(weight), weight.to_float32().astype(np.float64)
    alone = np.concatenate([ops.to_numpy(ops.linear(ops.tensor(row[None]), packed)) for row in x])
    inputs = rounded(x)
    assert close(alone, inputs @ decoded.T, np.abs(inputs) @ np.abs(decoded).T)
    for count in ROW_COUNTS:
        _native.set_num_threads(1 + count % 3)
        assert np.array_equal(ops.to_numpy(ops.linear(ops.tensor(x[:count]), packed)), alone[:count])


@pytest.mark.parametrize("form", KERNEL_FORMATS)
def test_embedding_gives_the_decoded_values(ops: NativeOpSet, form: str) -> None:
    weight = quantized(form, (33, 768))
    ids = np.array([32, 0, 17, 17], np.int32)
    assert np.array_equal(ops.to_numpy(ops.embedding(ids, ops.pack_linear(weight))), weight.to_float32()[ids])


@pytest.mark.parametrize("form", ["q4", "q6", "q8", "Q8_0"])
def test_largest_codes_and_activations_do_not_saturate(ops: NativeOpSet, form: str) -> None:
    data = quantized(form, (16, 256)).data.copy()
    groups = 256 // GROUP
    # Codes only: every scale stays as it is. -128 is legal in GGUF Q8_0.
    if form == "Q8_0":
        data.reshape(-1, 34)[:, 2:] = 128
    else:
        data[64 + 16 * groups * (1 if form == "q8" else 2) :] = 129 if form == "q8" else 255
    weight = QuantizedTensor("w", FORMATS[form], (16, 256), data)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (3, 256))
    x = np.concatenate([np.ones((1, 256)), -np.ones((1, 256)), signs]).astype(np.float32)
    got = ops.to_numpy(ops.linear(ops.tensor(x), ops.pack_linear(weight)))
    decoded = weight.to_float32().astype(np.float64)
    assert close(got, rounded(x) @ decoded.T, np.abs(x) @ np.abs(decoded).T)


def test_mapped_tiles_are_used_where_they_lie(ops: NativeOpSet, tmp_path: Path) -> None:
    weight, x = quantized("q4", (33, 768)), activations(768)[:3]
    (tmp_path / "tiles").write_bytes(weight.data.tobytes())
    with (tmp_path / "tiles").open("rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    packed = ops.pack_linear(QuantizedTensor("w", weight.format, weight.shape, mapped))
    references = sys.getrefcount(mapped)
    expected = ops.to_numpy(ops.linear(ops.tensor(x), ops.pack_linear(weight)))
    assert np.array_equal(ops.to_numpy(ops.linear(ops.tensor(x), packed)), expected)
    del packed
    assert sys.getrefcount(mapped) < references


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_reach_the_output(ops: NativeOpSet, bad: float) -> None:
    x = activations(256)[:3].copy()
    x[1, 40] = bad
    got = ops.to_numpy(ops.linear(ops.tensor(x), ops.pack_linear(quantized("q4", (16, 256)))))
    assert np.isfinite(got[[0, 2]]).all()
    assert np.isnan(got[1]).all()


@pytest.mark.parametrize(("up", "down"), [("q4", "q6"), ("Q4_K", "Q6_K"), ("q8", "Q8_0")])
def test_sparse_moe_with_formats_that_differ(ops: NativeOpSet, up: str, down: str) -> None:
    config = odd_config(
        hidden_size=256, moe_intermediate_size=256, shared_expert_intermediate_size=256, num_experts=5
    ).text
    tensors = {
        "gate_up_proj": quantized(up, (5, 512, 256)),
        "down_proj": quantized(down, (5, 256, 256)),
        "shared_gate_proj": quantized(up, (256, 256)),
        "shared_up_proj": quantized(up, (256, 256)),
        "shared_down_proj": quantized(down, (256, 256)),
    }
    floats = {name: np.random.default_rng(3).standard_normal((n, 256)).astype(np.float32) for name, n in ROUTERS}

    def weights(opset: NativeOpSet | NumpyOps, exact: bool) -> SparseMoeWeights:
        stored = {name: tensor.to_float32() if exact else tensor for name, tensor in tensors.items()}
        experts = opset.pack_experts(stored.pop("gate_up_proj"), stored.pop("down_proj"))
        packed = {name: opset.pack_linear(each) for name, each in (stored | floats).items()}
        return SparseMoeWeights(experts=experts, **packed)

    u = np.random.default_rng(5).standard_normal((37, 256)).astype(np.float32) * np.float32(0.01)
    native = weights(ops, exact=False)
    got = ops.to_numpy(ops.sparse_moe(ops.tensor(u), native, config))
    alone = [ops.to_numpy(ops.sparse_moe(ops.tensor(row[None]), native, config)) for row in u]
    assert np.array_equal(np.concatenate(alone), got)
    oracle = NumpyOps(np.float64)
    expected = oracle.sparse_moe(u, weights(oracle, exact=True), config)
    # Activations in int8 twice in a row: about one percent.
    assert np.linalg.norm(got - expected) <= 0.02 * np.linalg.norm(expected)


def test_a_format_without_kernels_and_wrong_sizes_are_refused() -> None:
    ops = NativeOpSet(variant="generic")
    other = QuantizedTensor("w", replace(FORMATS["Q3_K"], name="Q2_K"), (2, 256), np.zeros(220, np.uint8))
    with pytest.raises(BackendError, match="no kernels for Q2_K"):
        ops.pack_linear(other)
    whole = quantized("q4", (16, 256))
    cut = QuantizedTensor("w", whole.format, whole.shape, whole.data[:-1])
    with pytest.raises(ValueError, match="bytes of a quantised tensor"):
        ops.pack_linear(cut)
