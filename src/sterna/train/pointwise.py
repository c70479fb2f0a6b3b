"""Element-wise parts of the model; the frequent ones have gradients of their own, in place and in few passes over memory.

On a CPU these parts are bound by memory, and automatic differentiation alone passes over it about twice as often.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


class _RmsScale(torch.autograd.Function):
    """``x * rsqrt(mean(x^2) + eps) * scale`` over the last axis; both gradients in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(width).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        return (x * inverse).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, scale, inverse = ctx.saved_tensors
        product = (grad * x).reshape(-1, x.shape[-1])
        along = (product @ scale).view_as(inverse)
        grad_x = (grad * scale).mul_(inverse)
        grad_x.addcmul_(x, inverse.pow(3).mul_(along).div_(x.shape[-1]), value=-1.0)
        grad_scale = inverse.reshape(-1) @ product if ctx.needs_input_grad[1] else None
        return grad_x, grad_scale, None


class _CausalConvolution(torch.autograd.Function):
    """Depthwise causal convolution of ``x [B, T, C]`` with ``weight [C, 1, taps]``, the last tap on the token itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        taps = weight[:, 0].unbind(1)
        y = x * taps[-1]
        for lag in range(1, min(len(taps), x.shape[1])):
            y[:, lag:].addcmul_(x[:, :-lag], taps[-1 - lag])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        taps = weight[:, 0].unbind(1)
        grad_x, grad_weight = grad * taps[-1], torch.zeros_like(weight)
        grad_weight[:, 0, -1] = (grad * x).sum((0, 1))
        for lag in range(1, min(len(taps), x.shape[1])):
            later, earlier = grad[:, lag:], x[:, :-lag]
            grad_x[:, :-lag].addcmul_(later, taps[-1 - lag])
            grad_weight[:, 0, -1 - lag] = (later * earlier).sum((0, 1))
        return grad_x, grad_weight


def rms_scale(x: Tensor, scale: Tensor, *, eps: float = EPS) -> Tensor:
    """RMSNorm with a plain weight ``scale`` over the last axis."""
    result: Tensor = _RmsScale.apply(x, scale, eps)
    return result


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Zero-centred RMSNorm over the last axis: the stored weight is the deviation from 1."""
    return rms_scale(x, 1.0 + weight)


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The residual stream after a branch, and its zero-centred RMSNorm."""
    total = x + branch
    return total, rms_norm(total, weight)


def _l2_normalised(x: Tensor, *, factor: float = 1.0) -> Tensor:
    """``factor * x / sqrt(sum(x^2) + EPS)``, expressed through the RMS."""
    width = x.shape[-1]
    return rms_scale(x, x.new_full((width,), factor * width**-0.5), eps=EPS / width)


def delta_inputs(
    qkv: Tensor, b: Tensor, a: Tensor, conv: Tensor, a_log: Tensor, dt_bias: Tensor, key_heads: int, key_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Causal convolution, SiLU and the gates of one DeltaNet layer.

    Args: ``qkv [B, T, C]`` raw projection, ``b``/``a [B, T, HV]``, ``conv [C, 1, taps]``, ``a_log``/``dt_bias [HV]``.
    Returns q, k ``[B, T, H, K]`` (normalised, q scaled), v ``[B, T, HV, V]``, g, beta ``[B, T, HV]``.
    """
    keys = key_heads * key_dim
    mixed = F.silu(_CausalConvolution.apply(qkv, conv))
    query, key, value = mixed.split((keys, keys, mixed.shape[-1] - 2 * keys), dim=-1)
    q = _l2_normalised(query.unflatten(-1, (key_heads, key_dim)), factor=key_dim**-0.5)
    k = _l2_normalised(key.unflatten(-1, (key_heads, key_dim)))
    v = value.unflatten(-1, (a_log.shape[0], -1))
    g = -torch.exp(a_log) * F.softplus(a + dt_bias)
    return q, k, v, g, torch.sigmoid(b)


def gated_norm(out: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm per head with a plain weight, then the SiLU gate: ``out``, ``z [B, T, HV, V]``."""
    return rms_scale(out, weight) * F.silu(z)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def attention_inputs(
    query: Tensor, key: Tensor, q_norm: Tensor, k_norm: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Normalised and rotated query ``[B, T, HQ, D]`` and key ``[B, T, HK, D]``.

    Args: ``query [B, T, HQ, D]``, ``key [B, T, HK, D]``, ``cos``/``sin [T, 1, rotary / 2]``.
    """
    return _rotate(rms_norm(query, q_norm), cos, sin), _rotate(rms_norm(key, k_norm), cos, sin)


def gate_attention(out: Tensor, gate: Tensor) -> Tensor:
    """Element-wise sigmoid gate of the attention output."""
    return out * torch.sigmoid(gate)


def scaled_swiglu(gate_up: Tensor, scale: Tensor) -> Tensor:
    """``silu(gate) * up * scale`` for ``gate_up [R, 2 I]`` (gate half first) and ``scale [R, 1]``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up * scale
