"""`Backend` over the numpy op set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sterna.backends.common import ModelBackend
from sterna.backends.host_memory import available_host_bytes
from sterna.backends.numpy.opset import NumpyOps


class NumpyBackend(ModelBackend):
    """Float32 by default; float64 measures how much float32 rounds."""

    def __init__(self, dtype: npt.DTypeLike = np.float32) -> None:
        ops = NumpyOps(dtype)
        super().__init__(ops)
        self.weight_itemsize = ops.dtype.itemsize

    def available_bytes(self) -> int | None:
        """Free memory of the machine, with what the loaded weights take already."""
        return available_host_bytes(self._weight_bytes)

    def variant(self) -> str:
        """The arithmetic type."""
        return str(self.model.ops.tensor(np.zeros(1, np.float32)).dtype)
