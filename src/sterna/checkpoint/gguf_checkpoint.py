"""A GGUF model seen as a checkpoint: official names, shapes and meaning, quantised tensors as they are (spec §2.5)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sterna.checkpoint import gguf_names
from sterna.checkpoint.gguf import GgufFile, GgufTensor
from sterna.checkpoint.gguf_metadata import GgufTokenizer, Metadata, read_config, read_tokenizer
from sterna.checkpoint.gguf_names import Rule, Source
from sterna.checkpoint.manifest import TensorSpec, expected_tensors
from sterna.checkpoint.tensor_view import DTYPES, TensorView, sampled
from sterna.config import ModelConfig, TextConfig
from sterna.errors import CheckpointError, UsageError
from sterna.quant.base import Bytes, Format
from sterna.quant.floats import F32
from sterna.quant.tensor import QuantizedTensor

FLOATS = ("F32", "F16", "BF16")
V_HEAD_ORDERS = ("grouped", "tiled")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
MAX_SHARDS = 99_999
_QKV_PROJECTIONS = ("q_proj.weight", "k_proj.weight", "v_proj.weight")

View = TensorView | QuantizedTensor


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows ``start`` … ``start + rows`` of every matrix of a stored tensor."""

    file: GgufFile
    tensor: GgufTensor
    start: int
    rows: int


