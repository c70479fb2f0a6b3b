"""What every weight format provides: its size, its reference decoder and, where we write it, its encoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sterna.errors import CheckpointError, UsageError

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

Decoder = Callable[[Bytes], Float32]
Encoder = Callable[[Float32, Float32 | None], Bytes]


@dataclass(frozen=True, slots=True)
class Format:
    """A storage format of a weight matrix ``[..., K]``, K the input dimension.

    ``block_size`` weights along K take ``block_bytes`` bytes. A format with ``tile_rows > 1`` interleaves that many rows and
    adds ``row_bytes`` bytes per row; rows are padded to whole tiles. ``ggml_type`` is its number in GGUF files, if it has one.

    ``decode`` maps uint8 [n, block_bytes] to float32 [n, block_size]; of a tiled format it maps uint8 [n, tile bytes] to
    float32 [n, tile_rows, K]. ``encode`` is its inverse with optional weights of the same shape, ``None`` where we only read.
    """

    name: str
    block_size: int
    block_bytes: int
    decode: Decoder
    encode: Encoder | None = None
    ggml_type: int | None = None
    tile_rows: int = 1
    row_bytes: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight without the bytes that a whole row shares."""
        return 8 * self.block_bytes / self.block_size

    def bytes_per_row(self, k: int) -> int:
        """Bytes of one row of K weights; `UsageError` where K is not a multiple of the block size."""
        if k <= 0 or k % self.block_size:
            raise UsageError(
                f"format {self.name} needs an input dimension that is a positive multiple of {self.block_size}, got {k}",
                hint="keep this tensor in bf16 or choose a format with smaller blocks",
            )
        return k // self.block_size * self.block_bytes + self.row_bytes

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of a tensor of that shape, padding rows of the last tile included."""
        if not shape:
            shape = (1,)
        leading, rows = shape[:-2], shape[-2] if len(shape) > 1 else 1
        padded = -(-rows // self.tile_rows) * self.tile_rows
        return math.prod(leading) * padded * self.bytes_per_row(shape[-1])

    def dequantize(self, data: Bytes, shape: tuple[int, ...]) -> Float32:
        """Decode the bytes of a tensor of that shape to float32. Raises `CheckpointError` on a wrong number of bytes."""
        flat = _flat(data)
        if flat.size != self.nbytes(shape):
            raise CheckpointError(
                f"{self.name} tensor of shape {list(shape)} takes {self.nbytes(shape)} bytes, got {flat.size}"
            )
        with np.errstate(all="ignore"):
            if self.tile_rows == 1:
                return self.decode(flat.reshape(-1, self.block_bytes)).reshape(shape)
            rows, k = shape[-2] if len(shape) > 1 else 1, shape[-1]
            tiles = self.decode(flat.reshape(-1, self.tile_rows * self.bytes_per_row(k)))
        matrices = tiles.reshape(math.prod(shape[:-2]), -1, k)
        return np.ascontiguousarray(matrices[:, :rows]).reshape(shape)

    def quantize(self, weights: Float32, importance: Float32 | None = None) -> Bytes:
        """Encode float32 [..., K]; ``importance`` (float32, broadcast to the weights, > 0) weighs the squared error.

        Raises `UsageError` for a read-only format and for weights that are not finite.
        """
        if self.encode is None:
            raise UsageError(f"format {self.name} can be read but not written")
        weights = np.ascontiguousarray(weights, np.float32)
        if not np.isfinite(weights).all():
            raise UsageError(f"cannot write weights with infinity or NaN as {self.name}")
        self.bytes_per_row(weights.shape[-1])
        spread = None if importance is None else np.broadcast_to(np.asarray(importance, np.float32), weights.shape)
        if spread is not None and not (np.isfinite(spread).all() and (spread > 0).all()):
            raise UsageError("importance must be finite and positive")
        if self.tile_rows == 1:
            blocks = None if spread is None else np.ascontiguousarray(spread).reshape(-1, self.block_size)
            return self.encode(weights.reshape(-1, self.block_size), blocks).reshape(-1)
        return self.encode(self._tiles(weights), None if spread is None else self._tiles(spread, fill=1.0)).reshape(-1)

    def _tiles(self, array: Float32, fill: float = 0.0) -> Float32:
        k, rows = array.shape[-1], array.shape[-2] if array.ndim > 1 else 1
        matrices = array.reshape(-1, rows, k)
        missing = -rows % self.tile_rows
        if missing:
            matrices = np.pad(matrices, ((0, 0), (0, missing), (0, 0)), constant_values=fill)
        return np.ascontiguousarray(matrices).reshape(-1, self.tile_rows, k)


def _flat(data: Bytes) -> Bytes:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


def half(data: Bytes) -> Float32:
    """Two little-endian bytes in the last axis to one float16 value, as float32 [..., 1]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def half_bytes(values: Float32) -> Bytes:
    """float32 [..., 1] rounded to float16, as uint8 [..., 2]."""
    return np.ascontiguousarray(values.astype("<f2")).view(np.uint8)


def split_nibbles(data: Bytes) -> Bytes:
    """uint8 [..., n] to [..., 2n]: the low halves of all bytes, then the high halves."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def join_nibbles(codes: Bytes) -> Bytes:
    """Inverse of `split_nibbles`."""
    n = codes.shape[-1] // 2
    return (codes[..., :n] | codes[..., n:] << 4).astype(np.uint8)


def round_half_away(values: Float32) -> Float32:
    """Round to nearest, halves away from zero, as C's ``roundf``."""
    magnitude = np.abs(values)
    floor = np.floor(magnitude)
    return np.copysign(floor + np.floor(2 * (magnitude - floor)), values)
