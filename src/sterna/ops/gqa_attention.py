"""The gated attention mixer (spec §3.2): grouped queries over a paged KV cache, sigmoid output gate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sterna.config import TextConfig
from sterna.ops.activations import sigmoid, softmax
from sterna.ops.base import AttentionWeights, StepContext
from sterna.ops.linear import linear
from sterna.ops.rms_norm import rms_norm
from sterna.ops.rope import apply_rope


@dataclass(slots=True)
class KvCache:
    """Keys (normed, rotated) and values of one layer, each [num_blocks, block_size, Hkv, head_dim]."""

    keys: np.ndarray
    values: np.ndarray


def gqa_attention(
    u: np.ndarray, weights: AttentionWeights, kv_cache: KvCache, context: StepContext, config: TextConfig
) -> np.ndarray:
    """u [T, D], already normalised, of several sequences -> [T, D]. Every row is stored before any row reads.

    A row sees the tokens of its sequence up to itself, counted by token and not by position. Weights are arrays [N, K].
    """
    tokens, dim = len(u), config.head_dim
    q, gate = split_query_gate(linear(u, weights.q_proj), config)
    k = linear(u, weights.k_proj).reshape(tokens, config.num_key_value_heads, dim)
    v = linear(u, weights.v_proj).reshape(tokens, config.num_key_value_heads, dim)
    q = apply_rope(rms_norm(q, weights.q_norm, config.rms_norm_eps), context.cos, context.sin)
    k = apply_rope(rms_norm(k, weights.k_norm, config.rms_norm_eps), context.cos, context.sin)
    kv_cache.keys.reshape(-1, *k.shape[1:])[context.slot_mapping] = k
    kv_cache.values.reshape(-1, *v.shape[1:])[context.slot_mapping] = v
    out = np.empty_like(q)
    for sequence, cached in enumerate(context.context_lens.tolist()):
        first, last = context.cu_seqlens[sequence : sequence + 2].tolist()
        length = cached + last - first
        table = context.block_tables[sequence]
        keys, values = (gather_blocks(x, table, length) for x in (kv_cache.keys, kv_cache.values))
        out[first:last] = causal_attention(q[first:last], keys, values, cached)
    return linear(out.reshape(tokens, -1) * sigmoid(gate), weights.o_proj)


def split_query_gate(projected: np.ndarray, config: TextConfig) -> tuple[np.ndarray, np.ndarray]:
    """[T, H * 2 * head_dim], query and gate interleaved per head -> query [T, H, head_dim], gate [T, H * head_dim]."""
    both = projected.reshape(len(projected), config.num_attention_heads, 2, config.head_dim)
    return both[:, :, 0], both[:, :, 1].reshape(len(projected), -1)


def gather_blocks(cache: np.ndarray, block_table: np.ndarray, length: int) -> np.ndarray:
    """The first ``length`` rows of a sequence from its blocks in order: [length, Hkv, head_dim]."""
    blocks = -(-length // cache.shape[1])
    return cache[block_table[:blocks]].reshape(-1, *cache.shape[2:])[:length]


def causal_attention(q: np.ndarray, keys: np.ndarray, values: np.ndarray, cached: int) -> np.ndarray:
    """Row t of q [T, H, d] sees keys 0 … cached + t of [N, Hkv, d]; query head h uses key head ``h // (H / Hkv)``."""
    tokens, heads, dim = q.shape
    group = heads // keys.shape[1]
    grouped = q.reshape(tokens, keys.shape[1], group, dim)
    scores = np.einsum("tkgd,nkd->kgtn", grouped, keys, optimize=True) * q.dtype.type(dim**-0.5)
    hidden = np.arange(len(keys)) > cached + np.arange(tokens)[:, None]
    weights = softmax(np.where(hidden, -np.inf, scores).astype(q.dtype))
    return np.einsum("kgtn,nkd->tkgd", weights, values, optimize=True).reshape(tokens, heads, dim)