class GgufCheckpoint:
    """Checked, memory-mapped weights of one GGUF model; ``path`` is the file, or the first shard of several.

    ``v_head_order`` says in which order `tensor` gives the DeltaNet value heads: "grouped" as in official checkpoints (value
    head j uses key head ``j // r``), "tiled" as stored (head n uses key head ``n % Hk``). Rows are moved without touching a
    quantised value; the columns of ``out_proj`` too, unless a quantisation block spans two heads: then "grouped" gives its
    exact values as F32. `grouping_is_exact` says beforehand whether that happens.

    With ``dequantize`` every quantised tensor comes as its exact values in F32, for backends without kernels for its format.
    """

    def __init__(self, path: Path | str, *, v_head_order: str = "grouped", dequantize: bool = False) -> None:
        if v_head_order not in V_HEAD_ORDERS:
            raise UsageError(f"v_head_order is {v_head_order!r}, allowed is 'grouped' or 'tiled'")
        self.path = Path(path)
        self.v_head_order = v_head_order
        self.dequantize = dequantize
        self.files = _open_shards(self.path)
        self.metadata = self.files[0].metadata
        stored = _stored_tensors(self.files)
        self.config = _config(self.files[0], stored)
        self._sources = gguf_names.sources(self.config.text)
        self._expected = expected_tensors(self.config)
        self._parts = {name: _locate(stored, name, source, self.config.text) for name, source in self._sources.items()}
        self._check(stored)

    @property
    def groups(self) -> frozenset[str]:
        """The groups of tensors that are present: ``text`` and perhaps ``mtp``."""
        return frozenset({"text", "mtp"} if self.has_mtp else {"text"})

    @property
    def has_mtp(self) -> bool:
        """Whether the multi-token prediction head is present."""
        return self.config.text.mtp_num_hidden_layers > 0

    @property
    def has_vision(self) -> bool:
        """Always false: GGUF keeps the vision tower in a file of its own."""
        return False

    @property
    def grouping_is_exact(self) -> bool:
        """Whether "grouped" order keeps every quantised tensor in its format."""
        dim = self.config.text.linear_value_head_dim
        columns = [self._parts[name] for name, source in self._sources.items() if source.rule is Rule.V_COLUMNS]
        return all(dim % part.tensor.format.block_size == 0 for parts in columns for part in parts)

    def names(self, *groups: str) -> list[str]:
        """Official names of the tensors of the given groups that are present, in the order of the forward pass."""
        return [name for name, spec in self._expected.items() if spec.group in groups]

    def storage(self, name: str) -> tuple[tuple[int, ...], int]:
        """(official shape, bytes per value) of a tensor that `array` gives, without assembling it."""
        source, forms = self._sources[name], {part.tensor.format for part in self._parts[name]}
        if source.rule in (Rule.NORM, Rule.A_LOG) or len(forms) > 1:
            return self._expected[name].shape, 4
        form = forms.pop()
        if form.name not in FLOATS and not self.dequantize:
            raise CheckpointError(f"tensor {name} is stored as {form.name}, which has no whole bytes per value")
        return self._expected[name].shape, form.block_bytes if form.name in FLOATS else 4

    def format_of(self, name: str) -> Format:
        """The format in which `tensor` gives a tensor, without assembling it."""
        rule, forms = self._sources[name].rule, {part.tensor.format for part in self._parts[name]}
        if rule in (Rule.NORM, Rule.A_LOG) or len(forms) > 1:
            return F32
        form = forms.pop()
        split = (
            rule is Rule.V_COLUMNS and self._moves_heads and self.config.text.linear_value_head_dim % form.block_size
        )
        return F32 if split or (self.dequantize and form.name not in FLOATS) else form

    def nbytes(self, name: str) -> int:
        """Exact bytes of a tensor as `tensor` gives it."""
        return self.format_of(name).nbytes(self._expected[name].shape)

    @property
    def _moves_heads(self) -> bool:
        order = gguf_names.tiled_to_grouped(self.config.text)
        return self.v_head_order == "grouped" and list(order) != list(range(len(order)))

    def tokenizer(self) -> GgufTokenizer | None:
        """The stored tokenizer and chat template, or ``None``."""
        return read_tokenizer(self.metadata, where=str(self.path))

    def tensor(self, name: str) -> View:
        """A tensor by official name: `TensorView` for F32, F16 and BF16, else `QuantizedTensor`.

        Gate and up experts of different formats are joined as exact F32; `parts` gives them as stored.
        """
        views = self._views(name)
        if len({form for form, _, _ in views}) > 1:
            views = [(F32, shape, _as_float32(form, shape, data)) for form, shape, data in views]
        form, shape, data = _join_rows(views)
        return self._finish(name, form, shape, data)

    def parts(self, name: str) -> list[View]:
        """What makes up an official tensor along its rows, each in its own format: [gate, up] for split expert tensors."""
        return [self._finish(name, *view) for view in self._views(name)]

    def array(self, name: str) -> np.ndarray:
        """Raw values of an unquantised tensor; `CheckpointError` for a quantised one."""
        view = self.tensor(name)
        if isinstance(view, QuantizedTensor):
            raise CheckpointError(f"tensor {name} is stored as {view.dtype} and has no plain values")
        return view.array

    def fingerprint(self) -> str:
        """Hex digest of names, shapes, formats and a sample of the bytes of every tensor, and of the head order."""
        digest = hashlib.sha256(self.v_head_order.encode())
        for file in self.files:
            for name, tensor in file.items():
                digest.update(f"{name} {tensor.format.name} {tensor.shape}".encode())
                digest.update(sampled(file.data(name)))
        return digest.hexdigest()

    def _views(self, name: str) -> list[tuple[Format, tuple[int, ...], Bytes]]:
        if name not in self._parts:
            raise CheckpointError(f"{self.path} holds no tensor {name!r}")
        rule = self._sources[name].rule
        return [self._ordered(rule, *_rows(part)) for part in self._parts[name]]

    def _ordered(
        self, rule: Rule, form: Format, shape: tuple[int, ...], data: Bytes
    ) -> tuple[Format, tuple[int, ...], Bytes]:
        """Value heads in the wanted order; bytes only, unless a block of ``out_proj`` spans two heads."""
        text = self.config.text
        order = np.array(gguf_names.tiled_to_grouped(text))
        if self.v_head_order == "tiled" or np.array_equal(order, np.arange(order.size)):
            return form, shape, data
        if rule is Rule.V_COLUMNS:
            if text.linear_value_head_dim % form.block_size:
                form, data = F32, _as_float32(form, shape, data)
            heads = data.reshape(shape[0], order.size, -1)
            return form, shape, np.ascontiguousarray(heads[:, order]).reshape(-1)
        index = _row_order(rule, order, text)
        if index is None:
            return form, shape, data
        return form, shape, np.ascontiguousarray(data.reshape(index.size, -1)[index]).reshape(-1)

    def _finish(self, name: str, form: Format, shape: tuple[int, ...], data: Bytes) -> View:
        rule = self._sources[name].rule
        if form.name not in FLOATS and not self.dequantize:
            return QuantizedTensor(name, form, shape, data)
        if form.name not in FLOATS:
            form, data = F32, _as_float32(form, shape, data)
        if rule in (Rule.CONV, Rule.ROW):
            shape = self._expected[name].shape
        view = TensorView(name, form.name, data.view(DTYPES[form.name]).reshape(shape))
        if rule is Rule.NORM:
            return TensorView(name, "F32", view.to_float32() - np.float32(1))
        if rule is Rule.A_LOG:
            values = view.to_float32()
            if not (values < 0).all():
                raise CheckpointError(f"{self.path}: {self._sources[name].names[0]} must be negative throughout")
            return TensorView(name, "F32", np.log(-values))
        return view

    def _check(self, stored: dict[str, tuple[GgufFile, GgufTensor]]) -> None:
        used = {part.tensor.name for parts in self._parts.values() for part in parts}
        for name in stored:
            if name.endswith(gguf_names.MTP_OWN_EMBEDDINGS):
                raise CheckpointError(
                    f"{self.path}: {name!r} gives the MTP head its own matrix, which is not supported"
                )
            if name not in used:
                raise CheckpointError(f"{self.path} holds the unknown tensor {name!r}")
        for name, spec in self._expected.items():
            _check_shape(name, self._sources[name].rule, self._parts[name], spec)


