"""Everything of a backend that does not depend on the device: `ModelBackend` implements `Backend` over any op set."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from sterna.backends.base import Batch, DraftBatch, Logits, MemoryPlan, SampledToken, SampleRow
from sterna.backends.planner import plan_memory
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.manifest import vision_tensors
from sterna.checkpoint.opening import LoadableCheckpoint
from sterna.checkpoint.packed_checkpoint import PackedCheckpoint
from sterna.checkpoint.quantizing import QuantizingCheckpoint
from sterna.config import EngineConfig, ModelConfig, VisionConfig
from sterna.errors import BackendError
from sterna.models.qwen3_5_moe import Caches, ModelLogits, ModelPass, Qwen35MoeModel
from sterna.models.vision import VisionModel, VisionSource
from sterna.ops.base import OpSet
from sterna.ops.sampling import sample

# Raised whenever the bytes of exported blocks or snapshots change their meaning.
LAYOUT_VERSION = 1


class _LastPass(NamedTuple):
    """The rows of a sequence in its last pass, and which slots hold the state after which of them."""

    rows: int
    snapshots: dict[int, int]


class ModelBackend:
    """Weights, caches and arithmetic over one op set. A subclass chooses the op set and knows its device's memory."""

    # Bytes per weight value, or None where weights keep the type they have in the checkpoint.
    weight_itemsize: int | None = None
    computes_quantized = False

    def __init__(self, ops: OpSet) -> None:
        self.ops = ops
        self.name = ops.name
        self._config: ModelConfig | None = None
        self._model: Qwen35MoeModel | None = None
        self._vision: VisionModel | None = None
        self._caches: Caches | None = None
        self._plan: MemoryPlan | None = None
        self._weight_bytes = 0
        self._weights_digest = ""
        self._last_pass: dict[int, _LastPass] = {}

    # lifecycle -------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> ModelConfig:
        """The configuration given to `load`."""
        if self._config is None:
            raise BackendError(f"the backend {self.name} holds no model", hint="call load first")
        return self._config

    @property
    def model(self) -> Qwen35MoeModel:
        """The loaded model."""
        if self._model is None:
            raise BackendError(f"the backend {self.name} holds no model", hint="call load first")
        return self._model

    def load(self, checkpoint: LoadableCheckpoint, config: ModelConfig) -> None:
        """Take the weights of a checkpoint: text and, if present, the multi-token prediction head and the vision tower."""
        self._model = Qwen35MoeModel(self.ops, checkpoint, config)
        self._config = config
        self._weight_bytes = sum(self._bytes_of(checkpoint, name) for name in checkpoint.names("text", "mtp"))
        self._weights_digest = checkpoint.fingerprint()
        if config.vision is not None and checkpoint.names("vision"):
            # every recipe leaves the vision tower unquantised
            self.load_vision(cast("VisionSource", checkpoint), config.vision)

    def load_vision(self, source: VisionSource, config: VisionConfig) -> None:
        """Take a vision tower, also from another file than the text model's."""
        if config.out_hidden_size != self.config.text.hidden_size:
            raise BackendError(
                f"the vision tower gives {config.out_hidden_size} values per token, "
                f"the model takes {self.config.text.hidden_size}"
            )
        self._vision = VisionModel(self.ops, source, config, variant=f"{self.name} {self.variant()}")
        self._weight_bytes += sum(self._bytes_of(source, name) for name in vision_tensors(config))

    @property
    def vision(self) -> VisionModel | None:
        """The vision tower, ``None`` where the checkpoint has none."""
        return self._vision

    def _bytes_of(self, checkpoint: LoadableCheckpoint | VisionSource, name: str) -> int:
        if isinstance(checkpoint, QuantizingCheckpoint | GgufCheckpoint | PackedCheckpoint):
            return checkpoint.nbytes(name)
        shape, itemsize = checkpoint.storage(name)
        return math.prod(shape) * (self.weight_itemsize or itemsize)

    def available_bytes(self) -> int | None:
        """Memory of the device that a plan may use for weights and caches together, ``None`` if unknown."""
        return None

    def plan_memory(self, engine_config: EngineConfig) -> MemoryPlan:
        """Exact bytes for that configuration; raises `OutOfMemoryError` with what would fit."""
        block_size, text = engine_config.block_size, self.config.text
        recurrent, conv = self.ops.read_state(self.ops.allocate_state(1, text), 0)
        kv_block = self.ops.read_kv(self.ops.allocate_kv(1, block_size, text), 0)
        linear = text.layer_types.count("linear_attention")
        attention = len(text.layer_types) - linear + (self.model.mtp is not None)
        return plan_memory(
            text,
            engine_config,
            weight_bytes=self._weight_bytes,
            kv_bytes_per_block=attention * kv_block.nbytes,
            state_bytes_per_slot=linear * (recurrent.nbytes + conv.nbytes),
            available_bytes=self.available_bytes(),
        )

    def allocate(self, plan: MemoryPlan) -> None:
        """Allocate caches. Must be called once, before the first pass."""
        if self._caches is not None:
            raise BackendError("the caches are allocated already, allowed is one call")
        self._caches = self.model.allocate(
            num_blocks=plan.num_blocks, block_size=plan.block_size, num_state_slots=plan.num_state_slots
        )
        self._plan = plan

    def close(self) -> None:
        """Free everything; further calls are errors."""
        self._model = self._vision = self._caches = self._plan = None
        self._last_pass.clear()

    # passes ----------------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Logits:
        """A whole pass."""
        running = self.start(batch)
        running.advance()
        return running.logits()

    def start(self, batch: Batch) -> ModelPass:
        """A pass that can be resumed between layers."""
        caches = self._allocated()
        snapshots = batch.snapshot_at.tolist()
        for sequence, slot in enumerate(batch.state_slots.tolist()):
            first, last = batch.cu_seqlens[sequence : sequence + 2].tolist()
            stored = {row - first + 1: target for row, target in snapshots if first <= row < last}
            self._last_pass[slot] = _LastPass(last - first, stored)
        return self.model.start(batch, caches)

    def draft(self, batch: DraftBatch) -> ModelLogits:
        """One pass of the multi-token prediction head."""
        return self.model.draft(batch, self._allocated())

    def sample(self, logits: Logits, rows: Sequence[SampleRow]) -> list[SampledToken]:
        """Choose one token per row of logits: a pure function of (logits, params, seed, position)."""
        result = []
        for values, row in zip(logits.to_numpy(), rows, strict=True):
            choice = sample(
                values,
                row.params,
                seed=row.seed,
                position=row.position,
                prompt_ids=row.prompt_ids,
                output_ids=row.output_ids,
                allowed=row.allowed,
            )
            result.append(SampledToken(choice.token_id, choice.logprob, choice.top_logprobs))
        return result

    # states and blocks -----------------------------------------------------------------------------------------------

    def commit(self, slot: int, n: int) -> None:
        """Keep the state after the first n rows of the last pass of that slot.

        Unless n is all rows, the pass must have named row n - 1 in ``snapshot_at``; the state is copied from there.
        """
        last = self._last_pass.get(slot)
        if last is None or not 1 <= n <= last.rows:
            raise BackendError(
                f"cannot keep {n} rows of state slot {slot}, its last pass had {last.rows if last else 0}"
            )
        if n == last.rows:
            return
        if n not in last.snapshots:
            raise BackendError(
                f"the last pass of state slot {slot} stored no state after {n} rows", hint="use snapshot_at"
            )
        self.copy_state(last.snapshots[n], slot)

    def snapshot_state(self, slot: int) -> np.ndarray:
        """The lossless state of all DeltaNet layers of one slot: uint8 [state_bytes_per_slot]."""
        parts = [part for state in self._states() for part in self.ops.read_state(state, slot)]
        return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])

    def restore_state(self, slot: int, snapshot: np.ndarray) -> None:
        """Inverse of `snapshot_state`; raises `BackendError` for a snapshot of another size."""
        expected = self._planned().state_bytes_per_slot
        if snapshot.nbytes != expected:
            raise BackendError(f"the snapshot has {snapshot.nbytes} bytes, a state of this model has {expected}")
        offset = 0
        for state in self._states():
            recurrent, conv = (
                _take(snapshot, offset + skip, like) for like, skip in _with_offsets(self.ops.read_state(state, slot))
            )
            self.ops.write_state(state, slot, recurrent, conv)
            offset += recurrent.nbytes + conv.nbytes

    def copy_state(self, source: int, target: int) -> None:
        """Copy one state slot; source -1 is the zero state."""
        for state in self._states():
            self.ops.copy_state(state, source, target)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy KV blocks (source, target) in every attention layer, the MTP layer included."""
        for cache in self._kv_caches():
            for source, target in pairs:
                self.ops.copy_kv(cache, source, target)

    def export_blocks(self, blocks: Sequence[int]) -> np.ndarray:
        """The lossless content of KV blocks: uint8 [len(blocks), kv_bytes_per_block]."""
        out = np.empty((len(blocks), self._planned().kv_bytes_per_block), np.uint8)
        for row, block in zip(out, blocks, strict=True):
            parts = [np.ascontiguousarray(self.ops.read_kv(cache, block)) for cache in self._kv_caches()]
            row[:] = np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])
        return out

    def import_blocks(self, blocks: Sequence[int], data: np.ndarray) -> None:
        """Inverse of `export_blocks`; raises `BackendError` for data of another size."""
        expected = (len(blocks), self._planned().kv_bytes_per_block)
        if data.shape != expected:
            raise BackendError(f"the block data has shape {data.shape}, expected is {expected}")
        for row, block in zip(data, blocks, strict=True):
            offset = 0
            for cache in self._kv_caches():
                part = _take(row, offset, self.ops.read_kv(cache, block))
                self.ops.write_kv(cache, block, part)
                offset += part.nbytes

    def fingerprint(self) -> str:
        """Changes whenever stored blocks and snapshots become invalid: weights, formats, kernel variant, layout."""
        parts = (
            LAYOUT_VERSION,
            self.name,
            self.variant(),
            self._planned().block_size,
            self.config,
            self._weights_digest,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def variant(self) -> str:
        """What of the device decides the bits of a result, beyond the name of the op set."""
        return ""

    # inside ----------------------------------------------------------------------------------------------------------

    def _allocated(self) -> Caches:
        if self._caches is None:
            raise BackendError(f"the backend {self.name} has no caches", hint="call load and allocate first")
        return self._caches

    def _planned(self) -> MemoryPlan:
        self._allocated()
        assert self._plan is not None
        return self._plan

    def _states(self) -> Iterator[Any]:
        layer_types = self.config.text.layer_types
        caches = self._allocated().layers
        return (cache for cache, kind in zip(caches, layer_types, strict=True) if kind == "linear_attention")

    def _kv_caches(self) -> Iterator[Any]:
        caches, layer_types = self._allocated(), self.config.text.layer_types
        yield from (cache for cache, kind in zip(caches.layers, layer_types, strict=True) if kind == "full_attention")
        if self.model.mtp is not None:
            yield caches.mtp


def _with_offsets(parts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    offset = 0
    for part in parts:
        yield part, offset
        offset += part.nbytes


def _take(data: np.ndarray, offset: int, like: np.ndarray) -> np.ndarray:
    """The bytes at an offset in type and shape of another array."""
    raw = np.ascontiguousarray(data[offset : offset + like.nbytes])
    return raw.view(like.dtype).reshape(like.shape)
