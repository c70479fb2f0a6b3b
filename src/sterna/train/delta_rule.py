"""The gated delta rule for training: chunked, differentiable, in float32.

Shape letters: B sequence, T token, H key head, HV value head, K key dim, V value dim, N chunk, C tokens per chunk.
Inside a chunk everything is a batched matrix product over all chunks at once; between chunks only ``S <- P S + R`` is sequential,
where ``P [K, K]`` and ``R [K, V]`` of every chunk were computed together beforehand. Source: specification, section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64


class _UnitLowerInverse(torch.autograd.Function):
    """``(I + A)^-1`` for strictly lower triangular ``A [..., C, C]``; the gradient needs two products and no solve."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        inverse = torch.linalg.solve_triangular(a + eye, eye.expand_as(a), upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        transposed = inverse.mT
        return (transposed @ grad @ transposed).tril(-1).neg_()


class _StateScan(torch.autograd.Function):
    """``S[0] = 0, S[n+1] = P[n] S[n] + R[n]``; returns the states *entering* each chunk.

    Args: ``p [N, M, K, K]``, ``r [N, M, K, V]`` with M = B * HV, chunks first so that every step reads contiguous memory.
    Returns ``[N, M, K, V]``; the state after the last chunk is never formed, no loss reads it.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, r: Tensor) -> Tensor:
        states = torch.empty_like(r)
        states[0].zero_()
        for n in range(p.shape[0] - 1):
            torch.baddbmm(r[n], p[n], states[n], out=states[n + 1])
        ctx.save_for_backward(p, states)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        p, states = ctx.saved_tensors
        grad_r = torch.empty_like(states)
        grad_r[-1].zero_()
        for n in range(p.shape[0] - 1, 0, -1):
            torch.baddbmm(grad[n], p[n].mT, grad_r[n], out=grad_r[n - 1])
        return grad_r @ states.mT, grad_r


def _to_chunks(x: Tensor, chunk: int) -> Tensor:
    """``[B, T, HEADS, D] -> [N, B * HEADS, C, D]``, contiguous."""
    batch, length, heads, width = x.shape
    chunks = x.view(batch, length // chunk, chunk, heads, width).permute(1, 0, 3, 2, 4)
    return chunks.reshape(length // chunk, batch * heads, chunk, width)


def _repeat_heads(x: Tensor, repeats: int) -> Tensor:
    """Value head ``j`` uses key head ``j // repeats``: ``[N, B * H, ...] -> [N, B * HV, ...]``."""
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def chunk_gated_delta_rule(*, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk: int = CHUNK) -> Tensor:
    """Outputs of the gated delta rule over whole sequences that start from a zero state.

    Args:
        q: ``[B, T, H, K]``, L2-normalised and already scaled by ``K ** -0.5``.
        k: ``[B, T, H, K]``, L2-normalised.
        v: ``[B, T, HV, V]``.
        g: ``[B, T, HV]``, logarithm of the decay, at most 0.
        beta: ``[B, T, HV]``, write strength in (0, 1).
        chunk: tokens per chunk; any T is accepted, a short last chunk is padded.

    Returns:
        ``[B, T, HV, V]``.
    """
    batch, length, key_heads, _ = k.shape
    value_heads = v.shape[2]
    if padding := -length % chunk:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
        g, beta = (F.pad(x, (0, 0, 0, padding)) for x in (g, beta))
    repeats = value_heads // key_heads
    q, k, v = (_to_chunks(x, chunk) for x in (q, k, v))
    total = _to_chunks(g.unsqueeze(-1), chunk).cumsum(dim=-2)
    strength = _to_chunks(beta.unsqueeze(-1), chunk)

    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).tril()
    # Masked before the exponential: above the diagonal the exponent is positive and may overflow.
    decay = (total - total.mT).masked_fill(~lower, -torch.inf).exp()
    similarity = _repeat_heads(k @ k.mT, repeats)
    inverse = _UnitLowerInverse.apply((similarity * decay * strength).tril(-1))
    attention = _repeat_heads(q @ k.mT, repeats) * decay

    q, k = _repeat_heads(q, repeats), _repeat_heads(k, repeats)
    entering = total.exp()
    last = total[..., -1:, :]
    writes = inverse @ (v * strength)
    reads = inverse @ (k * (strength * entering))
    remaining = (k * (last - total).exp()).mT
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    states = _StateScan.apply(last.exp() * identity - remaining @ reads, remaining @ writes)
    out = (q * entering) @ states + attention @ (writes - reads @ states)

    out = out.view(-1, batch, value_heads, chunk, out.shape[-1]).permute(1, 0, 3, 2, 4)
    return out.reshape(batch, length + padding, value_heads, -1)[:, :length]


def recurrent_gated_delta_rule(*, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The definition, one token at a time: the oracle of `chunk_gated_delta_rule` (same arguments and result)."""
    repeats = v.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(repeats, dim=2), k.repeat_interleave(repeats, dim=2)
    batch, length, heads, _ = q.shape
    state = q.new_zeros(batch, heads, k.shape[-1], v.shape[-1])
    outputs = []
    for t in range(length):
        state = state * g[:, t, :, None, None].exp()
        read = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        write = beta[:, t, :, None] * (v[:, t] - read)
        state = state + k[:, t, :, :, None] * write[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, dim=1)
