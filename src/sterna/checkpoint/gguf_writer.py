"""Write a checkpoint as GGUF (architecture ``qwen35moe``), with the transforms of spec §2.5, in bounded memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sterna.checkpoint import gguf_names
from sterna.checkpoint.gguf import ARRAY, BOOL, DEFAULT_ALIGNMENT, MAGIC, STRING, VERSIONS
from sterna.checkpoint.gguf_metadata import GgufTokenizer
from sterna.checkpoint.gguf_names import ARCHITECTURE, Rule
from sterna.checkpoint.manifest import expected_tensors
from sterna.checkpoint.quantized_pieces import quantized_pieces
from sterna.checkpoint.resumable import Job, Piece, Record, WriteOptions, write_resumable
from sterna.checkpoint.tensor_view import TensorView
from sterna.config import ModelConfig, TextConfig
from sterna.errors import UsageError
from sterna.quant import FORMATS, Format
from sterna.quant.base import Float32

UINT32, INT32, FLOAT32 = 4, 5, 6
_LETTERS = {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?"}

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "BF16": 32}
"""Format of most tensors to ``general.file_type``."""

ChooseFormat = Callable[[str, tuple[int, ...]], str]


class TensorSource(Protocol):
    """What is written: a configuration, and tensors by official name in official layout."""

    config: ModelConfig
    groups: Any

    def tensor(self, name: str) -> Any:
        """Has ``to_float32()``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write: its GGUF name, official name, rule, format, shape outermost first, and rows of the official tensor."""

    name: str
    official: str
    rule: Rule
    format: Format
    shape: tuple[int, ...]
    rows: slice


def uniform(format_name: str) -> ChooseFormat:
    """Every matrix that has room for whole blocks in one format, the rest as converters do: F32, or F16 for odd matrices.

    Vectors, the convolution and the router stay F32; so do alpha and beta, which decide what the state keeps.
    """
    form = FORMATS.get(format_name)
    if form is None or format_name not in FILE_TYPES:
        raise UsageError(f"cannot write GGUF format {format_name!r}, allowed is {', '.join(FILE_TYPES)}")
    small = (
        ".mlp.gate.weight",
        ".in_proj_a.weight",
        ".in_proj_b.weight",
        ".conv1d.weight",
        ".shared_expert_gate.weight",
    )

    def choose(official: str, shape: tuple[int, ...]) -> str:
        if len(shape) == 1 or official.endswith(small):
            return "F32"
        return format_name if shape[-1] % form.block_size == 0 else "F16"

    return choose


def write_gguf(
    path: Path | str,
    checkpoint: TensorSource,
    *,
    choose: ChooseFormat,
    tokenizer: GgufTokenizer | None = None,
    file_type: str = "F16",
    name: str = "model",
    importance: Mapping[str, Float32] | None = None,
    options: WriteOptions | None = None,
) -> list[Record]:
    """Write the text model, and the MTP head if it is there, and return what was written.

    ``choose`` gives the format of each official name and stored shape; ``importance`` float32 [K] (or [E, 1, K] for experts)
    per official name weighs the rounding error of its columns. The file appears under its name only once it is complete.
    """
    entries = plan(checkpoint, choose)
    metadata = model_metadata(written_config(checkpoint), name=name, file_type=file_type)
    if tokenizer is not None:
        metadata |= tokenizer_metadata(tokenizer)
    weights = {entry.name: _stored_importance(checkpoint.config, entry, importance or {}) for entry in entries}

    def pieces(entry: Entry) -> Iterator[Callable[[], Piece]]:
        return quantized_pieces(stored_view(checkpoint, entry), entry.format, weights[entry.name])

    weighted = {name for name, weight in weights.items() if weight is not None}
    return write_entries(path, metadata, entries, pieces, weighted=weighted, options=options)


def write_entries(
    path: Path | str,
    metadata: Mapping[str, tuple[int, Any]],
    entries: Sequence[Entry],
    pieces: Callable[[Entry], Iterable[Callable[[], Piece]]],
    *,
    weighted: Set[str] = frozenset(),
    options: WriteOptions | None = None,
) -> list[Record]:
    """Write a file whose tensors' bytes come from ``pieces``, see `Job`; ``weighted`` names those that importance shaped."""
    head = _head(metadata, entries)
    jobs, offset = [], len(head)
    for entry in entries:
        size = entry.format.nbytes(entry.shape)
        source = partial(pieces, entry)
        jobs.append(Job(entry.name, entry.format.name, entry.shape, offset, size, entry.name in weighted, source))
        offset = _aligned(offset + size)
    return write_resumable(Path(path), head, jobs, size=offset, options=options or WriteOptions())


