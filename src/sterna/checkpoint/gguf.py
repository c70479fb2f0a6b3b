"""Memory-mapped reader of the GGUF container, versions 2 and 3, little endian.

    "GGUF", uint32 version, uint64 number of tensors, uint64 number of metadata entries
    metadata   key, uint32 type, value        (a string is uint64 length and UTF-8; an array is uint32 type, uint64 length, values)
    tensors    name, uint32 dimensions, uint64 sizes (innermost first), uint32 ggml type, uint64 offset into the data
    data       starts at the next multiple of ``general.alignment`` (default 32)

The reader trusts nothing: every count, length and offset is checked against the file before anything is mapped or allocated.
"""

from __future__ import annotations

import itertools
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sterna.errors import CheckpointError
from sterna.quant import GGML_TYPES
from sterna.quant.base import Bytes, Format

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 1 << 10
MAX_KEY_BYTES = 1 << 16
MAX_ARRAY_DEPTH = 3
STRING, ARRAY, BOOL = 8, 9, 7

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""Metadata type number to `struct` letter."""

Value = bool | int | float | str | list["Value"]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies: shape outermost first (the reverse of the file's order), ``offset`` in bytes from the file's start."""

    name: str
    format: Format
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufFile(Mapping[str, GgufTensor]):
    """The tensors of one file by name, and its ``metadata``. Raises `CheckpointError` for anything that is not well-formed."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {self.path} ({error})") from error
        cursor = _Cursor(self._map, self.path)
        tensor_count, entry_count = _read_head(cursor)
        self.metadata = _read_metadata(cursor, entry_count)
        self._tensors = _read_tensors(cursor, tensor_count, _alignment(self.metadata, self.path))

    def __getitem__(self, name: str) -> GgufTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def data(self, name: str) -> Bytes:
        """The bytes of a tensor, uint8 [nbytes], mapped."""
        tensor = self._tensors[name]
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset)


class _Cursor:
    """A position in the file that never passes its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position, self.size = data, path, 0, len(data)

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {problem} at byte {self.position}",
            hint="the file is truncated, damaged or not a GGUF file; download it again",
        )

    def take(self, length: int, what: str) -> bytes:
        if length > self.size - self.position:
            raise self.fail(f"{what} of {length} bytes, {self.size - self.position} are left")
        start = self.position
        self.position += length
        return self.data[start : self.position]

    def number(self, letter: str, what: str) -> int | float:
        packed = struct.Struct("<" + letter)
        value: int | float = packed.unpack(self.take(packed.size, what))[0]
        return value

    def uint32(self, what: str) -> int:
        return int(self.number("I", what))

    def count(self, what: str, *, least_bytes: int) -> int:
        """A uint64 number of things that take at least ``least_bytes`` each in the rest of the file."""
        value = int(self.number("Q", what))
        allowed = (self.size - self.position) // least_bytes
        if value > allowed:
            raise self.fail(f"{what} is {value}, the file has room for {allowed}")
        return value

    def string(self, what: str, limit: int | None = None) -> str:
        length = self.count(f"length of {what}", least_bytes=1)
        if limit is not None and length > limit:
            raise self.fail(f"length of {what} is {length}, allowed is {limit}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not valid UTF-8 ({error.reason})") from error


