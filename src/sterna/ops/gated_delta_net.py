"""The Gated DeltaNet mixer (spec §3.1): projections, short convolution, gated delta rule, gated norm, projection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sterna.config import TextConfig
from sterna.ops.activations import sigmoid, softplus
from sterna.ops.base import GatedDeltaNetWeights, StepContext
from sterna.ops.causal_conv1d import causal_conv1d
from sterna.ops.gated_delta_rule import gated_delta_rule
from sterna.ops.linear import linear
from sterna.ops.rms_norm import gated_rms_norm, l2_norm


@dataclass(slots=True)
class DeltaNetState:
    """State slots of one layer: recurrent [slots, HV, V, K], last raw convolution inputs [slots, C, kernel - 1]."""

    recurrent: np.ndarray
    conv: np.ndarray


def gated_delta_net(
    u: np.ndarray, weights: GatedDeltaNetWeights, state: DeltaNetState, context: StepContext, config: TextConfig
) -> np.ndarray:
    """u [T, D], already normalised, of several sequences -> [T, D]. Reads and writes the slot of each sequence.

    After each row that ``context.snapshot_at`` names, the state is also stored in the slot it names. Weights are
    arrays [N, K].
    """
    tokens, heads, dim = len(u), config.linear_num_value_heads, config.linear_value_head_dim
    qkv = linear(u, weights.in_proj_qkv)
    z = linear(u, weights.in_proj_z).reshape(tokens, heads, dim)
    beta = sigmoid(linear(u, weights.in_proj_b))
    g = -np.exp(weights.A_log) * softplus(linear(u, weights.in_proj_a) + weights.dt_bias)
    out = np.empty_like(z)
    for start, end, source, targets in state_segments(context):
        rows = slice(start, end)
        mixed, conv = causal_conv1d(qkv[rows], weights.conv1d, state.conv[source])
        q, k, v = split_qkv(mixed, config)
        if weights.tiled_value_heads:
            q, k = (np.tile(each, (1, heads // each.shape[1], 1)) for each in (q, k))
        out[rows], recurrent = gated_delta_rule(q, k, v, g=g[rows], beta=beta[rows], state=state.recurrent[source])
        for slot in targets:
            state.recurrent[slot], state.conv[slot] = recurrent, conv
    normed = gated_rms_norm(out, weights.norm, z, config.rms_norm_eps)
    return linear(normed.reshape(tokens, heads * dim), weights.out_proj)


def split_qkv(mixed: np.ndarray, config: TextConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[T, C] -> q and k [T, H, K] with unit L2 norm, q scaled by K^-0.5, and v [T, HV, V]."""
    tokens, heads, dim = len(mixed), config.linear_num_key_heads, config.linear_key_head_dim
    q, k, v = np.split(mixed, [heads * dim, 2 * heads * dim], axis=1)
    q = l2_norm(q.reshape(tokens, heads, dim)) * mixed.dtype.type(dim**-0.5)
    k = l2_norm(k.reshape(tokens, heads, dim))
    return q, k, v.reshape(tokens, config.linear_num_value_heads, config.linear_value_head_dim)


def state_segments(context: StepContext) -> Iterator[tuple[int, int, int, list[int]]]:
    """Runs of rows between which the state is stored: (first row, end row, slot to start from, slots to store into).

    Every sequence has one run, or more where ``snapshot_at`` names rows of it; its own slot is stored after each run.
    """
    snapshots: dict[int, list[int]] = {}
    for row, slot in context.snapshot_at.tolist():
        snapshots.setdefault(row + 1, []).append(slot)
    for sequence, slot in enumerate(context.state_slots.tolist()):
        first, last = context.cu_seqlens[sequence : sequence + 2].tolist()
        ends = sorted({last, *(end for end in snapshots if first < end <= last)})
        for start, end in zip([first, *ends], ends, strict=False):
            if end > start:
                yield start, end, slot, [slot, *snapshots.get(end, [])]
