"""The common form of integer re-packs (GPTQ, AWQ, compressed-tensors): codes, scales and zero points in groups along K."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sterna.errors import CheckpointError
from sterna.quant.base import Bytes, Float32

UInt32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class GroupedInt4:
    """``w[n, k] = scales[n, g] * (codes[n, k] - zeros[n, g])`` with ``g = group_of[k]``.

    codes uint8 [N, K] in 0…15; scales float32 [N, G]; zeros uint8 [N, G] in 0…16; group_of int32 [K].
    Nothing is rounded: kernels may re-pack these numbers, `dequantize` is their oracle.
    """

    codes: Bytes
    scales: Float32
    zeros: Bytes
    group_of: npt.NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def contiguous_group(self) -> int | None:
        """Group size if the groups are equal runs along K (no activation order), else ``None``."""
        k, groups = self.codes.shape[1], self.scales.shape[1]
        if k % groups or not np.array_equal(self.group_of, np.arange(k) // (k // groups)):
            return None
        return k // groups

    def dequantize(self) -> Float32:
        """float32 [N, K]."""
        offset = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, self.group_of]
        return self.scales[:, self.group_of] * offset


def unpack_int32(words: npt.NDArray[np.int32], *, axis: int) -> Bytes:
    """Eight 4-bit codes of every int32, lowest bits first, laid out along ``axis``: uint8, that axis eight times as long."""
    bits = np.moveaxis(np.ascontiguousarray(words).view(np.uint32), axis, -1)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    codes = (bits[..., None] >> shifts & 15).astype(np.uint8).reshape(*bits.shape[:-1], -1)
    return np.moveaxis(codes, -1, axis)


def group_index(k: int, groups: int, g_idx: npt.NDArray[np.int32] | None, *, what: str) -> npt.NDArray[np.int32]:
    """int32 [K]: the group of each input column, from ``g_idx`` if there is one, else equal runs. Checked for range."""
    if groups <= 0:
        raise CheckpointError(f"{what}: no quantisation groups")
    if g_idx is None:
        size = -(-k // groups)
        if -(-k // size) != groups:
            raise CheckpointError(f"{what}: {groups} groups do not divide {k} input columns")
        return (np.arange(k) // size).astype(np.int32)
    if g_idx.shape != (k,):
        raise CheckpointError(f"{what}: g_idx has shape {list(g_idx.shape)}, expected [{k}]")
    if g_idx.min() < 0 or g_idx.max() >= groups:
        raise CheckpointError(f"{what}: g_idx reaches from {g_idx.min()} to {g_idx.max()}, allowed 0 to {groups - 1}")
    return g_idx.astype(np.int32)


def expect_shape(array: npt.NDArray[np.generic], shape: tuple[int, ...], *, what: str) -> None:
    """Raise `CheckpointError` unless the array has exactly that shape."""
    if array.shape != shape:
        raise CheckpointError(f"{what} has shape {list(array.shape)}, expected {list(shape)}")
