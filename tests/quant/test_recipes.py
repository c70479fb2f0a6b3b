"""Recipes cover every tensor of the official model and their sizes are exact."""

from __future__ import annotations

import math

import pytest

from sterna.checkpoint import expected_tensors
from sterna.config import preset
from sterna.errors import UsageError
from sterna.quant import FORMATS
from sterna.quant.recipes import RECIPES, matrix, recipe

TENSORS = expected_tensors(preset("qwen3.6-35b-a3b"))
TEXT = {name: spec.shape for name, spec in TENSORS.items() if spec.group == "text"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_tensor_has_a_format_that_fits(name: str) -> None:
    for tensor, spec in TENSORS.items():
        assert FORMATS[recipe(name).format_of(tensor)].nbytes(matrix(spec.shape)) > 0


def test_bf16_is_the_published_size_but_for_float32_vectors() -> None:
    vectors = sum(math.prod(shape) for name, shape in TEXT.items() if RECIPES["bf16"].format_of(name) == "F32")
    assert RECIPES["bf16"].nbytes(TEXT) == 69_321_221_376 + 2 * vectors


def test_q8_by_hand() -> None:
    """8 bits, 1 scale byte per 32 weights, 4 bytes per row; all official rows come in whole tiles of 16."""
    chosen = {name: shape for name, shape in TEXT.items() if RECIPES["q8"].format_of(name) == "q8"}
    expected = sum(math.prod(shape) * 33 // 32 + 4 * math.prod(shape[:-1]) for shape in chosen.values())
    assert expected == sum(FORMATS["q8"].nbytes(shape) for shape in chosen.values())


def test_default_recipe_meets_its_budget() -> None:
    assert RECIPES["q4"].bits_per_weight(TEXT) <= 4.6
    # 24 GB, of which 64K tokens of KV cache, four states and a gigabyte of workspace are not weights.
    free = 24_000_000_000 - 65_536 * 20_480 - 4 * 65_900_000 - 1_000_000_000
    assert RECIPES["q4-small"].nbytes(TEXT) <= free


def test_what_routes_and_decays_is_never_quantised() -> None:
    for each in RECIPES.values():
        for tensor in TENSORS:
            if tensor.endswith((".mlp.gate.weight", "in_proj_a.weight", "in_proj_b.weight", "A_log", "norm.weight")):
                assert each.format_of(tensor) in ("F32", "BF16"), (each.name, tensor)


def test_default_recipe_keeps_sensitive_tensors_above_four_bits() -> None:
    for tensor, spec in TENSORS.items():
        if ".shared_expert." in tensor or tensor.endswith(("out_proj.weight", "o_proj.weight", "lm_head.weight")):
            form = FORMATS[RECIPES["q4"].format_of(tensor)]
            assert form.bits_per_weight > 6, (tensor, spec)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="no recipe 'q5', allowed is bf16, q8, q4, q4-small"):
        recipe("q5")
    with pytest.raises(UsageError, match="no rule for tensor 'lm_tail'"):
        RECIPES["q4"].format_of("lm_tail")
