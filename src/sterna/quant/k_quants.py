"""What the GGUF K-quants share: 256 weights per super-block, 6-bit scales and minima packed in 12 bytes, and their search."""

from __future__ import annotations

import numpy as np

from sterna.quant.base import Bytes, Float32
from sterna.quant.search import affine_search

SUPER_BLOCK = 256


def unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """uint8 [n, 12] to (scales, minima), uint8 [n, 8] each with 6 bits.

    Bytes 0…3 hold scales 0…3 and bytes 4…7 minima 0…3 in their low 6 bits; bytes 8…11 hold the low 4 bits of scale and
    minimum 4…7, whose upper 2 bits are the top bits of bytes 0…3 and 4…7.
    """
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, (c & 15) | (a >> 6) << 4], axis=-1)
    minima = np.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], axis=-1)
    return scales, minima


def pack_scales(scales: Bytes, minima: Bytes) -> Bytes:
    """Inverse of `unpack_scales`."""
    a = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    b = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    c = (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4
    return np.concatenate([a, b, c], axis=-1).astype(np.uint8)


def encode_affine(
    weights: Float32, importance: Float32 | None, levels: int
) -> tuple[Float32, Float32, Bytes, Bytes, Bytes]:
    """Search for ``w = d * scale * q - dmin * minimum`` over super-blocks float32 [n, 256] with q in 0…levels.

    Returns d and dmin (float32 [n, 1], float16 values), scales and minima (uint8 [n, 8]) and q (uint8 [n, 8, 32]).
    """
    x = weights.reshape(-1, 8, 32)
    spread = importance.reshape(x.shape) if importance is not None else _default_weights(x)
    scale, low = affine_search(x, spread, levels=levels, zero="below")
    minimum = np.maximum(-low, 0)
    d, scale_codes = _six_bits(scale)
    dmin, min_codes = _six_bits(minimum)
    step, offset = (d * scale_codes)[..., None], (dmin * min_codes)[..., None]
    q = np.divide(x + offset, step, out=np.zeros_like(x), where=step > 0)
    codes = np.clip(np.rint(q), 0, levels).astype(np.uint8)
    return d, dmin, scale_codes.astype(np.uint8), min_codes.astype(np.uint8), codes


def _default_weights(x: Float32) -> Float32:
    # Large weights matter more for the output than their share of the squared error says; ggml weighs in the same way.
    return np.sqrt((x * x).mean(axis=-1, keepdims=True)) + np.abs(x) + np.float32(1e-20)


def _six_bits(values: Float32) -> tuple[Float32, Float32]:
    unit = (values.max(axis=-1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    codes = np.divide(values, unit, out=np.zeros_like(values), where=unit > 0)
    return unit, np.clip(np.rint(codes), 0, 63).astype(np.float32)
