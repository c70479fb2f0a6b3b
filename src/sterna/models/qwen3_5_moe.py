"""The forward pass of Qwen3.6-35B-A3B and its relatives, written once over an op set (spec §3).

x = embed_tokens[token_ids]                                rows of images are given as features
for every layer:
    x = x + mixer(rms_norm(x, input_layernorm))            three times Gated DeltaNet, then gated attention, …
    x = x + sparse_moe(rms_norm(x, post_attention_layernorm))   or one MLP, in the dense models of the family
hidden = rms_norm(x, norm)
logits = hidden @ lm_head.T
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sterna.backends.base import Batch, DraftBatch, Float32
from sterna.checkpoint.opening import LoadableCheckpoint
from sterna.config import ModelConfig
from sterna.errors import BackendError
from sterna.models.weights import DecoderLayer, MtpHead, WeightLoader
from sterna.ops.base import DenseMlpWeights, GatedDeltaNetWeights, OpSet, StepContext, Tensor
from sterna.ops.rope import rope_cos_sin


@dataclass(slots=True)
class Caches:
    """One entry per decoder layer: the state slots of a DeltaNet layer, or the KV cache of an attention layer."""

    layers: list[Any]
    mtp: Any = None


@dataclass(slots=True)
class ModelLogits:
    """Logits of the rows that a batch asked for, and the final-normed hidden states of all its rows."""

    ops: OpSet
    hidden: Tensor
    logits: Tensor

    def to_numpy(self) -> Float32:
        """float32 [R, V]."""
        return self.ops.to_numpy(self.logits)


class Qwen35MoeModel:
    """The text model and, where the checkpoint has it, the multi-token prediction head."""

    def __init__(self, ops: OpSet, checkpoint: LoadableCheckpoint, config: ModelConfig) -> None:
        self.ops = ops
        self.config = config.text
        loader = WeightLoader(ops, checkpoint, self.config)
        self.embed_tokens = loader.linear("model.language_model.embed_tokens")
        self.layers: list[DecoderLayer] = [
            loader.layer(f"model.language_model.layers.{i}", layer_type)
            for i, layer_type in enumerate(self.config.layer_types)
        ]
        self.norm = loader.vector("model.language_model.norm.weight")
        self.lm_head = self.embed_tokens if self.config.tie_word_embeddings else loader.linear("lm_head")
        self.mtp: MtpHead | None = loader.mtp() if checkpoint.has_mtp else None

    def allocate(self, *, num_blocks: int, block_size: int, num_state_slots: int) -> Caches:
        """Empty caches of all layers."""
        kv = [self.ops.allocate_kv(num_blocks, block_size, self.config)] if self.mtp else []
        layers = [
            self.ops.allocate_state(num_state_slots, self.config)
            if isinstance(layer.mixer, GatedDeltaNetWeights)
            else self.ops.allocate_kv(num_blocks, block_size, self.config)
            for layer in self.layers
        ]
        return Caches(layers, kv[0] if kv else None)

    def start(self, batch: Batch, caches: Caches) -> ModelPass:
        """A pass over one batch, to be advanced layer by layer."""
        return ModelPass(self, batch, caches)

    def embed(self, batch: Batch) -> Tensor:
        """Embedding rows, with the given features in their places: [T, D]."""
        x = self.ops.embedding(batch.token_ids, self.embed_tokens)
        if batch.embed_rows is None:
            return x
        return self.ops.set_rows(x, batch.embed_rows.rows, batch.embed_rows.values)

    def decoder_layer(self, x: Tensor, layer: DecoderLayer, cache: Any, context: StepContext) -> Tensor:
        """One layer: x [T, D] -> [T, D]."""
        ops, eps = self.ops, self.config.rms_norm_eps
        u = ops.rms_norm(x, layer.input_layernorm, eps)
        if isinstance(layer.mixer, GatedDeltaNetWeights):
            self._clear_fresh_states(cache, context)
            x = ops.add(x, ops.gated_delta_net(u, layer.mixer, cache, context, self.config))
        else:
            x = ops.add(x, ops.gqa_attention(u, layer.mixer, cache, context, self.config))
        u = ops.rms_norm(x, layer.post_attention_layernorm, eps)
        if isinstance(layer.mlp, DenseMlpWeights):
            return ops.add(x, ops.dense_mlp(u, layer.mlp))
        return ops.add(x, ops.sparse_moe(u, layer.mlp, self.config))

    def draft(self, draft: DraftBatch, caches: Caches) -> ModelLogits:
        """One pass of the multi-token prediction head (spec §3.4); its ``hidden`` feeds the next, deeper draft."""
        if self.mtp is None:
            raise BackendError(
                "this checkpoint has no multi-token prediction head", hint="run without speculation, or use a full one"
            )
        ops, mtp, eps = self.ops, self.mtp, self.config.rms_norm_eps
        context = self.context(draft.batch)
        embedded = ops.rms_norm(self.embed(draft.batch), mtp.pre_fc_norm_embedding, eps)
        hidden = ops.rms_norm(ops.take_rows(draft.hidden, draft.rows), mtp.pre_fc_norm_hidden, eps)
        x = ops.linear(ops.concat(embedded, hidden), mtp.fc)
        x = self.decoder_layer(x, mtp.layer, caches.mtp, context)
        return self.head(x, mtp.norm, draft.batch)

    def head(self, x: Tensor, norm: Tensor, batch: Batch) -> ModelLogits:
        """Final norm of all rows, and logits of those that are asked for."""
        hidden = self.ops.rms_norm(x, norm, self.config.rms_norm_eps)
        logits = self.ops.linear(self.ops.take_rows(hidden, batch.logits_indices), self.lm_head)
        return ModelLogits(self.ops, hidden, logits)

    def context(self, batch: Batch) -> StepContext:
        """What the layers need of a batch."""
        cos, sin = rope_cos_sin(batch.positions, self.config)
        return self.ops.prepare(
            StepContext(
                cu_seqlens=batch.cu_seqlens,
                context_lens=batch.context_lens,
                block_tables=batch.block_tables,
                slot_mapping=batch.slot_mapping,
                state_slots=batch.state_slots,
                snapshot_at=batch.snapshot_at,
                cos=cos,
                sin=sin,
            )
        )

    def _clear_fresh_states(self, state: Any, context: StepContext) -> None:
        for slot, cached in zip(context.state_slots.tolist(), context.context_lens.tolist(), strict=True):
            if cached == 0:
                self.ops.copy_state(state, -1, slot)


class ModelPass:
    """A pass in progress: the hidden states between two layers. Other passes may run between two `advance` calls."""

    def __init__(self, model: Qwen35MoeModel, batch: Batch, caches: Caches) -> None:
        self._model = model
        self._batch = batch
        self._caches = caches
        self._context = model.context(batch)
        self._x = model.embed(batch)
        self._next_layer = 0
        self._logits: ModelLogits | None = None

    def advance(self, layers: int | None = None) -> bool:
        """Compute that many further decoder layers, all that are left by default; True when the pass is complete."""
        total = len(self._model.layers)
        end = total if layers is None else min(total, self._next_layer + layers)
        for i in range(self._next_layer, end):
            self._x = self._model.decoder_layer(self._x, self._model.layers[i], self._caches.layers[i], self._context)
        self._next_layer = end
        if end == total and self._logits is None:
            self._logits = self._model.head(self._x, self._model.norm, self._batch)
        return end == total

    def logits(self) -> ModelLogits:
        """The result of a complete pass; `BackendError` before that."""
        if self._logits is None:
            raise BackendError(
                f"the pass has computed {self._next_layer} of {len(self._model.layers)} layers", hint="advance it first"
            )
        return self._logits
