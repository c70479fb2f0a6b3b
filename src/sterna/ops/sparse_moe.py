"""The mixture of experts (spec §3.3): softmax router, top-k routed experts, one gated shared expert."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sterna.config import TextConfig
from sterna.ops.activations import sigmoid, silu, softmax
from sterna.ops.base import SparseMoeWeights
from sterna.ops.linear import linear


class Experts(NamedTuple):
    """Routed experts: gate_up_proj [E, 2I, D] with the gate rows first, down_proj [E, D, I]."""

    gate_up_proj: np.ndarray
    down_proj: np.ndarray


def sparse_moe(u: np.ndarray, weights: SparseMoeWeights, config: TextConfig) -> np.ndarray:
    """u [T, D], already normalised -> [T, D]: experts summed in top-k order, then the shared expert times its gate."""
    chosen, shares = route(linear(u, weights.gate), config.num_experts_per_tok)
    outputs = np.empty((*chosen.shape, u.shape[1]), u.dtype)
    experts: Experts = weights.experts
    for expert in np.unique(chosen):
        rows, ranks = np.nonzero(chosen == expert)
        gate, up = np.split(linear(u[rows], experts.gate_up_proj[expert]), 2, axis=1)
        outputs[rows, ranks] = linear(silu(gate) * up, experts.down_proj[expert])
    total = np.zeros_like(u)
    for rank in range(chosen.shape[1]):
        total = total + shares[:, rank, None] * outputs[:, rank]
    hidden = silu(linear(u, weights.shared_gate_proj)) * linear(u, weights.shared_up_proj)
    return total + sigmoid(linear(u, weights.shared_expert_gate)) * linear(hidden, weights.shared_down_proj)


def route(logits: np.ndarray, top_k: int) -> tuple[npt.NDArray[np.int64], np.ndarray]:
    """Router logits [T, E] -> experts [T, top_k] by falling probability, ties to the lower id; shares that sum to 1."""
    probabilities = softmax(logits)
    chosen = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
    top = np.take_along_axis(probabilities, chosen, axis=-1)
    return chosen, top / top.sum(axis=-1, keepdims=True)
