"""Our 4-bit formats: groups of 32 (`Q4`) or 64 (`Q4_G64`) weights with a scale and a fractional zero point, layout of `tiles`.

    w = row scale * S(scale code) * (16 q - z) / 16        q in 0…15, z in 0…255

Why these groups and this symmetry: docs/dev/quant-formats.md.
"""

from __future__ import annotations

from functools import partial

from sterna.quant import tiles
from sterna.quant.base import Bytes, Float32, Format
from sterna.quant.tiled_affine import dequantize_groups, quantize_groups

LEVELS = 15


def _decode(data: Bytes, *, group: int) -> Float32:
    rows, scales, zeros, packed = tiles.split_tile(data, group=group, code_bits=4, has_zero=True)
    assert zeros is not None
    codes = tiles.separate_nibbles(packed, group)
    return dequantize_groups(rows, scales, zeros, codes, group=group, levels=LEVELS)


def _encode(weights: Float32, importance: Float32 | None, *, group: int) -> Bytes:
    rows, scales, zeros, codes = quantize_groups(weights, importance, group=group, levels=LEVELS)
    return tiles.join_tile(rows, scales, zeros, tiles.interleave_nibbles(codes, group))


def _format(name: str, group: int) -> Format:
    decode, encode = partial(_decode, group=group), partial(_encode, group=group)
    return Format(name, group, group // 2 + 2, decode, encode, tile_rows=tiles.TILE_ROWS, row_bytes=4)


Q4 = _format("q4", 32)
Q4_G64 = _format("q4_g64", 64)
