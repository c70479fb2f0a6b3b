"""Packed checkpoints: what is written comes back, resumed runs give the same bytes, and damaged files are refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sterna.checkpoint import TensorView, quantized_pieces
from sterna.checkpoint.packed_checkpoint import MANIFEST_FILE, PACKED_FILE, PackedCheckpoint, is_packed
from sterna.checkpoint.packed_writer import write_packed
from sterna.checkpoint.quantized_pieces import quantized_pieces as pieces_of
from sterna.checkpoint.resumable import Progress, WriteOptions
from sterna.errors import CheckpointError, UsageError
from sterna.quant import FORMATS
from sterna.quant.recipes import RECIPES, matrix, recipe
from sterna.quant.tensor import QuantizedTensor
from support.random_checkpoint import SMALL, RandomCheckpoint

# A vocabulary that ends inside a tile of 16 rows.
TEXT = replace(SMALL, vocab_size=99, hidden_size=128, moe_intermediate_size=64)
EXPERTS = "model.language_model.layers.1.mlp.experts.gate_up_proj"


class Source(RandomCheckpoint):
    """A random checkpoint that can be packed."""

    def fingerprint(self) -> str:
        return "seed 0"


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(TEXT)


def kill_after(tensors: int) -> Callable[[Progress], None]:
    seen: list[str] = []

    def progress(step: Progress) -> None:
        seen.append(step.name)
        if len(seen) == tensors:
            raise Killed

    return progress


def options(**changes: Any) -> WriteOptions:
    return replace(WriteOptions(num_threads=2, source_digest="seed 0"), **changes)


def opened(directory: Path, **more: Any) -> PackedCheckpoint:
    return PackedCheckpoint(directory, Source(TEXT).config, **more)


@pytest.mark.parametrize("name", RECIPES)
def test_every_tensor_comes_back_in_the_format_of_the_recipe(
    name: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized_pieces, "PIECE_WEIGHTS", 3000)
    records = write_packed(tmp_path, source, recipe(name), options=options())
    read, exact = opened(tmp_path), opened(tmp_path, dequantize=True)
    assert is_packed(tmp_path) and read.recipe == name
    assert read.groups == {"text", "mtp"} and read.has_mtp and not read.has_vision
    assert read.names("text", "mtp") == list(source.arrays) == [record.name for record in records]
    assert read.damaged() == []
    for record in records:
        values, form = source.arrays[record.name], FORMATS[RECIPES[name].format_of(record.name)]
        stored = read.tensor(record.name)
        assert read.format_of(record.name) is form and read.nbytes(record.name) == record.nbytes
        data = stored.data if isinstance(stored, QuantizedTensor) else stored.array.reshape(-1).view(np.uint8)
        assert np.array_equal(data, form.quantize(values.reshape(matrix(values.shape)))), record.name
        assert data.ctypes.data % 64 == 0 and data.base is not None, record.name
        decoded = exact.tensor(record.name).to_float32().reshape(values.shape)
        error = np.linalg.norm(decoded - values) / np.linalg.norm(values)
        assert record.error == pytest.approx(error, rel=1e-4, abs=1e-7)


def test_manifest_says_what_was_written(source: Source, tmp_path: Path) -> None:
    records = write_packed(tmp_path, source, recipe("q8"), options=options())
    manifest = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert manifest["recipe"] == "q8" and manifest["bytes"] == (tmp_path / PACKED_FILE).stat().st_size
    entry = manifest["tensors"][EXPERTS]
    assert entry["format"] == "q8" and entry["shape"] == [4, 128, 128]
    assert [entry["sha256"]] == [record.sha256 for record in records if record.name == EXPERTS]


def test_bytes_do_not_depend_on_threads_or_pieces(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for threads, piece in ((1, 1 << 20), (3, 2048)):
        monkeypatch.setattr(quantized_pieces, "PIECE_WEIGHTS", piece)
        folder = tmp_path / str(threads)
        folder.mkdir()
        write_packed(folder, source, recipe("q4"), options=options(num_threads=threads))
        contents.append((folder / PACKED_FILE).read_bytes())
    assert contents[0] == contents[1]


def test_a_killed_run_goes_on_and_mends_what_the_disk_lost(source: Source, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    write_packed(whole, source, recipe("q8"), options=options())
    with pytest.raises(Killed):
        write_packed(cut, source, recipe("q8"), options=options(progress=kill_after(20)))
    assert not is_packed(cut)
    partial, journal = cut / f"{PACKED_FILE}.partial", cut / f"{PACKED_FILE}.journal"
    # The kill came in the middle of a line, and a page of the first tensor never reached the disk.
    journal.write_text(journal.read_text() + '{"name": "model.lang')
    content = bytearray(partial.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")
    content[first : first + 32] = bytes(32)
    partial.write_bytes(content)
    steps: list[Progress] = []
    write_packed(cut, source, recipe("q8"), options=options(progress=steps.append))
    assert [step.resumed for step in steps[:21]] == [False] + [True] * 19 + [False]
    assert (cut / PACKED_FILE).read_bytes() == (whole / PACKED_FILE).read_bytes()
    assert sorted(path.name for path in cut.iterdir()) == [MANIFEST_FILE, PACKED_FILE]


def test_an_unfinished_file_of_another_recipe_is_not_mixed_in(source: Source, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        write_packed(tmp_path, source, recipe("q8"), options=options(progress=kill_after(3)))
    with pytest.raises(UsageError, match="unfinished file of another model, recipe or calibration"):
        write_packed(tmp_path, source, recipe("q4"), options=options())


def test_importance_lowers_the_error_of_important_columns(source: Source, tmp_path: Path) -> None:
    weight = np.full((4, 1, 128), 0.01, np.float32)
    weight[..., ::8] = 1
    errors = {}
    for label, importance in (("plain", {}), ("weighted", {EXPERTS: weight})):
        folder = tmp_path / label
        folder.mkdir()
        records = write_packed(folder, source, recipe("q4"), importance=importance, options=options())
        assert [record.name for record in records if record.weighted] == list(importance)
        difference = opened(folder).tensor(EXPERTS).to_float32() - source.arrays[EXPERTS]
        errors[label] = float((difference[..., ::8] ** 2).sum())
    assert errors["weighted"] < 0.9 * errors["plain"]


def test_a_large_tensor_is_never_held_whole() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 14, (8, 1024, 1024)).astype(np.uint16)
    tracemalloc.start()
    for task in pieces_of(TensorView("w", "BF16", values), FORMATS["q8"]):
        task()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A piece is 4 MB as float32, the whole tensor 32 MB.
    assert peak < 30 << 20


def test_no_room_on_the_disk(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sterna.checkpoint import resumable

    class Usage:
        free = 1000

    monkeypatch.setattr(resumable.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(CheckpointError, match="has 1,000 bytes free, the file takes"):
        write_packed(tmp_path, source, recipe("q8"), options=options())


def test_a_shape_that_the_format_does_not_allow_names_the_tensor(tmp_path: Path) -> None:
    odd = Source(replace(SMALL, moe_intermediate_size=48))
    with pytest.raises(UsageError, match=r"recipe q8, tensor .*experts.down_proj: format q8 needs"):
        write_packed(tmp_path, odd, recipe("q8"))


@pytest.fixture(scope="module")
def packed(source: Source, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("packed")
    write_packed(folder, source, recipe("q8"), options=options())
    return (folder / PACKED_FILE).read_bytes()


def changed(packed: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with an edited header."""
    length = int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + packed[8 + length :]