def _open_shards(path: Path) -> list[GgufFile]:
    first = GgufFile(path)
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_SHARDS:
        raise CheckpointError(f"{path} has split.count {str(count)[:50]!r}, allowed is 0 to {MAX_SHARDS}")
    if count in (0, 1):
        return [first]
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match[3]) != count or int(match[2]) != 1:
        raise CheckpointError(
            f"{path} is one of {count} shards",
            hint="give the first shard under its original name, …-00001-of-000NN.gguf",
        )
    rest = [path.with_name(f"{match[1]}-{i:05d}-of-{count:05d}.gguf") for i in range(2, count + 1)]
    return [first, *map(GgufFile, rest)]


def _stored_tensors(files: list[GgufFile]) -> dict[str, tuple[GgufFile, GgufTensor]]:
    stored: dict[str, tuple[GgufFile, GgufTensor]] = {}
    for file in files:
        for name, tensor in file.items():
            if name in stored:
                raise CheckpointError(f"tensor {name!r} is both in {stored[name][0].path} and in {file.path}")
            stored[name] = (file, tensor)
    return stored


def _config(file: GgufFile, stored: dict[str, tuple[GgufFile, GgufTensor]]) -> ModelConfig:
    Metadata(file.metadata, str(file.path))
    if "token_embd.weight" not in stored:
        raise CheckpointError(f"{file.path} lacks the tensor 'token_embd.weight'")
    embedding = stored["token_embd.weight"][1]
    if len(embedding.shape) != 2:
        raise CheckpointError(
            f"tensor 'token_embd.weight' has shape {list(embedding.shape)}, expected are 2 dimensions"
        )
    return read_config(
        file.metadata,
        vocab_size=embedding.shape[0],
        tied="output.weight" not in stored,
        where=str(file.path),
        max_blocks=len(stored),
    )


def _locate(
    stored: dict[str, tuple[GgufFile, GgufTensor]], official: str, source: Source, text: TextConfig
) -> list[_Part]:
    """The stored tensors behind an official one, in the split form or in a fused one."""
    block = source.names[0][: source.names[0].rfind(".", 0, source.names[0].rfind(".")) + 1]
    if official.endswith(gguf_names.GATE_UP) and block + gguf_names.GATE_UP_FUSED in stored:
        return [_whole(*stored[block + gguf_names.GATE_UP_FUSED])]
    fused = stored.get(block + gguf_names.ATTENTION_FUSED)
    if fused is not None and source.names[0] not in stored and official.endswith(_QKV_PROJECTIONS):
        query = 2 * text.num_attention_heads * text.head_dim
        key = text.num_key_value_heads * text.head_dim
        start, rows = {"q": (0, query), "k": (query, key), "v": (query + key, key)}[official[-len("q_proj.weight")]]
        part = _Part(*fused, start, rows)
        if _whole(*fused).rows != query + 2 * key:
            raise CheckpointError(
                f"tensor {fused[1].name!r} has {_whole(*fused).rows} rows, expected {query + 2 * key}"
            )
        return [part]
    for name in source.names:
        if name not in stored:
            raise CheckpointError(f"the checkpoint lacks the tensor {name!r} for {official!r}")
    return [_whole(*stored[name]) for name in source.names]


