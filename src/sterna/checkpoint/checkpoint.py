"""A checkpoint directory: its files, checked against the configuration, read by official tensor name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sterna.checkpoint.layouts import StoredTensors, organise
from sterna.checkpoint.manifest import GROUPS, TensorSpec, expected_tensors
from sterna.checkpoint.packed_formats import unpacked
from sterna.checkpoint.safetensors import SafetensorsFile
from sterna.checkpoint.tensor_view import TensorView, sampled
from sterna.config import ModelConfig, read_model_config
from sterna.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOAT_DTYPES = ("F32", "F16", "BF16")


class Checkpoint:
    """Checked, memory-mapped weights of one model.

    ``groups`` names what the checkpoint holds of ``text``, ``mtp`` and ``vision``; the last two are complete or absent.
    Raises `CheckpointError` for a tensor that is missing, unknown, of the wrong shape or of an unsupported type.
    """

    def __init__(self, directory: Path | str, config: ModelConfig | None = None) -> None:
        self.directory = Path(directory)
        self.config = read_model_config(self.directory) if config is None else config
        self.files = open_files(self.directory)
        self._stored: StoredTensors = organise(unpacked(self.files, self.directory))
        self._shapes = expected_tensors(self.config)
        self.groups = _check(self._stored, self._shapes, self.directory)

    @property
    def has_mtp(self) -> bool:
        """Whether the multi-token prediction head is present."""
        return "mtp" in self.groups

    @property
    def has_vision(self) -> bool:
        """Whether the vision tower is present."""
        return "vision" in self.groups

    def tensor(self, name: str) -> TensorView:
        """A tensor by official name in official layout, experts fused; memory-mapped where the file has that layout."""
        return self._stored.tensor(name)

    def names(self, *groups: str) -> list[str]:
        """Official names of the tensors of the given groups that are present, in the order of the forward pass."""
        return [name for name, spec in self._shapes.items() if spec.group in groups and spec.group in self.groups]

    def storage(self, name: str) -> tuple[tuple[int, ...], int]:
        """(official shape, bytes per value) of a tensor, without assembling it."""
        return self._shapes[name].shape, self._stored.itemsize(name)

    def array(self, name: str) -> np.ndarray:
        """The raw values of `tensor`: float32, float16, or uint16 that holds bfloat16 bits."""
        return self.tensor(name).array

    def fingerprint(self) -> str:
        """Hex digest of names, shapes, types and a sample of the values of every tensor (start, middle and end)."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.header)
            for view in file.values():
                digest.update(sampled(view.array))
        return digest.hexdigest()


def open_files(directory: Path) -> list[SafetensorsFile]:
    """The safetensors files of a directory: the shards of an index, or one single file."""
    index, single = directory / INDEX, directory / SINGLE
    if index.exists() and single.exists():
        raise CheckpointError(
            f"{directory} holds both {SINGLE} and {INDEX}", hint="remove the one that does not belong to the checkpoint"
        )
    if index.exists():
        return _open_shards(directory, _read_index(index))
    if not single.exists():
        raise CheckpointError(
            f"{directory} holds neither {SINGLE} nor {INDEX}", hint="give a directory that holds a checkpoint"
        )
    return [SafetensorsFile(single)]


def _read_index(path: Path) -> dict[str, str]:
    try:
        index: Any = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path} ({error})") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise CheckpointError(f"{path} has no weight_map from tensor names to file names")
    for name, shard in weight_map.items():
        # A plain file name, so that an index cannot reach outside its directory.
        if not shard.endswith(".safetensors") or shard != Path(shard).name or "\\" in shard or "\0" in shard:
            raise CheckpointError(
                f"{path} puts tensor {name[:200]!r} into {shard[:200]!r}, allowed is a .safetensors file beside it"
            )
    return weight_map


def _open_shards(directory: Path, weight_map: Mapping[str, str]) -> list[SafetensorsFile]:
    files = [SafetensorsFile(directory / shard) for shard in sorted(set(weight_map.values()))]
    found = {name: file.path.name for file in files for name in file}
    for name, shard in weight_map.items():
        if found.get(name) != shard:
            raise CheckpointError(f"{INDEX} puts tensor {name!r} into {shard}, it is in {found.get(name, 'no file')}")
    for file in files:
        for name in file:
            if weight_map.get(name) != file.path.name:
                raise CheckpointError(
                    f"{file.path.name} holds tensor {name!r}, {INDEX} puts it into {weight_map.get(name, 'no file')}"
                )
    return files


def _check(stored: StoredTensors, expected: Mapping[str, TensorSpec], directory: Path) -> frozenset[str]:
    for name in stored.names():
        if name not in expected:
            raise CheckpointError(
                f"{directory} holds the unknown tensor {stored.source_name(name)!r}",
                hint="the configuration describes no such tensor; check that config.json belongs to these weights",
            )
    groups = frozenset(group for group in GROUPS if any(expected[name].group == group for name in stored.names()))
    for name, spec in expected.items():
        if spec.group not in groups and spec.group != "text":
            continue
        if name not in stored:
            raise CheckpointError(f"{directory} lacks the tensor {name!r} of shape {list(spec.shape)}")
        for source, dtype, shape, wanted in stored.parts(name, spec.shape):
            if shape != wanted:
                raise CheckpointError(f"tensor {source!r} has shape {list(shape)}, expected is {list(wanted)}")
            if dtype not in FLOAT_DTYPES:
                raise CheckpointError(f"tensor {source!r} has dtype {dtype}, allowed is {', '.join(FLOAT_DTYPES)}")
    return groups
