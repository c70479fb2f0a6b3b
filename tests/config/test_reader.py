"""The strict reader: what it accepts means exactly one thing, everything else is an error that names it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sterna.config import RopeParameters, parse_model_config, preset, read_model_config
from sterna.errors import ConfigError
from support.golden import GOLDEN

OFFICIAL = json.loads((Path(__file__).parents[2] / "src/sterna/data/presets/qwen3.6-35b-a3b/config.json").read_text())
YARN = {
    "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "yarn", "rope_theta": 10000000,
    "partial_rotary_factor": 0.25, "factor": 4.0, "original_max_position_embeddings": 262144,
}  # fmt: skip


def official(**text: Any) -> dict[str, Any]:
    config = copy.deepcopy(OFFICIAL)
    config["text_config"].update(text)
    return config


def test_the_preset_is_the_official_configuration() -> None:
    config = preset("qwen3.6-35b-a3b")
    text = config.text
    assert (text.num_hidden_layers, text.hidden_size, text.vocab_size, text.num_experts) == (40, 2048, 248320, 256)
    assert text.head_dim == 256 != text.hidden_size // text.num_attention_heads
    assert [i for i, kind in enumerate(text.layer_types) if kind == "full_attention"] == list(range(3, 40, 4))
    assert (text.rotary_dim, text.conv_dim) == (64, 8192)
    assert text.rope_parameters == RopeParameters(1e7, 0.25, (11, 11, 10))
    assert config.eos_token_ids == (248046, 248044)
    assert (config.image_token_id, config.video_token_id) == (248056, 248057)
    assert config.vision is not None and config.vision.depth == 27


def test_the_golden_configuration_as_transformers_saves_it() -> None:
    config = read_model_config(GOLDEN)
    assert config.text.mtp_num_hidden_layers == 1
    assert config.text.rotary_dim == 16
    assert config.eos_token_ids == ()


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'gpt-2', allowed is qwen3.6-35b-a3b"):
        preset("gpt-2")


def test_a_text_only_configuration_at_top_level() -> None:
    flat = {**OFFICIAL["text_config"], "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text"}
    config = parse_model_config(flat)
    assert config.text == preset("qwen3.6-35b-a3b").text
    assert config.vision is None
    assert config.eos_token_ids == (248044,)


def test_rope_parameters_flat_or_under_the_older_name() -> None:
    expected = preset("qwen3.6-35b-a3b").text.rope_parameters
    rope = OFFICIAL["text_config"]["rope_parameters"]
    flat = official()
    del flat["text_config"]["rope_parameters"]
    flat["text_config"].update({"rope_theta": 10000000, "mrope_section": [11, 11, 10]})
    assert parse_model_config(flat).text.rope_parameters == expected
    old = official()
    del old["text_config"]["rope_parameters"]
    old["text_config"]["rope_scaling"] = {**{k: v for k, v in rope.items() if k != "rope_type"}, "type": "mrope"}
    assert parse_model_config(old).text.rope_parameters == expected


def test_yarn() -> None:
    rope = parse_model_config(official(rope_parameters=YARN)).text.rope_parameters
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 262144)


def test_layer_types_follow_from_the_interval() -> None:
    config = official()
    del config["text_config"]["layer_types"]
    assert parse_model_config(config).text == preset("qwen3.6-35b-a3b").text


def test_eos_ids_of_all_files_are_merged_without_repeats() -> None:
    config = {**official(), "eos_token_id": [5, 248046]}
    assert parse_model_config(config, {"eos_token_id": 7}).eos_token_ids == (7, 5, 248046, 248044)


@pytest.mark.parametrize("section", [None, "text_config", "vision_config"])
def test_an_unknown_key_is_named(section: str | None) -> None:
    config = official()
    (config[section] if section else config)["sliding_window"] = 4096
    with pytest.raises(ConfigError, match="unknown key 'sliding_window'") as error:
        parse_model_config(config)
    assert error.value.hint


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"layer_types": ["full_attention"]}, "has 1 entries, allowed is num_hidden_layers, that is 40"),
    ({"layer_types": ["linear_attention"] * 40}, "contradicts full_attention_interval 4"),
    ({"layer_types": ["mamba"] * 40}, "allowed is a list of linear_attention or full_attention"),
    ({"num_key_value_heads": 3}, "num_key_value_heads is 3, allowed is a divisor of num_attention_heads"),
    ({"linear_num_key_heads": 5}, "linear_num_key_heads is 5, allowed is a divisor of linear_num_value_heads"),
    ({"num_experts_per_tok": 257}, "num_experts_per_tok is 257, allowed is 1 to num_experts 256"),
    ({"head_dim": 128}, "mrope_section is"),
    ({"partial_rotary_factor": 0.5}, "gives partial_rotary_factor twice"),
    ({"tie_word_embeddings": True}, "config.tie_word_embeddings is false, allowed is true"),
    ({"vocab_size": 1000}, "allowed is below the vocab_size 1000"),
    ({"hidden_size": 1024}, "out_hidden_size is 2048, allowed is the hidden_size of the text model, 1024"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS, ids=lambda value: str(value)[:40])
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        parse_model_config(official(**change))


VALUES: list[tuple[str, Any]] = [
    ("attention_bias", True), ("attn_output_gate", False), ("hidden_act", "gelu"), ("mamba_ssm_dtype", "bfloat16"),
    ("norm_topk_prob", False), ("mlp_only_layers", [0]), ("decoder_sparse_step", 2), ("output_gate_type", "sigmoid"),
    ("mtp_use_dedicated_embeddings", True), ("model_type", "qwen3_moe"), ("hidden_size", "2048"), ("hidden_size", 0),
    ("hidden_size", True), ("num_hidden_layers", 1.5), ("rms_norm_eps", 0), ("vocab_size", 10**30), ("num_experts", -1),
    ("mtp_num_hidden_layers", 2), ("eos_token_id", "</s>"), ("attention_bias", 0),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), VALUES, ids=lambda value: str(value)[:20])
def test_values_that_change_the_answer_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} is .*, allowed is "):
        parse_model_config(official(**{key: value}))


ROPES: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "llama3"}, "rope_type is \"llama3\", allowed is default or yarn"),
    ({"mrope_interleaved": False}, "mrope_interleaved is false, allowed is true"),
    ({"mrope_section": [8, 16, 8]}, "three interleaved parts of the 32 frequencies"),
    ({"mrope_section": [10, 10, 12]}, "three interleaved parts of the 32 frequencies"),
    ({"mrope_section": [11, 11]}, "three integers from 0"),
    ({"rope_theta": 0}, "rope_theta is 0"),
    ({"factor": 0.5}, "factor is 0.5"),
    ({"beta_fast": 16}, "beta_fast is 16, allowed is 32"),
    ({"attention_factor": 1.0}, "attention_factor is 1.0, allowed is null"),
    ({"mystery": 1}, "unknown key 'mystery'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), ROPES, ids=lambda value: str(value)[:40])
def test_rope_values_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model_config(official(rope_parameters={**YARN, **change}))


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings", "mrope_section", "rope_theta"])
def test_a_missing_rope_value_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=f"lacks the key '{key}'"):
        parse_model_config(official(rope_parameters={k: v for k, v in YARN.items() if k != key}))


@pytest.mark.parametrize("key", ["head_dim", "num_experts", "rms_norm_eps", "max_position_embeddings"])
def test_nothing_is_taken_from_class_defaults(key: str) -> None:
    config = official()
    del config["text_config"][key]
    with pytest.raises(ConfigError, match=f"text_config lacks the key '{key}'"):
        parse_model_config(config)


def test_an_unknown_quantisation_is_refused_by_its_method() -> None:
    with pytest.raises(ConfigError, match="quantization_config names the method 'bitsandbytes', allowed is fp8, gptq"):
        parse_model_config({**official(), "quantization_config": {"quant_method": "bitsandbytes"}})
    assert parse_model_config({**official(), "quantization_config": {"quant_method": "fp8"}}) == parse_model_config(
        official()
    )


FILES: list[tuple[bytes, str]] = [
    (b"", "not valid JSON"),
    (b"[1]", "holds a list, expected is a JSON object"),
    (b'{"a": 1, "a": 2}', "the key 'a' twice"),
    (b'{"a": NaN}', "holds NaN"),
    (b"\xff{}", "not valid JSON"),
    (b"[" * 100_000, "not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), FILES, ids=lambda value: str(value)[:20])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_model_config(tmp_path)


def test_a_directory_without_configuration_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*config.json") as error:
        read_model_config(tmp_path)
    assert error.value.hint
