"""A weight in a quantised format, with its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.quant.base import Bytes, Float32, Format


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A tensor of ``shape`` in ``format``; ``data`` uint8 [nbytes], contiguous and possibly mapped from a file."""

    name: str
    format: Format
    shape: tuple[int, ...]
    data: Bytes

    @property
    def dtype(self) -> str:
        """The format's name."""
        return self.format.name

    def to_float32(self) -> Float32:
        """All values as float32."""
        return self.format.dequantize(self.data, self.shape)

    def rows(self, start: int, stop: int) -> Float32:
        """float32 [stop - start, K]: rows of the tensor seen as one matrix of all its leading dimensions.

        A format that interleaves rows is decoded in whole tiles, so its leading dimensions must hold whole tiles each.
        """
        tile, k = self.format.tile_rows, self.shape[-1]
        first, last = start // tile * tile, -(-stop // tile) * tile
        row_bytes = self.format.bytes_per_row(k)
        data = self.data[first * row_bytes : last * row_bytes]
        return self.format.dequantize(data, (data.size // row_bytes, k))[start - first : stop - first]
