"""GGUF MXFP4: 32 weights in 17 bytes (OCP microscaling, element e2m1).

0  uint8 e, scale 2^(e - 127)
1  16 bytes: low halves are codes 0…15, high halves codes 16…31

w = 2^(e - 127) * E2M1[q]
"""

from __future__ import annotations

import numpy as np

from sterna.quant.base import Bytes, Float32, Format, join_nibbles, split_nibbles
from sterna.quant.floats import E2M1

_TWICE_E2M1 = (2 * E2M1).astype(np.float32)


def _decode(blocks: Bytes) -> Float32:
    # Half the scale times twice the value, so that e = 0 and e = 255 stay finite.
    half_scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128).astype(np.float32)
    return half_scale * _TWICE_E2M1[split_nibbles(blocks[:, 1:])]


def _encode(weights: Float32, importance: Float32 | None) -> Bytes:
    """Exponent of the largest magnitude minus 2 (the OCP rule), nearest code; ``importance`` is not used."""
    largest = np.abs(weights).max(axis=-1, keepdims=True)
    exponent = np.frexp(largest)[1] - 1 - 2 + 127
    exponent = np.where(largest == 0, 0, np.clip(exponent, 0, 254)).astype(np.int32)
    half_scale = np.ldexp(np.float32(1), exponent - 128).astype(np.float32)
    scaled = weights.astype(np.float64) / half_scale
    middle = np.array([0.5, 1.5, 2.5, 3.5, 5, 7, 10])
    codes = np.searchsorted(middle, np.abs(scaled), "left")
    codes = codes | (np.signbit(scaled) & (codes > 0)).astype(np.int64) << 3
    return np.concatenate([exponent.astype(np.uint8), join_nibbles(codes.astype(np.uint8))], axis=-1)


MXFP4 = Format("MXFP4", 32, 17, _decode, _encode, ggml_type=39)
