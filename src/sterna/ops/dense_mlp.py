"""The MLP of a dense model: ``down_proj(silu(gate_proj u) * up_proj u)``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sterna.ops.activations import silu
from sterna.ops.linear import linear


class DenseMlp(NamedTuple):
    """gate_proj and up_proj [I, D], down_proj [D, I]."""

    gate_proj: np.ndarray
    up_proj: np.ndarray
    down_proj: np.ndarray


def dense_mlp(u: np.ndarray, weights: DenseMlp) -> np.ndarray:
    """u [T, D], already normalised -> [T, D]."""
    return linear(silu(linear(u, weights.gate_proj)) * linear(u, weights.up_proj), weights.down_proj)
