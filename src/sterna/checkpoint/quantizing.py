"""A checkpoint whose matrices are quantised while they are read, by a recipe of `sterna.quant.recipes`."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

from sterna.checkpoint.tensor_view import TensorView
from sterna.quant import BF16, F32, FORMATS, Format
from sterna.quant.recipes import matrix, recipe
from sterna.quant.tensor import QuantizedTensor


class FloatCheckpoint(Protocol):
    """What is wrapped: `Checkpoint` or `RandomCheckpoint`."""

    @property
    def has_mtp(self) -> bool:
        """Whether the multi-token prediction head is present."""

    def names(self, *groups: str) -> list[str]:
        """Official names of groups of tensors."""

    def storage(self, name: str) -> tuple[tuple[int, ...], int]:
        """(shape, bytes per value) of a tensor."""

    def tensor(self, name: str) -> TensorView:
        """A tensor by official name."""

    def fingerprint(self) -> str:
        """Changes with the weights."""


class QuantizingCheckpoint:
    """Gives every tensor for which the recipe names a quantised format in that format, the others as they are stored.

    With ``dequantize`` the quantised values come as F32, for backends without kernels for them and for comparisons.
    Raises `UsageError` for an unknown recipe, and when a matrix is read whose input dimension the format does not allow.
    """

    def __init__(self, checkpoint: FloatCheckpoint, recipe_name: str, *, dequantize: bool = False) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe(recipe_name)
        self._dequantize = dequantize

    @property
    def has_mtp(self) -> bool:
        """Whether the multi-token prediction head is present."""
        return self._checkpoint.has_mtp

    def names(self, *groups: str) -> list[str]:
        """Official names of the tensors of the given groups that are present."""
        return self._checkpoint.names(*groups)

    def format_of(self, name: str) -> Format:
        """The format in which `tensor` gives a tensor."""
        if self._is_quantized(name):
            return F32 if self._dequantize else FORMATS[self._recipe.format_of(name)]
        return F32 if self._checkpoint.storage(name)[1] == 4 else BF16

    def shape(self, name: str) -> tuple[int, ...]:
        """The official shape of a tensor, without assembling it."""
        return self._checkpoint.storage(name)[0]

    def nbytes(self, name: str) -> int:
        """Exact bytes of a tensor as `tensor` gives it."""
        return self.format_of(name).nbytes(matrix(self.shape(name)))

    def tensor(self, name: str) -> TensorView | QuantizedTensor:
        """A tensor by official name."""
        view = self._checkpoint.tensor(name)
        if not self._is_quantized(name):
            return view
        form, shape = FORMATS[self._recipe.format_of(name)], matrix(view.shape)
        parts = view.array.reshape(-1, *shape[-2:])
        # One matrix at a time: all experts of a layer as float32 would take gigabytes.
        data = [form.quantize(TensorView(name, view.dtype, part).to_float32()) for part in parts]
        quantized = QuantizedTensor(name, form, shape, np.concatenate(data))
        return TensorView(name, "F32", quantized.to_float32()) if self._dequantize else quantized

    def fingerprint(self) -> str:
        """Changes with the checkpoint, the recipe and its formats."""
        return hashlib.sha256(repr((self._checkpoint.fingerprint(), self._recipe)).encode()).hexdigest()

    def _is_quantized(self, name: str) -> bool:
        return self._recipe.format_of(name) not in ("F32", "F16", "BF16")
