"""GGUF Q5_K: 256 weights in 176 bytes, eight groups of 32 with a scale and a minimum.

0    float16 d, float16 dmin
4    12 bytes: 6-bit scales and minima (`k_quants.unpack_scales`)
16   32 bytes: bit j of byte l is the fifth bit of weight l of group j
48   128 bytes in four runs of 32: low halves are group 2i, high halves group 2i + 1

w = d * scale * q - dmin * minimum
"""

from __future__ import annotations

import numpy as np

from sterna.quant.base import Bytes, Float32, Format, half, half_bytes
from sterna.quant.k_quants import SUPER_BLOCK, encode_affine, pack_scales, unpack_scales

_GROUP = np.arange(8, dtype=np.uint8)[:, None]


def _decode(blocks: Bytes) -> Float32:
    scales, minima = unpack_scales(blocks[:, 4:16])
    step = half(blocks[:, 0:2]) * scales.astype(np.float32)
    offset = half(blocks[:, 2:4]) * minima.astype(np.float32)
    runs = blocks[:, 48:].reshape(-1, 4, 1, 32)
    low = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)
    high = blocks[:, None, 16:48] >> _GROUP & 1
    codes = (low | high << 4).astype(np.float32)
    return (step[..., None] * codes - offset[..., None]).reshape(-1, SUPER_BLOCK)


def _encode(weights: Float32, importance: Float32 | None) -> Bytes:
    d, dmin, scales, minima, codes = encode_affine(weights, importance, levels=31)
    pairs = (codes & 15).reshape(-1, 4, 2, 32)
    runs = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    high = np.bitwise_or.reduce(codes >> 4 << _GROUP, axis=1)
    return np.concatenate([half_bytes(d), half_bytes(dmin), pack_scales(scales, minima), high, runs], axis=-1)


Q5_K = Format("Q5_K", SUPER_BLOCK, 176, _decode, _encode, ggml_type=13)
