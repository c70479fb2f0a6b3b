"""The reader trusts nothing: hostile files raise `CheckpointError` and nothing else, within the file's size."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sterna.checkpoint import SafetensorsFile, TensorView, write_safetensors
from sterna.checkpoint.tensor_view import DTYPES, float8_e4m3_values
from sterna.errors import CheckpointError

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def raw_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read_all(path: Path) -> dict[str, np.ndarray]:
    return {name: view.array.copy() for name, view in SafetensorsFile(path).items()}


def test_round_trip_and_the_official_library_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    bits = np.array([0x3F80, 0xC000], np.uint16)
    tensors = {
        "a": TensorView("a", "F32", VALUES),
        "odd": TensorView("odd", "U8", np.arange(3, dtype=np.uint8)),
        "b": TensorView("b", "BF16", bits),
        "empty": TensorView("empty", "I64", np.zeros((0, 4), np.int64)),
        "scalar": TensorView("scalar", "F16", np.array(1.5, np.float16)),
    }
    write_safetensors(path, tensors, {"format": "sterna"})
    file = SafetensorsFile(path)
    assert list(file) == list(tensors)
    assert file.metadata == {"format": "sterna"}
    assert file.data_start % 8 == 0
    for name, view in tensors.items():
        assert file[name].dtype == view.dtype
        assert np.array_equal(file[name].array, view.array)
        assert file[name].array.flags.aligned
    assert not file["a"].array.flags.writeable
    assert file["b"].to_float32().tolist() == [1.0, -2.0]
    official = safetensors.safe_open(path, "np")
    assert set(official.keys()) == set(tensors)
    assert np.array_equal(official.get_tensor("a"), VALUES)


def test_a_file_of_the_official_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"w": VALUES, "i": np.array([1, 2], np.int32)}, path)
    assert np.array_equal(SafetensorsFile(path)["w"].array, VALUES)
    with pytest.raises(CheckpointError, match="tensor i has dtype I32"):
        SafetensorsFile(path)["i"].to_float32()


def test_float8_values_are_those_of_the_format() -> None:
    torch = pytest.importorskip("torch")
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(float8_e4m3_values(), every, equal_nan=True)


HEADERS: list[tuple[str, bytes, str]] = [
    ("empty file", b"", "cannot read|0 bytes"),
    ("seven bytes", b"\0" * 7, "7 bytes"),
    ("header longer than the file", raw_file({}, length=10**6), "claims a header of 1000000 bytes"),
    ("header of 2**64 - 1 bytes", raw_file({}, length=2**64 - 1), "claims a header of"),
    ("no JSON", raw_file(b"{]"), "not valid JSON"),
    ("invalid UTF-8", raw_file(b'{"\xff": 1}'), "not valid JSON"),
    ("deep nesting", raw_file(b"[" * 50_000), "not valid JSON"),
    ("huge number", raw_file(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    ("a list", raw_file([1]), "header of type list"),
    ("metadata not texts", raw_file({"__metadata__": {"a": 1}}), "metadata that is not a map of texts"),
    ("the same name twice", raw_file(b'{"a": 1, "a": 1}'), "twice in its header"),
    ("entry is a number", raw_file({"a": 1}), "malformed entry"),
    ("a field too many", raw_file({"a": {**entry(), "x": 1}}, b"\0" * 8), "malformed entry"),
    ("unknown dtype", raw_file({"a": entry("F13")}, b"\0" * 8), "dtype 'F13', allowed is"),
    ("dtype a list", raw_file({"a": entry(["F32"])}, b"\0" * 8), "allowed is"),
    ("negative size", raw_file({"a": entry(shape=[-2])}, b"\0" * 8), "has shape"),
    ("fractional size", raw_file({"a": entry(shape=[2.0])}, b"\0" * 8), "has shape"),
    ("boolean size", raw_file({"a": entry(shape=[True])}, b"\0" * 8), "has shape"),
    ("too many dimensions", raw_file({"a": entry(shape=[1] * 9)}, b"\0" * 8), "has shape"),
    ("sizes that overflow", raw_file({"a": entry(shape=[2**62, 2**62])}, b"\0" * 8), "needs"),
    ("offsets reversed", raw_file({"a": entry(offsets=[8, 0])}, b"\0" * 8), "lies at bytes 8 to 0"),
    ("offsets past the end", raw_file({"a": entry(shape=[4], offsets=[0, 16])}, b"\0" * 8), "the file holds 8 bytes"),
    ("offsets negative", raw_file({"a": entry(offsets=[-8, 0])}, b"\0" * 8), "data_offsets"),
    ("three offsets", raw_file({"a": entry(offsets=[0, 4, 8])}, b"\0" * 8), "data_offsets"),
    ("size contradicts offsets", raw_file({"a": entry(shape=[3])}, b"\0" * 8), "needs 12"),
    ("overlap", raw_file({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12), "overlaps"),
    ("the same bytes", raw_file({"a": entry(), "b": entry()}, b"\0" * 8), "overlaps"),
    ("a gap", raw_file({"a": entry(offsets=[8, 16])}, b"\0" * 16), "gap"),
    ("bytes of no tensor", raw_file({"a": entry()}, b"\0" * 9), "holds 9 bytes of values, its tensors need 8"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), [each[1:] for each in HEADERS], ids=[each[0] for each in HEADERS])
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_all(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="cannot read"):
            SafetensorsFile(path)


def test_a_truncated_file_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": TensorView("a", "F32", VALUES)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


def test_the_writer_refuses_values_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="dtype BF16, but raw values of type float32"):
        write_safetensors(tmp_path / "x.safetensors", {"a": TensorView("a", "BF16", VALUES)})
    assert not list(tmp_path.iterdir())


numbers = st.integers(-2, 2**70) | st.integers(0, 16) | st.booleans() | st.floats() | st.none() | st.text(max_size=3)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(DTYPES)) | numbers,
        "shape": st.lists(numbers, max_size=10) | numbers,
        "data_offsets": st.lists(numbers, max_size=3) | numbers,
    }
)
json_values = st.recursive(
    numbers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
headers = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), entries | json_values, max_size=4)
contents = st.one_of(
    st.binary(max_size=200),
    st.builds(raw_file, headers, st.binary(max_size=64)),
    st.builds(raw_file, headers, st.binary(max_size=64), st.integers(0, 2**64 - 1) | st.integers(0, 300)),
    st.builds(raw_file, st.binary(max_size=200)),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=contents)
@example(content=raw_file({"a": entry("F64", [2**60], [0, 2**63])}, b"\0" * 8))
def test_any_content_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        total = sum(array.nbytes for array in read_all(path).values())
        assert total <= len(content)
    except CheckpointError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # An allowance for the parser and the message, and a factor for the header as objects: no lying size is allocated.
    assert peak < 200_000 + 100 * len(content)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_one_changed_byte_is_read_or_refused(tmp_path: Path, position: int, byte: int) -> None:
    path = tmp_path / "flip.safetensors"
    write_safetensors(path, {"a": TensorView("a", "F32", VALUES), "b": TensorView("b", "I64", np.arange(3))})
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        total = sum(array.nbytes for array in read_all(path).values())
    except CheckpointError:
        return
    assert total <= len(content)
