"""The vision operations of the native op set. A patch's result does not depend on other frames or on the number of threads."""

from __future__ import annotations

import numpy as np

from sterna import _native
from sterna.ops.vision import Activation, AffineWeights, Float32, LayerNormWeights


class NativeVisionOps:
    """Part of `NativeOpSet`."""

    _ops: _native.Ops

    def from_host(self, array: np.ndarray) -> _native.Tensor:
        return _native.tensor(np.ascontiguousarray(array, np.float32))

    def layer_norm(self, x: _native.Tensor, weights: LayerNormWeights, eps: float) -> _native.Tensor:
        return self._ops.layer_norm(x, weights.weight, weights.bias, eps)

    def affine(self, x: _native.Tensor, weights: AffineWeights, activation: Activation = "none") -> _native.Tensor:
        return self._ops.affine(x, weights.weight, weights.bias, activation)

    def vision_attention(self, qkv: _native.Tensor, rope: Float32, *, heads: int, frame_patches: int) -> _native.Tensor:
        if len(rope) != frame_patches:
            raise ValueError(f"rope has {len(rope)} rows, a frame has {frame_patches} patches")
        angles = rope.astype(np.float64)
        return self._ops.vision_attention(qkv, self.from_host(np.cos(angles)), self.from_host(np.sin(angles)), heads)

    def merge_rows(self, x: _native.Tensor, count: int) -> _native.Tensor:
        host = x.numpy()
        return self.from_host(host.reshape(len(host) // count, -1))
