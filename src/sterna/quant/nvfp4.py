"""NVFP4 tensors of a linear layer [N, K]: e2m1 codes, an e4m3 scale per 16 of them, one float32 scale for the whole tensor.

ModelOpt             weight        uint8 [N, K / 2]   even columns in the low halves
                     weight_scale  e4m3 [N, K / 16]
                     weight_scale_2  float32          multiplies
compressed-tensors   weight_packed, weight_scale as above
                     weight_global_scale  float32     divides
"""

from __future__ import annotations

import numpy as np

from sterna.errors import CheckpointError
from sterna.quant.base import Bytes, Float32
from sterna.quant.floats import E2M1, E4M3
from sterna.quant.grouped import expect_shape

GROUP = 16


def dequantize(
    packed: Bytes, scale: Bytes, *, multiply: Float32 | None = None, divide: Float32 | None = None
) -> Float32:
    """Codes uint8 [N, K / 2] and e4m3 scale codes uint8 [N, K / 16] to float32 [N, K].

    Exactly one of ``multiply`` (ModelOpt's weight_scale_2) and ``divide`` (weight_global_scale) is given, one number each.
    """
    if (multiply is None) == (divide is None):
        raise CheckpointError("an NVFP4 tensor needs weight_scale_2 or weight_global_scale, and not both")
    whole = np.asarray(multiply if multiply is not None else divide, np.float32).reshape(-1)
    expect_shape(whole, (1,), what="NVFP4 global scale")
    if not (np.isfinite(whole[0]) and whole[0] > 0):
        raise CheckpointError(f"NVFP4 global scale must be finite and positive, got {whole[0]}")
    n, k = packed.shape[0], 2 * packed.shape[1]
    if k % GROUP:
        raise CheckpointError(f"NVFP4 weight has {k} columns, expected a multiple of {GROUP}")
    expect_shape(scale, (n, k // GROUP), what="NVFP4 weight_scale")
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(n, k // GROUP, GROUP)
    groups = E4M3[scale] * whole[0] if multiply is not None else E4M3[scale] / whole[0]
    return (groups[..., None] * E2M1[codes]).reshape(n, k)
