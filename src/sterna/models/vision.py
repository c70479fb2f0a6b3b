"""The vision tower and its merger, written once over an op set (spec §4.3).

x = patch_embed(pixels) + pos_embed
for every block:
    x = x + proj(attention(qkv(norm1(x))))        each frame for itself
    x = x + fc2(gelu_tanh(fc1(norm2(x))))
features = fc2(gelu(fc1(norm(x) of the 4 patches of a merge block, side by side)))
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sterna.checkpoint import TensorView
from sterna.config import VisionConfig
from sterna.errors import BackendError
from sterna.ops.vision import AffineWeights, Float32, LayerNormWeights, position_embedding, rope_angles

EPS = 1e-6
# Raised whenever the same weights give other features.
FEATURES_VERSION = 1
# Rows of the widest products at a time: bounds the activations of very large pictures.
ROWS_AT_ONCE = 4096


class VisionSource(Protocol):
    """Where the weights come from, by official name: `Checkpoint`, `MmprojFile`, a random one."""

    def tensor(self, name: str) -> TensorView:
        """One tensor in official layout."""

    def storage(self, name: str) -> tuple[tuple[int, ...], int]:
        """(official shape, bytes per value) of a tensor."""

    def fingerprint(self) -> str:
        """Changes with the weights."""


@dataclass(slots=True)
class VisionBlock:
    """One transformer block, fields as in the checkpoint."""

    norm1: LayerNormWeights
    qkv: AffineWeights
    proj: AffineWeights
    norm2: LayerNormWeights
    linear_fc1: AffineWeights
    linear_fc2: AffineWeights


class VisionModel:
    """The tower over an op set that has `VisionOps`; ``ops`` is typed loosely because it joins two protocols."""

    def __init__(self, ops: Any, source: VisionSource, config: VisionConfig, *, variant: str = "") -> None:
        self.ops = ops
        self.config = config
        self._identity = repr((FEATURES_VERSION, variant, config, source.fingerprint()))
        self._source = source
        prefix = "model.visual"
        patch = source.tensor(f"{prefix}.patch_embed.proj.weight").array
        self.patch_embed = AffineWeights(
            ops.pack_linear(np.ascontiguousarray(patch.reshape(len(patch), -1))),
            self._vector(f"{prefix}.patch_embed.proj.bias"),
        )
        # On the host, since it is resampled for every grid.
        self.pos_embed = source.tensor(f"{prefix}.pos_embed.weight").to_float32()
        self.blocks = [self._block(f"{prefix}.blocks.{i}") for i in range(config.depth)]
        self.merger_norm = self._norm(f"{prefix}.merger.norm")
        self.merger_fc1 = self._affine(f"{prefix}.merger.linear_fc1")
        self.merger_fc2 = self._affine(f"{prefix}.merger.linear_fc2")
        del self._source

    def start(self, pixel_values: PixelRows, grid_thw: tuple[int, int, int]) -> VisionPass:
        """An encoding, to be advanced block by block; ``pixel_values(start, stop)`` gives float32 rows of patches."""
        return VisionPass(self, pixel_values, grid_thw)

    def encode(self, pixel_values: Float32, grid_thw: tuple[int, int, int]) -> Float32:
        """Features float32 [T * h * w / merge², out_hidden_size] of patches float32 [T * h * w, patch]."""
        running = self.start(lambda start, stop: pixel_values[start:stop], grid_thw)
        running.advance()
        return running.features()

    def fingerprint(self) -> str:
        """Changes whenever stored features become invalid: weights, configuration, what of the device decides the bits."""
        return hashlib.sha256(self._identity.encode()).hexdigest()

    def workspace_bytes(self, patches: int) -> int:
        """Float32 activations of one encoding at its widest point; input and output are not counted."""
        c = self.config
        merged = c.hidden_size * c.spatial_merge_size**2
        widest = max(6 * c.hidden_size, 4 * c.hidden_size)
        rows = min(patches, ROWS_AT_ONCE)
        return 4 * (patches * widest + rows * max(c.intermediate_size, merged, 3 * c.hidden_size))

    def _block(self, prefix: str) -> VisionBlock:
        return VisionBlock(
            norm1=self._norm(f"{prefix}.norm1"),
            qkv=self._affine(f"{prefix}.attn.qkv"),
            proj=self._affine(f"{prefix}.attn.proj"),
            norm2=self._norm(f"{prefix}.norm2"),
            linear_fc1=self._affine(f"{prefix}.mlp.linear_fc1"),
            linear_fc2=self._affine(f"{prefix}.mlp.linear_fc2"),
        )

    def _affine(self, prefix: str) -> AffineWeights:
        weight = self._source.tensor(f"{prefix}.weight").array
        return AffineWeights(self.ops.pack_linear(weight), self._vector(f"{prefix}.bias"))

    def _norm(self, prefix: str) -> LayerNormWeights:
        return LayerNormWeights(self._vector(f"{prefix}.weight"), self._vector(f"{prefix}.bias"))

    def _vector(self, name: str) -> Any:
        return self.ops.tensor(self._source.tensor(name).to_float32())


PixelRows = Callable[[int, int], Float32]


class VisionPass:
    """An encoding in progress. Other passes may run between two `advance` calls."""

    def __init__(self, model: VisionModel, pixel_values: PixelRows, grid_thw: tuple[int, int, int]) -> None:
        self._model = model
        self._pixel_values = pixel_values
        self._grid = grid_thw
        self._frame_patches = grid_thw[1] * grid_thw[2]
        self._num_patches = math.prod(grid_thw)
        config = model.config
        merge = config.spatial_merge_size
        if min(grid_thw) < 1 or grid_thw[1] % merge or grid_thw[2] % merge:
            raise BackendError(f"the grid is {grid_thw}, allowed are rows and columns in multiples of {merge}")
        head_dim = config.hidden_size // config.num_heads
        self._rope = rope_angles(grid_thw[1], grid_thw[2], merge=merge, head_dim=head_dim)
        self._x: Any = None
        self._step = 0
        self._features: Float32 | None = None

    @property
    def num_steps(self) -> int:
        """`advance` steps in all: the embedding, two halves of each block, the merger."""
        return 2 * len(self._model.blocks) + 2

    def advance(self, steps: int | None = None) -> bool:
        """Compute that many further steps, all that are left by default; True when the encoding is complete."""
        end = self.num_steps if steps is None else min(self.num_steps, self._step + steps)
        while self._step < end:
            self._one_step(self._step)
            self._step += 1
        return self._step == self.num_steps

    def features(self) -> Float32:
        """float32 [tokens, out_hidden_size] of a complete encoding."""
        if self._features is None:
            raise BackendError(f"the encoding is at step {self._step} of {self.num_steps}", hint="advance it first")
        return self._features

    def _one_step(self, step: int) -> None:
        if step == 0:
            self._x = self._embed()
        elif step == self.num_steps - 1:
            self._features, self._x = self._merge(), None
        else:
            block = self._model.blocks[(step - 1) // 2]
            (self._attend if step % 2 else self._mlp)(block)

    def _embed(self) -> Any:
        ops, model = self._model.ops, self._model
        merge = model.config.spatial_merge_size
        table = position_embedding(model.pos_embed, self._grid[1], self._grid[2], merge)
        rows = []
        for start in range(0, self._num_patches, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, self._num_patches)
            embedded = ops.affine(ops.from_host(self._pixel_values(start, stop)), model.patch_embed)
            position = table[np.arange(start, stop) % self._frame_patches]
            rows.append(ops.to_numpy(ops.add(embedded, ops.from_host(position))))
        return ops.from_host(np.concatenate(rows))

    def _attend(self, block: VisionBlock) -> None:
        ops = self._model.ops
        qkv = ops.affine(ops.layer_norm(self._x, block.norm1, EPS), block.qkv)
        attended = ops.vision_attention(
            qkv, self._rope, heads=self._model.config.num_heads, frame_patches=self._frame_patches
        )
        del qkv
        self._x = ops.add(self._x, ops.affine(attended, block.proj))

    def _mlp(self, block: VisionBlock) -> None:
        ops = self._model.ops

        def mlp(u: Any) -> Any:
            return ops.affine(ops.affine(u, block.linear_fc1, "gelu_tanh"), block.linear_fc2)

        u = ops.layer_norm(self._x, block.norm2, EPS)
        if self._num_patches <= ROWS_AT_ONCE:
            self._x = ops.add(self._x, mlp(u))
            return
        parts = [ops.to_numpy(mlp(ops.take_rows(u, rows))) for rows in self._pieces(self._num_patches)]
        self._x = ops.add(self._x, ops.from_host(np.concatenate(parts)))

    def _merge(self) -> Float32:
        ops, model = self._model.ops, self._model
        merged = ops.merge_rows(ops.layer_norm(self._x, model.merger_norm, EPS), model.config.spatial_merge_size**2)
        tokens = self._num_patches // model.config.spatial_merge_size**2
        parts = []
        for rows in self._pieces(tokens):
            hidden = ops.affine(ops.take_rows(merged, rows), model.merger_fc1, "gelu")
            parts.append(ops.to_numpy(ops.affine(hidden, model.merger_fc2)))
        return np.ascontiguousarray(np.concatenate(parts))

    def _pieces(self, count: int) -> list[np.ndarray]:
        return [
            np.arange(start, min(start + ROWS_AT_ONCE, count), dtype=np.int32)
            for start in range(0, count, ROWS_AT_ONCE)
        ]