def _whole(file: GgufFile, tensor: GgufTensor) -> _Part:
    return _Part(file, tensor, 0, tensor.shape[-2] if len(tensor.shape) > 1 else 1)


def _check_shape(official: str, rule: Rule, parts: list[_Part], spec: TensorSpec) -> None:
    """Every part must have the official shape, its share of the rows where there are several."""
    for part in parts:
        tensor = part.tensor
        found = tensor.shape if part.rows == _whole(part.file, tensor).rows else (part.rows, *tensor.shape[1:])
        wanted = {spec.shape}
        if len(parts) > 1:
            wanted = {(spec.shape[0], spec.shape[1] // len(parts), spec.shape[2])}
        elif rule is Rule.CONV:
            wanted = {(spec.shape[0], spec.shape[2])}
        elif rule is Rule.ROW:
            wanted = {spec.shape[1:], spec.shape}
        if found not in wanted:
            expected = " or ".join(str(list(each)) for each in sorted(wanted))
            raise CheckpointError(
                f"tensor {tensor.name!r} has shape {list(found)}, expected {expected} for {official!r}"
            )
        if tensor.format.name not in FLOATS and (len(spec.shape) == 1 or rule in (Rule.CONV, Rule.ROW)):
            raise CheckpointError(f"tensor {tensor.name!r} is {tensor.format.name}, allowed is {', '.join(FLOATS)}")


def _rows(part: _Part) -> tuple[Format, tuple[int, ...], Bytes]:
    """(format, shape, bytes) of a part; a slice of rows of a two-dimensional tensor is a slice of its bytes."""
    tensor, data = part.tensor, part.file.data(part.tensor.name)
    if part.rows == _whole(part.file, tensor).rows:
        return tensor.format, tensor.shape, data
    row_bytes = tensor.format.bytes_per_row(tensor.shape[-1])
    data = data[part.start * row_bytes : (part.start + part.rows) * row_bytes]
    return tensor.format, (part.rows, tensor.shape[-1]), data


def _join_rows(views: list[tuple[Format, tuple[int, ...], Bytes]]) -> tuple[Format, tuple[int, ...], Bytes]:
    """Concatenate [E, I, D] tensors of one format along their rows, expert by expert."""
    if len(views) == 1:
        return views[0]
    form, shape, _ = views[0]
    matrices = [data.reshape(each[0], -1) for _, each, data in views]
    rows = sum(each[1] for _, each, _ in views)
    return form, (shape[0], rows, shape[2]), np.concatenate(matrices, axis=1).reshape(-1)


def _as_float32(form: Format, shape: tuple[int, ...], data: Bytes) -> Bytes:
    return np.ascontiguousarray(form.dequantize(data, shape)).reshape(-1).view(np.uint8)


def _row_order(rule: Rule, order: npt.NDArray[np.int64], text: TextConfig) -> npt.NDArray[np.int64] | None:
    """For each official row, the stored one; ``None`` where rows are not by value head."""
    if rule in (Rule.V_SCALARS, Rule.A_LOG):
        return order
    dim = text.linear_value_head_dim
    heads = (order[:, None] * dim + np.arange(dim)).reshape(-1)
    if rule is Rule.V_HEADS:
        return heads
    if rule in (Rule.QKV, Rule.CONV):
        before = 2 * text.linear_num_key_heads * text.linear_key_head_dim
        return np.concatenate([np.arange(before), before + heads])
    return None
