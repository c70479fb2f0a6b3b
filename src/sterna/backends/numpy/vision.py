"""The vision operations of the numpy op set: the references of `sterna.ops.vision`."""

from __future__ import annotations

import numpy as np

from sterna.ops import vision
from sterna.ops.vision import Activation, AffineWeights, Float32, LayerNormWeights


class NumpyVisionOps:
    """Part of `NumpyOps`."""

    dtype: np.dtype

    def from_host(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self.dtype)

    def layer_norm(self, x: np.ndarray, weights: LayerNormWeights, eps: float) -> np.ndarray:
        return vision.layer_norm(x, weights.weight, weights.bias, eps)

    def affine(self, x: np.ndarray, weights: AffineWeights, activation: Activation = "none") -> np.ndarray:
        return vision.affine(x, weights.weight, weights.bias, activation)

    def vision_attention(self, qkv: np.ndarray, rope: Float32, *, heads: int, frame_patches: int) -> np.ndarray:
        return vision.vision_attention(qkv, rope, heads=heads, frame_patches=frame_patches)

    def merge_rows(self, x: np.ndarray, count: int) -> np.ndarray:
        return vision.merge_rows(x, count)
