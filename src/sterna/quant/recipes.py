"""Which format each tensor gets: recipes as data, and their exact size for given shapes.

A recipe is a list of (pattern of the official name, format); the first match wins. Patterns are those of `fnmatch`.
Vectors, the convolution, the router and the a/b projections are never quantised: they decide where tokens go and what the
recurrent state keeps, and weigh next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sterna.errors import UsageError
from sterna.quant import FORMATS

Rules = tuple[tuple[str, str], ...]

_UNQUANTISED: Rules = (
    ("*norm.weight", "F32"),
    ("*.linear_attn.norm.weight", "F32"),
    ("*.A_log", "F32"),
    ("*.dt_bias", "F32"),
    ("*.conv1d.weight", "F32"),
    ("*.mlp.gate.weight", "BF16"),
    ("*.mlp.shared_expert_gate.weight", "BF16"),
    ("*.in_proj_a.weight", "BF16"),
    ("*.in_proj_b.weight", "BF16"),
    ("mtp.pre_fc_norm_*.weight", "F32"),
    ("model.visual.*", "BF16"),
)

_HIGHER: Rules = (
    ("lm_head.weight", "q6"),
    ("*.linear_attn.out_proj.weight", "q6"),
    ("*.shared_expert.*_proj.weight", "q6"),
    ("*.self_attn.q_proj.weight", "q4"),
    ("*.self_attn.*_proj.weight", "q6"),
    ("mtp.fc.weight", "q6"),
    # the MLP of a dense model
    ("*.mlp.down_proj.weight", "q6"),
    ("*.mlp.gate_proj.weight", "q4"),
    ("*.mlp.up_proj.weight", "q4"),
)
"""Measured by others as the tensors that hurt first, and small beside the experts."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A name, one line of purpose, and rules; ``rules`` cover every tensor of the model."""

    name: str
    purpose: str
    rules: Rules

    def format_of(self, name: str) -> str:
        """The format of a tensor by official name; `UsageError` if no rule matches."""
        for pattern, form in self.rules:
            if fnmatchcase(name, pattern):
                return form
        raise UsageError(f"recipe {self.name} has no rule for tensor {name!r}")

    def nbytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Exact bytes of all tensors together."""
        return sum(FORMATS[self.format_of(name)].nbytes(matrix(shape)) for name, shape in shapes.items())

    def bits_per_weight(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Mean over all weights."""
        return 8 * self.nbytes(shapes) / sum(math.prod(shape) for shape in shapes.values())


def matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a tensor is packed: [..., N, K]; kernels see the convolution [C, 1, k] and patches as [N, K]."""
    return shape if len(shape) <= 3 else (shape[0], math.prod(shape[1:]))


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("bf16", "as published; norms, convolution and decay in float32", (*_UNQUANTISED, ("*", "BF16"))),
        Recipe(
            "q8",
            "no measurable loss, half the size",
            (*_UNQUANTISED, ("*", "q8")),
        ),
        Recipe(
            "q4",
            "the default: 4 bits; head, shared expert, out_proj and the attention's k, v and o in 6",
            (
                *_UNQUANTISED,
                *_HIGHER,
                ("*.embed_tokens.weight", "q4"),
                ("*.mlp.experts.*", "q4"),
                ("*.linear_attn.in_proj_*.weight", "q4"),
            ),
        ),
        Recipe(
            "q4-small",
            "24 GB of memory with a context of 64K: as q4, gate and up experts with groups of 64",
            (
                *_UNQUANTISED,
                *_HIGHER,
                ("*.embed_tokens.weight", "q4_g64"),
                ("*.mlp.experts.gate_up_proj", "q4_g64"),
                ("*.mlp.experts.down_proj", "q4"),
                ("*.linear_attn.in_proj_*.weight", "q4"),
            ),
        ),
    )
}


def recipe(name: str) -> Recipe:
    """A recipe by name; `UsageError` for one that is not in `RECIPES`."""
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}, allowed is {', '.join(RECIPES)}")
    return RECIPES[name]
