"""The gated delta rule (spec §3.1 step 8): the recurrence, which is the definition, and its chunked form."""

from __future__ import annotations

import numpy as np


def gated_delta_rule(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, g: np.ndarray, beta: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Token by token: decay the state, read it at k, write the correction, read it at q.

    q and k [T, H, K], already normalised, q already scaled; v [T, HV, V]; g (log decay, ≤ 0) and beta (0 … 1) [T, HV];
    state [HV, V, K]. Value head j uses key head ``j // (HV / H)``. Returns (o [T, HV, V], new state); inputs stay
    unchanged.
    """
    q, k = _expand_heads(q, v), _expand_heads(k, v)
    state, out = state.copy(), np.empty_like(v)
    for t in range(len(v)):
        state *= np.exp(g[t])[:, None, None]
        predicted = np.einsum("hvk,hk->hv", state, k[t])
        correction = beta[t][:, None] * (v[t] - predicted)
        state += correction[:, :, None] * k[t][:, None, :]
        out[t] = np.einsum("hvk,hk->hv", state, q[t])
    return out, state


def chunk_gated_delta_rule(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    g: np.ndarray,
    beta: np.ndarray,
    state: np.ndarray,
    chunk_size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """The same function of the same arguments by chunks, with matrix products; equal up to rounding."""
    q, k = _expand_heads(q, v), _expand_heads(k, v)
    out = np.empty_like(v)
    for start in range(0, len(v), chunk_size):
        rows = slice(start, start + chunk_size)
        # Heads first, so that every product below is one matrix per head.
        qc, kc, vc = (x[rows].swapaxes(0, 1) for x in (q, k, v))
        bc, total = beta[rows].T[..., None], np.cumsum(g[rows], axis=0).T[..., None]
        causal = np.tril(np.ones((qc.shape[1], qc.shape[1]), bool))
        # Masked before the exponential: above the diagonal it could overflow.
        decay = np.exp(np.where(causal, total - total.swapaxes(1, 2), -np.inf))
        mixing = np.tril(bc * (kc @ kc.swapaxes(1, 2)) * decay, -1) + np.eye(qc.shape[1], dtype=v.dtype)
        fresh = bc * vc - (bc * kc * np.exp(total)) @ state.swapaxes(1, 2)
        update = np.linalg.solve(mixing, fresh)
        result = (qc * np.exp(total)) @ state.swapaxes(1, 2) + (qc @ kc.swapaxes(1, 2) * decay) @ update
        out[rows] = result.swapaxes(0, 1)
        remaining = np.exp(total[:, -1:] - total)
        state = np.exp(total[:, -1:]) * state + update.swapaxes(1, 2) @ (kc * remaining)
    return out, state.copy()


def _expand_heads(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Repeat every key head for its group of value heads: [T, H, K] -> [T, HV, K]."""
    return np.repeat(x, v.shape[1] // x.shape[1], axis=1)
