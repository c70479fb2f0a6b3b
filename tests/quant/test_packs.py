"""Safetensors packs: each decoder against a packer written here from the description, value by value."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.errors import CheckpointError
from sterna.quant import awq, compressed_tensors, fp8, gptq, nvfp4
from sterna.quant.floats import E2M1, E4M3, bf16_to_float32, float32_to_bf16, float32_to_e4m3

N, K, G = 24, 64, 4


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def words(nibbles: np.ndarray) -> np.ndarray:
    """[..., 8] codes to int32 [...], the first in the lowest bits."""
    value = sum(nibbles[..., i].astype(np.uint32) << np.uint32(4 * i) for i in range(8))
    return np.asarray(value).astype(np.uint32).view(np.int32)


def expected_int4(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    out = np.zeros(codes.shape, np.float32)
    for n in range(codes.shape[0]):
        for k in range(codes.shape[1]):
            g = group_of[k]
            out[n, k] = scales[n, g] * (float(codes[n, k]) - float(zeros[n, g]))
    return out


def integers(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    codes = random.integers(0, 16, (N, K), dtype=np.uint8)
    zeros = random.integers(1, 16, (N, G), dtype=np.uint8)
    return codes, zeros, random.random((N, G), np.float32).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq(random: np.random.Generator, checkpoint_format: str, ordered: bool) -> None:
    codes, zeros, scales = integers(random)
    group_of = random.permutation(np.repeat(np.arange(G), K // G)) if ordered else np.repeat(np.arange(G), K // G)
    stored = zeros - 1 if checkpoint_format == "gptq" else zeros
    packed = gptq.assemble(
        words(codes.T.reshape(K // 8, 8, N).transpose(0, 2, 1)),
        words(stored.T.reshape(G, N // 8, 8)),
        scales.T,
        group_of.astype(np.int32),
        checkpoint_format=checkpoint_format,
    )
    assert packed.shape == (N, K)
    assert packed.contiguous_group == (None if ordered else K // G)
    assert np.array_equal(packed.dequantize(), expected_int4(codes, zeros, scales, group_of))


def test_gptq_zero_of_sixteen_does_not_wrap() -> None:
    all_ones = np.full((1, 1), -1, np.int32)
    packed = gptq.assemble(np.zeros((1, 8), np.int32), all_ones, np.ones((1, 8), np.float32))
    assert np.array_equal(packed.dequantize(), np.full((8, 8), -16, np.float32))


def test_awq(random: np.random.Generator) -> None:
    codes, zeros, scales = integers(random)
    position = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(rows: np.ndarray) -> np.ndarray:
        return words(rows.reshape(rows.shape[0], N // 8, 8)[..., position])

    packed = awq.assemble(pack(codes.T), pack(zeros.T), scales.T)
    assert np.array_equal(packed.dequantize(), expected_int4(codes, zeros, scales, np.repeat(np.arange(G), K // G)))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("ordered", [False, True])
def test_compressed_tensors_int4(random: np.random.Generator, symmetric: bool, ordered: bool) -> None:
    codes, zeros, scales = integers(random)
    zeros = np.full_like(zeros, 8) if symmetric else zeros
    group_of = random.permutation(np.repeat(np.arange(G), K // G)) if ordered else np.repeat(np.arange(G), K // G)
    packed = compressed_tensors.assemble(
        words(codes.reshape(N, K // 8, 8)),
        scales,
        np.array([N, K]),
        None if symmetric else words(zeros.reshape(N // 8, 8, G).transpose(0, 2, 1)),
        group_of.astype(np.int32) if ordered else np.full(K, -1, np.int32),
    )
    assert np.array_equal(packed.dequantize(), expected_int4(codes, zeros, scales, group_of))


def test_compressed_tensors_ragged_columns(random: np.random.Generator) -> None:
    codes = random.integers(0, 16, (8, 12), dtype=np.uint8)
    padded = np.pad(codes, ((0, 0), (0, 4)))
    packed = compressed_tensors.assemble(words(padded.reshape(8, 2, 8)), np.ones((8, 1), np.float32), np.array([8, 12]))
    assert np.array_equal(packed.dequantize(), codes.astype(np.float32) - 8)


def test_wrong_parts_are_refused(random: np.random.Generator) -> None:
    codes, zeros, scales = integers(random)
    qweight = words(codes.T.reshape(K // 8, 8, N).transpose(0, 2, 1))
    qzeros = words(zeros.T.reshape(G, N // 8, 8))
    with pytest.raises(CheckpointError, match=r"qzeros has shape \[3, 3\], expected \[4, 3\]"):
        gptq.assemble(qweight, qzeros[:3], scales.T)
    with pytest.raises(CheckpointError, match="g_idx reaches from 0 to 4, allowed 0 to 3"):
        gptq.assemble(qweight, qzeros, scales.T, np.arange(K, dtype=np.int32) % 5)
    with pytest.raises(CheckpointError, match="unknown GPTQ checkpoint_format 'marlin'"):
        gptq.assemble(qweight, qzeros, scales.T, checkpoint_format="marlin")
    with pytest.raises(CheckpointError, match="do not divide"):
        awq.assemble(np.zeros((8, 1), np.int32), np.zeros((5, 1), np.int32), np.ones((5, 8), np.float32))
    with pytest.raises(CheckpointError, match="two positive numbers"):
        compressed_tensors.assemble(qweight, scales, np.array([-8, K]))


def test_fp8_blocks_of_ragged_size(random: np.random.Generator) -> None:
    codes = random.integers(0, 126, (200, 300), dtype=np.uint8)
    scale = random.random((2, 3), np.float32)
    decoded = fp8.dequantize_block(codes, scale)
    for row, column in [(0, 0), (127, 127), (128, 128), (199, 299), (5, 256)]:
        assert decoded[row, column] == E4M3[codes[row, column]] * scale[row // 128, column // 128]
    with pytest.raises(CheckpointError, match=r"shape \[2, 2\], expected \[2, 3\]"):
        fp8.dequantize_block(codes, scale[:, :2])


def test_fp8_round_trip(random: np.random.Generator) -> None:
    weights = random.standard_normal((130, 140)).astype(np.float32)
    decoded = fp8.dequantize_block(*fp8.quantize_block(weights))
    assert np.sqrt(((decoded - weights) ** 2).mean()) < 0.03


def test_fp8_per_channel(random: np.random.Generator) -> None:
    codes = random.integers(0, 126, (6, 10), dtype=np.uint8)
    for scale in (random.random((6, 1), np.float32), random.random(6, np.float32), np.array(0.5, np.float32)):
        expected = E4M3[codes] * np.broadcast_to(scale.reshape(-1, 1), (6, 1))
        assert np.array_equal(fp8.dequantize_channel(codes, scale), expected)
    with pytest.raises(CheckpointError, match="has 5 values, expected 1 or 6"):
        fp8.dequantize_channel(codes, np.ones(5, np.float32))


def test_nvfp4_global_scale_multiplies_or_divides(random: np.random.Generator) -> None:
    packed = random.integers(0, 256, (4, 16), dtype=np.uint8)
    scale = random.integers(1, 126, (4, 2), dtype=np.uint8)
    multiply = nvfp4.dequantize(packed, scale, multiply=np.array([0.25], np.float32))
    divide = nvfp4.dequantize(packed, scale, divide=np.array(4, np.float32))
    assert np.array_equal(multiply, divide)
    assert multiply[1, 16] == E2M1[packed[1, 8] & 15] * (E4M3[scale[1, 1]] * np.float32(0.25))
    assert multiply[1, 15] == E2M1[packed[1, 7] >> 4] * (E4M3[scale[1, 0]] * np.float32(0.25))
    with pytest.raises(CheckpointError, match="and not both"):
        nvfp4.dequantize(packed, scale)
    with pytest.raises(CheckpointError, match="finite and positive, got 0"):
        nvfp4.dequantize(packed, scale, divide=np.zeros(1, np.float32))


def test_e4m3_is_nearest_with_ties_to_even() -> None:
    assert E4M3[0x7E] == 448
    assert E4M3[0x01] == 2.0**-9
    assert np.isnan(E4M3[[0x7F, 0xFF]]).all()
    finite = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    assert np.array_equal(float32_to_e4m3(E4M3[finite]), finite)
    between = ((E4M3[:126].astype(np.float64) + E4M3[1:127]) / 2).astype(np.float32)
    assert not (float32_to_e4m3(between) & 1).any()
    assert E4M3[float32_to_e4m3(np.array([1e9, -1e9], np.float32))].tolist() == [448, -448]


def test_bf16_rounds_to_even_and_keeps_nan() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0, np.inf, np.nan, 3.4e38], np.float32)
    back = bf16_to_float32(float32_to_bf16(values))
    assert back[:5].tolist() == [1.0, 1.0, 1.015625, -0.0, np.inf]
    assert np.signbit(back[3]) and np.isnan(back[5]) and np.isinf(back[6])
