"""Exact bytes of a model's weights in the precisions that can be had: published files and what `quantize` writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType

from sterna.checkpoint.manifest import expected_tensors
from sterna.config import ModelConfig
from sterna.errors import UsageError
from sterna.quant.recipes import RECIPES

Shape = tuple[int, ...]
# The official FP8 files: e4m3 in blocks of 128 x 128 with a bfloat16 scale each, everything else bfloat16 (spec §2.3).
FP8_BLOCK = 128
_FP8 = (
    "*.mlp.experts.*", "*.shared_expert.*_proj.weight", "*.self_attn.?_proj.weight", "*.mlp.*_proj.weight",
    "*.in_proj_qkv.weight", "*.in_proj_z.weight", "*.linear_attn.out_proj.weight",
)  # fmt: skip
# Held whole by every rank under tensor parallelism; keys and values are a case of their own.
_REPLICATED = ("*norm*.weight", "*.mlp.gate.weight", "*.shared_expert_gate.weight", "model.visual.*.bias")
_KV_PROJECTIONS = ("*.self_attn.k_proj.weight", "*.self_attn.v_proj.weight")


def _bf16(_: str, shape: Shape) -> int:
    return 2 * math.prod(shape)


def _fp8(name: str, shape: Shape) -> int:
    if name.startswith("model.visual.") or not any(fnmatchcase(name, pattern) for pattern in _FP8):
        return _bf16(name, shape)
    leading, (rows, columns) = math.prod(shape[:-2]), shape[-2:]
    if "gate_up_proj" in name:  # stored as two matrices of half the rows
        leading, rows = 2 * leading, rows // 2
    return leading * (rows * columns + 2 * -(-rows // FP8_BLOCK) * -(-columns // FP8_BLOCK))


def _recipe(name: str) -> Callable[[str, Shape], int]:
    rules = RECIPES[name]
    return lambda tensor, shape: rules.nbytes({tensor: shape})


PRECISIONS: dict[str, tuple[str, Callable[[str, Shape], int]]] = {
    "bf16": ("the official files", _bf16),
    "fp8": ("the official FP8 files", _fp8),
    **{name: (rules.purpose, _recipe(name)) for name, rules in RECIPES.items() if name != "bf16"},
}
"""Name -> (what it is, bytes of a tensor by official name and shape)."""


@lru_cache(maxsize=64)
def tensor_bytes(config: ModelConfig, precision: str, *, groups: tuple[str, ...]) -> Mapping[str, int]:
    """Bytes of every tensor of the named groups; `UsageError` for an unknown precision or shapes it cannot hold."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}, allowed is {', '.join(PRECISIONS)}")
    nbytes = PRECISIONS[precision][1]
    specs = expected_tensors(config)
    return MappingProxyType({n: nbytes(n, spec.shape) for n, spec in specs.items() if spec.group in groups})


def stored_bytes(config: ModelConfig, precision: str, *, groups: tuple[str, ...] = ("text", "mtp")) -> int:
    """Bytes of all tensors of the named groups together."""
    return sum(tensor_bytes(config, precision, groups=groups).values())


def bytes_per_rank(sizes: Mapping[str, int], *, ranks: int, num_key_value_heads: int) -> int:
    """What each of ``ranks`` devices holds under tensor parallelism: matrices cut evenly, the rest whole.

    Beyond ``num_key_value_heads`` ranks the key and value projections are not cut further but repeated.
    """
    total = 0
    for name, size in sizes.items():
        if any(fnmatchcase(name, pattern) for pattern in _REPLICATED):
            total += size
        elif any(fnmatchcase(name, pattern) for pattern in _KV_PROJECTIONS):
            total += -(-size // min(ranks, num_key_value_heads))
        else:
            total += -(-size // ranks)
    return total
