"""How large each input of each matrix becomes on a text: weights for the rounding errors of `sterna quantize`.

The numpy model runs with matrices that stay in the file, are turned into float32 when they are used, and add up the squares of
what they are multiplied with. So a pass needs little more memory than one expert, and each matrix is read once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sterna.backends.base import Batch, DraftBatch
from sterna.backends.common import ModelBackend
from sterna.backends.numpy.opset import NumpyOps
from sterna.checkpoint import Checkpoint
from sterna.config import EngineConfig
from sterna.ops.bfloat16 import to_float32
from sterna.ops.sparse_moe import Experts
from sterna.quant.base import Float32

BLOCK_SIZE = 64
# An expert that saw few tokens is described by the layer's mean as if it had been seen with this many.
PRIOR_TOKENS = 16
HEAD_ROWS = 64
# Inputs that stay at zero on the text may not on others.
LEAST_SHARE = 1e-4


def input_importance(
    checkpoint: Checkpoint,
    token_ids: Sequence[int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Float32]:
    """Mean square of every input column, relative to the mean over columns, by official name of the matrix.

    float32 [K], and [E, 1, K] for routed experts. The token ids are one sequence of two or more tokens; matrices that it never
    uses are missing from the result.
    """
    ops = _RecordingOps()
    backend = ModelBackend(ops)
    backend.load(_Named(checkpoint), checkpoint.config)  # type: ignore[arg-type]
    backend.allocate(
        backend.plan_memory(
            EngineConfig(max_model_len=len(token_ids), max_num_seqs=1, block_size=BLOCK_SIZE, num_state_slots=1)
        )
    )
    ids = np.asarray(token_ids, np.int32)
    running = backend.start(_batch(ids))
    layers = checkpoint.config.text.num_hidden_layers
    for layer in range(layers):
        running.advance(1)
        if progress is not None:
            progress(layer + 1, layers)
    if checkpoint.has_mtp:
        rows = np.arange(len(ids) - 1, dtype=np.int32)
        backend.draft(DraftBatch(batch=_batch(ids[1:]), hidden=running.logits().hidden, rows=rows))
    return {name: _finish(sums) for name, sums in ops.sums.items() if sums.tokens.any()}


def _batch(ids: np.ndarray) -> Batch:
    rows = np.arange(len(ids), dtype=np.int32)
    return Batch(
        token_ids=ids,
        positions=np.tile(rows, (3, 1)),
        cu_seqlens=np.array([0, len(ids)], np.int32),
        context_lens=np.zeros(1, np.int32),
        block_tables=np.arange(-(-len(ids) // BLOCK_SIZE), dtype=np.int32)[None],
        slot_mapping=rows,
        state_slots=np.zeros(1, np.int32),
        # Enough for the head's inputs; the logits of all rows would take gigabytes.
        logits_indices=np.unique(np.linspace(0, len(ids) - 1, HEAD_ROWS).astype(np.int32)),
    )


@dataclass(slots=True)
class _Sums:
    """Sums of squares [E, K] of the inputs of E matrices, and how many tokens each of them saw."""

    squares: np.ndarray
    tokens: np.ndarray
    experts: bool


def _finish(sums: _Sums) -> Float32:
    mean = sums.squares.sum(axis=0) / sums.tokens.sum()
    importance = (sums.squares + PRIOR_TOKENS * mean) / (sums.tokens[:, None] + PRIOR_TOKENS)
    level = importance.mean(axis=1, keepdims=True)
    relative = np.divide(importance, level, out=np.ones_like(importance), where=level > 0)
    result = np.maximum(relative, LEAST_SHARE).astype(np.float32)
    return result[:, None] if sums.experts else result[0]


class _NamedView:
    """Stands for a tensor: its ``array`` is only a name until it is used."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self.name = checkpoint, name
        self.array = self

    def values(self) -> np.ndarray:
        return self._checkpoint.tensor(self.name).array

    def to_float32(self) -> Float32:
        return self._checkpoint.tensor(self.name).to_float32()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._checkpoint.storage(self.name)[0]


class _Named:
    """A checkpoint whose matrices are `_NamedView`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.has_mtp = checkpoint.has_mtp
        self.names, self.storage, self.fingerprint = checkpoint.names, checkpoint.storage, checkpoint.fingerprint

    def tensor(self, name: str) -> Any:
        return _NamedView(self._checkpoint, name)

    def array(self, name: str) -> Any:
        return _NamedView(self._checkpoint, name)


class _Matrix:
    """A stored matrix in the place of an array [N, K]: ``x @ matrix.T`` records x and multiplies."""

    # numpy leaves the product to `__rmatmul__` below.
    __array_ufunc__ = None

    def __init__(self, values: np.ndarray, sums: _Sums, expert: int) -> None:
        self._values, self._sums, self._expert = values, sums, expert

    @property
    def T(self) -> _Matrix:
        """Itself: only products with the transposed matrix are ever taken."""
        return self

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return to_float32(self._values[rows])

    def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
        self._sums.squares[self._expert] += np.einsum("tk,tk->k", x, x, dtype=np.float64)
        self._sums.tokens[self._expert] += len(x)
        return x @ to_float32(self._values).T


class _Stack:
    """The matrices of all experts of a layer, fetched when they are used."""

    def __init__(self, stored: _NamedView, sums: _Sums, recent: OrderedDict[str, np.ndarray]) -> None:
        self._stored, self._sums, self._recent = stored, sums, recent

    def __getitem__(self, expert: int) -> _Matrix:
        name = self._stored.name
        # Where the file has one tensor per expert, joining them copies a gigabyte: not once per expert, nor for all layers.
        if name not in self._recent:
            self._recent[name] = self._stored.values()
            if len(self._recent) > len(Experts._fields):
                self._recent.popitem(last=False)
        return _Matrix(self._recent[name][expert], self._sums, int(expert))


class _RecordingOps(NumpyOps):
    """`NumpyOps` whose matrices record."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[str, _Sums] = {}
        self._recent: OrderedDict[str, np.ndarray] = OrderedDict()

    def pack_linear(self, weight: Any) -> Any:
        """A `_Matrix` for a `_NamedView`."""
        return _Matrix(weight.values(), self._sums(weight.name, 1, weight.shape[-1], experts=False), 0)

    def pack_experts(self, gate_up_proj: Any, down_proj: Any) -> Experts:
        """Stacks of `_Matrix`."""
        stacks = []
        for each in (gate_up_proj, down_proj):
            count, _, columns = each.shape
            stacks.append(_Stack(each, self._sums(each.name, count, columns, experts=True), self._recent))
        return Experts(*stacks)  # type: ignore[arg-type]

    def _sums(self, name: str, count: int, columns: int, *, experts: bool) -> _Sums:
        return self.sums.setdefault(name, _Sums(np.zeros((count, columns)), np.zeros(count), experts))
