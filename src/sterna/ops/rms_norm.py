"""RMSNorm over the last axis, in two kinds (spec §3.0 and §3.1 step 9), and the L2 norm of query and key heads."""

from __future__ import annotations

import numpy as np

from sterna.ops.activations import silu

L2_NORM_EPS = 1e-6


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Zero-centred: ``x * rsqrt(mean(x²) + eps) * (1 + weight)``. x [..., D], weight [D]."""
    return _normalise(x, eps) * (1 + weight)


def gated_rms_norm(x: np.ndarray, weight: np.ndarray, gate: np.ndarray, eps: float) -> np.ndarray:
    """Norm first, then gate: ``x * rsqrt(mean(x²) + eps) * weight * silu(gate)``; no 1 is added to the weight.

    x and gate [T, HV, V], weight [V].
    """
    return _normalise(x, eps) * weight * silu(gate)


def l2_norm(x: np.ndarray) -> np.ndarray:
    """``x * rsqrt(Σx² + 1e-6)`` over the last axis."""
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + x.dtype.type(L2_NORM_EPS))


def _normalise(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(eps))
