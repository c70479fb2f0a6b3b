"""Plans to the byte, and the same figures as the backends' own planner."""

from __future__ import annotations

import math

import pytest

from sterna.backends.planner import plan_memory
from sterna.checkpoint.manifest import expected_tensors
from sterna.config import EngineConfig, preset
from sterna.fit import find_hardware, make_plan, stored_bytes, this_machine
from sterna.fit.precision import bytes_per_rank, tensor_bytes

CONFIG = preset("qwen3.6-35b-a3b")
EVERYTHING = ("text", "mtp", "vision")


def test_official_files_to_the_byte() -> None:
    assert stored_bytes(CONFIG, "bf16", groups=EVERYTHING) == 71_903_645_408
    # 34,453,061,632 values in one byte, 1,498,761,072 in two, one bfloat16 scale for 128 x 128 of the former
    assert stored_bytes(CONFIG, "fp8", groups=EVERYTHING) == 34_453_061_632 * (1 + 2 / 128**2) + 2 * 1_498_761_072


def test_the_plan_is_the_one_that_a_backend_makes() -> None:
    engine = EngineConfig(max_model_len=32_768, max_num_seqs=3)
    plan = make_plan(CONFIG, this_machine(1 << 40), weights="bf16", context=32_768, sessions=3, engine=engine)
    backend = plan_memory(
        CONFIG.text, engine, weight_bytes=plan.bytes["weights"], kv_bytes_per_block=64 * plan.kv_bytes_per_token,
        state_bytes_per_slot=62_914_560 + 2_949_120, available_bytes=1 << 40,
    )  # fmt: skip
    assert plan.total_bytes == backend.total_bytes


@pytest.mark.parametrize("kv", ["bf16", "int8"])
@pytest.mark.parametrize("key", ["rtx4090", "h100-80g", "2x24g", "ram:64g", "8g"])
def test_the_largest_that_fits_fits_and_one_more_does_not(key: str, kv: str) -> None:
    def plan(context: int, sessions: int):
        return make_plan(CONFIG, find_hardware(key), weights="q4", kv=kv, context=context, sessions=sessions)

    one = plan(4096, 2)
    assert one.max_context is not None and one.max_sessions is not None
    if one.max_context:
        assert plan(one.max_context, 2).fits
    if one.max_context < CONFIG.text.max_position_embeddings:
        assert not plan(one.max_context + 64, 2).fits
    if one.max_sessions:
        assert plan(4096, one.max_sessions).fits
    assert not plan(4096, one.max_sessions + 1).fits


def test_ranks_hold_everything_between_them() -> None:
    sizes = tensor_bytes(CONFIG, "bf16", groups=EVERYTHING)
    total = sum(sizes.values())
    for ranks in (1, 2, 4, 8):
        held = ranks * bytes_per_rank(sizes, ranks=ranks, num_key_value_heads=2)
        assert total <= held < 1.02 * total
    assert bytes_per_rank(sizes, ranks=1, num_key_value_heads=2) == total


def test_beyond_two_ranks_keys_and_values_are_repeated() -> None:
    plans = {n: make_plan(CONFIG, find_hardware(f"{n}x80g"), weights="bf16", context=64) for n in (2, 4, 8)}
    assert {n: plan.kv_copies for n, plan in plans.items()} == {2: 1, 4: 2, 8: 4}
    assert len({plan.kv_bytes_per_token for plan in plans.values()}) == 1


def test_every_tensor_has_a_size_in_every_precision() -> None:
    for precision in ("bf16", "fp8", "q8", "q4", "q4-small"):
        sizes = tensor_bytes(CONFIG, precision, groups=EVERYTHING)
        specs = expected_tensors(CONFIG)
        assert sizes.keys() == specs.keys()
        assert all(math.prod(specs[name].shape) // 2 <= size for name, size in sizes.items())
