"""One GGUF file of the official shape with random weights, in seconds: rows are drawn from a small pool of quantised rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from sterna.checkpoint.gguf_metadata import GgufTokenizer
from sterna.checkpoint.gguf_writer import Entry, model_metadata, plan, stored_view, tokenizer_metadata, write_entries
from sterna.checkpoint.quantized_pieces import quantized_pieces
from sterna.checkpoint.random import RandomCheckpoint
from sterna.checkpoint.resumable import Piece
from sterna.config import ModelConfig, preset
from sterna.quant import FORMATS
from sterna.quant.base import Bytes

POOL_ROWS, PIECE_ROWS = 128, 1 << 16
PLAIN = ("F32", "F16", "BF16")


class RandomSource(RandomCheckpoint):
    """Random float32 weights as a source of `write_entries`; large matrices are never asked of it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, dtype="F32")
        self.groups = frozenset({"text"})


def official(layers: int) -> ModelConfig:
    """The official text model with its first layers."""
    config = preset("qwen3.6-35b-a3b")
    types = config.text.layer_types[:layers]
    text = replace(config.text, num_hidden_layers=layers, layer_types=types, mtp_num_hidden_layers=0)
    return replace(config, text=text, vision=None)


def q4_k_m(official_name: str, shape: tuple[int, ...]) -> str:
    """Much like llama.cpp's Q4_K_M: Q6_K for the head, the values and half of the down projections, the rest Q4_K."""
    if len(shape) == 1 or official_name.endswith(
        (".mlp.gate.weight", ".in_proj_a.weight", ".in_proj_b.weight", ".conv1d.weight", ".shared_expert_gate.weight")
    ):
        return "F32"
    if official_name == "lm_head.weight" or official_name.endswith((".v_proj.weight", ".out_proj.weight")):
        return "Q6_K"
    layer = [int(part) for part in official_name.split(".") if part.isdigit()]
    return "Q6_K" if official_name.endswith(".experts.down_proj") and layer and layer[0] % 2 == 0 else "Q4_K"


def single(form: str) -> Callable[[str, tuple[int, ...]], str]:
    """All matrices in one format, the small ones that decide much in F32."""
    return lambda name, shape: "F32" if q4_k_m(name, shape) == "F32" else form


MIXES = {"Q4_K_M": (q4_k_m, "Q4_K"), "Q4_0": (single("Q4_0"), "Q4_0"), "Q8_0": (single("Q8_0"), "Q8_0")}


def write_random(path: Path, *, layers: int, mix: str) -> ModelConfig:
    """Write the file, unless it is there already, and return its configuration."""
    config = official(layers)
    if path.exists():
        return config
    choose, file_type = MIXES[mix]
    source = RandomSource(config)
    size = config.text.vocab_size
    words = GgufTokenizer(
        "gpt2", "qwen35", ["Ċ", *(f"t{i}" for i in range(1, size))], ["t 1"], [1] * size, None, 1, None, 1
    )
    metadata = model_metadata(config, name="random", file_type=file_type) | tokenizer_metadata(words)

    def pieces(entry: Entry) -> Iterator[Callable[[], Piece]]:
        if entry.format.name in PLAIN:
            return quantized_pieces(stored_view(source, entry), entry.format)
        return _drawn(entry)

    write_entries(path, metadata, plan(source, choose), pieces)
    return config


def _drawn(entry: Entry) -> Iterator[Callable[[], Piece]]:
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(entry.name.encode()).digest()[:8], "little"))
    rows, damped = (
        int(np.prod(entry.shape[:-1])),
        entry.official.endswith(("down_proj", "o_proj.weight", "out_proj.weight")),
    )
    pool = _pool(entry.format.name, entry.shape[-1], damped)
    for start in range(0, rows, PIECE_ROWS):
        index = rng.integers(0, POOL_ROWS, min(PIECE_ROWS, rows - start))
        yield lambda index=index: Piece(pool[index])


@cache
def _pool(form: str, k: int, damped: bool) -> Bytes:
    """uint8 [POOL_ROWS, row bytes]: quantised normal values that keep activations at their size."""
    values = np.random.default_rng(k).standard_normal((POOL_ROWS, k), np.float32) * np.float32(
        (0.3 if damped else 1) / k**0.5
    )
    return FORMATS[form].quantize(values).reshape(POOL_ROWS, -1)
