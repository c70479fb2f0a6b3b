"""Quantised safetensors re-packs: finds the parts of each linear layer ``X`` and presents them as ``X.weight`` (spec §2.3–2.4).

What is quantised is read from the tensors present, never from a list of names: the packs differ. The configuration's
``quantization_config`` settles only what the tensors cannot say (how zero points are stored, the size of FP8 blocks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sterna.checkpoint.tensor_view import TensorView
from sterna.config.fields import load_json
from sterna.config.reader import QUANTIZATION_METHODS
from sterna.errors import CheckpointError, ConfigError
from sterna.quant import awq, compressed_tensors, fp8, gptq, nvfp4
from sterna.quant.base import Float32
from sterna.quant.grouped import GroupedInt4

# Scales of activations and of the KV cache: a weight-only reader does not need them.
_ACTIVATION_PARTS = ("input_scale", "input_global_scale", "k_scale", "v_scale")
_INT4_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_WEIGHT_PARTS = (
    "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale",
    "weight_scale_inv", "weight_scale_2",
)  # fmt: skip

Parts = dict[str, TensorView]


@dataclass(frozen=True, slots=True)
class Quantization:
    """What we need of ``quantization_config``: the method, how GPTQ zero points are stored, and rows and columns of FP8 blocks."""

    method: str
    checkpoint_format: str = "gptq"
    block: tuple[int, int] = (fp8.BLOCK, fp8.BLOCK)


def read_quantization(config: Mapping[str, Any]) -> Quantization:
    """Read a ``quantization_config``; raises `ConfigError` for a method or width that is not implemented."""
    method = config.get("quant_method")
    if method not in QUANTIZATION_METHODS:
        allowed = ", ".join(QUANTIZATION_METHODS)
        raise ConfigError(f"quantization_config.quant_method is {method!r}, allowed is {allowed}")
    if method in ("gptq", "awq", "auto-round") and config.get("bits", 4) != 4:
        raise ConfigError(f"quantization_config.bits is {config['bits']!r}, allowed is 4 for method {method}")
    block = config.get("weight_block_size") or (fp8.BLOCK, fp8.BLOCK)
    if len(block) != 2 or not all(isinstance(each, int) and each > 0 for each in block):
        raise ConfigError(f"quantization_config.weight_block_size is {block!r}, allowed are two positive integers")
    checkpoint_format = config.get("checkpoint_format", "gptq")
    if checkpoint_format not in ("gptq", "gptq_v2"):
        raise ConfigError(f"quantization_config.checkpoint_format is {checkpoint_format!r}, allowed is gptq or gptq_v2")
    return Quantization(method, checkpoint_format, (block[0], block[1]))


def unpacked(
    files: Sequence[Mapping[str, TensorView]], directory: Path
) -> Sequence[Mapping[str, TensorView | PackedLinear]]:
    """The files with quantised layers as ``X.weight``, where the directory's ``config.json`` has a ``quantization_config``."""
    path = directory / "config.json"
    if not path.exists():
        return files
    found = load_json(path.read_bytes(), where=str(path)).get("quantization_config")
    if found is None:
        return files
    if not isinstance(found, dict):
        raise ConfigError(f"quantization_config of {path} is not an object")
    return [UnpackedTensors(files, read_quantization(found), path=directory)]


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """The weight [N, K] of one quantised linear layer, decoded when ``array`` is asked for; stands in for a `TensorView`.

    ``kind`` is one of gptq, awq, int4, nvfp4, fp8_block, fp8, int8.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    decode: Callable[[], Float32 | GroupedInt4]
    dtype: str = "F32"

    @property
    def array(self) -> Float32:
        """float32 [N, K], exact values of the pack."""
        decoded = self.decode()
        return decoded.dequantize() if isinstance(decoded, GroupedInt4) else decoded

    def to_float32(self) -> Float32:
        """The same as ``array``."""
        return self.array

    def grouped(self) -> GroupedInt4:
        """Codes, scales and zero points of a 4-bit integer pack; `CheckpointError` for other kinds."""
        decoded = self.decode()
        if not isinstance(decoded, GroupedInt4):
            raise CheckpointError(f"tensor {self.name} is packed as {self.kind}, not as 4-bit integers")
        return decoded


class UnpackedTensors(Mapping[str, "TensorView | PackedLinear"]):
    """The tensors of several files by name, every quantised layer as one ``X.weight``; ``path`` names them in messages.

    Raises `CheckpointError` for parts that do not make a whole.
    """

    def __init__(self, files: Iterable[Mapping[str, TensorView]], quantization: Quantization, *, path: Path) -> None:
        self.path = path
        layers: dict[str, Parts] = {}
        plain: dict[str, TensorView] = {}
        for file in files:
            for name in file:
                layer, _, part = name.rpartition(".")
                if part in _INT4_PARTS + _WEIGHT_PARTS:
                    layers.setdefault(layer, {})[part] = file[name]
                elif part not in _ACTIVATION_PARTS:
                    plain[name] = file[name]
        self._views: dict[str, TensorView | PackedLinear] = dict(plain)
        for layer, parts in layers.items():
            name = f"{layer}.weight"
            if name in plain:
                parts["weight"] = plain[name]
            self._views[name] = identify(name, parts, quantization)
        for name, view in plain.items():
            if view.dtype in ("F8_E4M3", "U8", "I8", "I32") and not isinstance(self._views[name], PackedLinear):
                raise CheckpointError(f"tensor {name!r} has dtype {view.dtype} and no scale")

    def __getitem__(self, name: str) -> TensorView | PackedLinear:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def identify(name: str, parts: Parts, quantization: Quantization) -> PackedLinear:
    """The layer that these parts make; ``name`` is ``X.weight``. Raises `CheckpointError` if they make none."""
    dtypes = {part: view.dtype for part, view in parts.items()}
    keys = set(parts)
    if {"qweight", "qzeros", "scales"} <= keys <= set(_INT4_PARTS):
        return _int4(name, parts, quantization)
    if {"weight_packed", "weight_scale", "weight_shape"} <= keys and dtypes["weight_packed"] == "I32":
        _only(name, keys, {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"})
        return _compressed_int4(name, parts)
    if keys == {"weight_packed", "weight_scale", "weight_global_scale"} and dtypes["weight_packed"] == "U8":
        return _nvfp4(name, parts["weight_packed"], parts["weight_scale"], divide=parts["weight_global_scale"])
    if keys == {"weight", "weight_scale", "weight_scale_2"} and dtypes["weight"] == "U8":
        return _nvfp4(name, parts["weight"], parts["weight_scale"], multiply=parts["weight_scale_2"])
    if keys == {"weight", "weight_scale_inv"} and dtypes["weight"] == "F8_E4M3":
        weight, scale = _matrix(name, parts["weight"]), parts["weight_scale_inv"]
        return PackedLinear(
            name,
            "fp8_block",
            weight.shape,
            lambda: fp8.dequantize_block(weight, scale.to_float32(), block=quantization.block),
        )
    if keys == {"weight", "weight_scale"} and dtypes["weight"] in ("F8_E4M3", "I8"):
        return _per_channel(name, parts["weight"], parts["weight_scale"])
    listed = ", ".join(f"{part} ({dtype})" for part, dtype in sorted(dtypes.items()))
    raise CheckpointError(f"tensor {name!r} comes in parts that make no known format: {listed}")


def _only(name: str, found: set[str], allowed: set[str]) -> None:
    if found - allowed:
        raise CheckpointError(f"tensor {name!r} has the unexpected parts {', '.join(sorted(found - allowed))}")


def _matrix(name: str, view: TensorView) -> np.ndarray:
    if view.array.ndim != 2:
        raise CheckpointError(f"a packed part of {name!r} has shape {list(view.shape)}, expected are 2 dimensions")
    return view.array


def _int4(name: str, parts: Parts, quantization: Quantization) -> PackedLinear:
    """GPTQ packs along the inputs, AWQ along the outputs: the shapes tell which."""
    qweight, scales = _matrix(name, parts["qweight"]), _matrix(name, parts["scales"])
    n = scales.shape[1]
    qzeros = _matrix(name, parts["qzeros"])
    g_idx = parts["g_idx"].array if "g_idx" in parts else None
    if qweight.shape[1] == n:
        return PackedLinear(
            name,
            "gptq",
            (n, 8 * qweight.shape[0]),
            lambda: gptq.assemble(
                qweight,
                qzeros,
                parts["scales"].to_float32(),
                g_idx,
                checkpoint_format=quantization.checkpoint_format,
            ),
        )
    if qweight.shape[1] * 8 == n and g_idx is None:
        return PackedLinear(
            name,
            "awq",
            (n, qweight.shape[0]),
            lambda: awq.assemble(qweight, qzeros, parts["scales"].to_float32()),
        )
    raise CheckpointError(
        f"tensor {name!r}: qweight {list(qweight.shape)} and scales {list(scales.shape)} fit neither GPTQ nor AWQ in 4 bits"
    )


def _compressed_int4(name: str, parts: Parts) -> PackedLinear:
    packed, shape = _matrix(name, parts["weight_packed"]), parts["weight_shape"].array
    zero = _matrix(name, parts["weight_zero_point"]) if "weight_zero_point" in parts else None
    g_idx = parts["weight_g_idx"].array if "weight_g_idx" in parts else None
    scale = parts["weight_scale"]
    if shape.shape != (2,):
        raise CheckpointError(f"weight_shape of {name!r} has shape {list(shape.shape)}, expected [2]")
    return PackedLinear(
        name,
        "int4",
        (int(shape[0]), int(shape[1])),
        lambda: compressed_tensors.assemble(packed, scale.to_float32(), shape, zero, g_idx),
    )


def _nvfp4(
    name: str,
    codes: TensorView,
    scale: TensorView,
    *,
    multiply: TensorView | None = None,
    divide: TensorView | None = None,
) -> PackedLinear:
    packed, scales = _matrix(name, codes), _matrix(name, scale)
    if scale.dtype != "F8_E4M3":
        raise CheckpointError(f"weight_scale of {name!r} has dtype {scale.dtype}, expected F8_E4M3")
    return PackedLinear(
        name,
        "nvfp4",
        (packed.shape[0], 2 * packed.shape[1]),
        lambda: nvfp4.dequantize(
            packed,
            scales,
            multiply=None if multiply is None else multiply.to_float32(),
            divide=None if divide is None else divide.to_float32(),
        ),
    )


def _per_channel(name: str, weight: TensorView, scale: TensorView) -> PackedLinear:
    codes = _matrix(name, weight)
    if weight.dtype == "F8_E4M3":
        return PackedLinear(name, "fp8", codes.shape, lambda: fp8.dequantize_channel(codes, scale.to_float32()))
    return PackedLinear(name, "int8", codes.shape, lambda: _int8(codes, scale.to_float32()))


def _int8(codes: np.ndarray, scale: Float32) -> Float32:
    if scale.size not in (1, codes.shape[0]):
        raise CheckpointError(f"weight_scale has {scale.size} values, expected 1 or {codes.shape[0]}")
    return codes.astype(np.float32) * scale.reshape(-1, 1)
