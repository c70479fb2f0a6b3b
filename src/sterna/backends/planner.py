"""From what the engine wants to exact bytes, refused before anything is allocated."""

from __future__ import annotations

from sterna.backends.base import MemoryPlan
from sterna.config import EngineConfig, TextConfig
from sterna.errors import OutOfMemoryError, UsageError

# State slots beyond one per running sequence: as many snapshots as ``snapshot_bytes`` holds, but no more than this.
MAX_SNAPSHOT_SLOTS = 64
# Share of the remaining memory that KV blocks take when neither their size nor the context is given.
DEFAULT_KV_SHARE = 0.5
GIB = 1 << 30


def plan_memory(
    text: TextConfig,
    engine: EngineConfig,
    *,
    weight_bytes: int,
    kv_bytes_per_block: int,
    state_bytes_per_slot: int,
    available_bytes: int | None,
) -> MemoryPlan:
    """Slots, and blocks for ``max_num_seqs`` sequences of ``max_model_len`` tokens or fewer where memory is short.

    A ``max_model_len`` beyond the model's own is cut to it. When it is given, at least one sequence of that length
    must fit; raises `OutOfMemoryError` otherwise.
    """
    _check(engine)
    snapshots = min(MAX_SNAPSHOT_SLOTS, engine.snapshot_bytes // max(state_bytes_per_slot, 1))
    slots = engine.num_state_slots or engine.max_num_seqs + snapshots
    context = min(engine.max_model_len or text.max_position_embeddings, text.max_position_embeddings)
    per_sequence = -(-context // engine.block_size)
    fixed = weight_bytes + slots * state_bytes_per_slot + workspace_bytes(text, engine)
    limit = engine.memory_bytes or available_bytes
    blocks = per_sequence * engine.max_num_seqs
    if engine.kv_cache_bytes is not None:
        blocks = engine.kv_cache_bytes // kv_bytes_per_block
    needed_blocks = per_sequence if engine.max_model_len else 1
    if limit is not None:
        room = max(0, limit - fixed)
        if engine.kv_cache_bytes is None:
            share = 1.0 if engine.max_model_len or engine.memory_bytes else DEFAULT_KV_SHARE
            blocks = min(blocks, int(room * share) // kv_bytes_per_block)
        needed = fixed + max(needed_blocks, blocks if engine.kv_cache_bytes is not None else 0) * kv_bytes_per_block
        if needed > limit:
            fitting = room // kv_bytes_per_block * engine.block_size
            raise OutOfMemoryError(
                f"this needs {needed / GIB:.2f} GiB ({fixed / GIB:.2f} GiB without KV cache), "
                f"allowed are {limit / GIB:.2f} GiB",
                hint=f"a context of {fitting:,} tokens would fit"
                if fitting
                else "use fewer state slots or a smaller format",
            )
    if blocks < needed_blocks:
        raise OutOfMemoryError(
            f"{blocks} KV blocks of {engine.block_size} tokens hold {blocks * engine.block_size:,} tokens, "
            f"allowed is {needed_blocks * engine.block_size:,} or more",
            hint=f"give at least {needed_blocks * kv_bytes_per_block / GIB:.2f} GiB to the KV cache",
        )
    return MemoryPlan(
        weight_bytes=weight_bytes,
        num_blocks=blocks,
        block_size=engine.block_size,
        kv_bytes_per_block=kv_bytes_per_block,
        num_state_slots=slots,
        state_bytes_per_slot=state_bytes_per_slot,
        workspace_bytes=workspace_bytes(text, engine),
    )


def workspace_bytes(text: TextConfig, engine: EngineConfig) -> int:
    """Float32 activations of one pass at its widest point, and the logits of every sequence."""
    mixer = max(
        2 * text.conv_dim + 3 * text.linear_num_value_heads * text.linear_value_head_dim,
        (3 * text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim,
    )
    experts = text.num_experts_per_tok * (text.hidden_size + 3 * text.moe_intermediate_size) + text.num_experts
    per_token = 4 * text.hidden_size + max(mixer, experts)
    rows = max(engine.prefill_chunk_tokens, engine.max_num_seqs)
    return 4 * (rows * per_token + engine.max_num_seqs * text.vocab_size)


def _check(engine: EngineConfig) -> None:
    for name in ("max_num_seqs", "block_size", "prefill_chunk_tokens"):
        if getattr(engine, name) < 1:
            raise UsageError(f"{name} is {getattr(engine, name)}, allowed is 1 or more")
    for name in ("max_model_len", "kv_cache_bytes", "num_state_slots", "memory_bytes"):
        value = getattr(engine, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}, allowed is 1 or more")
    if engine.snapshot_bytes < 0:
        raise UsageError(f"snapshot_bytes is {engine.snapshot_bytes}, allowed is 0 or more")
    if engine.num_state_slots is not None and engine.num_state_slots < engine.max_num_seqs:
        raise UsageError(
            f"num_state_slots is {engine.num_state_slots}, allowed is max_num_seqs {engine.max_num_seqs} or more"
        )
