"""GGUF IQ4_XS: 256 weights in 136 bytes, eight groups of 32 over a fixed set of 16 uneven levels. Read only.

0    float16 d
2    uint16: bits 2j, 2j + 1 are the high bits of scale j
4    4 bytes: low halves are the low 4 bits of scale 2i, high halves those of scale 2i + 1
8    128 bytes in eight runs of 16: low halves are weights 0…15 of the group, high halves 16…31

w = d * (scale - 32) * LEVELS[q]
"""

from __future__ import annotations

import numpy as np

from sterna.quant.base import Bytes, Float32, Format, half, split_nibbles
from sterna.quant.k_quants import SUPER_BLOCK

LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _decode(blocks: Bytes) -> Float32:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    packed = blocks[:, 4:8, None]
    low = np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(-1, 8)
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    step = half(blocks[:, 0:2]) * scales
    codes = split_nibbles(blocks[:, 8:].reshape(-1, 8, 16))
    return (step[..., None] * LEVELS[codes]).reshape(-1, SUPER_BLOCK)


IQ4_XS = Format("IQ4_XS", SUPER_BLOCK, 136, _decode, ggml_type=23)
