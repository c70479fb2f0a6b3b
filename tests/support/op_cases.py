"""Random inputs for ops, in shapes where swapped axes or heads show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sterna.config import RopeParameters, TextConfig
from sterna.ops.base import AttentionWeights, GatedDeltaNetWeights, OpSet, SparseMoeWeights, StepContext
from sterna.ops.rms_norm import l2_norm
from sterna.ops.rope import rope_cos_sin

# Key and value dimensions, and numbers of key and value heads, all differ.
CONFIG = TextConfig(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=4,
    layer_types=("linear_attention",) * 3 + ("full_attention",),
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=8,
    linear_value_head_dim=12,
    linear_num_key_heads=2,
    linear_num_value_heads=6,
    num_experts=7,
    num_experts_per_tok=3,
    moe_intermediate_size=10,
    shared_expert_intermediate_size=14,
    rms_norm_eps=1e-6,
    max_position_embeddings=4096,
    rope_parameters=RopeParameters(1e4, 0.5, (2, 1, 1)),
)
BLOCK_SIZE = 16


def delta_rule_case(tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Float64 arguments of the delta rule with a state that is not zero."""
    rng = np.random.default_rng(seed)
    heads, value_heads, key, value = 2, 6, 8, 12
    return {
        "q": l2_norm(rng.normal(size=(tokens, heads, key))) * key**-0.5,
        "k": l2_norm(rng.normal(size=(tokens, heads, key))),
        "v": rng.normal(size=(tokens, value_heads, value)),
        "g": -rng.exponential(0.1, size=(tokens, value_heads)),
        "beta": rng.uniform(size=(tokens, value_heads)),
        "state": rng.normal(size=(value_heads, value, key)),
    }


def relative_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected value; infinite where a result is NaN or of another shape."""
    if got.shape != expected.shape or np.isnan(got).any():
        return float("inf")
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def random_matrix(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32, scaled so that products keep the size of their input."""
    return (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)


def delta_net_weights(ops: OpSet, seed: int = 1) -> GatedDeltaNetWeights:
    """Random weights of a DeltaNet mixer, packed by an op set."""
    rng, c = np.random.default_rng(seed), CONFIG
    inner = c.linear_num_value_heads * c.linear_value_head_dim
    vector = c.linear_num_value_heads
    return GatedDeltaNetWeights(
        in_proj_qkv=ops.pack_linear(random_matrix(rng, c.conv_dim, c.hidden_size)),
        in_proj_z=ops.pack_linear(random_matrix(rng, inner, c.hidden_size)),
        in_proj_b=ops.pack_linear(random_matrix(rng, vector, c.hidden_size)),
        in_proj_a=ops.pack_linear(random_matrix(rng, vector, c.hidden_size)),
        conv1d=ops.tensor(rng.normal(size=(c.conv_dim, c.linear_conv_kernel_dim)).astype(np.float32)),
        A_log=ops.tensor(np.log(rng.uniform(0.1, 4, vector)).astype(np.float32)),
        dt_bias=ops.tensor((rng.normal(size=vector) - 2).astype(np.float32)),
        norm=ops.tensor((1 + 0.2 * rng.normal(size=c.linear_value_head_dim)).astype(np.float32)),
        out_proj=ops.pack_linear(random_matrix(rng, c.hidden_size, inner)),
    )


def attention_weights(ops: OpSet, seed: int = 2) -> AttentionWeights:
    """Random weights of an attention mixer, packed by an op set."""
    rng, c = np.random.default_rng(seed), CONFIG
    query, key = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return AttentionWeights(
        q_proj=ops.pack_linear(random_matrix(rng, 2 * query, c.hidden_size)),
        k_proj=ops.pack_linear(random_matrix(rng, key, c.hidden_size)),
        v_proj=ops.pack_linear(random_matrix(rng, key, c.hidden_size)),
        o_proj=ops.pack_linear(random_matrix(rng, c.hidden_size, query)),
        q_norm=ops.tensor((0.2 * rng.normal(size=c.head_dim)).astype(np.float32)),
        k_norm=ops.tensor((0.2 * rng.normal(size=c.head_dim)).astype(np.float32)),
    )


def moe_weights(ops: OpSet, seed: int = 3) -> SparseMoeWeights:
    """Random weights of a mixture of experts, packed by an op set."""
    rng, c = np.random.default_rng(seed), CONFIG
    hidden, width, shared = c.hidden_size, c.moe_intermediate_size, c.shared_expert_intermediate_size
    return SparseMoeWeights(
        gate=ops.pack_linear(random_matrix(rng, c.num_experts, hidden)),
        experts=ops.pack_experts(
            random_matrix(rng, c.num_experts, 2 * width, hidden), random_matrix(rng, c.num_experts, hidden, width)
        ),
        shared_gate_proj=ops.pack_linear(random_matrix(rng, shared, hidden)),
        shared_up_proj=ops.pack_linear(random_matrix(rng, shared, hidden)),
        shared_down_proj=ops.pack_linear(random_matrix(rng, hidden, shared)),
        shared_expert_gate=ops.pack_linear(random_matrix(rng, 1, hidden)),
    )


def step_context(
    ops: OpSet, lengths: list[int], cached: list[int], slots: list[int], snapshot_at: object = ()
) -> StepContext:
    """The context of sequences whose blocks are dealt out in turn, so that none of them lies in one piece."""
    starts = np.cumsum([0, *lengths])
    blocks = [-(-(old + new) // BLOCK_SIZE) for old, new in zip(cached, lengths, strict=True)]
    tables = np.full((len(lengths), max(blocks)), -1, np.int32)
    for b, count in enumerate(blocks):
        tables[b, :count] = np.arange(count)[::-1] * len(lengths) + b
    index = [np.arange(old, old + new) for old, new in zip(cached, lengths, strict=True)]
    slot_mapping = [tables[b, i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for b, i in enumerate(index)]
    positions = np.stack([np.concatenate(index), np.concatenate(index) // 2, np.concatenate(index) % 7]).astype(
        np.int32
    )
    cos, sin = rope_cos_sin(positions, CONFIG)
    context = StepContext(
        cu_seqlens=starts.astype(np.int32),
        context_lens=np.asarray(cached, np.int32),
        block_tables=tables,
        slot_mapping=np.concatenate(slot_mapping).astype(np.int32),
        state_slots=np.asarray(slots, np.int32),
        snapshot_at=np.asarray(snapshot_at, np.int32).reshape(-1, 2),
        cos=cos,
        sin=sin,
    )
    return ops.prepare(replace(context))
