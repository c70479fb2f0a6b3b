"""Whole models with quantised weights: equal bits for any cut, exact bytes, and GGUF files as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sterna import _native
from sterna.backends.common import ModelBackend
from sterna.backends.native import NativeBackend, variants
from sterna.backends.numpy import NumpyBackend
from sterna.backends.torch import TorchBackend
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.gguf_writer import uniform, write_gguf
from sterna.checkpoint.quantizing import QuantizingCheckpoint
from sterna.checkpoint.random import RandomCheckpoint
from sterna.config import EngineConfig, ModelConfig, RopeParameters
from sterna.errors import UsageError
from sterna.quant.tensor import QuantizedTensor
from support.golden import Piece, Stream, batch_of
from support.odd_model import odd_config
from support.random_checkpoint import WIDE
from support.random_checkpoint import RandomCheckpoint as WrittenCheckpoint

AVAILABLE = [variant["name"] for variant in variants(with_test_only=True) if variant["available"]]
IDS = np.random.default_rng(3).integers(0, 67, 70)
BLOCK_SIZE = 16


def even_config() -> ModelConfig:
    """Input dimensions that all formats of the recipes accept."""
    return odd_config(
        hidden_size=64,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        head_dim=32,
        linear_value_head_dim=32,
        rope_parameters=RopeParameters(1e6, 0.5, (3, 3, 2)),
    )


def opened(checkpoint: Any, config: ModelConfig, variant: str | None = None) -> ModelBackend:
    return allocated(NativeBackend(variant=variant, num_threads=2), checkpoint, config)


def allocated(backend: ModelBackend, checkpoint: Any, config: ModelConfig | None = None) -> ModelBackend:
    backend.load(checkpoint, config or checkpoint.config)
    size = backend.plan_memory(EngineConfig(block_size=BLOCK_SIZE)).kv_bytes_per_block
    backend.allocate(backend.plan_memory(EngineConfig(block_size=BLOCK_SIZE, kv_cache_bytes=size * 40)))
    return backend


def logits(backend: ModelBackend, ids: np.ndarray, *cuts: int) -> np.ndarray:
    """Logits of all rows, with the sequence cut at the given places."""
    sequence = Stream(blocks=np.arange(20)[::-1].copy(), slot=1)
    ends = [*cuts, len(ids)]
    parts = []
    for start, end in zip([0, *cuts], ends, strict=True):
        _native.set_num_threads(1 + start % 3)
        parts.append(backend.forward(batch_of(Piece(sequence, ids[start:end]))).to_numpy())
    return np.concatenate(parts)


@pytest.mark.parametrize("recipe", ["q4", "q8", "q4-small"])
@pytest.mark.parametrize("variant", AVAILABLE)
def test_prefill_chunks_and_decode_agree_to_the_bit(variant: str, recipe: str) -> None:
    config = even_config()
    backend = opened(QuantizingCheckpoint(RandomCheckpoint(config), recipe), config, variant)
    whole = logits(backend, IDS)
    assert np.isfinite(whole).all()
    assert np.array_equal(logits(backend, IDS, 1, 2, 3, 9, 40, 68, 69), whole)


def test_eight_bits_stay_close_to_their_exact_values() -> None:
    config = even_config()
    source = RandomCheckpoint(config, dtype="F32")
    got = logits(opened(QuantizingCheckpoint(source, "q8"), config), IDS)
    exact = logits(opened(QuantizingCheckpoint(source, "q8", dequantize=True), config), IDS)
    error = np.linalg.norm(got - exact, axis=1) / np.linalg.norm(exact, axis=1)
    # A few rows choose other experts; the rest differ by the rounding of the activations.
    assert np.median(error) <= 0.05


def test_plan_counts_the_bytes_of_the_recipe() -> None:
    config = even_config()
    checkpoint = QuantizingCheckpoint(RandomCheckpoint(config), "q4")
    backend = opened(checkpoint, config)
    planned = backend.plan_memory(EngineConfig(block_size=BLOCK_SIZE)).weight_bytes
    names = checkpoint.names("text", "mtp")
    arrays = (checkpoint.tensor(name) for name in names)
    assert planned == sum(
        each.data.nbytes if isinstance(each, QuantizedTensor) else each.array.nbytes for each in arrays
    )


@pytest.mark.parametrize("form", ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0"])
def test_gguf_files_run_as_they_are(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, WrittenCheckpoint(WIDE), choose=uniform(form), file_type=form)
    checkpoint = GgufCheckpoint(path, v_head_order="tiled")
    exact = GgufCheckpoint(path, dequantize=True)
    ids = np.random.default_rng(1).integers(0, WIDE.vocab_size, 24)
    backend = opened(checkpoint, checkpoint.config)
    got = logits(backend, ids)
    assert np.array_equal(logits(backend, ids, 1, 5, 23), got)
    expected = logits(opened(exact, exact.config), ids)
    error = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.median(error) <= 0.1


@pytest.mark.parametrize("make", [NativeBackend, NumpyBackend, TorchBackend])
def test_value_heads_in_stored_order_give_the_same_model(tmp_path: Path, make: Callable[[], ModelBackend]) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, WrittenCheckpoint(WIDE), choose=uniform("F32"), file_type="F32")
    ids = np.random.default_rng(2).integers(0, WIDE.vocab_size, 12)
    grouped, tiled = (
        logits(allocated(make(), GgufCheckpoint(path, v_head_order=order)), ids) for order in ("grouped", "tiled")
    )
    assert WIDE.linear_num_key_heads > 1
    # Sums of the output projection run in another order, which bfloat16 keys and values make visible.
    assert np.abs(tiled - grouped).max() <= 0.01 * np.abs(grouped).max()


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(UsageError, match="no recipe 'q5'"):
        QuantizingCheckpoint(RandomCheckpoint(even_config()), "q5")
