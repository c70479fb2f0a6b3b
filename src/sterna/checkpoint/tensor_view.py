"""A tensor as it lies in a file: dtype tag, shape and raw values, without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from sterna.errors import CheckpointError

# dtype name in the file -> numpy type of the raw values; numpy has no bfloat16 and no float8, so they are bits.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(raw)
    for name, raw in {
        "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
        "BF16": "<u2", "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
    }.items()
}  # fmt: skip


_SAMPLE_BYTES = 4096


def sampled(data: np.ndarray) -> bytes:
    """Start, middle and end of the bytes of an array: what fingerprints hash in place of gigabytes."""
    raw = data.reshape(-1).view(np.uint8)
    starts = (0, max(0, (raw.size - _SAMPLE_BYTES) // 2), max(0, raw.size - _SAMPLE_BYTES))
    return b"".join(raw[start : start + _SAMPLE_BYTES].tobytes() for start in starts)


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor: ``dtype`` as named in the file, ``array`` the raw values (``BF16`` as uint16, ``F8_*`` as uint8)."""

    name: str
    dtype: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions as stored."""
        return self.array.shape

    def to_float32(self) -> npt.NDArray[np.float32]:
        """The values as float32; raises `CheckpointError` for integer types."""
        if self.dtype in ("F32", "F16", "F64"):
            return self.array.astype(np.float32)
        if self.dtype == "BF16":
            return (self.array.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "F8_E4M3":
            return float8_e4m3_values()[self.array]
        raise CheckpointError(f"tensor {self.name} has dtype {self.dtype}, allowed is F64, F32, F16, BF16 or F8_E4M3")


@cache
def float8_e4m3_values() -> npt.NDArray[np.float32]:
    """float32 [256]: the value of each byte in the "fn" variant, which has NaN (0x7f, 0xff) and no infinity."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    magnitude[(code & 127) == 127] = np.nan
    return np.where(code < 128, magnitude, -magnitude).astype(np.float32)
