"""Write a packed checkpoint (see `packed_checkpoint`): one tensor after another, in bounded memory, resumable after a kill."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sterna.checkpoint.manifest import expected_tensors
from sterna.checkpoint.packed_checkpoint import (
    ALIGNMENT,
    FLOATS,
    MANIFEST_FILE,
    PACKED_FILE,
    PACKED_FORMAT,
    PACKED_VERSION,
    PADDING_PREFIX,
)
from sterna.checkpoint.quantized_pieces import quantized_pieces
from sterna.checkpoint.resumable import Job, Piece, Record, WriteOptions, write_manifest, write_resumable
from sterna.checkpoint.tensor_view import TensorView
from sterna.config import ModelConfig
from sterna.errors import UsageError
from sterna.quant import FORMATS, Format
from sterna.quant.base import Float32
from sterna.quant.recipes import Recipe, matrix
from sterna.quant.tiles import LAYOUT_VERSION

# The values start at a page, so that the mapping can use large pages for them.
PAGE = 4096
TOKENIZER_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "LICENSE",
)  # fmt: skip


class PackSource(Protocol):
    """What is packed: `Checkpoint`, or anything like it."""

    config: ModelConfig
    groups: frozenset[str]

    def tensor(self, name: str) -> TensorView:
        """A tensor by official name in official layout."""

    def fingerprint(self) -> str:
        """Changes with the weights."""


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """A tensor of the file: its official shape, and its place among the values in bytes."""

    name: str
    format: Format
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def plan_packed(source: PackSource, recipe: Recipe) -> list[PackedEntry]:
    """The tensors of the file in order; `UsageError` where a format does not fit a shape."""
    entries, offset = [], 0
    for name, spec in expected_tensors(source.config).items():
        if spec.group not in source.groups:
            continue
        form = FORMATS[recipe.format_of(name)]
        try:
            nbytes = form.nbytes(matrix(spec.shape))
        except UsageError as error:
            raise UsageError(f"recipe {recipe.name}, tensor {name}: {error.message}", hint=error.hint) from error
        entries.append(PackedEntry(name, form, spec.shape, offset, nbytes))
        offset = -(-(offset + nbytes) // ALIGNMENT) * ALIGNMENT
    return entries


def write_packed(
    directory: Path | str,
    source: PackSource,
    recipe: Recipe,
    *,
    importance: Mapping[str, Float32] | None = None,
    options: WriteOptions | None = None,
) -> list[Record]:
    """Write ``packed.safetensors`` and its manifest into a directory that exists, and return what was written.

    ``importance`` float32 [K] (or [E, 1, K] for experts) per official name weighs the rounding error of its columns. A run
    with the same arguments goes on where a killed one stopped.
    """
    directory = Path(directory)
    options = options or WriteOptions()
    weights = importance or {}
    entries = plan_packed(source, recipe)
    head = _head(entries, recipe=recipe, source_digest=source.fingerprint(), weighting=importance_digest(weights))
    jobs = [_job(source, entry, base=len(head), importance=weights.get(entry.name)) for entry in entries]
    end = len(head) + entries[-1].offset + entries[-1].nbytes
    records = write_resumable(directory / PACKED_FILE, head, jobs, size=end, options=options)
    write_manifest(
        directory / MANIFEST_FILE,
        records,
        format=PACKED_FORMAT,
        version=PACKED_VERSION,
        tile_layout=LAYOUT_VERSION,
        recipe=recipe.name,
        source=source.fingerprint(),
        importance=importance_digest(weights),
        bytes=end,
        bits_per_weight=round(8 * sum(e.nbytes for e in entries) / sum(math.prod(e.shape) for e in entries), 4),
    )
    return records


def copy_model_files(source: Path, target: Path) -> list[str]:
    """Copy configuration, tokenizer and template; a description of the source's own quantisation is left out."""
    config: dict[str, Any] = json.loads((source / "config.json").read_bytes())
    for table in (config, config.get("text_config", {})):
        table.pop("quantization_config", None)
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copied = ["config.json"]
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())
            copied.append(name)
    return copied


def importance_digest(importance: Mapping[str, Float32]) -> str:
    """Hex digest of importance weights, empty for none."""
    if not importance:
        return ""
    digest = hashlib.sha256()
    for name in sorted(importance):
        digest.update(name.encode() + np.ascontiguousarray(importance[name], "<f4").tobytes())
    return digest.hexdigest()


def _head(entries: list[PackedEntry], *, recipe: Recipe, source_digest: str, weighting: str) -> bytes:
    """Length and JSON header of the safetensors file, with padding entries where a tensor does not end at `ALIGNMENT`."""
    metadata = {
        "format": PACKED_FORMAT,
        "version": str(PACKED_VERSION),
        "tile_layout": str(LAYOUT_VERSION),
        "recipe": recipe.name,
        "source": source_digest,
        "importance": weighting,
        "formats": json.dumps({entry.name: entry.format.name for entry in entries}, separators=(",", ":")),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for entry in entries:
        if entry.offset > end:
            padding = {"dtype": "U8", "shape": [entry.offset - end], "data_offsets": [end, entry.offset]}
            header[f"{PADDING_PREFIX}{end}"] = padding
        end = entry.offset + entry.nbytes
        plain = entry.format.name in FLOATS
        header[entry.name] = {
            "dtype": entry.format.name if plain else "U8",
            "shape": list(entry.shape) if plain else [entry.nbytes],
            "data_offsets": [entry.offset, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    return len(text).to_bytes(8, "little") + text


def _job(source: PackSource, entry: PackedEntry, *, base: int, importance: Float32 | None) -> Job:
    weighted = importance is not None and entry.format.name not in FLOATS
    return Job(
        name=entry.name,
        format=entry.format.name,
        shape=entry.shape,
        offset=base + entry.offset,
        nbytes=entry.nbytes,
        weighted=weighted,
        pieces=partial(_pieces, source, entry, importance if weighted else None),
    )


def _pieces(source: PackSource, entry: PackedEntry, importance: Float32 | None) -> Any:
    view = source.tensor(entry.name)
    shaped = TensorView(entry.name, view.dtype, view.array.reshape(matrix(entry.shape)))
    return quantized_pieces(shaped, entry.format, importance)


__all__ = ["PackSource", "PackedEntry", "Piece", "copy_model_files", "importance_digest", "plan_packed", "write_packed"]
