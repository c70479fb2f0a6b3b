"""From tensors as stored to the official layout: prefixes, expert layouts, MLX conventions (spec §2.1–2.2, §2.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from sterna.checkpoint.names import canonical_name, expert_part
from sterna.checkpoint.packed_formats import PackedLinear
from sterna.checkpoint.tensor_view import DTYPES, TensorView
from sterna.errors import CheckpointError

# Rows of a fused tensor in order: the gate half comes first.
EXPERT_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
Shape = tuple[int, ...]
Source = Mapping[str, "TensorView | PackedLinear"]
_Source = tuple[Source, str]
_Split = dict[tuple[int | None, str], _Source]


class StoredTensors:
    """Where each official tensor lies; experts are fused, one tensor each, or one per projection (``switch_mlp``)."""

    def __init__(self, plain: dict[str, _Source], split: dict[str, _Split]) -> None:
        self._plain = plain
        self._split = split
        # MLX stores conv1d as [C, kernel, 1], and with it norm weights to which the 1 has been added.
        self._mlx = any(
            name.endswith(".conv1d.weight") and _view(source).shape[-1:] == (1,) for name, source in plain.items()
        )

    def names(self) -> Iterator[str]:
        """Official names, experts fused."""
        yield from self._plain
        for prefix in self._split:
            yield from (f"{prefix}.{fused}" for fused in EXPERT_PROJECTIONS)

    def __contains__(self, name: str) -> bool:
        return name in self._plain or self._split_of(name) is not None

    def source_name(self, name: str) -> str:
        """The name in the file, of one part where there are several."""
        split = self._split_of(name)
        return self._plain[name][1] if split is None else next(iter(split.values()))[1]

    def parts(self, name: str, shape: Shape) -> Iterator[tuple[str, str, Shape, Shape]]:
        """(name in the file, dtype, shape, expected shape) of every part of a tensor of the given official shape."""
        split = self._split_of(name)
        if split is None:
            view = _view(self._plain[name])
            if self._mlx and name.endswith(".conv1d.weight"):
                shape = (shape[0], shape[2], shape[1])
            yield self._plain[name][1], view.dtype, view.shape, shape
            return
        projections = EXPERT_PROJECTIONS[name.rpartition(".")[2]]
        per_part = (shape[1] // len(projections), shape[2])
        for (expert, projection), source in split.items():
            if expert is not None and expert >= shape[0]:
                raise CheckpointError(f"tensor {source[1]!r} belongs to expert {expert}, the model has {shape[0]}")
            if projection in projections:
                view = _view(source)
                yield source[1], view.dtype, view.shape, per_part if expert is not None else (shape[0], *per_part)
        for key in _keys(split, shape[0], projections):
            if key not in split:
                raise CheckpointError(f"the experts of {name!r} lack {key[1]} of expert {key[0]}, of shape {per_part}")

    def tensor(self, name: str) -> TensorView:
        """The tensor in official layout: a view of the file where it is stored so, else assembled."""
        if name not in self:
            raise CheckpointError(f"the checkpoint holds no tensor {name!r}")
        split = self._split_of(name)
        if split is not None:
            return _fuse(name, split)
        view = _view(self._plain[name])
        if self._mlx and name.endswith(".conv1d.weight"):
            return TensorView(name, view.dtype, np.ascontiguousarray(view.array.transpose(0, 2, 1)))
        if self._mlx and _is_zero_centred_norm(name):
            return TensorView(name, "F32", view.to_float32() - np.float32(1))
        return TensorView(name, view.dtype, view.array)

    def itemsize(self, name: str) -> int:
        """Bytes per stored value."""
        split = self._split_of(name)
        return DTYPES[_view(self._plain[name] if split is None else next(iter(split.values()))).dtype].itemsize

    def _split_of(self, name: str) -> _Split | None:
        prefix, _, fused = name.rpartition(".")
        return self._split.get(prefix) if fused in EXPERT_PROJECTIONS else None


def organise(files: Iterable[Source]) -> StoredTensors:
    """Sort the tensors of all files by official name; raises `CheckpointError` where two of them mean the same one."""
    plain: dict[str, _Source] = {}
    split: dict[str, _Split] = {}
    for file in files:
        for stored in file:
            name = canonical_name(stored)
            part = expert_part(name)
            if part is None:
                _insert(plain, name, (file, stored))
            else:
                prefix, expert, projection = part
                _insert(split.setdefault(prefix, {}), (expert, projection), (file, stored))
    for prefix, parts in split.items():
        fused = next((f"{prefix}.{each}" for each in EXPERT_PROJECTIONS if f"{prefix}.{each}" in plain), None)
        if fused or len({expert is None for expert, _ in parts}) > 1:
            raise CheckpointError(f"the checkpoint holds the experts of {prefix!r} in two layouts")
    return StoredTensors(plain, split)


def _is_zero_centred_norm(name: str) -> bool:
    module = name.removesuffix(".weight").rpartition(".")[2]
    return "norm" in module and not name.startswith("model.visual.") and not name.endswith(".linear_attn.norm.weight")


def _insert(table: dict, key: object, source: _Source) -> None:
    if key in table:
        raise CheckpointError(f"tensors {table[key][1]!r} and {source[1]!r} are both {key!r}")
    table[key] = source


def _view(source: _Source) -> TensorView | PackedLinear:
    file, name = source
    return file[name]


def _keys(split: _Split, experts: int, projections: Sequence[str]) -> list[tuple[int | None, str]]:
    fused = any(expert is None for expert, _ in split)
    return [(e, projection) for projection in projections for e in ([None] if fused else range(experts))]


def _fuse(name: str, split: _Split) -> TensorView:
    projections = EXPERT_PROJECTIONS[name.rpartition(".")[2]]
    experts = len({expert for expert, _ in split})
    views = [_view(split[key]) for key in _keys(split, experts, projections)]
    dtypes = {view.dtype for view in views}
    if len(dtypes) > 1:
        raise CheckpointError(f"the parts of {name!r} have the dtypes {', '.join(sorted(dtypes))}, allowed is one")
    count = len(views) // len(projections)
    groups = [views[i : i + count] for i in range(0, len(views), count)]
    columns = [group[0].array if group[0].array.ndim == 3 else np.stack([v.array for v in group]) for group in groups]
    array = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
    return TensorView(name, dtypes.pop(), array)
