"""A whole model as GGUF with wrong metadata, wrong tensors and damaged bytes: read correctly or refused, never anything else."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sterna.checkpoint.gguf import MAGIC, VERSIONS
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.gguf_metadata import GgufTokenizer
from sterna.checkpoint.gguf_names import ARCHITECTURE
from sterna.checkpoint.gguf_writer import (
    Entry,
    model_metadata,
    plan,
    tokenizer_metadata,
    uniform,
    write_gguf,
    written_config,
)
from sterna.errors import CheckpointError, ConfigError, UsageError
from support.random_checkpoint import SMALL, RandomCheckpoint

TINY = replace(
    SMALL,
    vocab_size=20,
    hidden_size=32,
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
    linear_num_value_heads=4,
    num_experts=2,
    num_experts_per_tok=1,
    shared_expert_intermediate_size=32,
)
TOKENIZER = GgufTokenizer("gpt2", "qwen35", [f"t{i}" for i in range(20)], ["t 1"], [1] * 20, "{{ x }}", 3, None, 2)
REFUSED = (CheckpointError, ConfigError)
SETTINGS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Every metadata type by number: `struct` letter and the range of values.
INTEGERS = {
    0: ("B", 0, 8), 1: ("b", 1, 8), 2: ("H", 0, 16), 3: ("h", 1, 16),
    4: ("I", 0, 32), 5: ("i", 1, 32), 10: ("Q", 0, 64), 11: ("q", 1, 64),
}  # fmt: skip


def string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def integers(kind: int) -> st.SearchStrategy[bytes]:
    letter, signed, bits = INTEGERS[kind]
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    small = st.integers(max(low, -3), min(high, 40))
    return (small | st.integers(low, high) | st.sampled_from([low, high])).map(lambda x: struct.pack("<" + letter, x))


STRINGS = st.sampled_from([b"", b"yarn", b"none", b"qwen35moe", b"\xff\xfe", b"x" * 3000]).map(string)
NUMBERS = st.sampled_from([0.0, -1.0, 0.5, 1e-6, 1e7, 3e38, float("nan"), float("inf")])
SCALARS: dict[int, st.SearchStrategy[bytes]] = {
    **{kind: integers(kind) for kind in INTEGERS},
    6: NUMBERS.map(lambda x: struct.pack("<f", x)),
    12: NUMBERS.map(lambda x: struct.pack("<d", x)),
    7: st.sampled_from([b"\0", b"\1"]),
    8: STRINGS,
}


@st.composite
def values(draw: st.DrawFn) -> bytes:
    """A typed value: type number and bytes."""
    kind = draw(st.sampled_from(sorted(SCALARS)))
    if draw(st.booleans()):
        return struct.pack("<I", kind) + draw(SCALARS[kind])
    items = draw(st.lists(SCALARS[kind], max_size=5))
    return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)


def typed(kind: int, value: object) -> bytes:
    """A value of the writer as type number and bytes."""
    if kind == 8:
        assert isinstance(value, str)
        return struct.pack("<I", kind) + string(value.encode())
    if kind == 9:
        assert isinstance(value, tuple)
        inner, items = value
        packed = [typed(inner, item)[4:] for item in items]
        return struct.pack("<IIQ", kind, inner, len(items)) + b"".join(packed)
    return struct.pack("<I", kind) + struct.pack({4: "<I", 5: "<i", 6: "<f", 7: "<?"}[kind], value)


class Model:
    """The parts of a valid file."""

    def __init__(self, folder: Path) -> None:
        source = RandomCheckpoint(TINY)
        self.path = folder / "model.gguf"
        write_gguf(self.path, source, choose=uniform("Q8_0"), file_type="Q8_0", tokenizer=TOKENIZER)
        self.content = self.path.read_bytes()
        metadata = model_metadata(written_config(source), name="model", file_type="Q8_0") | tokenizer_metadata(
            TOKENIZER
        )
        self.metadata = {key: typed(kind, value) for key, (kind, value) in metadata.items()}
        self.entries = plan(source, uniform("Q8_0"))
        self.data = self.content[len(self.head(self.metadata, self.entries)) :]
        assert self.content == self.head(self.metadata, self.entries) + self.data

    def head(self, metadata: dict[str, bytes], entries: Sequence[Entry]) -> bytes:
        parts = [MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(entries), len(metadata))]
        parts += [string(key.encode()) + value for key, value in metadata.items()]
        offset = 0
        for entry in entries:
            sizes = entry.shape[::-1]
            parts.append(string(entry.name.encode()) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
            parts.append(struct.pack("<IQ", entry.format.ggml_type, offset))
            offset += -(-entry.format.nbytes(entry.shape) // 32) * 32
        head = b"".join(parts)
        return head + bytes(-len(head) % 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("fuzz"))


def read(path: Path) -> GgufCheckpoint | None:
    """Everything that a program reads of a file, or ``None`` if it is refused."""
    try:
        checkpoint = GgufCheckpoint(path)
        checkpoint.tokenizer()
        for name in checkpoint.names("text", "mtp"):
            assert checkpoint.tensor(name).to_float32().size > 0
        checkpoint.fingerprint()
    except REFUSED as error:
        assert str(error) and len(error.message) < 3500
        return None
    return checkpoint


def test_the_untouched_file_is_read(model: Model) -> None:
    checkpoint = read(model.path)
    assert checkpoint is not None and checkpoint.config.text.hidden_size == 32


@SETTINGS
@given(data=st.data())
def test_wrong_metadata(model: Model, tmp_path: Path, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from(sorted(model.metadata)), min_size=1, max_size=3, unique=True))
    metadata = {**model.metadata, **{key: data.draw(values()) for key in keys}}
    for key in data.draw(st.lists(st.sampled_from(sorted(model.metadata)), max_size=1)):
        del metadata[key]
    path = tmp_path / "x.gguf"
    path.write_bytes(model.head(metadata, model.entries) + model.data)
    checkpoint = read(path)
    if checkpoint is None:
        return
    # What was accepted describes the tensors that are there: sizes cannot have been taken from a wrong number.
    text = checkpoint.config.text
    assert (text.hidden_size, text.num_experts, text.vocab_size, text.num_hidden_layers) == (32, 2, 20, 2)


@SETTINGS
@given(data=st.data())
def test_metadata_that_a_model_may_have_but_this_one_has_not(model: Model, tmp_path: Path, data: st.DataObject) -> None:
    extra = ["attention.recurrent_layers", "rope.scaling.type", "rope.scaling.factor", "nextn_predict_layers"]
    known = [f"{ARCHITECTURE}.{key}" for key in extra] + ["split.count", "general.alignment", "tokenizer.ggml.tokens"]
    chosen = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True))
    path = tmp_path / "x.gguf"
    metadata = {**model.metadata, **{key: data.draw(values()) for key in chosen}}
    path.write_bytes(model.head(metadata, model.entries) + model.data)
    read(path)


@pytest.mark.parametrize(
    "value", [typed(9, (8, ["x" * 3000] * 2)), typed(5, -1), typed(6, 2.0), typed(7, True), typed(4, 1 << 31)]
)
def test_wrong_numbers_of_shards(model: Model, tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "x-00001-of-00002.gguf"
    path.write_bytes(model.head({**model.metadata, "split.count": value}, model.entries) + model.data)
    with pytest.raises(CheckpointError, match=r"has split.count .{1,60}, allowed is 0 to 99999"):
        GgufCheckpoint(path)


@SETTINGS
@given(data=st.data())
def test_wrong_tensors(model: Model, tmp_path: Path, data: st.DataObject) -> None:
    """One missing, twice, renamed, transposed or of another size: refused, whichever it is."""
    entries = list(model.entries)
    index = data.draw(st.integers(0, len(entries) - 1))
    other = entries[data.draw(st.integers(0, len(entries) - 1))]
    entry = entries[index]
    changes: list[Iterable[Entry]] = [
        [],
        [entry, entry],
        [replace(entry, name=other.name)],
        [replace(entry, name=entry.name + "x")],
        [replace(entry, shape=(*entry.shape, 32))],
        [replace(entry, shape=entry.shape[1:] or (64,))],
    ]
    if len(set(entry.shape)) > 1:
        changes.append([replace(entry, shape=entry.shape[::-1])])
    chosen = data.draw(st.sampled_from(changes))
    if [each.name for each in chosen] == [entry.name] and next(iter(chosen)).shape == entry.shape:
        return
    entries[index : index + 1] = chosen
    path = tmp_path / "x.gguf"
    try:
        head = model.head(model.metadata, entries)
    except UsageError:
        return  # rows that hold no whole blocks have no size
    path.write_bytes(head + model.data + bytes(1 << 16))
    assert read(path) is None


@SETTINGS
@given(data=st.data())
def test_damaged_bytes(model: Model, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(model.content)
    head = len(content) - len(model.data)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, head - 1))
        patch = data.draw(st.binary(min_size=1, max_size=9))
        content[start : start + len(patch)] = patch
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = tmp_path / "x.gguf"
    path.write_bytes(content[:cut])
    with np.errstate(all="ignore"):
        read(path)