def written_config(checkpoint: TensorSource) -> ModelConfig:
    """The configuration of what the file will hold: no vision tower, and an MTP head only if its tensors are there."""
    text = checkpoint.config.text
    if "mtp" not in checkpoint.groups:
        text = replace(text, mtp_num_hidden_layers=0)
    return replace(checkpoint.config, text=text, vision=None)


def plan(checkpoint: TensorSource, choose: ChooseFormat) -> list[Entry]:
    """The tensors of the file in order, with formats."""
    entries: list[Entry] = []
    config = written_config(checkpoint)
    specs = expected_tensors(config)
    for official, source in gguf_names.sources(config.text).items():
        spec = specs[official]
        shape = _stored_shape(spec.shape, source.rule, len(source.names))
        rows = shape[-2] if len(shape) > 1 else 1
        for i, stored in enumerate(source.names):
            form = FORMATS[choose(official, shape)]
            if form.ggml_type is None:
                raise UsageError(f"format {form.name} of {official} has no place in a GGUF file")
            form.bytes_per_row(shape[-1])
            whole = len(source.names) == 1
            entries.append(
                Entry(
                    stored,
                    official,
                    source.rule,
                    form,
                    shape,
                    slice(None) if whole else slice(i * rows, (i + 1) * rows),
                )
            )
    return entries


def model_metadata(config: ModelConfig, *, name: str, file_type: str) -> dict[str, tuple[int, Any]]:
    """Metadata of the model, key to (type number, value)."""
    text = config.text
    rope = text.rope_parameters
    if file_type not in FILE_TYPES:
        raise UsageError(f"cannot write GGUF file type {file_type!r}, allowed is {', '.join(FILE_TYPES)}")
    numbers = {
        "block_count": text.num_hidden_layers + text.mtp_num_hidden_layers,
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.key_length": text.head_dim,
        "attention.value_length": text.head_dim,
        "rope.dimension_count": text.rotary_dim,
        "expert_count": text.num_experts,
        "expert_used_count": text.num_experts_per_tok,
        "expert_feed_forward_length": text.moe_intermediate_size,
        "expert_shared_feed_forward_length": text.shared_expert_intermediate_size,
        "ssm.conv_kernel": text.linear_conv_kernel_dim,
        "ssm.state_size": text.linear_key_head_dim,
        "ssm.group_count": text.linear_num_key_heads,
        "ssm.time_step_rank": text.linear_num_value_heads,
        "ssm.inner_size": text.linear_num_value_heads * text.linear_value_head_dim,
        "full_attention_interval": _interval(text.layer_types),
    }
    if text.mtp_num_hidden_layers:
        numbers["nextn_predict_layers"] = text.mtp_num_hidden_layers
    result: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, ARCHITECTURE),
        "general.type": (STRING, "model"),
        "general.name": (STRING, name),
        "general.file_type": (UINT32, FILE_TYPES[file_type]),
        "general.quantization_version": (UINT32, 2),
    }
    result |= {f"{ARCHITECTURE}.{key}": (UINT32, value) for key, value in numbers.items()}
    result[f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon"] = (FLOAT32, text.rms_norm_eps)
    result[f"{ARCHITECTURE}.rope.freq_base"] = (FLOAT32, rope.rope_theta)
    result[f"{ARCHITECTURE}.rope.dimension_sections"] = (ARRAY, (INT32, [*rope.mrope_section, 0]))
    if rope.rope_type == "yarn":
        result[f"{ARCHITECTURE}.rope.scaling.type"] = (STRING, "yarn")
        result[f"{ARCHITECTURE}.rope.scaling.factor"] = (FLOAT32, rope.factor)
        result[f"{ARCHITECTURE}.rope.scaling.original_context_length"] = (
            UINT32,
            rope.original_max_position_embeddings,
        )
    return result


def tokenizer_metadata(tokenizer: GgufTokenizer) -> dict[str, tuple[int, Any]]:
    """Metadata of the tokenizer, key to (type number, value)."""
    prefix = "tokenizer.ggml"
    result: dict[str, tuple[int, Any]] = {
        f"{prefix}.model": (STRING, tokenizer.model),
        f"{prefix}.pre": (STRING, tokenizer.pre),
        f"{prefix}.tokens": (ARRAY, (STRING, tokenizer.tokens)),
        f"{prefix}.token_type": (ARRAY, (INT32, tokenizer.token_types)),
        f"{prefix}.merges": (ARRAY, (STRING, tokenizer.merges)),
        f"{prefix}.add_bos_token": (BOOL, False),
    }
    ids = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id, "padding": tokenizer.padding_token_id}
    result |= {f"{prefix}.{key}_token_id": (UINT32, value) for key, value in ids.items() if value is not None}
    if tokenizer.chat_template is not None:
        result["tokenizer.chat_template"] = (STRING, tokenizer.chat_template)
    return result


