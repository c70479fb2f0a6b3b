"""GGUF formats against the ``gguf`` package: every byte pattern decodes to the same bits, and what we write it can read."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from sterna.errors import CheckpointError, UsageError
from sterna.quant import FORMATS, GGML_TYPES

NAMES = ["F32", "F16", "BF16", "Q4_0", "Q8_0", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "MXFP4"]
WRITTEN_BY_BOTH = ["F16", "BF16", "Q4_0", "Q8_0", "MXFP4"]
# Relative error on weights of Student's t with 5 degrees of freedom; each bound is a tenth above what the search reaches.
LARGEST_ERROR = {"Q4_0": 0.120, "Q8_0": 0.0077, "Q4_K": 0.093, "Q5_K": 0.047, "Q6_K": 0.0245, "MXFP4": 0.14}


def heavy_tailed(rows: int, k: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    spread = np.exp(0.5 * random.standard_normal((rows, 1)))
    return (0.02 * spread * random.standard_t(5, (rows, k))).astype(np.float32)


def relative_error(weights: np.ndarray, decoded: np.ndarray) -> float:
    return float(np.sqrt(((weights - decoded) ** 2).sum() / (weights**2).sum()))


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_decode_like_the_reference(name: str) -> None:
    form = FORMATS[name]
    data = np.random.default_rng(1).integers(0, 256, (512, 2048 // form.block_size * form.block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(data, GGMLQuantizationType(form.ggml_type))
    decoded = form.dequantize(data, (512, 2048))
    assert np.isfinite(decoded).mean() > 0.5
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("name", WRITTEN_BY_BOTH)
def test_writes_the_same_bytes_as_the_reference(name: str) -> None:
    form, weights = FORMATS[name], heavy_tailed(64, 1024)
    weights[3, 64:128] = 0
    expected = quants.quantize(weights, GGMLQuantizationType(form.ggml_type))
    assert np.array_equal(form.quantize(weights), np.ascontiguousarray(expected).view(np.uint8).reshape(-1))


@pytest.mark.parametrize("name", LARGEST_ERROR)
def test_round_trip_error(name: str) -> None:
    form, weights = FORMATS[name], heavy_tailed(64, 1024)
    decoded = form.dequantize(form.quantize(weights), weights.shape)
    assert relative_error(weights, decoded) < LARGEST_ERROR[name]


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_importance_moves_the_error_to_where_it_matters_less(name: str) -> None:
    form, weights = FORMATS[name], heavy_tailed(64, 1024)
    importance = np.where(np.arange(1024) % 4 == 0, 100.0, 1.0).astype(np.float32)
    plain = form.dequantize(form.quantize(weights), weights.shape)
    weighted = form.dequantize(form.quantize(weights, importance), weights.shape)
    assert (importance * (weighted - weights) ** 2).sum() < 0.9 * (importance * (plain - weights) ** 2).sum()


@pytest.mark.parametrize("name", [name for name in NAMES if FORMATS[name].encode])
def test_zero_and_constant_blocks(name: str) -> None:
    form = FORMATS[name]
    assert not form.dequantize(form.quantize(np.zeros((2, 256), np.float32)), (2, 256)).any()
    constant = np.full((1, 256), -0.75, np.float32)
    np.testing.assert_allclose(form.dequantize(form.quantize(constant), constant.shape), constant, rtol=0.02)


def test_every_number_is_the_reference_number() -> None:
    assert {number: form.name for number, form in GGML_TYPES.items()} == {
        number: GGMLQuantizationType(number).name for number in GGML_TYPES
    }


def test_errors_name_the_values() -> None:
    with pytest.raises(UsageError, match="multiple of 256, got 128"):
        FORMATS["Q4_K"].nbytes((4, 128))
    with pytest.raises(CheckpointError, match="takes 144 bytes, got 143"):
        FORMATS["Q4_K"].dequantize(np.zeros(143, np.uint8), (1, 256))
    with pytest.raises(UsageError, match="IQ4_XS can be read but not written"):
        FORMATS["IQ4_XS"].quantize(np.zeros((1, 256), np.float32))
    with pytest.raises(UsageError, match="infinity or NaN"):
        FORMATS["Q8_0"].quantize(np.full((1, 32), np.nan, np.float32))
    with pytest.raises(UsageError, match="importance must be"):
        FORMATS["Q4_K"].quantize(np.ones((1, 256), np.float32), np.zeros(256, np.float32))
