"""Unquantised formats F32, F16, BF16, and the small floating-point numbers that scales and codes are made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sterna.quant.base import Bytes, Float32, Format


def _decode_f32(blocks: Bytes) -> Float32:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _encode_f32(weights: Float32, importance: Float32 | None) -> Bytes:
    return np.ascontiguousarray(weights, "<f4").view(np.uint8)


def _decode_f16(blocks: Bytes) -> Float32:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _encode_f16(weights: Float32, importance: Float32 | None) -> Bytes:
    return np.ascontiguousarray(weights.astype("<f2")).view(np.uint8)


def bf16_to_float32(bits: npt.NDArray[np.uint16]) -> Float32:
    """bfloat16 bits (uint16) to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(values: Float32) -> npt.NDArray[np.uint16]:
    """float32 to bfloat16 bits, to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    quiet = bits >> 16 | 0x40
    return np.where(bits & 0x7FFFFFFF > 0x7F800000, quiet, rounded).astype(np.uint16)


def _decode_bf16(blocks: Bytes) -> Float32:
    return bf16_to_float32(np.ascontiguousarray(blocks).view("<u2"))


def _encode_bf16(weights: Float32, importance: Float32 | None) -> Bytes:
    return np.ascontiguousarray(float32_to_bf16(weights).astype("<u2")).view(np.uint8)


def _e4m3_table() -> Float32:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa / 512, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    value = np.where(code & 127 == 127, np.nan, value)
    return np.copysign(value, np.where(code & 128, -1.0, 1.0)).astype(np.float32)


E4M3 = _e4m3_table()
"""float32 [256]: the values of float8 e4m3 (no infinities, 0x7F and 0xFF are NaN, largest 448)."""

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""float32 [16]: the values of float4 e2m1; the sign is bit 3."""


def float32_to_e4m3(values: Float32) -> Bytes:
    """float32 to the nearest finite e4m3 code, ties to the even code; magnitudes above 448 become 448."""
    positive = E4M3[:127].astype(np.float64)
    middle = (positive[1:] + positive[:-1]) / 2
    magnitude = np.abs(values).astype(np.float64)
    low, high = np.searchsorted(middle, magnitude, "left"), np.searchsorted(middle, magnitude, "right")
    code = np.where(low % 2 == 0, low, high)
    return (code | np.signbit(values).astype(np.int64) << 7).astype(np.uint8)


F32 = Format("F32", 1, 4, _decode_f32, _encode_f32, ggml_type=0)
F16 = Format("F16", 1, 2, _decode_f16, _encode_f16, ggml_type=1)
BF16 = Format("BF16", 1, 2, _decode_bf16, _encode_bf16, ggml_type=30)
