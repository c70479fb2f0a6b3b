"""GGUF seen as a checkpoint: written files come back, head orders, fused variants, configuration and tokenizer."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from sterna.checkpoint import Checkpoint, TensorView, expected_tensors
from sterna.checkpoint.gguf import ARRAY, STRING, GgufFile
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.gguf_metadata import GgufTokenizer, read_tokenizer
from sterna.checkpoint.gguf_names import grouped_to_tiled, tiled_to_grouped
from sterna.checkpoint.gguf_writer import model_metadata, plan, uniform, write_gguf
from sterna.config import TextConfig, preset
from sterna.errors import CheckpointError, UsageError
from sterna.ops import tolerances
from sterna.quant import FORMATS
from sterna.quant.tensor import QuantizedTensor
from support.golden import BACKENDS, GOLDEN, Piece, Stream, logits_of, open_backend, reference
from support.random_checkpoint import SMALL, WIDE, RandomCheckpoint

TOKENIZER = GgufTokenizer(
    model="gpt2",
    pre="qwen35",
    tokens=["a", "b", "ab", "<|endoftext|>", "<|im_end|>"],
    merges=["a b"],
    token_types=[1, 1, 1, 3, 3],
    chat_template="{{ messages }}",
    eos_token_id=4,
    bos_token_id=3,
    padding_token_id=3,
)
# Largest error relative to the largest weight of the tensor.
ERROR = {"F32": 3e-7, "F16": 6e-4, "BF16": 4e-3, "Q8_0": 5e-3, "Q4_0": 0.13, "Q4_K": 0.08, "Q6_K": 0.03}


def written(tmp_path: Path, text: TextConfig, form: str, **options: Any) -> tuple[Path, RandomCheckpoint]:
    source = RandomCheckpoint(text, **options)
    path = tmp_path / f"{form}.gguf"
    write_gguf(path, source, choose=uniform(form), file_type=form, tokenizer=TOKENIZER)
    return path, source


def assert_close(read: GgufCheckpoint, source: RandomCheckpoint, form: str) -> None:
    for name, expected in source.arrays.items():
        view = read.tensor(name)
        values = view.to_float32()
        assert view.shape == values.shape == expected.shape, name
        # The +1 of norm weights costs the last bits of small ones.
        assert np.abs(values - expected).max() <= ERROR[form] * np.abs(expected).max() + 1.2e-7, name


@pytest.mark.parametrize("form", ERROR)
def test_what_was_written_comes_back(tmp_path: Path, form: str) -> None:
    path, source = written(tmp_path, WIDE if form.endswith("_K") else SMALL, form)
    read = GgufCheckpoint(path)
    assert replace(read.config.text, rope_parameters=source.config.text.rope_parameters) == replace(
        source.config.text, rms_norm_eps=read.config.text.rms_norm_eps
    )
    assert read.config.text.rms_norm_eps == pytest.approx(1e-6)
    assert read.groups == {"text", "mtp"} and read.has_mtp and not read.has_vision
    assert set(read.names("text", "mtp")) == set(source.arrays)
    assert_close(read, source, form)


def test_without_mtp(tmp_path: Path) -> None:
    path, source = written(tmp_path, SMALL, "F32", with_mtp=False)
    read = GgufCheckpoint(path)
    assert read.groups == {"text"} and read.config.text.mtp_num_hidden_layers == 0
    assert not any(name.startswith("blk.4.") for name in read.files[0])
    assert_close(read, source, "F32")


def test_tied_embeddings(tmp_path: Path) -> None:
    path, source = written(tmp_path, replace(SMALL, tie_word_embeddings=True), "F32")
    read = GgufCheckpoint(path)
    assert read.config.text.tie_word_embeddings
    assert_close(read, source, "F32")


def test_file_agrees_with_the_reference_reader(tmp_path: Path) -> None:
    path, source = written(tmp_path, SMALL, "Q8_0")
    reader = gguf.GGUFReader(path)
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    assert len(by_name) == len(reader.tensors) == len(GgufFile(path))
    known = {name.format(bid=0) for name in gguf.TENSOR_NAMES.values()}
    for name in by_name:
        stem = name.removesuffix(".weight").removesuffix(".bias")
        assert (
            stem.replace(f"blk.{stem.split('.')[1]}.", "blk.0.") in known if stem.startswith("blk.") else stem in known
        )
    router = by_name["blk.1.ffn_gate_inp.weight"]
    assert np.array_equal(router.data, source.arrays["model.language_model.layers.1.mlp.gate.weight"])
    decay = source.arrays["model.language_model.layers.0.linear_attn.A_log"]
    # Three value heads per key head, two key heads: the tiled order takes every third official head.
    np.testing.assert_array_equal(by_name["blk.0.ssm_a"].data, -np.exp(decay[[0, 3, 1, 4, 2, 5]]))
    shift = by_name["blk.0.attn_norm.weight"].data
    np.testing.assert_array_equal(shift, 1 + source.arrays["model.language_model.layers.0.input_layernorm.weight"])
    plain = by_name["blk.0.ssm_norm.weight"].data
    np.testing.assert_array_equal(plain, source.arrays["model.language_model.layers.0.linear_attn.norm.weight"])
    assert reader.fields["qwen35moe.block_count"].contents() == 5
    assert reader.fields["qwen35moe.nextn_predict_layers"].contents() == 1
    assert reader.fields["qwen35moe.rope.dimension_sections"].contents() == [3, 3, 2, 0]
    assert reader.fields["tokenizer.ggml.merges"].contents() == ["a b"]


def test_official_names_and_counts() -> None:
    """733 tensors without the MTP head and 753 with it, as published files have."""
    official = preset("qwen3.6-35b-a3b")
    for layers, count in ((0, 733), (1, 753)):
        text = replace(official.text, mtp_num_hidden_layers=layers)

        class Source:
            config = replace(official, text=text)
            groups = frozenset({"text", "mtp"})

            def tensor(self, name: str) -> Any:
                raise AssertionError("planning reads no values")

        entries = plan(Source(), uniform("Q8_0"))
        assert len({entry.name for entry in entries}) == len(entries) == count
    shapes = {entry.name: entry.shape for entry in entries}
    assert shapes["blk.3.attn_q.weight"] == (8192, 2048)
    assert shapes["blk.0.ffn_up_exps.weight"] == (256, 512, 2048)
    assert shapes["blk.0.ssm_conv1d.weight"] == (8192, 4)
    metadata = model_metadata(official, name="x", file_type="Q8_0")
    assert metadata["qwen35moe.ssm.inner_size"][1] == 4096
    assert metadata["qwen35moe.full_attention_interval"][1] == 4


def test_head_orders_are_inverse() -> None:
    text = preset("qwen3.6-35b-a3b").text
    grouped, tiled = np.array(tiled_to_grouped(text)), np.array(grouped_to_tiled(text))
    assert np.array_equal(grouped[tiled], np.arange(32))
    # Place n of the tiled order uses key head n % 16, official head h key head h // 2.
    assert np.array_equal(tiled // 2, np.arange(32) % 16)


def test_quantised_rows_move_as_they_are(tmp_path: Path) -> None:
    """Grouped order of a quantised tensor is the quantised grouped tensor: no value is rounded twice."""
    path, source = written(tmp_path, SMALL, "Q8_0")
    read = GgufCheckpoint(path)
    assert read.grouping_is_exact
    form = FORMATS["Q8_0"]
    for layer in (0, 2):
        for name in ("in_proj_qkv", "in_proj_z", "out_proj"):
            full = f"model.language_model.layers.{layer}.linear_attn.{name}.weight"
            view = read.tensor(full)
            assert isinstance(view, QuantizedTensor) and view.dtype == "Q8_0"
            assert np.array_equal(view.data, form.quantize(source.arrays[full])), full


def test_super_blocks_that_span_heads(tmp_path: Path) -> None:
    path, source = written(tmp_path, WIDE, "Q4_K")
    grouped, tiled = GgufCheckpoint(path), GgufCheckpoint(path, v_head_order="tiled")
    assert not grouped.grouping_is_exact
    name = "model.language_model.layers.0.linear_attn.out_proj.weight"
    assert grouped.tensor(name).dtype == "F32"
    stored = tiled.tensor(name)
    assert stored.dtype == "Q4_K"
    order = grouped_to_tiled(source.config.text)
    heads = grouped.tensor(name).to_float32().reshape(256, 4, 128)[:, order].reshape(256, 512)
    assert np.array_equal(stored.to_float32(), heads)
    assert grouped.fingerprint() != tiled.fingerprint()


def test_tiled_order_is_the_same_everywhere(tmp_path: Path) -> None:
    path, source = written(tmp_path, SMALL, "F32")
    read, order, dim = GgufCheckpoint(path, v_head_order="tiled"), grouped_to_tiled(SMALL), 32
    prefix = "model.language_model.layers.1.linear_attn"
    rows = np.array(order)[:, None] * dim + np.arange(dim)
    keys = 2 * 2 * 16
    expected = {
        "A_log": np.s_[order],
        "dt_bias": np.s_[order],
        "in_proj_a.weight": np.s_[order],
        "in_proj_z.weight": np.s_[rows.reshape(-1)],
        "in_proj_qkv.weight": np.s_[np.r_[np.arange(keys), keys + rows.reshape(-1)]],
        "conv1d.weight": np.s_[np.r_[np.arange(keys), keys + rows.reshape(-1)]],
        "out_proj.weight": np.s_[:, rows.reshape(-1)],
        "norm.weight": np.s_[:],
    }
    for name, index in expected.items():
        got = read.tensor(f"{prefix}.{name}").to_float32()
        np.testing.assert_allclose(got, source.arrays[f"{prefix}.{name}"][index], rtol=1e-5, atol=1e-7)


class Rounded(Checkpoint):
    """The golden checkpoint with matrices rounded to one format, in official layout: what a GGUF file of it must amount to."""

    form = "F32"

    def tensor(self, name: str) -> TensorView:
        """The rounded tensor as float32."""
        values = super().tensor(name).to_float32()
        stored = values.reshape(values.shape[0], -1) if name.endswith("conv1d.weight") else values
        form = FORMATS[uniform(self.form)(name, stored.shape)]
        return TensorView(name, "F32", form.dequantize(form.quantize(stored), stored.shape).reshape(values.shape))


def logits_of_checkpoint(checkpoint: Any, ids: np.ndarray) -> np.ndarray:
    backend = open_backend(BACKENDS["numpy"], checkpoint)
    try:
        return logits_of(backend, Piece(Stream(), ids))
    finally:
        backend.close()


@pytest.mark.parametrize("form", ["F32", "F16", "BF16"])
def test_logits_of_the_golden_checkpoint(tmp_path: Path, form: str) -> None:
    """Rounding alone moves these logits by up to 1.4 (BF16), so each file is compared with weights rounded as it is."""
    path = tmp_path / "golden.gguf"
    write_gguf(path, Checkpoint(GOLDEN), choose=uniform(form), file_type=form)
    ids = reference()["ids"][0][:40]
    logits = logits_of_checkpoint(GgufCheckpoint(path, dequantize=True), ids)
    if form == "F32":
        expected = reference()["full"][0][:40]
    else:
        rounded = Rounded(GOLDEN)
        rounded.form = form
        expected = logits_of_checkpoint(rounded, ids)
    assert np.abs(logits - expected).max() <= tolerances.GOLDEN_LOGITS


class Rewritten(Mapping[str, Any]):
    """A file taken apart, to be changed and written again by the ``gguf`` package."""

    def __init__(self, path: Path) -> None:
        file = GgufFile(path)
        self.tensors = {name: (file[name].format, file[name].shape, file.data(name).copy()) for name in file}
        self.metadata = dict(file.metadata)

    def __getitem__(self, key: str) -> Any:
        return self.tensors[key]

    def __iter__(self) -> Any:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def write(self, path: Path) -> Path:
        head, data, offset = b"", b"", 0
        for key, value in self.metadata.items():
            head += _text(key) + _value(value)
        for name, (form, shape, raw) in self.tensors.items():
            head += _text(name) + struct.pack(
                f"<I{len(shape)}QIQ", len(shape), *reversed(shape), form.ggml_type, offset
            )
            data += raw.tobytes() + b"\0" * (-raw.size % 32)
            offset = len(data)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.metadata)) + head
        path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
        return path


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    inner = [_value(each) for each in value]
    kind = inner[0][:4] if inner else struct.pack("<I", 4)
    return struct.pack("<I", ARRAY) + kind + struct.pack("<Q", len(inner)) + b"".join(each[4:] for each in inner)


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Rewritten, RandomCheckpoint]:
    path, source = written(tmp_path, SMALL, "F16")
    return Rewritten(path), source


def test_fused_experts_and_fused_attention(parts: tuple[Rewritten, RandomCheckpoint], tmp_path: Path) -> None:
    file, source = parts
    for block in range(5):
        (form, shape, gate), (_, _, up) = (file.tensors.pop(f"blk.{block}.ffn_{x}_exps.weight") for x in ("gate", "up"))
        fused = np.concatenate([gate.reshape(4, -1), up.reshape(4, -1)], axis=1).reshape(-1)
        file.tensors[f"blk.{block}.ffn_gate_up_exps.weight"] = (form, (4, 64, shape[2]), fused)
    for block in (3, 4):
        q, k, v = (file.tensors.pop(f"blk.{block}.attn_{x}.weight") for x in "qkv")
        rows = q[1][0] + k[1][0] + v[1][0]
        file.tensors[f"blk.{block}.attn_qkv.weight"] = (q[0], (rows, 64), np.concatenate([q[2], k[2], v[2]]))
    assert_close(GgufCheckpoint(file.write(tmp_path / "fused.gguf")), source, "F16")


def test_gate_and_up_of_different_formats(parts: tuple[Rewritten, RandomCheckpoint], tmp_path: Path) -> None:
    file, source = parts
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    up = source.arrays[name][:, 32:]
    file.tensors["blk.0.ffn_up_exps.weight"] = (FORMATS["Q8_0"], up.shape, FORMATS["Q8_0"].quantize(up))
    read = GgufCheckpoint(file.write(tmp_path / "mixed.gguf"))
    assert read.tensor(name).dtype == "F32"
    assert [part.dtype for part in read.parts(name)] == ["F16", "Q8_0"]
    assert_close(read, source, "Q8_0")
    with pytest.raises(CheckpointError, match="unknown tensor|no tensor"):
        read.tensor("model.language_model.layers.9.mlp.gate.weight")


def test_shards(parts: tuple[Rewritten, RandomCheckpoint], tmp_path: Path) -> None:
    file, source = parts
    everything, metadata = file.tensors, file.metadata | {"split.count": 2, "split.tensors.count": len(file)}
    names = list(everything)
    for i, chosen in enumerate((names[::2], names[1::2])):
        file.tensors = {name: everything[name] for name in chosen}
        # The embedding lies in the second shard here; its rows give the size of the vocabulary.
        file.metadata = metadata | {"split.no": i} if i == 0 else {"split.no": 1, "split.count": 2}
        file.write(tmp_path / f"m-{i + 1:05d}-of-00002.gguf")
    assert_close(GgufCheckpoint(tmp_path / "m-00001-of-00002.gguf"), source, "F16")
    with pytest.raises(CheckpointError, match="is one of 2 shards"):
        GgufCheckpoint(tmp_path / "m-00002-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        GgufCheckpoint(tmp_path / "m-00001-of-00002.gguf")


def test_layer_types_from_flags(parts: tuple[Rewritten, RandomCheckpoint], tmp_path: Path) -> None:
    file, source = parts
    file.metadata["qwen35moe.attention.recurrent_layers"] = [True, True, True, False, False]
    del file.metadata["qwen35moe.full_attention_interval"]
    assert_close(GgufCheckpoint(file.write(tmp_path / "flags.gguf")), source, "F16")


Change = Callable[[Rewritten], Any]
REFUSED: dict[str, tuple[Change, str]] = {
    "other architecture": (lambda f: f.metadata.update({"general.architecture": "qwen3moe"}), "'qwen3moe', allowed is"),
    "no architecture": (lambda f: f.metadata.pop("general.architecture"), "'None', allowed is 'qwen35moe'"),
    "absurd block count": (lambda f: f.metadata.update({"qwen35moe.block_count": 2**40}), "block_count is 1099511627776"),
    "negative": (lambda f: f.metadata.update({"qwen35moe.embedding_length": -64}), "embedding_length is -64"),
    "missing": (lambda f: f.metadata.pop("qwen35moe.expert_count"), "expert_count is missing"),
    "text": (lambda f: f.metadata.update({"qwen35moe.expert_count": "4"}), "expert_count is 4, allowed is an integer"),
    "not a number": (lambda f: f.metadata.update({"qwen35moe.rope.freq_base": float("nan")}), "freq_base is nan"),
    "heads": (lambda f: f.metadata.update({"qwen35moe.ssm.group_count": 4}), "do not fit together"),
    "sections": (lambda f: f.metadata.update({"qwen35moe.rope.dimension_sections": [3, 3, 3, 0]}), "do not add up"),
    "scaling": (lambda f: f.metadata.update({"qwen35moe.rope.scaling.type": "longrope"}), "'longrope', allowed"),
    "flags": (lambda f: f.metadata.update({"qwen35moe.attention.recurrent_layers": [True]}), "a flag for each of 4"),
    "experts": (lambda f: f.metadata.update({"qwen35moe.expert_used_count": 5}), "5 experts per token of 4"),
    "end token": (lambda f: f.metadata.update({"tokenizer.ggml.eos_token_id": 500}), "allowed is 0 to 95"),
    "lacks": (lambda f: f.tensors.pop("blk.2.ssm_dt.bias"), "lacks the tensor 'blk.2.ssm_dt.bias'"),
    "lacks the embedding": (lambda f: f.tensors.pop("token_embd.weight"), "lacks the tensor 'token_embd.weight'"),
    "unknown": (lambda f: f.tensors.update({"blk.9.x": f["output_norm.weight"]}), "unknown tensor 'blk.9.x'"),
    "own head": (
        lambda f: f.tensors.update({"blk.4.nextn.embed_tokens.weight": f["token_embd.weight"]}),
        "its own matrix, which is not supported",
    ),
    "shape": (lambda f: f.tensors.update({"blk.1.ssm_dt.bias": f["output_norm.weight"]}), r"\[64\], expected \[6\]"),
    "quantised vector": (
        lambda f: f.tensors.update({"output_norm.weight": (FORMATS["Q8_0"], (64,), np.zeros(68, np.uint8))}),
        "is Q8_0, allowed is F32, F16, BF16",
    ),
    "without MTP count": (lambda f: f.metadata.update({"qwen35moe.nextn_predict_layers": 0}), "lacks the tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_do_not_fit_are_refused(
    case: str, parts: tuple[Rewritten, RandomCheckpoint], tmp_path: Path
) -> None:
    file, _ = parts
    change, message = REFUSED[case]
    change(file)
    with pytest.raises(CheckpointError, match=message):
        GgufCheckpoint(file.write(tmp_path / "bad.gguf"))


def test_decay_must_be_negative(parts: tuple[Rewritten, RandomCheckpoint], tmp_path: Path) -> None:
    file, _ = parts
    file.tensors["blk.0.ssm_a"] = (FORMATS["F32"], (6,), np.ones(6, "<f4").view(np.uint8))
    read = GgufCheckpoint(file.write(tmp_path / "bad.gguf"))
    with pytest.raises(CheckpointError, match="blk.0.ssm_a must be negative"):
        read.tensor("model.language_model.layers.0.linear_attn.A_log")


def test_tokenizer(parts: tuple[Rewritten, RandomCheckpoint], tmp_path: Path) -> None:
    file, _ = parts
    read = GgufCheckpoint(file.write(tmp_path / "x.gguf"))
    assert read.tokenizer() == TOKENIZER
    # The stated end token first, then the family's other one.
    assert read.config.eos_token_ids == (4, 3)
    bad: dict[str, tuple[str, Any]] = {
        "one number for each": ("tokenizer.ggml.token_type", [1]),
        "two parts with one space": ("tokenizer.ggml.merges", ["a b c"]),
        "something else than texts": ("tokenizer.ggml.tokens", [1, 2, 3, 4, 5]),
        "is not a text": ("tokenizer.chat_template", 5),
        "tokenizer.ggml.pre is missing": ("tokenizer.ggml.pre", None),
        "bos_token_id is 7": ("tokenizer.ggml.bos_token_id", 7),
    }
    for message, (key, value) in bad.items():
        values = file.metadata | {key: value}
        if value is None:
            del values[key]
        with pytest.raises(CheckpointError, match=message):
            read_tokenizer(values, where="x")
    assert read_tokenizer({"general.architecture": "qwen35moe"}, where="x") is None


def test_wrong_use(tmp_path: Path) -> None:
    path, source = written(tmp_path, SMALL, "Q8_0")
    with pytest.raises(UsageError, match="v_head_order is 'hf', allowed is 'grouped' or 'tiled'"):
        GgufCheckpoint(path, v_head_order="hf")
    with pytest.raises(UsageError, match="cannot write GGUF format 'q4', allowed is F32"):
        uniform("q4")
    with pytest.raises(UsageError, match="q4 of .* has no place in a GGUF file"):
        write_gguf(path, source, choose=lambda name, shape: "q4")
    odd = replace(SMALL, layer_types=("linear_attention", "full_attention", "linear_attention", "linear_attention"))
    with pytest.raises(UsageError, match="at a fixed interval"):
        write_gguf(path, RandomCheckpoint(odd), choose=uniform("F32"))
    read = GgufCheckpoint(path)
    with pytest.raises(CheckpointError, match="stored as Q8_0 and has no plain values"):
        read.array("lm_head.weight")
    assert isinstance(read.tensor("model.language_model.norm.weight"), TensorView)
    assert read.storage("model.language_model.norm.weight") == ((64,), 4)
    assert GgufCheckpoint(path, dequantize=True).storage("lm_head.weight") == ((96, 64), 4)
    assert set(expected_tensors(read.config)) == set(read.names("text", "mtp"))


def test_importance_follows_the_columns(tmp_path: Path) -> None:
    source = RandomCheckpoint(WIDE, with_mtp=False)
    name = "model.language_model.layers.0.linear_attn.out_proj.weight"
    importance = np.ones(512, np.float32)
    importance[128:256] = 1000.0  # official head 1, which lies at another place in the file
    errors = {}
    for label, given in (("plain", None), ("weighted", {name: importance})):
        path = tmp_path / f"{label}.gguf"
        write_gguf(path, source, choose=uniform("Q4_K"), file_type="Q4_K", importance=given)
        difference = GgufCheckpoint(path).tensor(name).to_float32() - source.arrays[name]
        errors[label] = (difference**2).reshape(256, 4, 128).sum(axis=(0, 2))
    # Groups of 32 columns never mix heads, so only the shared six-bit scales can react.
    assert errors["weighted"][1] <= errors["plain"][1]
