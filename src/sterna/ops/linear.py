"""Matrix product with a weight in the checkpoint's orientation."""

from __future__ import annotations

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``x @ weight.T``: [T, K], [N, K] -> [T, N]. No layer of the text model has a bias."""
    return x @ weight.T
