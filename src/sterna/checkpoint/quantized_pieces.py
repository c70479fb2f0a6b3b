"""A tensor cut into pieces that are quantised one by one, so that no whole tensor is ever held as float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sterna.checkpoint.resumable import Piece
from sterna.checkpoint.tensor_view import TensorView
from sterna.quant.base import Float32, Format

# Weights of one piece: 4 MB as float32, and a few times that while scales are searched.
PIECE_WEIGHTS = 1 << 20


def quantized_pieces(
    view: TensorView, form: Format, importance: Float32 | None = None
) -> Iterator[Callable[[], Piece]]:
    """Functions that quantise successive rows of ``view`` [..., N, K]; together they give `Format.quantize` of all of it.

    ``importance`` is float32 [K], or [E, 1, K] for a tensor of E matrices. Pieces hold whole tiles of the format.
    """
    shape = view.array.shape
    matrices = view.array.reshape(-1, shape[-2] if len(shape) > 1 else 1, shape[-1])
    count, rows, k = matrices.shape
    step = max(form.tile_rows, PIECE_WEIGHTS // k // form.tile_rows * form.tile_rows)
    whole = max(1, step // rows) if rows % form.tile_rows == 0 else 1
    for first in range(0, count, whole):
        for start in range(0, rows, step):
            part = matrices[first : first + whole, start : start + step]
            weight = importance if importance is None or importance.ndim == 1 else importance[first : first + whole]
            yield _Task(TensorView(view.name, view.dtype, part), form, weight)


class _Task:
    """Quantises one piece and measures it."""

    def __init__(self, view: TensorView, form: Format, importance: Float32 | None) -> None:
        self.view, self.form, self.importance = view, form, importance

    def __call__(self) -> Piece:
        if self.view.dtype == self.form.name:
            values = self.view.to_float32()
            return Piece(_raw(self.view.array), 0.0, _sum_of_squares(values))
        values = self.view.to_float32()
        data = self.form.quantize(values, self.importance)
        difference = self.form.dequantize(data, values.shape) - values
        return Piece(data, _sum_of_squares(difference), _sum_of_squares(values))


def _raw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _sum_of_squares(values: Float32) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))