def edit_formats(**formats: Any) -> Callable[[dict[str, Any]], None]:
    def edit(header: dict[str, Any]) -> None:
        named = json.loads(header["__metadata__"]["formats"]) | formats
        header["__metadata__"]["formats"] = json.dumps({key: value for key, value in named.items() if value})

    return edit


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def edit(header: dict[str, Any]) -> None:
        header[new] = header.pop(old)
        named = json.loads(header["__metadata__"]["formats"])
        named[new] = named.pop(old)
        header["__metadata__"]["formats"] = json.dumps(named)

    return edit


NORM = "model.language_model.norm.weight"
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "version": (lambda h: h["__metadata__"].update(version="2"), "has version '2', allowed is '1'"),
    "layout": (lambda h: h["__metadata__"].update(tile_layout="9"), "has tile_layout '9', allowed is '1'"),
    "foreign": (lambda h: h.pop("__metadata__"), "has format 'missing', allowed is 'sterna-packed'"),
    "formats": (lambda h: h["__metadata__"].update(formats="[["), "no readable 'formats'"),
    "formats list": (lambda h: h["__metadata__"].update(formats="[]"), "does not name exactly the tensors"),
    "one missing": (edit_formats(**{NORM: None}), "does not name exactly the tensors"),
    "unknown format": (edit_formats(**{NORM: "q5"}), "has format 'q5', allowed is F32"),
    "other format": (edit_formats(**{EXPERTS: "q4"}), "is U8 .*, q4 needs U8"),
    "plain as tiles": (edit_formats(**{NORM: "q8"}), "is F32 .*, q8 needs U8"),
    "unknown tensor": (rename(NORM, "model.other.weight"), "unknown tensor 'model.other.weight'"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_files_that_do_not_fit_are_refused(case: str, packed: bytes, tmp_path: Path) -> None:
    edit, message = DAMAGES[case]
    (tmp_path / PACKED_FILE).write_bytes(changed(packed, edit))
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)


def test_truncated_files_are_refused(packed: bytes, tmp_path: Path) -> None:
    for length in (0, 7, 4000, len(packed) // 2, len(packed) - 1):
        (tmp_path / PACKED_FILE).write_bytes(packed[:length])
        with pytest.raises(CheckpointError):
            opened(tmp_path)


def test_a_flipped_bit_is_found(source: Source, tmp_path: Path) -> None:
    write_packed(tmp_path, source, recipe("q8"), options=options())
    path = tmp_path / PACKED_FILE
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    names = opened(tmp_path).damaged()
    assert len(names) == 1 and names[0].startswith("mtp.")