def _interval(layer_types: Sequence[str]) -> int:
    """The interval of full-attention layers; `UsageError` for a pattern that GGUF readers do not derive from one number."""
    interval = layer_types.index("full_attention") + 1 if "full_attention" in layer_types else len(layer_types) + 1
    wanted = tuple("linear_attention" if (i + 1) % interval else "full_attention" for i in range(len(layer_types)))
    if tuple(layer_types) != wanted:
        raise UsageError("layer_types are not one full-attention layer at a fixed interval, which GGUF cannot say")
    return interval


def _stored_shape(shape: tuple[int, ...], rule: Rule, parts: int) -> tuple[int, ...]:
    if rule is Rule.CONV:
        return (shape[0], shape[2])
    if rule is Rule.ROW:
        return shape[1:]
    return shape if parts == 1 else (shape[0], shape[1] // parts, shape[2])


def stored_view(checkpoint: TensorSource, entry: Entry) -> TensorView:
    """The official tensor with the transforms of its rule in the stored shape; in its own type where rows only move."""
    text = checkpoint.config.text
    view: TensorView = checkpoint.tensor(entry.official)
    order = np.array(gguf_names.grouped_to_tiled(text))
    if entry.rule is Rule.NORM:
        return TensorView(entry.name, "F32", view.to_float32() + np.float32(1))
    if entry.rule is Rule.A_LOG:
        return TensorView(entry.name, "F32", -np.exp(view.to_float32()[order]))
    if entry.rows != slice(None):
        return TensorView(entry.name, view.dtype, view.array[:, entry.rows])
    moved = _moved(view.array, entry, order, text)
    return TensorView(entry.name, view.dtype, moved.reshape(entry.shape))


def _moved(values: np.ndarray, entry: Entry, order: np.ndarray, text: TextConfig) -> np.ndarray:
    """Value heads in tiled order; nothing is rounded."""
    dim, rule = text.linear_value_head_dim, entry.rule
    if rule is Rule.V_SCALARS:
        return values[order]
    if rule is Rule.V_COLUMNS:
        return _columns(values, order, dim)
    if rule is Rule.V_HEADS:
        return values.reshape(order.size, dim, -1)[order]
    if rule in (Rule.QKV, Rule.CONV):
        values = values.reshape(entry.shape)
        before = 2 * text.linear_num_key_heads * text.linear_key_head_dim
        heads = values[before:].reshape(order.size, dim, -1)[order].reshape(order.size * dim, -1)
        return np.concatenate([values[:before], heads])
    return values


def _columns(values: np.ndarray, order: np.ndarray, dim: int) -> np.ndarray:
    return values.reshape(values.shape[0], order.size, dim)[:, order].reshape(values.shape)


def _stored_importance(config: ModelConfig, entry: Entry, importance: Mapping[str, Float32]) -> Float32 | None:
    found = importance.get(entry.official)
    if found is None or entry.format.name in ("F32", "F16", "BF16"):
        return None
    if entry.rule is not Rule.V_COLUMNS:
        return found
    order = np.array(gguf_names.grouped_to_tiled(config.text))
    return _columns(found[None], order, config.text.linear_value_head_dim)[0]


def _head(metadata: Mapping[str, tuple[int, Any]], entries: Sequence[Entry]) -> bytes:
    """Everything before the values, padded to `DEFAULT_ALIGNMENT`."""
    parts = [MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(entries), len(metadata))]
    parts += [_string(key) + struct.pack("<I", kind) + _value(kind, value) for key, (kind, value) in metadata.items()]
    offset = 0
    for entry in entries:
        sizes = tuple(reversed(entry.shape))
        assert entry.format.ggml_type is not None
        parts.append(_string(entry.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        parts.append(struct.pack("<IQ", entry.format.ggml_type, offset))
        offset = _aligned(offset + entry.format.nbytes(entry.shape))
    head = b"".join(parts)
    return head.ljust(_aligned(len(head)), b"\0")


def _aligned(position: int) -> int:
    return -(-position // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        inner, items = value
        if inner == STRING:
            return struct.pack("<IQ", inner, len(items)) + b"".join(map(_string, items))
        return struct.pack(f"<IQ{len(items)}{_LETTERS[inner]}", inner, len(items), *items)
    return struct.pack("<" + _LETTERS[kind], value)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


__all__ = [
    "Entry",
    "TensorSource",
    "model_metadata",
    "plan",
    "stored_view",
    "tokenizer_metadata",
    "uniform",
    "write_entries",
    "write_gguf",
    "written_config",
]
