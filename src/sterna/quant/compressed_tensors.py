"""compressed-tensors "pack-quantized" 4-bit tensors of a linear layer [N, K].

    weight_packed      int32 [N, ceil(K / 8)]   codes, lowest bits first
    weight_scale       [N, G]
    weight_shape       int64 [2]                (N, K)
    weight_zero_point  int32 [ceil(N / 8), G]   asymmetric only, packed along the outputs
    weight_g_idx       int32 [K]                optional: group of each input column

Codes and zero points are signed numbers stored plus 8, so ``w = scale * (q - zero)`` holds with the stored ones, zero 8 if absent.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sterna.errors import CheckpointError
from sterna.quant.base import Float32
from sterna.quant.grouped import GroupedInt4, expect_shape, group_index, unpack_int32

Int32 = npt.NDArray[np.int32]


def assemble(
    weight_packed: Int32,
    weight_scale: Float32,
    weight_shape: npt.NDArray[np.int64],
    weight_zero_point: Int32 | None = None,
    weight_g_idx: Int32 | None = None,
) -> GroupedInt4:
    """Join the parts. A ``weight_g_idx`` of -1 throughout means that there is none, as its writers have it."""
    if weight_shape.shape != (2,) or (weight_shape <= 0).any():
        raise CheckpointError(f"weight_shape must be two positive numbers, got {weight_shape.tolist()}")
    n, k = int(weight_shape[0]), int(weight_shape[1])
    groups = weight_scale.shape[1] if weight_scale.ndim == 2 else 0
    expect_shape(weight_packed, (n, -(-k // 8)), what="weight_packed")
    expect_shape(weight_scale, (n, groups), what="weight_scale")
    if weight_zero_point is None:
        zeros = np.full((n, groups), 8, np.uint8)
    else:
        expect_shape(weight_zero_point, (-(-n // 8), groups), what="weight_zero_point")
        zeros = np.ascontiguousarray(unpack_int32(weight_zero_point, axis=0)[:n])
    if weight_g_idx is not None and (weight_g_idx == -1).all():
        weight_g_idx = None
    return GroupedInt4(
        codes=np.ascontiguousarray(unpack_int32(weight_packed, axis=1)[:, :k]),
        scales=weight_scale.astype(np.float32),
        zeros=zeros,
        group_of=group_index(k, groups, weight_g_idx, what="compressed-tensors"),
    )
