"""The MLP of a dense model on the kernels of the mixture of experts.

A mixture of one expert gives that expert a share of exactly 1, and a shared expert of zeros adds exactly 0. So the MLP has
the same kernels, threads and bits as an expert, whatever format its weights have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sterna.errors import BackendError
from sterna.ops.base import SparseMoeWeights
from sterna.quant.tensor import QuantizedTensor

# Rows of the shared expert of zeros: the least that a kernel computes at once.
_ZERO_ROWS = 16
Stored = np.ndarray | QuantizedTensor


def pack_mlp(ops: Any, gate_proj: Stored, up_proj: Stored, down_proj: Stored) -> SparseMoeWeights:
    """Pack gate_proj and up_proj [I, D] and down_proj [D, I] with the ``pack_*`` functions of a native op set."""
    hidden = down_proj.shape[0]
    zeros = [np.zeros(shape, np.float32) for shape in ((1, hidden), (_ZERO_ROWS, hidden), (hidden, _ZERO_ROWS))]
    router, rows, columns = (ops.pack_linear(each) for each in zeros)
    return SparseMoeWeights(
        gate=router,
        experts=ops.pack_experts(_joined(gate_proj, up_proj), _one_expert(down_proj)),
        shared_gate_proj=rows,
        shared_up_proj=rows,
        shared_down_proj=columns,
        shared_expert_gate=router,
    )


def _one_expert(weight: Stored) -> Stored:
    """[N, K] -> [1, N, K]."""
    return replace(weight, shape=(1, *weight.shape)) if isinstance(weight, QuantizedTensor) else weight[None]


def _joined(gate_proj: Stored, up_proj: Stored) -> Stored:
    """Two times [I, D] -> [1, 2 I, D], gate rows first."""
    if not isinstance(gate_proj, QuantizedTensor) or not isinstance(up_proj, QuantizedTensor):
        return np.concatenate([np.asarray(gate_proj), np.asarray(up_proj)])[None]
    rows, columns = gate_proj.shape
    if gate_proj.format != up_proj.format or rows % gate_proj.format.tile_rows:
        raise BackendError(
            f"gate_proj ({gate_proj.format.name}) and up_proj ({up_proj.format.name}) of {rows} rows cannot be joined, "
            f"allowed are one format and a multiple of {gate_proj.format.tile_rows} rows"
        )
    data = np.concatenate([gate_proj.data, up_proj.data])
    return QuantizedTensor(gate_proj.name, gate_proj.format, (1, 2 * rows, columns), data)
