"""GGUF Q6_K: 256 weights in 210 bytes, sixteen groups of 16 with a signed scale.

0    128 bytes, low 4 bits; two halves of 64: byte l (l < 64) holds weights l (low) and l + 64 (high) of its 128
128  64 bytes, high 2 bits; two halves of 32: byte l holds weights l, l + 32, l + 64, l + 96, lowest bits first
192  16 int8 scales
208  float16 d

w = d * scale * (q - 32)
"""

from __future__ import annotations

import numpy as np

from sterna.quant.base import Bytes, Float32, Format, half, half_bytes
from sterna.quant.k_quants import SUPER_BLOCK
from sterna.quant.search import symmetric_search

_SHIFT = np.array([0, 2, 4, 6], np.uint8)[:, None]


def _decode(blocks: Bytes) -> Float32:
    low = blocks[:, :128].reshape(-1, 2, 64)
    low = np.concatenate([low & 15, low >> 4], axis=-1)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> _SHIFT & 3).reshape(-1, 2, 128)
    codes = (low | high << 4).astype(np.int8) - np.int8(32)
    step = half(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (step[..., None] * codes.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, SUPER_BLOCK)


def _encode(weights: Float32, importance: Float32 | None) -> Bytes:
    x = weights.reshape(-1, 16, 16)
    spread = importance.reshape(x.shape) if importance is not None else x * x + np.float32(1e-30)
    scale = symmetric_search(x, spread, low=-32, high=31)
    largest = np.take_along_axis(scale, np.argmax(np.abs(scale), axis=-1)[:, None], axis=-1)
    d = (largest / np.float32(-128)).astype(np.float16).astype(np.float32)
    scales = np.divide(scale, d, out=np.zeros_like(scale), where=d != 0)
    scales = np.clip(np.rint(scales), -128, 127)
    step = (d * scales)[..., None]
    q = np.divide(x, step, out=np.zeros_like(x), where=step != 0)
    codes = (np.clip(np.rint(q), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 128)
    low = codes[..., :64] & 15 | (codes[..., 64:] & 15) << 4
    high = np.bitwise_or.reduce(codes.reshape(-1, 2, 4, 32) >> 4 << _SHIFT, axis=2)
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), scales.astype(np.int8).view(np.uint8), half_bytes(d)]
    return np.concatenate(parts, axis=-1)


Q6_K = Format("Q6_K", SUPER_BLOCK, 210, _decode, _encode, ggml_type=14)
