"""The figures of the architecture to the last digit."""

from __future__ import annotations

from sterna.accounting import bytes_report, count_parameters, kv_bytes_per_token
from sterna.config import preset

CONFIG = preset("qwen3.6-35b-a3b")


def test_parameters() -> None:
    counts = count_parameters(CONFIG)
    assert counts.text == 34_660_610_688
    assert counts.routed_experts == 32_212_254_720
    assert counts.embedding + counts.lm_head == 1_017_118_720
    assert (counts.moe_per_layer, counts.delta_net_per_layer) == (808_978_432, 33_718_464)
    assert (counts.attention_per_layer, counts.norms_per_layer) == (27_263_488, 4_096)
    assert (counts.vision, counts.mtp, counts.total) == (446_571_248, 844_640_768, 35_951_822_704)


def test_active_parameters() -> None:
    counts = count_parameters(CONFIG)
    assert (counts.active_body, counts.active) == (2_437_870_208, 2_946_429_568)
    assert (counts.active_moe, counts.active_delta_net) == (1_153_515_520, 1_011_553_920)
    assert (counts.active_attention, counts.active_norms) == (272_634_880, 165_888)
    assert counts.active_per_draft == 8_388_608 + 27_263_488 + 28_837_888


def test_bytes() -> None:
    weights = bytes_report(CONFIG)["weights"]
    expected = {
        "text": (69_321_221_376, 34_660_610_688, 19_496_593_512, 18_413_449_428),
        "text_mtp": (71_010_502_912, 35_505_251_456, 19_971_703_944, 18_862_164_836),
        "text_vision": (70_214_363_872, 35_107_181_936, 19_747_789_839, 18_650_690_404),
        "everything": (71_903_645_408, 35_951_822_704, 20_222_900_271, 19_099_405_812),
        "active_per_token": (5_892_859_136, 2_946_429_568, 1_657_366_632, 1_565_290_708),
        "experts_only": (69_321_221_376, 37_108_966_656, 23_016_105_216, 22_009_472_256),
    }
    assert {name: tuple(sizes.values()) for name, sizes in weights.items()} == expected  # type: ignore[attr-defined]


def test_caches() -> None:
    report = bytes_report(CONFIG)
    assert report["kv_per_token"] == {"bf16": 20_480, "int8": 10_240}
    assert report["kv_per_token_mtp"] == {"bf16": 2_048, "int8": 1_024}
    assert kv_bytes_per_token(CONFIG.text) * 262_144 == 5 * 2**30
    assert report["state_per_sequence"] == {
        "recurrent": 62_914_560,
        "conv_bf16": 1_474_560,
        "conv_float32": 2_949_120,
    }
