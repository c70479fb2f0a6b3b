"""What llama.cpp computed for a small random model, and the same of our numpy backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sterna.backends.base import Batch, DraftBatch
from sterna.backends.common import ModelBackend
from sterna.backends.numpy import NumpyBackend
from sterna.checkpoint.gguf_metadata import GgufTokenizer
from sterna.checkpoint.gguf_writer import uniform, write_gguf
from sterna.config import EngineConfig
from support.random_checkpoint import SMALL, RandomCheckpoint

GOLDEN = Path(__file__).parents[1] / "data" / "llama_cpp" / "golden.npz"
GOLDEN_IDS = np.random.default_rng(7).integers(0, SMALL.vocab_size, 40).tolist()
GREEDY = 24
BLOCK_SIZE = 64

# llama.cpp loads no model without one; no text is ever cut by it.
GOLDEN_TOKENIZER = GgufTokenizer(
    model="gpt2",
    pre="qwen35",
    tokens=["Ċ", *(f"t{i}" for i in range(1, SMALL.vocab_size))],
    merges=["t 1"],
    token_types=[1] * SMALL.vocab_size,
    chat_template=None,
    eos_token_id=1,
    bos_token_id=None,
    padding_token_id=None,
)


def golden_source() -> RandomCheckpoint:
    """The model of the golden data; llama.cpp needs value heads as wide as key heads."""
    return RandomCheckpoint(replace(SMALL, linear_value_head_dim=16), seed=11)


def write_golden_file(path: Path) -> None:
    """The GGUF file that llama.cpp ran."""
    write_gguf(path, golden_source(), choose=uniform("F32"), tokenizer=GOLDEN_TOKENIZER, file_type="F32")


def run_numpy(checkpoint: Any, ids: Sequence[int], backend: ModelBackend | None = None) -> dict[str, np.ndarray]:
    """``logits`` [T, V], ``hidden`` [T, D], ``mtp_logits`` [T - 1, V] and ``greedy`` [GREEDY], of one backend (numpy)."""
    backend = backend or NumpyBackend()
    backend.load(checkpoint, checkpoint.config)
    blocks = -(-(len(ids) + GREEDY) // BLOCK_SIZE)
    size = backend.plan_memory(EngineConfig(block_size=BLOCK_SIZE)).kv_bytes_per_block
    backend.allocate(backend.plan_memory(EngineConfig(block_size=BLOCK_SIZE, kv_cache_bytes=size * blocks)))
    tokens = np.asarray(ids, np.int32)
    first = backend.forward(batch(tokens, 0, blocks))
    logits = first.to_numpy()
    rows = np.arange(len(ids) - 1, dtype=np.int32)
    drafted = backend.draft(DraftBatch(batch=batch(tokens[1:], 0, blocks), hidden=first.hidden, rows=rows))
    greedy = [int(logits[-1].argmax())]
    while len(greedy) < GREEDY:
        step = batch(np.array(greedy[-1:], np.int32), len(ids) + len(greedy) - 1, blocks)
        greedy.append(int(backend.forward(step).to_numpy()[0].argmax()))
    return {
        "logits": logits,
        "hidden": backend.ops.to_numpy(first.hidden),
        "mtp_logits": drafted.to_numpy(),
        "greedy": np.array(greedy, np.int32),
    }


def batch(ids: np.ndarray, start: int, blocks: int) -> Batch:
    """Rows of the one sequence, which owns all blocks in order; logits of every row."""
    rows = np.arange(start, start + len(ids), dtype=np.int32)
    return Batch(
        token_ids=ids,
        positions=np.tile(rows, (3, 1)),
        cu_seqlens=np.array([0, len(ids)], np.int32),
        context_lens=np.array([start], np.int32),
        block_tables=np.arange(blocks, dtype=np.int32)[None],
        slot_mapping=rows,
        state_slots=np.zeros(1, np.int32),
        logits_indices=np.arange(len(ids), dtype=np.int32),
    )
