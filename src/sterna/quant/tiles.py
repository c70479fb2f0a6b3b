"""The layout that our own formats share, version 1: tiles of 16 rows, interleaved for integer dot products of four bytes.

A matrix [N, K] is a sequence of tiles of 16 rows (the last one padded with zero rows), K a multiple of the group size G.
One tile, all parts contiguous and in this order:

    row scales   float32 [16]
    scale codes  uint8 [K / G, 16]
    zero codes   uint8 [K / G, 16]            (formats with a zero point only)
    codes        uint8 [K / G, G / 8, 16, 4]  for 4 bits: byte [g, j, r, i] holds row r, column g*G + 4j + i in its low half
                                              and column g*G + G/2 + 4j + i in its high half;
                                              for 6 bits the same with the low 4 bits of each code, and after it
    high codes   uint8 [K / 32, 2, 16, 4]     bits 2b, 2b + 1 of byte [g, h, r, i] are the high bits of row r, column
                                              g*32 + 16h + 4b + i
    codes        int8  [K / G, G / 4, 16, 4]  for 8 bits: byte [g, j, r, i] holds row r, column g*G + 4j + i

A three-dimensional tensor is its matrices one after another. ``scale = row scale * (16 + (c & 15)) * 2^((c >> 4) - 19)``.
"""

from __future__ import annotations

import numpy as np

from sterna.quant.base import Bytes, Float32

TILE_ROWS = 16
LAYOUT_VERSION = 1

_CODE = np.arange(256)
SCALE_VALUES = ((16 + (_CODE & 15)) * 2.0 ** ((_CODE >> 4) - 19.0)).astype(np.float32)
"""float32 [256]: scale code to scale, 4 bits of exponent and 4 of mantissa, 2^-15 … 1.9375, ascending."""

_MIDDLE = (SCALE_VALUES[1:] + SCALE_VALUES[:-1]) / 2
LARGEST_SCALE = float(SCALE_VALUES[-1])


def scale_codes(relative: Float32) -> Bytes:
    """Nearest code of a scale given relative to its row scale; clipped to the range of the code."""
    return np.searchsorted(_MIDDLE, relative).astype(np.uint8)


def row_scales(group_scales: Float32) -> Float32:
    """Row scale float32 [...] that puts the largest of the group scales [..., K / G] at the top of the code's range."""
    return group_scales.max(axis=-1) / np.float32(LARGEST_SCALE)


def interleave_nibbles(codes: Bytes, group: int) -> Bytes:
    """uint8 [n, 16, K] of 4-bit codes to the code part of n tiles, uint8 [n, 8 K]."""
    n, rows, k = codes.shape
    parts = codes.reshape(n, rows, k // group, 2, group // 8, 4)
    packed = parts[:, :, :, 0] | parts[:, :, :, 1] << 4
    return np.ascontiguousarray(packed.transpose(0, 2, 3, 1, 4)).reshape(n, -1)


def separate_nibbles(data: Bytes, group: int) -> Bytes:
    """Inverse of `interleave_nibbles`: uint8 [n, 8 K] to [n, 16, K]."""
    n = data.shape[0]
    packed = data.reshape(n, -1, group // 8, TILE_ROWS, 4).transpose(0, 3, 1, 2, 4)
    return np.stack([packed & 15, packed >> 4], axis=3).reshape(n, TILE_ROWS, -1)


def interleave_pairs(codes: Bytes) -> Bytes:
    """uint8 [n, 16, K] of 2-bit codes to the part of high codes of n tiles, uint8 [n, 4 K]."""
    n, rows, k = codes.shape
    parts = codes.reshape(n, rows, k // 32, 2, 4, 4)
    packed = parts[..., 0, :] | parts[..., 1, :] << 2 | parts[..., 2, :] << 4 | parts[..., 3, :] << 6
    return np.ascontiguousarray(packed.transpose(0, 2, 3, 1, 4)).reshape(n, -1)


def separate_pairs(data: Bytes) -> Bytes:
    """Inverse of `interleave_pairs`: uint8 [n, 4 K] to [n, 16, K]."""
    n = data.shape[0]
    packed = data.reshape(n, -1, 2, TILE_ROWS, 4).transpose(0, 3, 1, 2, 4)
    parts = packed[..., None, :] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return np.ascontiguousarray(parts).reshape(n, TILE_ROWS, -1)


def interleave_bytes(codes: Bytes, group: int) -> Bytes:
    """8-bit codes [n, 16, K] to the code part of n tiles, [n, 16 K]."""
    n, rows, k = codes.shape
    parts = codes.reshape(n, rows, k // group, group // 4, 4)
    return np.ascontiguousarray(parts.transpose(0, 2, 3, 1, 4)).reshape(n, -1)


def separate_bytes(data: Bytes, group: int) -> Bytes:
    """Inverse of `interleave_bytes`."""
    n = data.shape[0]
    return data.reshape(n, -1, group // 4, TILE_ROWS, 4).transpose(0, 3, 1, 2, 4).reshape(n, TILE_ROWS, -1)


def split_tile(
    data: Bytes, *, group: int, code_bits: int, has_zero: bool
) -> tuple[Float32, Bytes, Bytes | None, Bytes]:
    """Tiles uint8 [n, bytes] to (row scales float32 [n, 16], scale codes and zero codes uint8 [n, K / G, 16], code part)."""
    n, size = data.shape
    per_group = TILE_ROWS * (1 + has_zero) + TILE_ROWS * group * code_bits // 8
    groups = (size - 4 * TILE_ROWS) // per_group
    head, width = 4 * TILE_ROWS, groups * TILE_ROWS
    rows = np.ascontiguousarray(data[:, :head]).view("<f4").astype(np.float32)
    scales = data[:, head : head + width].reshape(n, groups, TILE_ROWS)
    if not has_zero:
        return rows, scales, None, data[:, head + width :]
    zeros = data[:, head + width : head + 2 * width].reshape(n, groups, TILE_ROWS)
    return rows, scales, zeros, data[:, head + 2 * width :]


def join_tile(rows: Float32, scales: Bytes, zeros: Bytes | None, *codes: Bytes) -> Bytes:
    """Inverse of `split_tile`; scales and zeros uint8 [n, 16, K / G] in row order."""
    n = rows.shape[0]
    parts = [np.ascontiguousarray(rows, "<f4").view(np.uint8), scales.transpose(0, 2, 1).reshape(n, -1)]
    if zeros is not None:
        parts.append(zeros.transpose(0, 2, 1).reshape(n, -1))
    return np.concatenate([*parts, *(each.reshape(n, -1) for each in codes)], axis=-1)
