"""Our 8-bit format: groups of 32 weights with a scale, no zero point, layout of `tiles`.

    w = row scale * S(scale code) * q        q in -127…127

-128 is never written: 127 * 127 * 2 fits the 16-bit sums of x86 multiply-add instructions.
"""

from __future__ import annotations

import numpy as np

from sterna.quant import tiles
from sterna.quant.base import Bytes, Float32, Format

GROUP = 32


def _decode(data: Bytes) -> Float32:
    rows, scales, _, packed = tiles.split_tile(data, group=GROUP, code_bits=8, has_zero=False)
    codes = tiles.separate_bytes(packed, GROUP).view(np.int8)
    n, _, k = codes.shape
    unit = tiles.SCALE_VALUES[scales].transpose(0, 2, 1)[..., None]
    values = unit * codes.reshape(n, tiles.TILE_ROWS, -1, GROUP).astype(np.float32)
    return (rows[..., None, None] * values).reshape(n, tiles.TILE_ROWS, k)


def _encode(weights: Float32, importance: Float32 | None) -> Bytes:
    """Largest magnitude at most half a step above the range; at this width a search gains nothing, ``importance`` is not used."""
    x = weights.reshape(*weights.shape[:2], -1, GROUP)
    wanted = np.abs(x).max(axis=-1) / np.float32(127)
    rows = tiles.row_scales(wanted)
    unit = np.where(rows > 0, rows, 1)[..., None]
    nearest = tiles.scale_codes(wanted / unit).astype(np.int16)
    short = unit * tiles.SCALE_VALUES[nearest] * np.float32(127.5) < wanted * 127
    raised = np.clip(nearest + short, 0, 255)
    codes: Bytes = np.where(rows[..., None] > 0, raised, 0).astype(np.uint8)
    q = np.clip(np.rint(x / (unit * tiles.SCALE_VALUES[codes])[..., None]), -127, 127).astype(np.int8)
    packed = tiles.interleave_bytes(q.reshape(weights.shape).view(np.uint8), GROUP)
    return tiles.join_tile(rows, codes, None, packed)


Q8 = Format("q8", GROUP, GROUP + 1, _decode, _encode, tile_rows=tiles.TILE_ROWS, row_bytes=4)
