"""A GGUF mmproj file: the vision tower under official names (spec §2.5). The text model lies in another file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sterna.checkpoint.gguf import GgufFile, Value
from sterna.checkpoint.manifest import vision_tensors
from sterna.checkpoint.tensor_view import DTYPES, TensorView, sampled
from sterna.config import VisionConfig
from sterna.errors import CheckpointError

ARCHITECTURE, PROJECTOR = "clip", "qwen3vl_merger"
TEMPORAL_PATCH_SIZE = 2
FLOATS = ("F32", "F16", "BF16")
_MODEL = {
    "patch_embed.proj.bias": "v.patch_embd.bias",
    "pos_embed.weight": "v.position_embd.weight",
    "merger.norm": "v.post_ln",
    "merger.linear_fc1": "mm.0",
    "merger.linear_fc2": "mm.2",
}
_BLOCK = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out",
    "mlp.linear_fc1": "ffn_up",
    "mlp.linear_fc2": "ffn_down",
}
# The two temporal slices of the convolution.
PATCH_SLICES = ("v.patch_embd.weight", "v.patch_embd.weight.1")
PATCH_WEIGHT = "model.visual.patch_embed.proj.weight"


class MmprojFile:
    """Checked, memory-mapped vision weights. Quantised tensors come as their exact values in F32.

    Mean and deviation in its metadata are not used: converters that lack the checkpoint's preprocessor file write another
    model's. Raises `CheckpointError` for another kind of file, an unknown or missing tensor, or a wrong shape.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = GgufFile(self.path)
        self.config = _read_config(self._file, str(self.path))
        self._shapes = vision_tensors(self.config)
        self._check()

    def names(self) -> list[str]:
        """Official names, in the order of the forward pass."""
        return list(self._shapes)

    def storage(self, name: str) -> tuple[tuple[int, ...], int]:
        """(official shape, bytes per value as `tensor` gives it) of a tensor."""
        form = self._file[_stored_names(name)[0]].format
        return self._shapes[name], form.block_bytes if form.name in FLOATS else 4

    def tensor(self, name: str) -> TensorView:
        """A tensor in official layout; the patch embedding is joined from its two temporal slices."""
        views = [self._view(stored) for stored in _stored_names(name)]
        if len(views) == 1:
            return TensorView(name, views[0].dtype, views[0].array.reshape(self._shapes[name]))
        if views[0].dtype != views[1].dtype:
            views = [TensorView(view.name, "F32", view.to_float32()) for view in views]
        return TensorView(name, views[0].dtype, np.stack([view.array for view in views], axis=2))

    def fingerprint(self) -> str:
        """Hex digest of names, shapes, formats and a sample of the bytes of every tensor (start, middle and end)."""
        digest = hashlib.sha256()
        for name, tensor in self._file.items():
            digest.update(f"{name} {tensor.format.name} {tensor.shape}".encode())
            digest.update(sampled(self._file.data(name)))
        return digest.hexdigest()

    def _view(self, stored: str) -> TensorView:
        tensor, data = self._file[stored], self._file.data(stored)
        if tensor.format.name in FLOATS:
            return TensorView(stored, tensor.format.name, data.view(DTYPES[tensor.format.name]).reshape(tensor.shape))
        return TensorView(stored, "F32", np.ascontiguousarray(tensor.format.dequantize(data, tensor.shape)))

    def _check(self) -> None:
        used = set()
        for name, shape in self._shapes.items():
            wanted = (*shape[:2], *shape[3:]) if name == PATCH_WEIGHT else shape
            for stored in _stored_names(name):
                used.add(stored)
                if stored not in self._file:
                    raise CheckpointError(f"{self.path} lacks the tensor {stored!r} of shape {list(wanted)}")
                if self._file[stored].shape != wanted:
                    found = list(self._file[stored].shape)
                    raise CheckpointError(f"tensor {stored!r} has shape {found}, expected is {list(wanted)}")
        unknown = sorted(set(self._file) - used)
        if unknown:
            raise CheckpointError(f"{self.path} holds the unknown tensor {unknown[0]!r}")


def _stored_names(official: str) -> tuple[str, ...]:
    name = official.removeprefix("model.visual.")
    if official == PATCH_WEIGHT:
        return PATCH_SLICES
    if name in _MODEL:
        return (_MODEL[name],)
    module, _, kind = name.rpartition(".")
    if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
        return (f"v.blk.{block[1]}.{_BLOCK[block[2]]}.{kind}",)
    return (f"{_MODEL[module]}.{kind}",)


def _read_config(file: GgufFile, where: str) -> VisionConfig:
    values = file.metadata
    _require(values, where, "general.architecture", ARCHITECTURE)
    _require(values, where, "clip.projector_type", PROJECTOR)
    _require(values, where, "clip.has_vision_encoder", True)
    if values.get("clip.use_gelu", True) is not True:
        raise CheckpointError(f"{where}: clip.use_gelu is {values['clip.use_gelu']}, allowed is true")
    deepstack = values.get("clip.vision.is_deepstack_layers", [])
    if not isinstance(deepstack, list) or any(deepstack):
        raise CheckpointError(f"{where}: clip.vision.is_deepstack_layers must be false for every layer")
    positions = file.get("v.position_embd.weight")
    if positions is None or len(positions.shape) != 2:
        raise CheckpointError(f"{where} lacks the tensor 'v.position_embd.weight' of two dimensions")
    side = int(positions.shape[0] ** 0.5)
    if side * side != positions.shape[0]:
        raise CheckpointError(
            f"{where}: v.position_embd.weight has {positions.shape[0]} rows, allowed is a square number"
        )
    eps = values.get("clip.vision.attention.layer_norm_epsilon", 1e-6)
    if not isinstance(eps, float) or not 0.99e-6 < eps < 1.01e-6:
        raise CheckpointError(f"{where}: clip.vision.attention.layer_norm_epsilon is {eps}, allowed is 1e-06")
    config = VisionConfig(
        depth=_integer(values, where, "block_count", len(file)),
        hidden_size=_integer(values, where, "embedding_length"),
        intermediate_size=_integer(values, where, "feed_forward_length"),
        num_heads=_integer(values, where, "attention.head_count"),
        in_channels=3,
        patch_size=_integer(values, where, "patch_size"),
        temporal_patch_size=TEMPORAL_PATCH_SIZE,
        spatial_merge_size=_integer(values, where, "spatial_merge_size") if _has(values, "spatial_merge_size") else 2,
        num_position_embeddings=positions.shape[0],
        out_hidden_size=_integer(values, where, "projection_dim"),
    )
    if config.hidden_size % (4 * config.num_heads):
        raise CheckpointError(
            f"{where}: {config.num_heads} heads do not divide the embedding_length {config.hidden_size} into fours"
        )
    return config


def _has(values: Mapping[str, Value], key: str) -> bool:
    return f"clip.vision.{key}" in values


def _require(values: Mapping[str, Value], where: str, key: str, wanted: Value) -> None:
    if values.get(key) != wanted:
        raise CheckpointError(
            f"{where} has {key} {str(values.get(key))[:50]!r}, allowed is {wanted!r}",
            hint="give the mmproj file of a Qwen3.5 or Qwen3.6 model",
        )


def _integer(values: Mapping[str, Value], where: str, key: str, maximum: int = 1 << 20) -> int:
    value = values.get(f"clip.vision.{key}")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= maximum:
        raise CheckpointError(
            f"{where}: clip.vision.{key} is {str(value)[:50]}, allowed is an integer from 1 to {maximum}"
        )
    return value