def _read_head(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.take(4, "magic")
    if magic != MAGIC:
        raise CheckpointError(f"{cursor.path} starts with {magic!r}, a GGUF file starts with {MAGIC!r}")
    version = cursor.uint32("version")
    if version not in VERSIONS:
        raise CheckpointError(
            f"{cursor.path} has GGUF version {version}, allowed is 2 or 3 in little-endian order",
            hint="convert the model again with a current converter",
        )
    # A tensor takes at least its name's length, a dimension count, one size, a type and an offset; an entry a key, type and byte.
    return cursor.count("number of tensors", least_bytes=32), cursor.count("number of metadata entries", least_bytes=13)


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string("metadata key", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.fail(f"metadata key {key[:200]!r} occurs twice")
        metadata[key] = _read_value(cursor, cursor.uint32("metadata type"), key, depth=0)
    return metadata


def _read_value(cursor: _Cursor, kind: int, key: str, *, depth: int) -> Value:
    if kind == STRING:
        return cursor.string(f"value of {key[:200]!r}")
    if kind == ARRAY:
        return _read_array(cursor, key, depth=depth + 1)
    if kind not in SCALARS:
        raise cursor.fail(f"metadata {key[:200]!r} has type {kind}, allowed is 0 to 12")
    value = cursor.number(SCALARS[kind], f"value of {key[:200]!r}")
    return _boolean(cursor, value, key) if kind == BOOL else value


def _boolean(cursor: _Cursor, value: int | float, key: str) -> bool:
    if value not in (0, 1):
        raise cursor.fail(f"boolean {key[:200]!r} is {value}, allowed is 0 or 1")
    return bool(value)


def _read_array(cursor: _Cursor, key: str, *, depth: int) -> list[Value]:
    if depth > MAX_ARRAY_DEPTH:
        raise cursor.fail(f"array {key[:200]!r} is nested more than {MAX_ARRAY_DEPTH} deep")
    kind = cursor.uint32(f"element type of {key[:200]!r}")
    if kind in (STRING, ARRAY):
        count = cursor.count(f"length of {key[:200]!r}", least_bytes=8 if kind == STRING else 12)
        return [_read_value(cursor, kind, key, depth=depth) for _ in range(count)]
    if kind not in SCALARS:
        raise cursor.fail(f"array {key[:200]!r} has element type {kind}, allowed is 0 to 12")
    size = struct.calcsize("<" + SCALARS[kind])
    count = cursor.count(f"length of {key[:200]!r}", least_bytes=size)
    raw = np.frombuffer(cursor.take(count * size, f"array {key[:200]!r}"), np.dtype(SCALARS[kind]).newbyteorder("<"))
    if kind == BOOL and count and raw.max() > 1:
        raise cursor.fail(f"boolean array {key[:200]!r} holds {raw.max()}, allowed is 0 or 1")
    values: list[Value] = (raw.astype(np.bool_) if kind == BOOL else raw).tolist()
    return values


def _alignment(metadata: Mapping[str, Value], path: Path) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    valid = isinstance(value, int) and not isinstance(value, bool) and 8 <= value <= MAX_ALIGNMENT
    if not valid or not isinstance(value, int) or value & (value - 1):
        raise CheckpointError(
            f"{path} has general.alignment {str(value)[:50]}, allowed is a power of two from 8 to {MAX_ALIGNMENT}"
        )
    return value


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    found: list[GgufTensor] = []
    for _ in range(count):
        found.append(_read_tensor(cursor, alignment))
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for each in found:
        if each.name in tensors:
            raise cursor.fail(f"tensor {each.name!r} occurs twice")
        available = max(0, cursor.size - start)
        if each.offset + each.nbytes > available:
            raise CheckpointError(
                f"{cursor.path}: tensor {each.name!r} lies at bytes {each.offset} to {each.offset + each.nbytes}, "
                f"the file holds {available} bytes of values",
                hint="the file is truncated or damaged; download it again",
            )
        tensors[each.name] = GgufTensor(each.name, each.format, each.shape, start + each.offset, each.nbytes)
    _check_overlap(tensors, cursor.path)
    return tensors


def _read_tensor(cursor: _Cursor, alignment: int) -> GgufTensor:
    """One tensor entry; its offset is still relative to the start of the data."""
    name = cursor.string("tensor name", MAX_NAME_BYTES)
    dimensions = cursor.uint32(f"dimensions of {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"tensor {name!r} has {dimensions} dimensions, allowed is 1 to {MAX_DIMENSIONS}")
    sizes = [int(cursor.number("Q", f"size of {name!r}")) for _ in range(dimensions)]
    kind = cursor.uint32(f"type of {name!r}")
    offset = int(cursor.number("Q", f"offset of {name!r}"))
    if kind not in GGML_TYPES:
        known = ", ".join(f"{number} ({form.name})" for number, form in sorted(GGML_TYPES.items()))
        raise CheckpointError(f"{cursor.path}: tensor {name!r} has ggml type {kind}, allowed is {known}")
    form = GGML_TYPES[kind]
    # A weight takes more than two bits in every format, so a larger product cannot be meant; Python integers do not wrap.
    elements = math.prod(sizes)
    if not 1 <= elements <= 4 * cursor.size:
        raise cursor.fail(f"tensor {name!r} has sizes {sizes}, the file cannot hold that")
    if sizes[0] % form.block_size:
        raise cursor.fail(f"tensor {name!r} has rows of {sizes[0]}, {form.name} needs a multiple of {form.block_size}")
    if offset % alignment:
        raise cursor.fail(f"tensor {name!r} has offset {offset}, expected a multiple of {alignment}")
    shape = tuple(reversed(sizes))
    return GgufTensor(name, form, shape, offset, form.nbytes(shape))


def _check_overlap(tensors: Mapping[str, GgufTensor], path: Path) -> None:
    ordered = sorted(tensors.values(), key=lambda each: each.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise CheckpointError(f"{path}: tensors {before.name!r} and {after.name!r} overlap")
