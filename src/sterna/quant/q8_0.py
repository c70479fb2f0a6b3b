"""GGUF Q8_0: 32 weights in 34 bytes.

0  float16 d
2  32 int8 codes

w = d * q
"""

from __future__ import annotations

import numpy as np

from sterna.quant.base import Bytes, Float32, Format, half, half_bytes, round_half_away


def _decode(blocks: Bytes) -> Float32:
    return half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _encode(weights: Float32, importance: Float32 | None) -> Bytes:
    """Largest magnitude to ±127, as in ggml; at this width a search gains nothing, so ``importance`` is not used."""
    scale = np.abs(weights).max(axis=-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.clip(round_half_away(weights * inverse), -127, 127).astype(np.int8)
    return np.concatenate([half_bytes(scale), codes.view(np.uint8)], axis=-1)


Q8_0 = Format("Q8_0", 32, 34, _decode, _encode, ggml_type=8)
