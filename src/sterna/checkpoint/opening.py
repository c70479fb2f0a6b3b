"""From what a user names, a directory (packed or not) or a GGUF file, to a checkpoint that a backend can load."""

from __future__ import annotations

from pathlib import Path

from sterna.checkpoint.checkpoint import Checkpoint
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.packed_checkpoint import PackedCheckpoint, is_packed
from sterna.checkpoint.quantizing import QuantizingCheckpoint
from sterna.config import ModelConfig, read_model_config
from sterna.errors import UsageError

GGUF_SUFFIX = ".gguf"
LoadableCheckpoint = Checkpoint | GgufCheckpoint | PackedCheckpoint | QuantizingCheckpoint


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file."""
    return path.suffix == GGUF_SUFFIX


def open_checkpoint(
    path: Path, *, recipe: str | None = None, quantized: bool
) -> tuple[LoadableCheckpoint, ModelConfig]:
    """The checkpoint in a directory or a GGUF file, and its configuration.

    ``recipe`` (see `sterna.quant.recipes`) quantises a directory's matrices while they are read. ``quantized`` says whether
    the backend computes with quantised formats and value heads in stored order; another one gets their exact values as F32.

    Raises `UsageError` for a recipe with a GGUF file or a packed directory, which have their formats already, and for an unknown recipe.
    """
    if recipe is not None and (is_gguf(path) or is_packed(path)):
        raise UsageError(
            f"{path} is quantised as its file says, recipe {recipe!r} is for checkpoint directories only",
            hint="leave --recipe out",
        )
    if is_gguf(path):
        order = "tiled" if quantized else "grouped"
        file = GgufCheckpoint(path, v_head_order=order, dequantize=not quantized)
        return file, file.config
    config = read_model_config(path)
    if is_packed(path):
        return PackedCheckpoint(path, config, dequantize=not quantized), config
    plain = Checkpoint(path, config)
    if recipe is None:
        return plain, config
    return QuantizingCheckpoint(plain, recipe, dequantize=not quantized), config
