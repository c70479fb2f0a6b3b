"""A checkpoint of random float32 weights in memory, for any small configuration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sterna.checkpoint import TensorView, expected_tensors
from sterna.config import ModelConfig, RopeParameters, TextConfig

# Key and value dimensions differ, as do numbers of heads, so that a swapped axis cannot go unnoticed.
SMALL = TextConfig(
    vocab_size=96,
    hidden_size=64,
    num_hidden_layers=4,
    layer_types=("linear_attention", "linear_attention", "linear_attention", "full_attention"),
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    linear_conv_kernel_dim=4,
    linear_key_head_dim=16,
    linear_value_head_dim=32,
    linear_num_key_heads=2,
    linear_num_value_heads=6,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=64,
    rms_norm_eps=1e-6,
    max_position_embeddings=4096,
    rope_parameters=RopeParameters(rope_theta=1e7, partial_rotary_factor=0.5, mrope_section=(3, 3, 2)),
    mtp_num_hidden_layers=1,
)

# Every input dimension holds whole super-blocks of 256, each of which spans two value heads.
WIDE = replace(
    SMALL,
    hidden_size=256,
    linear_value_head_dim=128,
    linear_num_value_heads=4,
    moe_intermediate_size=256,
    shared_expert_intermediate_size=256,
    num_attention_heads=8,
)


class RandomCheckpoint:
    """Random weights under official names; ``with_mtp=False`` leaves the MTP head out."""

    def __init__(self, text: TextConfig, *, seed: int = 0, with_mtp: bool = True) -> None:
        self.config = ModelConfig(text=text, vision=None, eos_token_ids=(1,))
        self.groups = frozenset({"text", "mtp"} if with_mtp else {"text"})
        random = np.random.default_rng(seed)
        self.arrays = {
            name: (0.1 * random.standard_normal(spec.shape)).astype(np.float32)
            for name, spec in expected_tensors(self.config).items()
            if spec.group in self.groups
        }

    def tensor(self, name: str) -> TensorView:
        """A tensor as float32."""
        return TensorView(name, "F32", self.arrays[name])
