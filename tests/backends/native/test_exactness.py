"""Equality of bits: the same tokens give the same logits however a prompt is cut, batched, threaded, saved or resumed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna import _native
from sterna.backends.base import Batch, DraftBatch
from sterna.backends.native import NativeBackend, variants
from sterna.checkpoint.random import RandomCheckpoint
from sterna.config import EngineConfig
from support.golden import Piece, Stream, batch_of
from support.odd_model import odd_config

AVAILABLE = [variant["name"] for variant in variants(with_test_only=True) if variant["available"]]
BLOCK_SIZE = 16
# More than one chunk of the attention's fixed order (256 positions).
TOKENS = 280
IDS = np.random.default_rng(11).integers(0, 67, TOKENS)
# A few stretches are checked row by row; asking for all logits of every pass would cost more than the passes.
FAST = settings(max_examples=8, deadline=None, derandomize=True)


def backend(variant: str, kv_dtype: Any = "bfloat16") -> NativeBackend:
    """One backend per variant and type of cache, shared by all tests."""
    return _open(variant, kv_dtype)


@cache
def _open(variant: str, kv_dtype: Any) -> NativeBackend:
    opened = NativeBackend(variant=variant, kv_dtype=kv_dtype, num_threads=2)
    config = odd_config()
    opened.load(RandomCheckpoint(config), config)
    size = opened.plan_memory(EngineConfig(block_size=BLOCK_SIZE)).kv_bytes_per_block
    plan = EngineConfig(block_size=BLOCK_SIZE, kv_cache_bytes=size * 80, num_state_slots=10)
    opened.allocate(opened.plan_memory(plan))
    return opened


def run(variant: str, *pieces: Piece, threads: int = 1, kv_dtype: Any = "bfloat16") -> np.ndarray:
    _native.set_num_threads(threads)
    return backend(variant, kv_dtype).forward(batch_of(*pieces)).to_numpy()


def stream(slot: int = 0) -> Stream:
    """A sequence with its own slot and a scattered set of blocks."""
    return Stream(blocks=np.random.default_rng(slot).permutation(20) + 20 * slot, slot=slot)


@cache
def whole(variant: str, kv_dtype: Any = "bfloat16") -> np.ndarray:
    """Logits of all rows from one pass."""
    return run(variant, Piece(stream(3), IDS), kv_dtype=kv_dtype)


@pytest.mark.parametrize("variant", AVAILABLE)
@given(cuts=st.sets(st.integers(1, TOKENS - 1), max_size=8), threads=st.integers(1, 3))
@FAST
def test_any_chunking_and_any_number_of_threads(variant: str, cuts: set[int], threads: int) -> None:
    sequence, ends = stream(), [*sorted(cuts), TOKENS]
    parts = [
        run(variant, Piece(sequence, IDS[start:end]), threads=threads)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    assert np.array_equal(np.concatenate(parts), whole(variant))


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("variant", AVAILABLE)
def test_decode_equals_prefill_across_a_chunk_boundary(variant: str, kv_dtype: str) -> None:
    sequence = stream()
    run(variant, Piece(sequence, IDS[:250]), kv_dtype=kv_dtype)
    for at in range(250, 262):
        got = run(variant, Piece(sequence, IDS[at : at + 1]), kv_dtype=kv_dtype, threads=1 + at % 2)
        assert np.array_equal(got[0], whole(variant, kv_dtype)[at])


@pytest.mark.parametrize("variant", AVAILABLE)
@given(lengths=st.lists(st.sampled_from([1, 1, 2, 7, 40]), min_size=2, max_size=4), threads=st.integers(1, 2))
@FAST
def test_a_batch_of_sequences_equals_each_alone(variant: str, lengths: list[int], threads: int) -> None:
    streams = [stream(slot) for slot in range(len(lengths))]
    starts = [0, 7, 20, 261][: len(lengths)]
    for sequence, start in zip(streams, starts, strict=True):
        if start:
            run(variant, Piece(sequence, IDS[:start]))
    ends = [min(TOKENS, start + length) for start, length in zip(starts, lengths, strict=True)]
    pieces = [Piece(s, IDS[start:end]) for s, start, end in zip(streams, starts, ends, strict=True)]
    got = run(variant, *pieces, threads=threads)
    expected = [whole(variant)[start:end] for start, end in zip(starts, ends, strict=True)]
    assert np.array_equal(got, np.concatenate(expected))


@pytest.mark.parametrize("variant", AVAILABLE)
@given(rows=st.sets(st.integers(0, 59), min_size=1, max_size=3))
@FAST
def test_snapshots_of_a_pass_continue_like_the_pass(variant: str, rows: set[int]) -> None:
    opened, slots = backend(variant), (5, 6, 7)
    snapshots = list(zip(sorted(rows), slots, strict=False))
    sequence = stream()
    run(variant, Piece(sequence, IDS[:60], snapshots=snapshots))
    for row, slot in snapshots:
        saved = opened.snapshot_state(slot)
        opened.copy_state(-1, 8)
        opened.restore_state(8, saved)
        for target in (slot, 8):
            again = Stream(blocks=sequence.blocks, slot=target, cached=row + 1)
            got = run(variant, Piece(again, IDS[row + 1 : row + 4]))
            assert np.array_equal(got, whole(variant)[row + 1 : row + 4])


@pytest.mark.parametrize("variant", AVAILABLE)
def test_exported_blocks_and_state_continue_in_other_places(variant: str) -> None:
    opened, sequence = backend(variant), stream()
    run(variant, Piece(sequence, IDS[:100]))
    used = sequence.blocks[:7].tolist()
    moved = [60 + i for i in range(20)]
    opened.import_blocks(moved[:7], opened.export_blocks(used))
    opened.restore_state(9, opened.snapshot_state(0))
    got = run(variant, Piece(Stream(blocks=moved, slot=9, cached=100), IDS[100:110]))
    assert np.array_equal(got, whole(variant)[100:110])


@pytest.mark.parametrize("variant", AVAILABLE)
def test_a_pass_resumed_between_layers_while_another_runs(variant: str) -> None:
    opened, first, second = backend(variant), stream(0), stream(1)
    run(variant, Piece(second, IDS[:30]))
    paused = opened.start(batch_of(Piece(first, IDS[:90])))
    got = []
    at = 30
    while not paused.advance(1):
        got.append(run(variant, Piece(second, IDS[at : at + 1]))[0])
        at += 1
    assert at > 31
    assert np.array_equal(np.stack(got), whole(variant)[30:at])
    assert np.array_equal(paused.logits().to_numpy(), whole(variant)[:90])


@pytest.mark.parametrize("variant", AVAILABLE)
def test_drafts_do_not_depend_on_how_they_are_batched(variant: str) -> None:
    opened = backend(variant)
    hidden = opened.forward(batch_of(Piece(stream(), IDS[:20]))).hidden
    rows = np.arange(20, dtype=np.int32)

    def draft(start: int, end: int) -> np.ndarray:
        sequence = Stream(blocks=stream().blocks, cached=start)
        batch: Batch = batch_of(Piece(sequence, IDS[start + 1 : end + 1]))
        return opened.draft(DraftBatch(batch, hidden, rows[start:end])).to_numpy()

    together = draft(0, 20)
    assert np.isfinite(together).all()
    assert np.array_equal(np.concatenate([draft(0, 13), draft(13, 14), draft(14, 20)]), together)


def test_register_blocking_does_not_change_bits() -> None:
    if "wide" not in AVAILABLE:
        pytest.skip("built without STERNA_TEST_VARIANTS")
    assert np.array_equal(whole("generic"), whole("wide"))


@pytest.mark.parametrize("variant", AVAILABLE)
def test_variants_agree_closely(variant: str) -> None:
    expected = whole("generic", "float32")
    assert np.abs(whole(variant, "float32") - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
