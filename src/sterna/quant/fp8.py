"""float8 e4m3 weights [N, K] with scales per block, per output channel or per tensor. The scale always multiplies.

official FP8          weight, weight_scale_inv [ceil(N / 128), ceil(K / 128)] (an inverse in name only)
compressed-tensors    weight, weight_scale [N, 1], [N] or one number
ModelOpt FP8          weight, weight_scale, one number
"""

from __future__ import annotations

import numpy as np

from sterna.errors import CheckpointError
from sterna.quant.base import Bytes, Float32
from sterna.quant.floats import E4M3, float32_to_e4m3

BLOCK = 128


def dequantize_block(weight: Bytes, scale_inv: Float32, *, block: tuple[int, int] = (BLOCK, BLOCK)) -> Float32:
    """e4m3 codes uint8 [N, K] and scales [ceil(N / block), ceil(K / block)] to float32 [N, K]."""
    n, k = weight.shape
    expected = (-(-n // block[0]), -(-k // block[1]))
    if scale_inv.shape != expected:
        raise CheckpointError(
            f"weight_scale_inv of a [{n}, {k}] weight has shape {list(scale_inv.shape)}, expected {list(expected)}"
        )
    scale = scale_inv.astype(np.float32)
    return E4M3[weight] * np.repeat(np.repeat(scale, block[0], axis=0)[:n], block[1], axis=1)[:, :k]


def dequantize_channel(weight: Bytes, scale: Float32) -> Float32:
    """e4m3 codes uint8 [N, K] and scale [N, 1], [N], [1] or [] to float32 [N, K]."""
    n = weight.shape[0]
    if scale.size not in (1, n):
        raise CheckpointError(f"weight_scale has {scale.size} values, expected 1 or {n}")
    return E4M3[weight] * scale.astype(np.float32).reshape(-1, 1)


def quantize_block(weights: Float32) -> tuple[Bytes, Float32]:
    """float32 [N, K] to (codes uint8 [N, K], scales float32 [ceil(N / 128), ceil(K / 128)]), largest magnitude to 448."""
    n, k = weights.shape
    padded = np.pad(weights, ((0, -n % BLOCK), (0, -k % BLOCK)))
    tiles = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    scale = (np.abs(tiles).max(axis=(1, 3)) / np.float32(448)).astype(np.float32)
    spread = np.repeat(np.repeat(scale, BLOCK, axis=0)[:n], BLOCK, axis=1)[:, :k]
    return float32_to_e4m3(np.divide(weights, spread, out=np.zeros_like(weights), where=spread > 0)), scale
