"""What our formats with a fractional zero point share (`q4`, `q6`): the scales, the search, and the arithmetic.

    w = row scale * S(scale code) * (F q - z) / F        q in 0…levels, z in 0…255, F = 256 / (levels + 1)

``F q - z`` and its dot product with int8 activations over one group are integers below 2^24, so a float32 kernel can form
them without rounding.
"""

from __future__ import annotations

import numpy as np

from sterna.quant import tiles
from sterna.quant.base import Bytes, Float32
from sterna.quant.search import affine_search


def dequantize_groups(rows: Float32, scales: Bytes, zeros: Bytes, codes: Bytes, *, group: int, levels: int) -> Float32:
    """Row scales [n, 16], scale and zero codes [n, K / G, 16], codes [n, 16, K] to float32 [n, 16, K]."""
    n, _, k = codes.shape
    fraction = 256 // (levels + 1)
    steps = fraction * codes.astype(np.int16).reshape(n, tiles.TILE_ROWS, -1, group)
    steps -= zeros.transpose(0, 2, 1)[..., None]
    unit = tiles.SCALE_VALUES[scales].transpose(0, 2, 1)[..., None] * np.float32(1 / fraction)
    return (rows[..., None, None] * (unit * steps.astype(np.float32))).reshape(n, tiles.TILE_ROWS, k)


def quantize_groups(
    weights: Float32, importance: Float32 | None, *, group: int, levels: int
) -> tuple[Float32, Bytes, Bytes, Bytes]:
    """float32 [n, 16, K] to row scales [n, 16], scale and zero codes [n, 16, K / G], codes uint8 [n, 16, K]."""
    x = weights.reshape(*weights.shape[:2], -1, group)
    spread = None if importance is None else importance.reshape(x.shape)
    span = np.maximum(x.max(axis=-1), 0) - np.minimum(x.min(axis=-1), 0)
    rows = tiles.row_scales(span / np.float32(levels - 2))
    unit = np.broadcast_to(np.where(rows > 0, rows, np.float32(1))[..., None], x.shape[:-1])
    fraction = 256 // (levels + 1)

    def snap(scale: Float32, low: Float32, unit: Float32) -> tuple[Float32, Float32]:
        stored = unit * tiles.SCALE_VALUES[tiles.scale_codes(scale / unit)]
        return stored, zero_codes(stored, low).astype(np.float32) * np.float32(-1 / fraction) * stored

    def zero_codes(scale: Float32, low: Float32) -> Bytes:
        zero = np.divide(low * np.float32(-fraction), scale, out=np.zeros_like(scale), where=scale > 0)
        return np.clip(np.rint(zero), 0, 255).astype(np.uint8)

    scale, low = affine_search(x, spread, levels=levels, zero="inside", snap=snap, unit=unit)
    codes = np.where(rows[..., None] > 0, tiles.scale_codes(scale / unit), 0).astype(np.uint8)
    stored = unit * tiles.SCALE_VALUES[codes]
    zeros = zero_codes(stored, low)
    q = x / stored[..., None] + zeros[..., None].astype(np.float32) / np.float32(fraction)
    return rows, codes, zeros, np.clip(np.rint(q), 0, levels).astype(np.uint8).reshape(weights.shape)
