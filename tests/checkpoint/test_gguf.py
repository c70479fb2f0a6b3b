"""The GGUF container: damaged and hostile files are refused with `CheckpointError`, and nothing else happens."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.checkpoint.gguf import GgufFile
from sterna.errors import CheckpointError


def string(text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: bytes | str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(
    name: bytes | str = "a", sizes: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0, count: int | None = None
) -> bytes:
    dimensions = len(sizes) if count is None else count
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", dimensions, *sizes, kind, offset)


def build(
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    data: int = 64,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    entries, tensors = entries or [], [tensor()] if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(entries))))
    body = head + b"".join(entries) + b"".join(tensors)
    return body + b"\0" * (-len(body) % alignment) + bytes(i % 251 for i in range(data))


def opened(tmp_path: Path, content: bytes) -> GgufFile:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    return GgufFile(path)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def test_reads_what_the_reference_writes(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "qwen35moe")
    writer.add_uint32("u", 7)
    writer.add_float32("f", 0.5)
    writer.add_bool("b", True)
    writer.add_int64("n", -5)
    writer.add_array("words", ["a", "é", ""])
    writer.add_array("numbers", [1, -2, 3])
    first = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("first", first)
    writer.add_tensor("second", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "x.gguf")
    assert {key: file.metadata[key] for key in ("u", "f", "b", "n", "words", "numbers")} == {
        "u": 7, "f": 0.5, "b": True, "n": -5, "words": ["a", "é", ""], "numbers": [1, -2, 3],
    }  # fmt: skip
    assert list(file) == ["first", "second"]
    assert file["first"].shape == (3, 4)
    assert np.array_equal(file.data("first").view("<f4").reshape(3, 4), first)
    assert file["second"].format.name == "F16"


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cannot read"),
    "magic": (b"GGML" + bytes(60), "a GGUF file starts with"),
    "head": (b"GGUF\x03\0\0\0", "number of tensors of 8 bytes, 0 are left"),
    "version 1": (build(version=1), "GGUF version 1, allowed is 2 or 3"),
    "big endian": (build(version=0x03000000), "allowed is 2 or 3 in little-endian"),
    "2^63 tensors": (build(counts=(2**63, 0)), "number of tensors is 9223372036854775808"),
    "2^64 - 1 entries": (build(counts=(1, 2**64 - 1)), "number of metadata entries is 18446744073709551615"),
    "more tensors than there are": (build(counts=(2, 0)), "allowed|are left|is 0|has room|type"),
    "key too long": (build([struct.pack("<Q", 2**62)]), "length of metadata key is"),
    "key over the limit": (build([string(b"k" * 70_000) + u32(4) + u32(1)]), "length of metadata key is 70000, allowed"),
    "key not UTF-8": (build([entry(b"\xff\xfe", 4, u32(1))]), "not valid UTF-8"),
    "key twice": (build([entry("k", 4, u32(1)), entry("k", 4, u32(2))]), "'k' occurs twice"),
    "unknown type": (build([entry("k", 13, u32(1))]), "has type 13, allowed is 0 to 12"),
    "boolean": (build([entry("k", 7, b"\x02")]), "is 2, allowed is 0 or 1"),
    "booleans": (build([entry("k", 9, u32(7) + u64(2) + b"\x00\x05")]), "holds 5, allowed is 0 or 1"),
    "string of 2^63": (build([entry("k", 8, u64(2**63))]), "length of value of 'k' is 9223372036854775808"),
    "array of 2^63": (build([entry("k", 9, u32(4) + u64(2**63))]), "length of 'k' is 9223372036854775808"),
    "array of 2^40 strings": (build([entry("k", 9, u32(8) + u64(2**40))]), "length of 'k' is 1099511627776"),
    "array of unknown": (build([entry("k", 9, u32(77) + u64(1))]), "element type 77"),
    "nested arrays": (build([entry("k", 9, (u32(9) + u64(1)) * 9 + u32(4) + u64(0))]), "nested more than 3 deep"),
    "alignment 0": (build([entry("general.alignment", 4, u32(0))]), "general.alignment 0, allowed is a power of two"),
    "alignment 48": (build([entry("general.alignment", 4, u32(48))]), "general.alignment 48"),
    "alignment 2^31": (build([entry("general.alignment", 4, u32(2**31))]), "general.alignment 2147483648"),
    "alignment text": (build([entry("general.alignment", 8, string("32"))]), "general.alignment 32, allowed"),
    "alignment true": (build([entry("general.alignment", 7, b"\x01")]), "general.alignment True"),
    "no dimensions": (build(tensors=[tensor(sizes=())]), "0 dimensions, allowed is 1 to 4"),
    "five dimensions": (build(tensors=[tensor(sizes=(1,) * 5)]), "5 dimensions"),
    "2^32 - 1 dimensions": (build(tensors=[tensor(count=2**32 - 1)]), "4294967295 dimensions"),
    "size 0": (build(tensors=[tensor(sizes=(0, 8))]), "the file cannot hold that"),
    "sizes that wrap to 0": (build(tensors=[tensor(sizes=(2**32, 2**32))]), "the file cannot hold that"),
    "negative size": (build(tensors=[tensor(sizes=(2**64 - 8,))]), "the file cannot hold that"),
    "unknown ggml type": (build(tensors=[tensor(kind=99)]), "ggml type 99, allowed is"),
    "partial quantisation block": (build(tensors=[tensor(sizes=(48,), kind=8)]), "Q8_0 needs a multiple of 32"),
    "offset out of step": (build(tensors=[tensor(offset=4)]), "offset 4, expected a multiple of 32"),
    "offset outside": (build(tensors=[tensor(offset=64)]), "lies at bytes 64 to 96, the file holds 64"),
    "offset of 2^64 - 32": (build(tensors=[tensor(offset=2**64 - 32)]), "lies at bytes 18446744073709551584"),
    "overlap": (build(tensors=[tensor("a", (9,)), tensor("b", (8,), offset=32)], data=96), "'a' and 'b' overlap"),
    "same place": (build(tensors=[tensor("a"), tensor("b")]), "overlap"),
    "name twice": (build(tensors=[tensor("a"), tensor("a", offset=32)]), "'a' occurs twice"),
    "name not UTF-8": (build(tensors=[tensor(b"\x80")]), "tensor name is not valid UTF-8"),
    "name too long": (build(tensors=[tensor("n" * 2000)]), "length of tensor name is 2000, allowed is 1024"),
    "data missing": (build(data=0), "the file holds 0 bytes of values"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    content, message = HOSTILE[case]
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, content)


def test_a_directory_or_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(CheckpointError, match="cannot read"):
            GgufFile(path)


def sample() -> bytes:
    entries = [
        entry("general.architecture", 8, string("qwen35moe")),
        entry("general.alignment", 4, u32(64)),
        entry("list", 9, u32(8) + u64(2) + string("one") + string("two")),
        entry("deep", 9, u32(9) + u64(1) + u32(4) + u64(2) + u32(1) + u32(2)),
        entry("flag", 7, b"\x01"),
    ]
    tensors = [tensor("a", (32, 2), 8), tensor("b", (16,), 1, offset=128), tensor("c", (4, 2, 2), 0, offset=192)]
    return build(entries, tensors, data=256, alignment=64)


def read_everything(content: bytes, path: Path) -> dict[str, Any]:
    path.write_bytes(content)
    file = GgufFile(path)
    return {name: file[name].format.dequantize(file.data(name), file[name].shape) for name in file}


def test_the_sample_is_valid(tmp_path: Path) -> None:
    read = read_everything(sample(), tmp_path / "x.gguf")
    assert {name: array.shape for name, array in read.items()} == {"a": (2, 32), "b": (16,), "c": (2, 2, 4)}


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = sample()
    needed = len(content) - 256 + 192 + 64
    for length in range(needed):
        with pytest.raises(CheckpointError):
            read_everything(content[:length], tmp_path / "x.gguf")


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(sample()) - 1), st.sampled_from([0, 1, 2, 8, 9, 31, 127, 128, 255])),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 8),
)
def test_mutated_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], run: int
) -> None:
    content = bytearray(sample())
    for position, value in changes:
        content[position : position + run + 1] = bytes([value]) * (min(position + run + 1, len(content)) - position)
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    try:
        read = read_everything(bytes(content), path)
    except CheckpointError:
        return
    assert all(array.size * 0.2 <= 4 * len(content) for array in read.values())
