"""The vision operations of the torch op set."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sterna.ops.vision import Activation, AffineWeights, Float32, LayerNormWeights


class TorchVisionOps:
    """Part of `TorchOps`."""

    device: torch.device

    def from_host(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array, np.float32)).to(self.device)

    def layer_norm(self, x: Tensor, weights: LayerNormWeights, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights.weight, weights.bias, eps)

    def affine(self, x: Tensor, weights: AffineWeights, activation: Activation = "none") -> Tensor:
        y = F.linear(x, weights.weight, weights.bias)
        if activation == "none":
            return y
        return F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")

    def vision_attention(self, qkv: Tensor, rope: Float32, *, heads: int, frame_patches: int) -> Tensor:
        dim = qkv.shape[1] // (3 * heads)
        angles = torch.from_numpy(rope.astype(np.float64)).to(self.device)
        cos, sin = angles.cos().float(), angles.sin().float()
        frames = qkv.reshape(-1, frame_patches, 3, heads, dim).permute(2, 0, 3, 1, 4)
        q, k = (_rotate(x, cos, sin) for x in (frames[0], frames[1]))
        # Frame by frame, so that the scores of a long video are never all there at once.
        out = [F.scaled_dot_product_attention(q[i : i + 1], k[i : i + 1], frames[2][i : i + 1]) for i in range(len(q))]
        return torch.cat(out).permute(0, 2, 1, 3).reshape(len(qkv), heads * dim)

    def merge_rows(self, x: Tensor, count: int) -> Tensor:
        return x.reshape(len(x) // count, -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
