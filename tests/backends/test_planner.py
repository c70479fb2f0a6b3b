"""Plans of memory: every byte accounted for, limits kept, refusals that say what would fit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.fake_backend import text_config

from sterna.backends.base import MemoryPlan
from sterna.backends.planner import MAX_SNAPSHOT_SLOTS, plan_memory, workspace_bytes
from sterna.config import EngineConfig
from sterna.errors import OutOfMemoryError, UsageError

WEIGHTS, BLOCK, SLOT = 1_000_000, 4096, 10_000


def _plan(available: int | None = None, **settings: Any) -> MemoryPlan:
    return plan_memory(
        text_config(), EngineConfig(**settings), weight_bytes=WEIGHTS, kv_bytes_per_block=BLOCK,
        state_bytes_per_slot=SLOT, available_bytes=available,
    )  # fmt: skip


def test_with_room_every_sequence_gets_the_whole_context() -> None:
    plan = _plan(max_num_seqs=3, block_size=32, snapshot_bytes=5 * SLOT + 1)
    assert plan.num_blocks == 3 * 1024 // 32
    assert plan.num_state_slots == 3 + 5
    assert plan.total_bytes == WEIGHTS + plan.num_blocks * BLOCK + 8 * SLOT + plan.workspace_bytes


def test_a_context_beyond_the_models_own_is_cut_to_it() -> None:
    assert _plan(max_model_len=1 << 20, max_num_seqs=1).num_blocks == _plan(max_num_seqs=1).num_blocks


def test_snapshots_have_an_upper_bound() -> None:
    assert _plan(max_num_seqs=1).num_state_slots == 1 + MAX_SNAPSHOT_SLOTS


@given(
    limit=st.integers(1, 4_000_000),
    sequences=st.integers(1, 8),
    length=st.none() | st.integers(1, 2000),
    kv=st.none() | st.integers(1, 1 << 20),
    snapshots=st.integers(0, 20 * SLOT),
)
def test_a_plan_never_exceeds_its_limit(
    limit: int, sequences: int, length: int | None, kv: int | None, snapshots: int
) -> None:
    settings = {"max_num_seqs": sequences, "max_model_len": length, "kv_cache_bytes": kv, "snapshot_bytes": snapshots}
    try:
        plan = _plan(memory_bytes=limit, **settings)
    except OutOfMemoryError as error:
        assert error.hint
        return
    assert plan.total_bytes <= limit
    assert plan.num_state_slots >= sequences
    if length is not None:
        assert plan.num_blocks * plan.block_size >= min(length, text_config().max_position_embeddings)


def test_a_refusal_says_what_would_fit() -> None:
    fixed = WEIGHTS + SLOT + workspace_bytes(text_config(), EngineConfig(max_num_seqs=1))
    settings: dict[str, Any] = {"max_num_seqs": 1, "snapshot_bytes": 0, "max_model_len": 1024}
    with pytest.raises(OutOfMemoryError) as caught:
        _plan(memory_bytes=fixed + 3 * BLOCK, **settings)
    assert "a context of 192 tokens would fit" in str(caught.value.hint)
    assert _plan(memory_bytes=fixed + 16 * BLOCK, **settings).num_blocks == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"block_size": -1}, "block_size is -1"),
        ({"memory_bytes": 0}, "memory_bytes is 0"),
        ({"snapshot_bytes": -5}, "snapshot_bytes is -5"),
        ({"num_state_slots": 1, "max_num_seqs": 2}, "num_state_slots is 1, allowed is max_num_seqs 2 or more"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _plan(**settings)
