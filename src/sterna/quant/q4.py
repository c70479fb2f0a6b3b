"""Our 4-bit formats: groups of 32 (`Q4`) or 64 (`Q4_G64`) weights with a scale and a fractional zero point, layout of `tiles`.

    w = row scale * S(scale code) * (16 q - z) / 16        q in 0…15, z in 0…255

``16 q - z`` and its dot product with int8 activations are integers below 2^24, so one float32 multiply per group is exact up
to its last rounding. Why these groups and this symmetry: docs/dev/quant-formats.md.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from sterna.quant import tiles
from sterna.quant.base import Bytes, Float32, Format
from sterna.quant.search import affine_search


def _decode(data: Bytes, *, group: int) -> Float32:
    rows, scales, zeros, packed = tiles.split_tile(data, group=group, code_bits=4, has_zero=True)
    assert zeros is not None
    codes = tiles.separate_nibbles(packed, group)
    n, _, k = codes.shape
    steps = 16 * codes.astype(np.int16).reshape(n, tiles.TILE_ROWS, -1, group) - zeros.transpose(0, 2, 1)[..., None]
    unit = tiles.SCALE_VALUES[scales].transpose(0, 2, 1)[..., None] * np.float32(1 / 16)
    return (rows[..., None, None] * (unit * steps.astype(np.float32))).reshape(n, tiles.TILE_ROWS, k)


def _encode(weights: Float32, importance: Float32 | None, *, group: int) -> Bytes:
    x = weights.reshape(*weights.shape[:2], -1, group)
    spread = None if importance is None else importance.reshape(x.shape)
    rows = tiles.row_scales((x.max(axis=-1) - x.min(axis=-1)) / np.float32(13))
    unit = np.where(rows > 0, rows, 1)[..., None]
    scale, low = affine_search(x, spread, levels=15, snap=_snap, unit=np.broadcast_to(unit, x.shape[:-1]))
    codes = np.where(rows[..., None] > 0, tiles.scale_codes(scale / unit), 0).astype(np.uint8)
    stored = unit * tiles.SCALE_VALUES[codes]
    zeros = _zero_codes(stored, low)
    q = x / stored[..., None] + zeros[..., None].astype(np.float32) / 16
    q = np.clip(np.rint(q), 0, 15).astype(np.uint8).reshape(weights.shape)
    return tiles.join_tile(rows, codes, zeros, tiles.interleave_nibbles(q, group))


def _snap(scale: Float32, low: Float32, unit: Float32) -> tuple[Float32, Float32]:
    stored = unit * tiles.SCALE_VALUES[tiles.scale_codes(scale / unit)]
    return stored, -_zero_codes(stored, low).astype(np.float32) / 16 * stored


def _zero_codes(scale: Float32, low: Float32) -> Bytes:
    zero = np.divide(-16 * low, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.rint(zero), 0, 255).astype(np.uint8)


def _format(name: str, group: int) -> Format:
    return Format(
        name,
        group,
        group // 2 + 2,
        partial(_decode, group=group),
        partial(_encode, group=group),
        tile_rows=tiles.TILE_ROWS,
        row_bytes=4,
    )


Q4 = _format("q4", 32)
Q4_G64 = _format("q4_g64", 64)
