"""bfloat16 as its bits in uint16, since numpy has no such type."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """float32 to bfloat16 bits, rounded to nearest, ties to even; NaN stays a quiet NaN, overflow becomes infinity."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet_nan = (bits >> 16) | 0x0040
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 bits to float32, exact."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def to_float32(array: np.ndarray) -> npt.NDArray[np.float32]:
    """A weight in storage type (float32, float16, or uint16 that holds bfloat16 bits) as float32."""
    return from_bfloat16(array) if array.dtype == np.uint16 else array.astype(np.float32)
