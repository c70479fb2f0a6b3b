"""AWQ 4-bit tensors of a linear layer [N, K] (the "gemm" packing).

    qweight  int32 [K, N / 8]   codes of eight outputs in each word
    qzeros   int32 [G, N / 8]   zero points, packed in the same way
    scales   [G, N]

Nibble i of a word, lowest bits first, belongs to output ``ORDER[i]`` of its eight.

    w[n, k] = scales[g, n] * (q[k, n] - zero[g, n])
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sterna.quant.base import Bytes, Float32
from sterna.quant.grouped import GroupedInt4, expect_shape, group_index, unpack_int32

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Int32 = npt.NDArray[np.int32]


def assemble(qweight: Int32, qzeros: Int32, scales: Float32) -> GroupedInt4:
    """Join the parts."""
    groups, n = scales.shape
    k = qweight.shape[0]
    expect_shape(qweight, (k, n // 8), what="AWQ qweight")
    expect_shape(qzeros, (groups, n // 8), what="AWQ qzeros")
    return GroupedInt4(
        codes=_outputs(qweight),
        scales=np.ascontiguousarray(scales.T.astype(np.float32)),
        zeros=_outputs(qzeros),
        group_of=group_index(k, groups, None, what="AWQ"),
    )


def _outputs(words: Int32) -> Bytes:
    nibbles = unpack_int32(words, axis=1).reshape(words.shape[0], -1, 8)
    in_order = nibbles[..., np.argsort(ORDER)]
    return np.ascontiguousarray(in_order.reshape(words.shape[0], -1).T)
