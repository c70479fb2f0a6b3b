"""Our own formats: the documented bytes, read by an independent loop, their error, and what kernels rely on."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from sterna.quant import FORMATS, tiles
from sterna.quant.tensor import QuantizedTensor

OURS = {"q4": (32, 4, 16), "q4_g64": (64, 4, 16), "q6": (32, 6, 4), "q8": (32, 8, 1)}
LARGEST_ERROR = {"q4": 0.088, "q4_g64": 0.109, "q6": 0.0225, "q8": 0.0077}


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.02 * random.standard_t(5, shape)).astype(np.float32)


def read_tile(name: str, data: bytes, k: int) -> np.ndarray:
    """One tile [16, K] by the words of the layout's description, value by value."""
    group, bits, fraction = OURS[name]
    groups, out = k // group, np.zeros((16, k), np.float64)
    rows = struct.unpack("<16f", data[:64])
    scales, zeros = data[64 : 64 + 16 * groups], data[64 + 16 * groups : 64 + 32 * groups]
    codes = data[64 + 16 * groups :] if bits == 8 else data[64 + 32 * groups :]
    for r in range(16):
        for column in range(k):
            g, c = divmod(column, group)
            code = scales[16 * g + r]
            scale = rows[r] * (16 + code % 16) * 2.0 ** (code // 16 - 19)
            if bits == 8:
                byte = codes[g * group * 16 + c // 4 * 64 + r * 4 + c % 4]
                out[r, column] = scale * (byte - 256 if byte > 127 else byte)
                continue
            half, rest = divmod(c, group // 2)
            nibble = codes[g * group * 8 + rest // 4 * 64 + r * 4 + rest % 4] >> 4 * half & 15
            if bits == 6:
                h, rest = divmod(c, 16)
                pairs = codes[8 * k :]
                nibble |= (pairs[g * 128 + h * 64 + r * 4 + rest % 4] >> 2 * (rest // 4) & 3) << 4
            out[r, column] = scale * (nibble - zeros[16 * g + r] / fraction)
    return out


@pytest.mark.parametrize("name", OURS)
def test_decoder_reads_the_documented_bytes(name: str) -> None:
    form, k = FORMATS[name], 128
    data = np.random.default_rng(2).integers(0, 256, form.nbytes((16, k)), dtype=np.uint8)
    data[:64] = np.linspace(-2, 3, 16, dtype="<f4").view(np.uint8)
    np.testing.assert_allclose(form.dequantize(data, (16, k)), read_tile(name, data.tobytes(), k), rtol=3e-7)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("shape", [(16, 128), (1, 64), (33, 192), (3, 20, 64)])
def test_round_trip_with_ragged_rows(name: str, shape: tuple[int, ...]) -> None:
    form, original = FORMATS[name], weights(*shape)
    data = form.quantize(original)
    assert data.size == form.nbytes(shape)
    decoded = form.dequantize(data, shape)
    error = np.sqrt(((decoded - original) ** 2).sum() / (original**2).sum())
    assert error < 1.2 * LARGEST_ERROR[name]


@pytest.mark.parametrize("name", OURS)
def test_error_on_heavy_tails(name: str) -> None:
    form, original = FORMATS[name], weights(64, 1024, seed=3) * np.exp(weights(64, 1, seed=4) * 25)
    decoded = form.dequantize(form.quantize(original), original.shape)
    error = np.sqrt(((decoded - original) ** 2).sum() / (original**2).sum())
    assert error < LARGEST_ERROR[name]


@pytest.mark.parametrize("name", ["q4", "q4_g64", "q6"])
def test_importance_moves_the_error_to_where_it_matters_less(name: str) -> None:
    form, original = FORMATS[name], weights(32, 512)
    importance = np.where(np.arange(512) % 4 == 0, 100.0, 1.0).astype(np.float32)
    plain = form.dequantize(form.quantize(original), original.shape)
    weighted = form.dequantize(form.quantize(original, importance), original.shape)
    assert (importance * (weighted - original) ** 2).sum() < 0.9 * (importance * (plain - original) ** 2).sum()


def test_q4_is_not_worse_than_q4_k_at_the_same_size() -> None:
    original = weights(64, 2048, seed=5)
    errors = {}
    for name in ("q4", "Q4_K"):
        form = FORMATS[name]
        errors[name] = ((form.dequantize(form.quantize(original), original.shape) - original) ** 2).sum()
    assert errors["q4"] <= errors["Q4_K"]
    assert FORMATS["q4"].nbytes((64, 2048)) <= 1.01 * FORMATS["Q4_K"].nbytes((64, 2048))


@pytest.mark.parametrize("name", OURS)
def test_extreme_rows(name: str) -> None:
    """Zero rows, constant rows, one huge weight among tiny ones, and groups of one sign far from zero stay in range."""
    form, original = FORMATS[name], np.zeros((16, 128), np.float32)
    original[1] = 3.0
    original[2] = 1e-3 * weights(128)
    original[2, 7] = 50.0
    original[3] = 10 + 0.1 * weights(128)
    original[4] = -original[3]
    original[5] = 1e-30 * weights(128)
    decoded = form.dequantize(form.quantize(original), original.shape)
    assert np.isfinite(decoded).all()
    assert not decoded[0].any()
    step = np.abs(original).max(axis=1) / (2 ** (OURS[name][1] - 1) - 1)
    assert (np.abs(decoded - original).max(axis=1) <= 1.1 * step).all()


def test_q8_never_writes_minus_128() -> None:
    original = weights(64, 512, seed=6)
    _, _, _, codes = tiles.split_tile(
        FORMATS["q8"].quantize(original).reshape(4, -1), group=32, code_bits=8, has_zero=False
    )
    assert codes.view(np.int8).min() >= -127
    assert codes.view(np.int8).max() == 127


def test_scale_codes_are_the_nearest() -> None:
    assert np.all(np.diff(tiles.SCALE_VALUES) > 0)
    assert np.array_equal(tiles.scale_codes(tiles.SCALE_VALUES), np.arange(256))
    relative = np.exp(np.random.default_rng(0).uniform(np.log(2.0**-15), np.log(1.93), 2000)).astype(np.float32)
    stored = tiles.SCALE_VALUES[tiles.scale_codes(relative)]
    assert np.abs(stored / relative - 1).max() <= 1 / 32


def test_rows_of_a_tensor() -> None:
    original = weights(40, 64)
    form = FORMATS["q4"]
    tensor = QuantizedTensor("x", form, original.shape, form.quantize(original))
    assert tensor.dtype == "q4"
    assert np.array_equal(tensor.rows(18, 37), tensor.to_float32()[18:37])
