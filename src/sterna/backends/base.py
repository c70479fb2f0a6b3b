"""The frozen contract between the engine and whatever computes: host arrays in, opaque logits out.

One `Batch` is any mix of prefill pieces and decode steps of several sequences; the number of tokens is data, there is
no phase flag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sterna.config import EngineConfig, ModelConfig, VisionConfig
from sterna.types import SamplingParams

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbedRows:
    """Rows whose embeddings are given (image features, overrides in tests): rows int32 [R], values float32 [R, D]."""

    rows: Int32
    values: Float32


def _no_snapshots() -> Int32:
    return np.zeros((0, 2), np.int32)


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass over B sequences with T tokens in all.

    token_ids       int32 [T]
    positions       int32 [3, T]   temporal, height, width (equal for text), spec §4.4
    cu_seqlens      int32 [B + 1]  rows of sequence b are cu_seqlens[b] … cu_seqlens[b + 1]
    context_lens    int32 [B]      tokens that earlier passes have computed; causality counts tokens, not positions
    block_tables    int32 [B, M]   KV blocks of each sequence in order, padded with -1
    slot_mapping    int32 [T]      block * block_size + offset at which the row's key and value are stored
    state_slots     int32 [B]      DeltaNet state, updated in place; a sequence with context 0 starts from zeros
    logits_indices  int32 [R]      rows whose logits are wanted
    embed_rows      image features in place of embeddings
    snapshot_at     int32 [S, 2]   (row, slot): after that row the state is also stored in that state slot
    """

    token_ids: Int32
    positions: Int32
    cu_seqlens: Int32
    context_lens: Int32
    block_tables: Int32
    slot_mapping: Int32
    state_slots: Int32
    logits_indices: Int32
    embed_rows: EmbedRows | None = None
    snapshot_at: Int32 = field(default_factory=_no_snapshots)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Exact bytes of a planned allocation; printed and checked before anything is allocated."""

    weight_bytes: int
    num_blocks: int
    block_size: int
    kv_bytes_per_block: int
    num_state_slots: int
    state_bytes_per_slot: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return (
            self.weight_bytes
            + self.num_blocks * self.kv_bytes_per_block
            + self.num_state_slots * self.state_bytes_per_slot
            + self.workspace_bytes
        )

    def __str__(self) -> str:
        """One line with every part."""
        kv, states = self.num_blocks * self.kv_bytes_per_block, self.num_state_slots * self.state_bytes_per_slot
        return (
            f"{self.total_bytes:,} bytes: weights {self.weight_bytes:,}; KV {kv:,} for {self.num_blocks * self.block_size:,} "
            f"tokens; {self.num_state_slots} states {states:,}; workspace {self.workspace_bytes:,}"
        )


class Logits(Protocol):
    """Result of a pass, kept by the backend until it is asked for."""

    hidden: Any  # final-normed hidden states of all T rows, opaque, input of `Backend.draft`

    def to_numpy(self) -> Float32:
        """float32 [R, V]."""


class ForwardPass(Protocol):
    """A pass in progress. Between two `advance` calls other passes may run on the same backend."""

    def advance(self, layers: int | None = None) -> bool:
        """Compute that many further decoder layers, all that are left by default; True when the pass is complete."""

    def logits(self) -> Logits:
        """The result of a complete pass."""


@dataclass(frozen=True, slots=True)
class DraftBatch:
    """Input of the MTP head (spec §3.4): slot j pairs ``hidden`` row j with the embedding of the token after it.

    ``batch`` describes the MTP layer's own KV cache in the same terms; its ``token_ids`` are the following tokens and
    its ``positions`` those of the hidden rows. ``hidden`` is a `Logits.hidden` (of the trunk or of an earlier draft),
    from which ``rows`` int32 selects.
    """

    batch: Batch
    hidden: Any
    rows: Int32


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How to sample one row of logits: ``position`` is the absolute index of the token to be chosen.

    ``prompt_ids`` and ``output_ids`` feed the penalties; ``allowed`` (bool [V]) is a grammar's mask or ``None``.
    """

    params: SamplingParams
    seed: int
    position: int
    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    allowed: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The chosen token, its log-probability under the unprocessed logits, and the most likely ones if asked for."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class VisionPass(Protocol):
    """An encoding in progress. Between two `advance` calls other passes may run on the same backend."""

    def advance(self, steps: int | None = None) -> bool:
        """Compute that many further steps, all that are left by default; True when the encoding is complete."""

    def features(self) -> Float32:
        """float32 [T * h * w / merge², D] of a complete encoding."""


class VisionEncoder(Protocol):
    """The vision tower (spec §4.3)."""

    def start(self, pixel_values: Callable[[int, int], Float32], grid_thw: tuple[int, int, int]) -> VisionPass:
        """An encoding; ``pixel_values(start, stop)`` gives float32 rows of patches in merge-block order."""

    def workspace_bytes(self, patches: int) -> int:
        """Memory that an encoding of so many patches takes beside its input and output."""

    def fingerprint(self) -> str:
        """Changes whenever stored features become invalid: weights, configuration, kernel variant."""


class Backend(Protocol):
    """Weights, caches and arithmetic of one model on one device. Slots and blocks are owned by the caller."""

    name: str
    config: ModelConfig
    vision: VisionEncoder | None  # the vision tower, where the checkpoint has one
    computes_quantized: bool  # takes weights in quantised formats and value heads in stored order, else exact F32 only

    def load(self, checkpoint: Any, config: ModelConfig) -> None:
        """Take the weights from a `sterna.checkpoint.Checkpoint`."""

    def load_vision(self, source: Any, config: VisionConfig) -> None:
        """Take a vision tower from another file than the text model's."""

    def plan_memory(self, engine_config: EngineConfig) -> MemoryPlan:
        """Exact bytes for that configuration; raises `OutOfMemoryError` with what would fit."""

    def allocate(self, plan: MemoryPlan) -> None:
        """Allocate caches. Must be called once, before the first pass."""

    def forward(self, batch: Batch) -> Logits:
        """A whole pass."""

    def start(self, batch: Batch) -> ForwardPass:
        """A pass that can be resumed between layers."""

    def sample(self, logits: Logits, rows: Sequence[SampleRow]) -> list[SampledToken]:
        """Choose one token per row of logits: a pure function of (logits, params, seed, position)."""

    def draft(self, batch: DraftBatch) -> Logits:
        """One pass of the MTP head."""

    def commit(self, slot: int, n: int) -> None:
        """Keep the state after the first n rows of the last pass of that slot, drop the rest.

        Unless n is all of its rows, that pass must have named row n - 1 of the sequence in ``snapshot_at``.
        """

    def snapshot_state(self, slot: int) -> np.ndarray:
        """The lossless state of all DeltaNet layers of one slot, as bytes that only this kernel variant reads."""

    def restore_state(self, slot: int, snapshot: np.ndarray) -> None:
        """Inverse of `snapshot_state`."""

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot; source -1 is the zero state."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy KV blocks (source, target) in every attention layer, the MTP layer included."""

    def export_blocks(self, blocks: Sequence[int]) -> np.ndarray:
        """The lossless content of KV blocks: uint8 [len(blocks), kv_bytes_per_block]."""

    def import_blocks(self, blocks: Sequence[int], data: np.ndarray) -> None:
        """Inverse of `export_blocks`."""

    def fingerprint(self) -> str:
        """Changes whenever stored blocks and snapshots become invalid: weights, formats, kernel variant, layout."""

    def close(self) -> None:
        """Free everything; further calls are errors."""
