"""GGUF Q4_0: 32 weights in 18 bytes.

0  float16 d
2  16 bytes: low halves are codes 0…15, high halves codes 16…31

w = d * (q - 8)
"""

from __future__ import annotations

import numpy as np

from sterna.quant.base import Bytes, Float32, Format, half, half_bytes, join_nibbles, split_nibbles


def _decode(blocks: Bytes) -> Float32:
    codes = split_nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8)
    return half(blocks[:, :2]) * codes.astype(np.float32)


def _encode(weights: Float32, importance: Float32 | None) -> Bytes:
    """The element of largest magnitude becomes -8 exactly, as in ggml; ``importance`` cannot change that and is not used."""
    largest = np.take_along_axis(weights, np.argmax(np.abs(weights), axis=-1)[:, None], axis=-1)
    scale = largest / np.float32(-8)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    # The product is exact in float64, so that one rounding alone decides at the halves.
    exact = weights.astype(np.float64) * inverse + 8.5
    codes = np.clip(np.trunc(exact.astype(np.float32)), 0, 15).astype(np.uint8)
    return np.concatenate([half_bytes(scale), join_nibbles(codes)], axis=-1)


Q4_0 = Format("Q4_0", 32, 18, _decode, _encode, ggml_type=2)
