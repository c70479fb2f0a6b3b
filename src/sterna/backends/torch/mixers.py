"""The two mixers and their norms in eager PyTorch; shapes and formulas are those of `sterna.ops`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sterna.config import TextConfig
from sterna.ops.base import AttentionWeights, GatedDeltaNetWeights, StepContext
from sterna.ops.gated_delta_net import state_segments
from sterna.ops.rms_norm import L2_NORM_EPS


def normalise(x: Tensor, eps: float) -> Tensor:
    """Unit root mean square over the last axis."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zero-centred RMSNorm."""
    return normalise(x, eps) * (1 + weight)


def l2_norm(x: Tensor) -> Tensor:
    """Unit L2 norm over the last axis."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + L2_NORM_EPS)


def delta_net(
    u: Tensor,
    weights: GatedDeltaNetWeights,
    recurrent: Tensor,
    conv: Tensor,
    context: StepContext,
    config: TextConfig,
) -> Tensor:
    """The Gated DeltaNet mixer; ``recurrent`` and ``conv`` hold all state slots of the layer."""
    tokens, heads, dim = len(u), config.linear_num_value_heads, config.linear_value_head_dim
    qkv = F.linear(u, weights.in_proj_qkv)
    z = F.linear(u, weights.in_proj_z).view(tokens, heads, dim)
    beta = torch.sigmoid(F.linear(u, weights.in_proj_b))
    g = -torch.exp(weights.A_log) * F.softplus(F.linear(u, weights.in_proj_a) + weights.dt_bias)
    out = torch.empty_like(z)
    for start, end, source, targets in state_segments(context):
        history = torch.cat([conv[source], qkv[start:end].T], dim=1)
        mixed = F.silu(F.conv1d(history[None], weights.conv1d[:, None], groups=len(history))[0].T)
        q, k, v = _split_qkv(mixed, config, tiled=weights.tiled_value_heads)
        out[start:end], state = _delta_rule(q, k, v, g[start:end], beta[start:end], recurrent[source])
        for slot in targets:
            recurrent[slot], conv[slot] = state, history[:, end - start :]
    gated = normalise(out, config.rms_norm_eps) * weights.norm * F.silu(z)
    return F.linear(gated.reshape(tokens, heads * dim), weights.out_proj)


def _split_qkv(mixed: Tensor, config: TextConfig, *, tiled: bool) -> tuple[Tensor, Tensor, Tensor]:
    tokens, heads, dim = len(mixed), config.linear_num_key_heads, config.linear_key_head_dim
    values = config.linear_num_value_heads
    q, k, v = mixed.split([heads * dim, heads * dim, values * config.linear_value_head_dim], dim=1)
    q = l2_norm(q.reshape(tokens, heads, dim)) * dim**-0.5
    k = l2_norm(k.reshape(tokens, heads, dim))
    repeats = values // heads
    q, k = (x.repeat(1, repeats, 1) if tiled else x.repeat_interleave(repeats, dim=1) for x in (q, k))
    return q, k, v.reshape(tokens, values, config.linear_value_head_dim)


def _delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    state, out, decay = state.clone(), torch.empty_like(v), torch.exp(g)
    for t in range(len(v)):
        state *= decay[t, :, None, None]
        correction = beta[t, :, None] * (v[t] - (state @ k[t, :, :, None])[..., 0])
        state += correction[:, :, None] * k[t, :, None, :]
        out[t] = (state @ q[t, :, :, None])[..., 0]
    return out, state


def attention(
    u: Tensor, weights: AttentionWeights, kv_cache: Tensor, context: StepContext, config: TextConfig
) -> Tensor:
    """The gated attention mixer over ``kv_cache`` [2, num_blocks, block_size, Hkv, head_dim]."""
    tokens, dim, eps = len(u), config.head_dim, config.rms_norm_eps
    both = F.linear(u, weights.q_proj).view(tokens, config.num_attention_heads, 2, dim)
    q, gate = both[:, :, 0], both[:, :, 1].reshape(tokens, -1)
    k = F.linear(u, weights.k_proj).view(tokens, config.num_key_value_heads, dim)
    v = F.linear(u, weights.v_proj).view(tokens, config.num_key_value_heads, dim)
    device = context.device
    q = _rope(rms_norm(q, weights.q_norm, eps), device.cos, device.sin)
    k = _rope(rms_norm(k, weights.k_norm, eps), device.cos, device.sin)
    rows = kv_cache.view(2, -1, *k.shape[1:])
    rows[0, device.slot_mapping], rows[1, device.slot_mapping] = k, v
    block_size = kv_cache.shape[2]
    out = torch.empty_like(q)
    for sequence, cached in enumerate(context.context_lens.tolist()):
        first, last = context.cu_seqlens[sequence : sequence + 2].tolist()
        length = cached + last - first
        table = device.block_tables[sequence, : -(-length // block_size)]
        keys, values = kv_cache[:, table].flatten(1, 2)[:, :length].transpose(1, 2)
        visible = torch.arange(length, device=u.device) <= cached + torch.arange(last - first, device=u.device)[:, None]
        attended = F.scaled_dot_product_attention(
            q[first:last].transpose(0, 1)[None], keys[None], values[None], attn_mask=visible, enable_gqa=True
        )
        out[first:last] = attended[0].transpose(0, 1)
    return F.linear(out.reshape(tokens, -1) * torch.sigmoid(gate), weights.o_proj)


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], dim=-1)
