"""Causal depthwise convolution over q, k and v of a DeltaNet layer (spec §3.1 step 3)."""

from __future__ import annotations

import numpy as np

from sterna.ops.activations import silu


def causal_conv1d(x: np.ndarray, weight: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``y[t, c] = silu(Σ_j weight[c, j] * x[t - kernel + 1 + j, c])``; the last tap is for the current token; no bias.

    x [T, C] of one sequence, weight [C, kernel], state [C, kernel - 1]: the raw inputs before row 0, oldest first.
    Returns (y [T, C], new state [C, kernel - 1]).
    """
    tokens, kernel = len(x), weight.shape[1]
    history = np.concatenate([state.T, x])
    total = np.zeros_like(x)
    for tap in range(kernel):
        total = total + weight[:, tap] * history[tap : tap + tokens]
    return silu(total), np.ascontiguousarray(history[tokens:].T)
