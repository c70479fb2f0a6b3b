"""A backend without a model whose caches are checked: it fails when blocks or states do not belong to the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sterna.backends.base import Batch, MemoryPlan, SampledToken, SampleRow
from sterna.config import EngineConfig, ModelConfig, RopeParameters, TextConfig
from sterna.ops.sampling import sample

VOCAB = 64
EOS = 0


def text_config(**changes: Any) -> TextConfig:
    """A tiny configuration; the fake backend uses vocabulary and context length only."""
    values: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 8, "num_hidden_layers": 4,
        "layer_types": ("linear_attention",) * 3 + ("full_attention",), "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 4,
        "linear_value_head_dim": 8, "linear_num_key_heads": 1, "linear_num_value_heads": 2, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 1024,
        "rope_parameters": RopeParameters(10000.0, 0.25, (1, 0, 0)),
    }  # fmt: skip
    return TextConfig(**(values | changes))


def step_hash(state: int, token_id: int) -> int:
    """The fake recurrent state: a hash of all tokens so far."""
    return (state * 6364136223846793005 + token_id + 1442695040888963407) % 2**61


def prefix_hash(token_ids: Sequence[int]) -> int:
    """The state after these tokens, from zero."""
    state = 0
    for token_id in token_ids:
        state = step_hash(state, token_id)
    return state


def logits_of(state: int) -> np.ndarray:
    """float32 [VOCAB], a function of the whole prefix through its hash."""
    return np.random.default_rng(state).standard_normal(VOCAB).astype(np.float32)


@dataclass
class FakeLogits:
    """Logits of the wanted rows."""

    values: np.ndarray
    hidden: Any = None

    def to_numpy(self) -> np.ndarray:
        """float32 [R, VOCAB]."""
        return self.values


class FakeBackend:
    """Remembers which token is in which KV slot and one hash per state slot."""

    name = "fake"

    def __init__(self, *, num_blocks: int = 64, num_state_slots: int = 8, context: int = 1024) -> None:
        self.config = ModelConfig(text=text_config(max_position_embeddings=context), vision=None, eos_token_ids=(EOS,))
        self.num_blocks, self.num_state_slots = num_blocks, num_state_slots
        self.batches: list[Batch] = []
        self.fail_at: int | None = None

    def plan_memory(self, engine_config: EngineConfig) -> MemoryPlan:
        """The sizes given to the constructor."""
        return MemoryPlan(0, self.num_blocks, engine_config.block_size, 1, self.num_state_slots, 1, 0)

    def allocate(self, plan: MemoryPlan) -> None:
        """Empty caches: -1 is in no vocabulary."""
        self.block_size = plan.block_size
        self.kv = np.full(plan.num_blocks * plan.block_size, -1, np.int64)
        self.states = [-1] * plan.num_state_slots

    def forward(self, batch: Batch) -> FakeLogits:
        """Check the caches of every sequence against each other, then store its new tokens."""
        self.batches.append(batch)
        if self.fail_at == len(self.batches):
            raise RuntimeError("the fake backend was told to fail")
        assert batch.token_ids.dtype == batch.slot_mapping.dtype == np.int32
        assert len(set(batch.slot_mapping.tolist())) == len(batch.slot_mapping)
        assert len(set(batch.state_slots.tolist())) == len(batch.state_slots)
        after = np.zeros(len(batch.token_ids), np.int64)
        for b, slot in enumerate(batch.state_slots.tolist()):
            after[batch.cu_seqlens[b] : batch.cu_seqlens[b + 1]] = self._run_sequence(batch, b, slot)
        return FakeLogits(np.array([logits_of(int(after[i])) for i in batch.logits_indices]).reshape(-1, VOCAB))

    def _run_sequence(self, batch: Batch, b: int, slot: int) -> list[int]:
        context, rows = int(batch.context_lens[b]), range(batch.cu_seqlens[b], batch.cu_seqlens[b + 1])
        table = batch.block_tables[b]
        cached = [
            int(self.kv[table[i // self.block_size] * self.block_size + i % self.block_size]) for i in range(context)
        ]
        state = 0 if context == 0 else self.states[slot]
        assert state == prefix_hash(cached), "state and KV blocks hold different tokens"
        states = []
        wanted = dict(batch.snapshot_at.tolist())
        assert len({slot, *wanted.values()}) == 1 + len(wanted)
        for offset, row in enumerate(rows):
            i = context + offset
            assert batch.positions[:, row].tolist() == [i] * 3
            assert batch.slot_mapping[row] == table[i // self.block_size] * self.block_size + i % self.block_size
            self.kv[batch.slot_mapping[row]] = batch.token_ids[row]
            state = step_hash(state, int(batch.token_ids[row]))
            states.append(state)
            if row in wanted:
                self.states[wanted[row]] = state
        self.states[slot] = state
        return states

    def copy_state(self, source: int, target: int) -> None:
        """Copy one hash."""
        assert source != target
        self.states[target] = self.states[source]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the tokens of blocks."""
        blocks = self.kv.reshape(-1, self.block_size)
        for source, target in pairs:
            assert source != target
            blocks[target] = blocks[source]

    def sample(self, logits: FakeLogits, rows: Sequence[SampleRow]) -> list[SampledToken]:
        """The reference sampler."""
        assert len(rows) == len(logits.values)
        return [sample_with(values, row) for values, row in zip(logits.values, rows, strict=True)]


def sample_with(values: np.ndarray, row: SampleRow) -> SampledToken:
    """One row through the reference sampler."""
    choice = sample(
        values, row.params, seed=row.seed, position=row.position, prompt_ids=row.prompt_ids,
        output_ids=row.output_ids, allowed=row.allowed,
    )  # fmt: skip
    return SampledToken(choice.token_id, choice.logprob, choice.top_logprobs)
