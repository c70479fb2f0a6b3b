"""The operations of the vision tower (spec §4.3): contract and numpy reference.

P patches of one image or video, frame after frame, in merge-block order; A vision heads of dimension C = D / A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from sterna.ops.activations import softmax
from sterna.ops.rope import apply_rope

Float32 = npt.NDArray[np.float32]
Activation = Literal["none", "gelu_tanh", "gelu"]
ROPE_THETA = 10_000.0


@dataclass(slots=True)
class AffineWeights:
    """A linear layer with bias: weight [N, K] packed by ``pack_linear``, bias [N]."""

    weight: Any
    bias: Any


@dataclass(slots=True)
class LayerNormWeights:
    """Weight and bias [D]."""

    weight: Any
    bias: Any


class VisionOps(Protocol):
    """What an op set provides for the tower, beside `OpSet`."""

    def from_host(self, array: np.ndarray) -> Any:
        """float32 [P, D] activations of the op set."""

    def layer_norm(self, x: Any, weights: LayerNormWeights, eps: float) -> Any:
        """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis, biased variance."""

    def affine(self, x: Any, weights: AffineWeights, activation: Activation = "none") -> Any:
        """``activation(x @ W.T + bias)``: [P, K] -> [P, N]. ``gelu_tanh`` is the tanh form, ``gelu`` the exact one."""

    def vision_attention(self, qkv: Any, rope: Float32, *, heads: int, frame_patches: int) -> Any:
        """Softmax attention of every patch over all patches of its frame: qkv [P, 3 * A * C] -> [P, A * C].

        Queries and keys are rotated by the angles ``rope`` float32 [frame_patches, C / 2], dimensions paired (i, i + C/2).
        """

    def merge_rows(self, x: Any, count: int) -> Any:
        """Every ``count`` neighbouring rows as one: [P, D] -> [P / count, count * D]."""


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """See `VisionOps.layer_norm`."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + x.dtype.type(eps)) * weight + bias


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))``."""
    return 0.5 * x * (1 + np.tanh(x.dtype.type(math.sqrt(2 / math.pi)) * (x + 0.044715 * x**3)))


def gelu(x: np.ndarray) -> np.ndarray:
    """``x / 2 * (1 + erf(x / sqrt(2)))``; the error function is taken in float64 from the C library."""
    erf = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)) if x.size else np.zeros_like(x)
    return 0.5 * x * (1 + erf.astype(x.dtype))


def affine(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, activation: Activation = "none") -> np.ndarray:
    """See `VisionOps.affine`."""
    y = x @ weight.T + bias
    if activation == "none":
        return y
    return gelu_tanh(y) if activation == "gelu_tanh" else gelu(y)


def vision_attention(qkv: np.ndarray, rope: np.ndarray, *, heads: int, frame_patches: int) -> np.ndarray:
    """See `VisionOps.vision_attention`."""
    patches, width = qkv.shape
    dim = width // (3 * heads)
    cos, sin = np.cos(rope.astype(np.float64)), np.sin(rope.astype(np.float64))
    out = np.empty((patches, heads, dim), qkv.dtype)
    for start in range(0, patches, frame_patches):
        frame = slice(start, start + frame_patches)
        q, k, v = np.moveaxis(qkv[frame].reshape(-1, 3, heads, dim), 1, 0)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        scores = np.einsum("qhd,khd->hqk", q, k) * qkv.dtype.type(dim**-0.5)
        out[frame] = np.einsum("hqk,khd->qhd", softmax(scores), v)
    return out.reshape(patches, heads * dim)


def merge_rows(x: np.ndarray, count: int) -> np.ndarray:
    """See `VisionOps.merge_rows`."""
    return x.reshape(len(x) // count, -1)


def block_order(rows: int, columns: int, merge: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(row, column) of every patch of a frame in merge-block order: block row, block column, row in block, column in block."""
    row, column = np.mgrid[0:rows, 0:columns]

    def reorder(x: np.ndarray) -> npt.NDArray[np.int64]:
        return x.reshape(rows // merge, merge, columns // merge, merge).transpose(0, 2, 1, 3).reshape(-1)

    return reorder(row), reorder(column)


def rope_angles(rows: int, columns: int, *, merge: int, head_dim: int) -> Float32:
    """float32 [rows * columns, head_dim / 2]: row times frequency in the first half, column times frequency in the second.

    The head_dim / 4 frequencies are ``10000^(-4i / head_dim)``; the order is `block_order`.
    """
    exponents = np.arange(0, head_dim // 2, 2, dtype=np.float64) / (head_dim // 2)
    frequencies = (ROPE_THETA**-exponents).astype(np.float32)
    row, column = block_order(rows, columns, merge)
    angles = [axis.astype(np.float32)[:, None] * frequencies for axis in (row, column)]
    return np.concatenate(angles, axis=1)


def position_embedding(table: np.ndarray, rows: int, columns: int, merge: int) -> Float32:
    """The learned square table [S * S, D] sampled bilinearly at rows x columns, corners aligned, in `block_order`.

    Patch i of n reads coordinate ``i * (S - 1) / (n - 1)``, 0 where n is 1.
    """
    side = math.isqrt(len(table))
    row, column = block_order(rows, columns, merge)
    grid = table.reshape(side, side, -1)
    low_r, high_r, weight_r = _neighbours(rows, side)
    low_c, high_c, weight_c = _neighbours(columns, side)
    along_rows = (1 - weight_r)[:, None, None] * grid[low_r] + weight_r[:, None, None] * grid[high_r]
    left, right = along_rows[:, low_c], along_rows[:, high_c]
    sampled = (1 - weight_c)[None, :, None] * left + weight_c[None, :, None] * right
    return np.ascontiguousarray(sampled[row, column].astype(np.float32))


def _neighbours(count: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    coordinate = np.linspace(0, side - 1, count) if count > 1 else np.zeros(1)
    low = np.minimum(np.floor(coordinate).astype(int), side - 1)
    return low, np.minimum(low + 1, side - 1), coordinate - low
