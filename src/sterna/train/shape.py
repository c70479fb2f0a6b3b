"""The dimensions of a model to train, and the official ``config.json`` that describes them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from sterna.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Names are those of the official ``text_config``; the defaults are Sternula's."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 8
    full_attention_interval: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    partial_rotary_factor: float = 0.5
    rope_theta: int = 10_000_000
    mrope_section: tuple[int, int, int] = (6, 5, 5)
    linear_num_key_heads: int = 2
    linear_num_value_heads: int = 4
    linear_key_head_dim: int = 64
    linear_value_head_dim: int = 64
    linear_conv_kernel_dim: int = 4
    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 128
    shared_expert_intermediate_size: int = 128
    max_position_embeddings: int = 262_144
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if sum(self.mrope_section) * 2 != self.rotary_dim:
            raise ConfigError(
                f"mrope_section {list(self.mrope_section)} adds up to {sum(self.mrope_section)}, "
                f"allowed is half of the {self.rotary_dim} rotary dimensions",
                hint="change mrope_section or partial_rotary_factor",
            )
        for heads, groups in (
            (self.num_attention_heads, self.num_key_value_heads),
            (self.linear_num_value_heads, self.linear_num_key_heads),
        ):
            if heads % groups:
                raise ConfigError(f"{heads} heads cannot share {groups} heads evenly")

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of each attention head."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def layer_types(self) -> list[str]:
        """One of ``linear_attention`` and ``full_attention`` per layer."""
        interval = self.full_attention_interval
        return [
            "linear_attention" if (index + 1) % interval else "full_attention"
            for index in range(self.num_hidden_layers)
        ]

    def config_json(self, *, special: dict[str, int]) -> dict[str, Any]:
        """The official, nested configuration; ``special`` maps the added tokens' text to their ids."""
        end_of_text = special["<|endoftext|>"]
        text = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("mrope_section", "rope_theta")}
        text |= {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "bos_token_id": end_of_text,
            "dtype": "bfloat16",
            "eos_token_id": end_of_text,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "layer_types": self.layer_types,
            "mamba_ssm_dtype": "float32",
            "model_type": "qwen3_5_moe_text",
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "output_router_logits": False,
            "pad_token_id": None,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": list(self.mrope_section),
                "partial_rotary_factor": self.partial_rotary_factor,
                "rope_theta": self.rope_theta,
                "rope_type": "default",
            },
            "router_aux_loss_coef": 0.001,
            "tie_word_embeddings": False,
            "use_cache": True,
        }
        return {
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "image_token_id": special["<|image_pad|>"],
            "model_type": "qwen3_5_moe",
            "text_config": dict(sorted(text.items())),
            "tie_word_embeddings": False,
            "transformers_version": "4.57.1",
            "video_token_id": special["<|video_pad|>"],
            "vision_end_token_id": special["<|vision_end|>"],
            "vision_start_token_id": special["<|vision_start|>"],
        }
