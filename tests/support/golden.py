"""The golden checkpoint with its reference logits, and a small driver that turns tokens into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sterna.backends.base import Batch, EmbedRows
from sterna.backends.common import ModelBackend
from sterna.backends.numpy import NumpyBackend
from sterna.backends.torch import TorchBackend
from sterna.checkpoint import Checkpoint
from sterna.config import EngineConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "tiny-hf"
BLOCK_SIZE = 16
NUM_BLOCKS = 64


def native_float32() -> ModelBackend:
    """The native backend with a KV cache that the golden tolerance needs; imported here, since it must be built first."""
    from sterna.backends.native import NativeBackend

    return NativeBackend(kv_dtype="float32")


# One line per backend: every golden and continuity test runs over all of them.
BACKENDS: dict[str, Callable[[], ModelBackend]] = {
    "numpy": NumpyBackend,
    "torch": TorchBackend,
    "native": native_float32,
}


@cache
def reference() -> dict[str, np.ndarray]:
    """The arrays that make_fixture.py stored, without their batch axis of one."""
    with np.load(GOLDEN / "ref.npz") as stored:
        return {name: stored[name] for name in stored}


def open_backend(make: Callable[[], ModelBackend], checkpoint: Checkpoint | None = None) -> ModelBackend:
    """A backend with the golden (or another) checkpoint and its caches."""
    checkpoint = checkpoint or Checkpoint(GOLDEN)
    backend = make()
    backend.load(checkpoint, checkpoint.config)
    plan = backend.plan_memory(
        EngineConfig(
            block_size=BLOCK_SIZE,
            kv_cache_bytes=NUM_BLOCKS * kv_bytes_per_block(backend),
            max_num_seqs=4,
            num_state_slots=12,
        )
    )
    backend.allocate(plan)
    return backend


def kv_bytes_per_block(backend: ModelBackend) -> int:
    """Size of one KV block of BLOCK_SIZE tokens."""
    return backend.plan_memory(EngineConfig(block_size=BLOCK_SIZE)).kv_bytes_per_block


@dataclass
class Stream:
    """One sequence of a test: its blocks in any order, its state slot, and how many tokens it has cached."""

    blocks: Sequence[int] = field(default_factory=lambda: range(16))
    slot: int = 0
    cached: int = 0
    # Positions of text tokens run ahead of their index by this much after images.
    delta: int = 0


@dataclass
class Piece:
    """Tokens to compute next for one stream; ``features``: (rows of the piece, values); ``snapshots``: (row, slot)."""

    stream: Stream
    token_ids: Any
    positions: np.ndarray | None = None
    features: tuple[np.ndarray, np.ndarray] | None = None
    snapshots: Iterable[tuple[int, int]] = ()


def batch_of(*pieces: Piece, last_only: bool = False, block_size: int = BLOCK_SIZE) -> Batch:
    """A batch of the pieces in order, asking for logits of all rows or of the last of each; the streams move on."""
    starts = np.cumsum([0, *(len(piece.token_ids) for piece in pieces)])
    width = max(len(piece.stream.blocks) for piece in pieces)
    positions, slots, tables, rows, values, snapshots = [], [], [], [], [], []
    for piece, start in zip(pieces, starts, strict=False):
        stream, count = piece.stream, len(piece.token_ids)
        index = np.arange(stream.cached, stream.cached + count)
        blocks = np.asarray(stream.blocks)
        positions.append(np.tile(index + stream.delta, (3, 1)) if piece.positions is None else piece.positions)
        slots.append(blocks[index // block_size] * block_size + index % block_size)
        tables.append(np.pad(blocks, (0, width - len(blocks)), constant_values=-1))
        snapshots += [(start + row, slot) for row, slot in piece.snapshots]
        if piece.features is not None:
            rows.append(piece.features[0] + start)
            values.append(piece.features[1])
    batch = Batch(
        token_ids=np.concatenate([piece.token_ids for piece in pieces]).astype(np.int32),
        positions=np.concatenate(positions, axis=1).astype(np.int32),
        cu_seqlens=starts.astype(np.int32),
        context_lens=np.asarray([piece.stream.cached for piece in pieces], np.int32),
        block_tables=np.asarray(tables, np.int32),
        slot_mapping=np.concatenate(slots).astype(np.int32),
        state_slots=np.asarray([piece.stream.slot for piece in pieces], np.int32),
        logits_indices=(starts[1:] - 1 if last_only else np.arange(starts[-1])).astype(np.int32),
        embed_rows=EmbedRows(np.concatenate(rows).astype(np.int32), np.concatenate(values)) if rows else None,
        snapshot_at=np.asarray(snapshots, np.int32).reshape(-1, 2),
    )
    for piece in pieces:
        piece.stream.cached += len(piece.token_ids)
    return batch


def logits_of(backend: ModelBackend, *pieces: Piece) -> np.ndarray:
    """float32 [T, V] of all rows of one pass over the pieces."""
    return backend.forward(batch_of(*pieces)).to_numpy()


def image_prompt(stream: Stream) -> Piece:
    """The reference's prompt with one image and one video of two frames, its features and its positions."""
    ref = reference()
    ids = ref["img_ids"][0]
    rows = np.concatenate([np.flatnonzero(ids == 500), np.flatnonzero(ids == 501)])
    features = np.concatenate([ref["feat_img"], ref["feat_vid"]])
    return Piece(stream, ids, positions=ref["pos"][:, 0], features=(rows, features))
