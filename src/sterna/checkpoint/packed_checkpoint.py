"""Our packed checkpoints: a directory with one file that is mapped and used as it lies (docs/quantization.md).

    config.json, tokenizer and template     copied from the source
    packed.safetensors                      all tensors; every one starts at a multiple of 64 bytes
    manifest.json                           format, error and SHA-256 of each tensor

``packed.safetensors`` is a safetensors file. Unquantised tensors stand in it under their official names with dtype and shape,
quantised ones as U8 [bytes] in the layout of `sterna.quant.tiles`. Its metadata: ``format``, ``version``, ``tile_layout``,
``recipe``, ``source`` (fingerprint) and ``formats``, a JSON object from tensor name to format.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from sterna.checkpoint.manifest import GROUPS, TensorSpec, expected_tensors
from sterna.checkpoint.safetensors import SafetensorsFile
from sterna.checkpoint.tensor_view import TensorView, sampled
from sterna.config import ModelConfig, read_model_config
from sterna.errors import CheckpointError
from sterna.quant import FORMATS, Format
from sterna.quant.recipes import matrix
from sterna.quant.tensor import QuantizedTensor
from sterna.quant.tiles import LAYOUT_VERSION

PACKED_FILE = "packed.safetensors"
MANIFEST_FILE = "manifest.json"
PACKED_FORMAT = "sterna-packed"
PACKED_VERSION = 1
ALIGNMENT = 64
PADDING_PREFIX = "padding."
FLOATS = ("F32", "F16", "BF16")


class PackedCheckpoint:
    """Checked, memory-mapped weights of one packed model; nothing is read before it is used, nothing is copied.

    ``groups`` names what it holds of ``text``, ``mtp`` and ``vision``. With ``dequantize`` quantised tensors come as their exact
    values in F32, for backends without kernels for them. Raises `CheckpointError` for anything that does not fit together.
    """

    def __init__(self, directory: Path | str, config: ModelConfig | None = None, *, dequantize: bool = False) -> None:
        self.directory = Path(directory)
        self.config = read_model_config(self.directory) if config is None else config
        self.dequantize = dequantize
        self.file = SafetensorsFile(self.directory / PACKED_FILE)
        self.recipe = _check_metadata(self.file)
        self._formats = _formats(self.file)
        self._shapes = expected_tensors(self.config)
        self.groups = self._check()

    @property
    def has_mtp(self) -> bool:
        """Whether the multi-token prediction head is present."""
        return "mtp" in self.groups

    @property
    def has_vision(self) -> bool:
        """Whether the vision tower is present."""
        return "vision" in self.groups

    def names(self, *groups: str) -> list[str]:
        """Official names of the tensors of the given groups that are present, in the order of the forward pass."""
        return [name for name, spec in self._shapes.items() if spec.group in groups and spec.group in self.groups]

    def format_of(self, name: str) -> Format:
        """The format in which `tensor` gives a tensor."""
        form = self._stored_format(name)
        return FORMATS["F32"] if self.dequantize and form.name not in FLOATS else form

    def nbytes(self, name: str) -> int:
        """Exact bytes of a tensor as `tensor` gives it."""
        return self.format_of(name).nbytes(matrix(self._shapes[name].shape))

    def storage(self, name: str) -> tuple[tuple[int, ...], int]:
        """(official shape, bytes per value) of a tensor that is not quantised; `CheckpointError` for another."""
        form = self.format_of(name)
        if form.name not in FLOATS:
            raise CheckpointError(f"tensor {name} is stored as {form.name}, which has no whole bytes per value")
        return self._shapes[name].shape, form.block_bytes

    def tensor(self, name: str) -> TensorView | QuantizedTensor:
        """A tensor by official name, mapped: `TensorView` where it is not quantised, else `QuantizedTensor`."""
        form, view = self._stored_format(name), self.file[name]
        if form.name in FLOATS:
            return view
        quantized = QuantizedTensor(name, form, matrix(self._shapes[name].shape), view.array)
        return TensorView(name, "F32", quantized.to_float32()) if self.dequantize else quantized

    def array(self, name: str) -> np.ndarray:
        """Raw values of an unquantised tensor; `CheckpointError` for a quantised one."""
        view = self.tensor(name)
        if isinstance(view, QuantizedTensor):
            raise CheckpointError(f"tensor {name} is stored as {view.dtype} and has no plain values")
        return view.array

    def fingerprint(self) -> str:
        """Hex digest of the header and of a sample of the bytes of every tensor (start, middle and end)."""
        digest = hashlib.sha256(self.file.header)
        for view in self.file.values():
            digest.update(sampled(view.array))
        return digest.hexdigest()

    def damaged(self) -> list[str]:
        """Names of tensors whose bytes do not have the SHA-256 of the manifest; reads the whole file."""
        path = self.directory / MANIFEST_FILE
        try:
            entries: dict[str, Any] = json.loads(path.read_bytes())["tensors"]
            hashes = {name: str(entries[name]["sha256"]) for name in self._formats}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"cannot read {path} ({error!r})") from error
        raw = {name: self.file[name].array.reshape(-1).view(np.uint8) for name in hashes}
        return [name for name, wanted in hashes.items() if hashlib.sha256(raw[name].data).hexdigest() != wanted]

    def _stored_format(self, name: str) -> Format:
        if name not in self._formats:
            raise CheckpointError(f"{self.directory} holds no tensor {name!r}")
        return self._formats[name]

    def _check(self) -> frozenset[str]:
        for name in self._formats:
            if name not in self._shapes:
                raise CheckpointError(f"{self.file.path} holds the unknown tensor {name!r}")
        groups = frozenset(
            group for group in GROUPS if any(self._shapes[name].group == group for name in self._formats)
        )
        for name, spec in self._shapes.items():
            if spec.group in groups or spec.group == "text":
                self._check_tensor(name, spec)
        return groups

    def _check_tensor(self, name: str, spec: TensorSpec) -> None:
        if name not in self._formats:
            raise CheckpointError(f"{self.file.path} lacks the tensor {name!r} of shape {list(spec.shape)}")
        form, view = self._formats[name], self.file[name]
        plain = form.name in FLOATS
        shape = spec.shape if plain else (form.nbytes(matrix(spec.shape)),)
        dtype = form.name if plain else "U8"
        if view.dtype != dtype or view.shape != shape:
            raise CheckpointError(
                f"{self.file.path}: {name!r} is {view.dtype} {list(view.shape)}, {form.name} needs {dtype} {list(shape)}"
            )


def is_packed(directory: Path | str) -> bool:
    """Whether a directory holds a packed checkpoint."""
    return (Path(directory) / PACKED_FILE).is_file()


def _check_metadata(file: SafetensorsFile) -> str:
    """The recipe's name, if this program can read the file."""
    wanted = {"format": PACKED_FORMAT, "version": str(PACKED_VERSION), "tile_layout": str(LAYOUT_VERSION)}
    for key, value in wanted.items():
        if file.metadata.get(key) != value:
            raise CheckpointError(
                f"{file.path} has {key} {file.metadata.get(key, 'missing')[:50]!r}, allowed is {value!r}",
                hint="quantise the model again with this version: sterna quantize",
            )
    return file.metadata.get("recipe", "")


def _formats(file: SafetensorsFile) -> dict[str, Format]:
    """The format of every tensor; the padding between tensors is left out."""
    try:
        named = json.loads(file.metadata["formats"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.path} has no readable 'formats' in its metadata ({error!r})") from error
    stored = [name for name in file if not name.startswith(PADDING_PREFIX)]
    if not isinstance(named, dict) or set(named) != set(stored):
        raise CheckpointError(f"{file.path}: 'formats' does not name exactly the tensors of the file")
    for name, form in named.items():
        if not isinstance(form, str) or form not in FORMATS:
            raise CheckpointError(
                f"{file.path}: {name!r} has format {str(form)[:50]!r}, allowed is {', '.join(FORMATS)}"
            )
    return {name: FORMATS[named[name]] for name in stored}
