"""GPTQ (auto_gptq, AutoRound) 4-bit tensors of a linear layer [N, K].

qweight  int32 [K / 8, N]   codes of eight rows of K in each word, lowest bits first
qzeros   int32 [G, N / 8]   zero points of eight outputs in each word; version 1 stores them less 1
scales   [G, N]
g_idx    int32 [K]          optional: group of each input column

w[n, k] = scales[g, n] * (q[k, n] - zero[g, n])
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sterna.errors import CheckpointError
from sterna.quant.base import Float32
from sterna.quant.grouped import GroupedInt4, expect_shape, group_index, unpack_int32

Int32 = npt.NDArray[np.int32]


def assemble(
    qweight: Int32, qzeros: Int32, scales: Float32, g_idx: Int32 | None = None, *, checkpoint_format: str = "gptq"
) -> GroupedInt4:
    """Join the parts. ``checkpoint_format`` is "gptq" (zero points stored less 1) or "gptq_v2" (stored as they are)."""
    if checkpoint_format not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"unknown GPTQ checkpoint_format {checkpoint_format!r}, allowed 'gptq' and 'gptq_v2'")
    groups, n = scales.shape
    k = 8 * qweight.shape[0]
    expect_shape(qweight, (k // 8, n), what="GPTQ qweight")
    expect_shape(qzeros, (groups, -(-n // 8)), what="GPTQ qzeros")
    zeros = unpack_int32(qzeros, axis=1)[:, :n]
    if checkpoint_format == "gptq":
        # The reference kernels add 1 after unpacking, without wrapping: a stored 15 means 16.
        zeros = zeros + np.uint8(1)
    return GroupedInt4(
        codes=np.ascontiguousarray(unpack_int32(qweight, axis=0).T),
        scales=np.ascontiguousarray(scales.T.astype(np.float32)),
        zeros=np.ascontiguousarray(zeros.T),
        group_of=group_index(k, groups, g_idx, what="GPTQ"),
    )
