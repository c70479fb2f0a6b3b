"""Our 6-bit format: groups of 32 weights with a scale and a fractional zero point, layout of `tiles`.

w = row scale * S(scale code) * (4 q - z) / 4        q in 0…63, z in 0…255
"""

from __future__ import annotations

import numpy as np

from sterna.quant import tiles
from sterna.quant.base import Bytes, Float32, Format
from sterna.quant.tiled_affine import dequantize_groups, quantize_groups

GROUP = 32
LEVELS = 63


def _decode(data: Bytes) -> Float32:
    rows, scales, zeros, packed = tiles.split_tile(data, group=GROUP, code_bits=6, has_zero=True)
    assert zeros is not None
    split = packed.shape[-1] * 4 // 6
    low = tiles.separate_nibbles(packed[:, :split], GROUP)
    codes = (low | tiles.separate_pairs(packed[:, split:]) << 4).astype(np.uint8)
    return dequantize_groups(rows, scales, zeros, codes, group=GROUP, levels=LEVELS)


def _encode(weights: Float32, importance: Float32 | None) -> Bytes:
    rows, scales, zeros, codes = quantize_groups(weights, importance, group=GROUP, levels=LEVELS)
    low, high = (codes & 15).astype(np.uint8), (codes >> 4).astype(np.uint8)
    parts = [tiles.interleave_nibbles(low, GROUP), tiles.interleave_pairs(high)]
    return tiles.join_tile(rows, scales, zeros, *parts)


Q6 = Format("q6", GROUP, 3 * GROUP // 4 + 2, _decode, _encode, tile_rows=tiles.TILE_ROWS, row_bytes=4)
