"""Embedding rows, and the row operations around the decoder layers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def embedding(token_ids: npt.NDArray[np.int32], weight: np.ndarray) -> np.ndarray:
    """Rows of the table, unscaled: [T], [V, D] -> [T, D]. Raises `IndexError` for an id outside the table."""
    if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < len(weight):
        raise IndexError(f"token ids {token_ids.min()} to {token_ids.max()}, allowed is 0 to {len(weight) - 1}")
    return weight[token_ids]


def set_rows(x: np.ndarray, rows: npt.NDArray[np.int32], values: np.ndarray) -> np.ndarray:
    """x [T, D] with ``x[rows] = values``, values [R, D]."""
    result = x.copy()
    result[rows] = values
    return result
