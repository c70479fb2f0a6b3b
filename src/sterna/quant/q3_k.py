"""GGUF Q3_K: 256 weights in 110 bytes, sixteen groups of 16 with a 6-bit scale. Read only.

0    32 bytes: bit j of byte l is set where weight 32j + l is not lowered by 4
32   64 bytes, low 2 bits; two halves of 32: byte l holds weights l, l + 32, l + 64, l + 96 of its 128, lowest bits first
96   12 bytes of scales: byte i < 8 holds the low 4 bits of scales i and i + 8, byte 8 + i the high 2 bits of i, i + 4, i + 8, i + 12
108  float16 d

w = d * (scale - 32) * (q - (0 if bit else 4))
"""

from __future__ import annotations

import numpy as np

from sterna.quant.base import Bytes, Float32, Format, half, split_nibbles
from sterna.quant.k_quants import SUPER_BLOCK

_SHIFT = np.array([0, 2, 4, 6], np.uint8)[:, None]
_BIT = np.arange(8, dtype=np.uint8)[:, None]


def _decode(blocks: Bytes) -> Float32:
    low = (blocks[:, 32:96].reshape(-1, 2, 1, 32) >> _SHIFT & 3).reshape(-1, 8, 32).astype(np.int8)
    kept = (blocks[:, None, 0:32] >> _BIT & 1).astype(np.int8)
    codes = low - (1 - kept) * np.int8(4)
    high = (blocks[:, None, 104:108] >> _SHIFT & 3).reshape(-1, 16)
    scales = (split_nibbles(blocks[:, 96:104]) | high << 4).astype(np.int8) - np.int8(32)
    step = half(blocks[:, 108:110]) * scales.astype(np.float32)
    return (step[..., None] * codes.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, SUPER_BLOCK)


Q3_K = Format("Q3_K", SUPER_BLOCK, 110, _decode, ggml_type=11)
