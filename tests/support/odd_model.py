"""A tiny model whose every dimension is a tail: no size is a multiple of the vector width, K and V differ, groups are uneven."""

from __future__ import annotations

from dataclasses import replace

from sterna.config import ModelConfig, RopeParameters, TextConfig

ODD = TextConfig(
    vocab_size=67,
    hidden_size=72,
    num_hidden_layers=3,
    layer_types=("linear_attention", "full_attention", "linear_attention"),
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=23,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=21,
    linear_value_head_dim=37,
    linear_num_key_heads=3,
    linear_num_value_heads=6,
    num_experts=9,
    num_experts_per_tok=3,
    moe_intermediate_size=27,
    shared_expert_intermediate_size=41,
    rms_norm_eps=1e-6,
    max_position_embeddings=4096,
    rope_parameters=RopeParameters(1e6, 12 / 23, (2, 2, 2)),
    mtp_num_hidden_layers=1,
)


def odd_config(**changes: object) -> ModelConfig:
    """The odd model, with some text fields changed."""
    return ModelConfig(replace(ODD, **changes), None, (0,))  # type: ignore[arg-type]
