"""Element-wise parts of the model, gathered so that a compiler may fuse each into one pass over memory.

Every function is plain torch; `Pointwise.compiled` wraps them with ``torch.compile``, which about halves their time on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Zero-centred RMSNorm over the last axis: the stored weight is the deviation from 1."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * (1.0 + weight)


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The residual stream after a branch, and its zero-centred RMSNorm."""
    total = x + branch
    return total, rms_norm(total, weight)


def _l2_normalised(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def delta_inputs(
    qkv: Tensor, b: Tensor, a: Tensor, conv: Tensor, a_log: Tensor, dt_bias: Tensor, key_heads: int, key_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Causal convolution, SiLU and the gates of one DeltaNet layer.

    Args: ``qkv [B, T, C]`` raw projection, ``b``/``a [B, T, HV]``, ``conv [C, 1, taps]``, ``a_log``/``dt_bias [HV]``.
    Returns q, k ``[B, T, H, K]`` (normalised, q scaled), v ``[B, T, HV, V]``, g, beta ``[B, T, HV]``.
    """
    length, taps = qkv.shape[1], conv.shape[2]
    padded = F.pad(qkv, (0, 0, taps - 1, 0))
    mixed = padded[:, :length] * conv[:, 0, 0]
    for tap in range(1, taps):
        mixed = mixed + padded[:, tap : tap + length] * conv[:, 0, tap]
    mixed = F.silu(mixed)
    keys = key_heads * key_dim
    q = _l2_normalised(mixed[..., :keys].unflatten(-1, (key_heads, key_dim))) * key_dim**-0.5
    k = _l2_normalised(mixed[..., keys : 2 * keys].unflatten(-1, (key_heads, key_dim)))
    v = mixed[..., 2 * keys :].unflatten(-1, (a_log.shape[0], -1))
    g = -torch.exp(a_log) * F.softplus(a + dt_bias)
    return q, k, v, g, torch.sigmoid(b)


def gated_norm(out: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm per head with a plain weight, then the SiLU gate: ``out``, ``z [B, T, HV, V]``."""
    return out * torch.rsqrt(out.square().mean(-1, keepdim=True) + EPS) * weight * F.silu(z)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def attention_inputs(
    query_gate: Tensor, key: Tensor, q_norm: Tensor, k_norm: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Normalised and rotated query ``[B, T, HQ, D]`` and key ``[B, T, HK, D]``.

    Args: ``query_gate [B, T, HQ, 2 D]`` (query first, then gate), ``key [B, T, HK, D]``, ``cos``/``sin [T, 1, rotary / 2]``.
    """
    query = query_gate[..., : key.shape[-1]]
    return _rotate(rms_norm(query, q_norm), cos, sin), _rotate(rms_norm(key, k_norm), cos, sin)


def gate_attention(out: Tensor, gate: Tensor) -> Tensor:
    """Element-wise sigmoid gate of the attention output."""
    return out * torch.sigmoid(gate)


def scaled_swiglu(gate_up: Tensor, scale: Tensor) -> Tensor:
    """``silu(gate) * up * scale`` for ``gate_up [R, 2 I]`` (gate half first) and ``scale [R, 1]``."""
    width = gate_up.shape[-1] // 2
    return F.silu(gate_up[..., :width]) * gate_up[..., width:] * scale


@dataclass(frozen=True)
class Pointwise:
    """The functions above, plain or compiled."""

    rms_norm: Callable[..., Tensor] = rms_norm
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]] = add_rms_norm
    delta_inputs: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = delta_inputs
    gated_norm: Callable[..., Tensor] = gated_norm
    attention_inputs: Callable[..., tuple[Tensor, Tensor]] = attention_inputs
    gate_attention: Callable[..., Tensor] = gate_attention
    scaled_swiglu: Callable[..., Tensor] = scaled_swiglu

    @classmethod
    def compiled(cls) -> Pointwise:
        """All of them through ``torch.compile`` with dynamic shapes; needs a C++ compiler on a CPU."""
        options: dict[str, Any] = {"dynamic": True, "fullgraph": True}
        return cls(**{f.name: torch.compile(f.default, **options) for f in fields(cls)})
