"""Random weights of any configuration in the formats of a recipe, made in seconds: codes are drawn, nothing is searched."""

from __future__ import annotations

import hashlib

import numpy as np

from sterna.checkpoint.quantizing import QuantizingCheckpoint
from sterna.checkpoint.random import RandomCheckpoint
from sterna.checkpoint.tensor_view import TensorView
from sterna.config import ModelConfig
from sterna.errors import UsageError
from sterna.quant import FORMATS
from sterna.quant.base import Bytes, Format
from sterna.quant.recipes import matrix, recipe
from sterna.quant.tensor import QuantizedTensor
from sterna.quant.tiles import SCALE_VALUES, TILE_ROWS, join_tile

# Bits of a code, the zero point in 16ths or quarters of a step that centres it (none: codes are signed), and the
# standard deviation of evenly drawn codes.
_CODES = {"q4": (4, 120, 4.6), "q4_g64": (4, 120, 4.6), "q6": (6, 126, 18.5), "q8": (8, None, 73.3)}
_SCALE_CODES = (232, 248)


class RandomQuantizedCheckpoint(QuantizingCheckpoint):
    """As `QuantizingCheckpoint` of a `RandomCheckpoint`, for speed and memory. All experts of a layer hold the same values."""

    def __init__(self, config: ModelConfig, recipe_name: str, *, seed: int = 0) -> None:
        self._random = RandomCheckpoint(config, seed=seed)
        super().__init__(self._random, recipe_name)
        self._seed = seed
        self._formats = recipe(recipe_name)

    def tensor(self, name: str) -> TensorView | QuantizedTensor:
        """A tensor by official name; every tensor is a function of (seed, name)."""
        form, shape = FORMATS[self._formats.format_of(name)], self._random.storage(name)[0]
        if form.name in ("F32", "F16", "BF16"):
            return self._random.tensor(name)
        if form.name not in _CODES:
            raise UsageError(f"there are no random weights in format {form.name}, allowed are {', '.join(_CODES)}")
        *leading, rows, k = matrix(shape)
        digest = hashlib.sha256(name.encode()).digest()
        rng = np.random.default_rng([self._seed, int.from_bytes(digest[:8], "little")])
        data = _random_tiles(form, rows, k, rng)
        copies = int(np.prod(leading, dtype=np.int64))
        return QuantizedTensor(name, form, matrix(shape), np.tile(data, copies) if copies > 1 else data)


def _random_tiles(form: Format, rows: int, k: int, rng: np.random.Generator) -> Bytes:
    """The bytes of one matrix whose values have the variance 1 / k."""
    bits, zero, deviation = _CODES[form.name]
    tiles, groups = -(-rows // TILE_ROWS), k // form.block_size
    scales = rng.integers(*_SCALE_CODES, (tiles, TILE_ROWS, groups)).astype(np.uint8)
    typical = float(SCALE_VALUES[slice(*_SCALE_CODES)].mean())
    unit = np.full((tiles, TILE_ROWS), 1 / (deviation * typical * k**0.5), np.float32)
    zeros = None if zero is None else np.full(scales.shape, zero, np.uint8)
    codes = rng.integers(0, 256, (tiles, TILE_ROWS * k * bits // 8), np.uint8)
    if zero is None:
        # -128 is not a code.
        codes = np.where(codes == 128, 0, codes).astype(np.uint8)
    return join_tile(unit, scales, zeros, codes).reshape(-1)
