"""Memory-mapped reader and a plain writer of the safetensors format.

A file is: uint64 header length (little endian), a JSON header ``{name: {dtype, shape, data_offsets}}``, the values.
The reader trusts nothing: every offset is checked against the file before anything is mapped or allocated.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sterna.checkpoint.tensor_view import DTYPES, TensorView
from sterna.errors import CheckpointError

# The format's own limit; a longer header is a damaged or hostile file.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8


class SafetensorsFile(Mapping[str, TensorView]):
    """The tensors of one file by name. Values stay in the page cache: nothing is read before it is used."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self.header = self._read_header(file.read(8), file)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {self.path} ({error})") from error
        entries, self.metadata = _parse(self.header, self.path)
        self._entries = {name: _check_entry(self, name, entry) for name, entry in entries.items()}
        _check_coverage(self)

    def _read_header(self, prefix: bytes, file: Any) -> bytes:
        if len(prefix) < 8:
            raise CheckpointError(f"{self.path} has {self.size} bytes, a safetensors file has at least 8")
        length = int.from_bytes(prefix, "little")
        allowed = min(MAX_HEADER_BYTES, self.size - 8)
        if not 2 <= length <= allowed:
            raise CheckpointError(
                f"{self.path} claims a header of {length} bytes, allowed is 2 to {allowed}",
                hint="the file is truncated or not a safetensors file; download it again",
            )
        header: bytes = file.read(length)
        return header

    @property
    def data_start(self) -> int:
        """Offset of the first value in the file."""
        return 8 + len(self.header)

    def __getitem__(self, name: str) -> TensorView:
        dtype, shape, begin, _ = self._entries[name]
        raw = DTYPES[dtype]
        values = np.frombuffer(self._map, raw, math.prod(shape), self.data_start + begin)
        # Kernels rely on natural alignment, which the format does not promise; aligned values are not copied.
        return TensorView(name, dtype, np.require(values, requirements="A").reshape(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


_Entry = tuple[str, tuple[int, ...], int, int]


def _parse(header: bytes, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise CheckpointError(f"{path} names a tensor or a field twice in its header")
        return result

    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a header that is not valid JSON ({error})") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} has a header of type {type(entries).__name__}, expected is an object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has metadata that is not a map of texts")
    return entries, metadata


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _check_entry(file: SafetensorsFile, name: str, entry: Any) -> _Entry:
    where = f"{file.path}: tensor {name[:200]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} has a malformed entry, expected is dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where} has dtype {str(dtype)[:50]!r}, allowed is {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_index, shape)):
        raise CheckpointError(
            f"{where} has shape {str(shape)[:200]}, allowed are up to {MAX_DIMENSIONS} integers from 0"
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_index, offsets)):
        raise CheckpointError(f"{where} has data_offsets {str(offsets)[:200]}, expected are two integers from 0")
    begin, end = offsets
    available = file.size - file.data_start
    if not begin <= end <= available:
        raise CheckpointError(
            f"{where} lies at bytes {begin} to {end}, the file holds {available} bytes of values",
            hint="the file is truncated or damaged; download it again",
        )
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise CheckpointError(f"{where} occupies {end - begin} bytes, {dtype} of shape {shape} needs {expected}")
    return dtype, tuple(shape), begin, end


def _check_coverage(file: SafetensorsFile) -> None:
    """Every byte of values belongs to exactly one tensor, as the format demands."""
    position = 0
    for name, (_, _, begin, end) in sorted(file._entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            problem = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise CheckpointError(f"{file.path}: tensor {name[:200]!r} starts at byte {begin} and {problem}")
        position = end
    if position != file.size - file.data_start:
        raise CheckpointError(
            f"{file.path} holds {file.size - file.data_start} bytes of values, its tensors need {position}"
        )


def write_safetensors(
    path: Path | str, tensors: Mapping[str, TensorView], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors in the given order; the header is padded so that the values start at a multiple of 8 bytes.

    The file appears under its name only once it is complete.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, view in tensors.items():
        end = position + view.array.nbytes
        if view.dtype not in DTYPES or view.array.dtype != DTYPES[view.dtype]:
            raise CheckpointError(f"tensor {name} has dtype {view.dtype}, but raw values of type {view.array.dtype}")
        header[name] = {"dtype": view.dtype, "shape": list(view.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for view in tensors.values():
            np.ascontiguousarray(view.array).tofile(file)
    partial.replace(path)
