"""Exact arithmetic from a configuration: parameters, bytes, KV cache and state (spec §8); nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sterna.checkpoint.manifest import (
    Shapes,
    attention_tensors,
    delta_net_tensors,
    mlp_tensors,
    mtp_tensors,
    text_tensors,
    vision_tensors,
)
from sterna.config import ModelConfig, TextConfig

# Eighths of a bit per weight, so that bytes stay exact integers.
WEIGHT_FORMATS: dict[str, int] = {"bf16": 128, "int8": 64, "4.5bpw": 36, "4.25bpw": 34}
KV_FORMATS: dict[str, int] = {"bf16": 2, "int8": 1}
WEIGHT_SETS = {
    "text": ("text",),
    "text_mtp": ("text", "mtp"),
    "text_vision": ("text", "vision"),
    "everything": ("text", "mtp", "vision"),
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameter counts of one model, whole and per part; ``active`` counts are those that one text token uses."""

    text: int
    routed_experts: int
    embedding: int
    lm_head: int
    moe_per_layer: int
    delta_net_per_layer: int
    attention_per_layer: int
    norms_per_layer: int
    vision: int
    mtp: int
    active_body: int
    active_moe: int
    active_delta_net: int
    active_attention: int
    active_norms: int
    active_per_draft: int

    @property
    def total(self) -> int:
        """Text model, vision tower and multi-token prediction head."""
        return self.text + self.vision + self.mtp

    @property
    def active(self) -> int:
        """Parameters that one text token uses, the output head included; an embedding row counts as nothing."""
        return self.active_body + self.lm_head


def count_parameters(config: ModelConfig) -> Parameters:
    """All counts of a configuration, from the shapes that its checkpoint must have."""
    text = config.text
    layers, attention_layers = text.num_hidden_layers, text.layer_types.count("full_attention")
    moe, active_moe = _size(mlp_tensors("", text)), active_moe_parameters(text)
    delta_net, attention = _size(delta_net_tensors("", text)), _size(attention_tensors("", text))
    embedding = text.vocab_size * text.hidden_size
    active_delta_net = (layers - attention_layers) * delta_net
    active_norms = (2 * layers + 1) * text.hidden_size
    return Parameters(
        text=_size(text_tensors(text)),
        routed_experts=layers * text.num_experts * expert_parameters(text),
        embedding=embedding,
        # A tied head is computed with, but stored only once.
        lm_head=embedding,
        moe_per_layer=moe,
        delta_net_per_layer=delta_net,
        attention_per_layer=attention,
        norms_per_layer=2 * text.hidden_size,
        vision=_size(vision_tensors(config.vision)) if config.vision else 0,
        mtp=_size(mtp_tensors(text)) if text.mtp_num_hidden_layers else 0,
        active_body=layers * active_moe + active_delta_net + attention_layers * attention + active_norms,
        active_moe=layers * active_moe,
        active_delta_net=active_delta_net,
        active_attention=attention_layers * attention,
        active_norms=active_norms,
        active_per_draft=(2 * text.hidden_size**2 + attention + active_moe) if text.mtp_num_hidden_layers else 0,
    )


def expert_parameters(text: TextConfig) -> int:
    """One routed expert."""
    return 3 * text.moe_intermediate_size * text.hidden_size


def active_moe_parameters(text: TextConfig) -> int:
    """What one token uses of one mixture of experts (router, chosen experts, shared expert, gate), or a dense MLP."""
    idle = text.num_experts - text.num_experts_per_tok
    return _size(mlp_tensors("", text)) - idle * expert_parameters(text)


def weight_bytes(parameters: int, weight_format: str) -> int:
    """Bytes of so many parameters, all in one of `WEIGHT_FORMATS`."""
    return math.ceil(parameters * WEIGHT_FORMATS[weight_format] / 64)


def kv_bytes_per_token(text: TextConfig, kv_format: str = "bf16", *, mtp: bool = False) -> int:
    """Keys and values of one token in all attention layers, and in that of the MTP head if ``mtp``."""
    layers = text.layer_types.count("full_attention") + mtp
    return layers * 2 * text.num_key_value_heads * text.head_dim * KV_FORMATS[kv_format]


def state_bytes(text: TextConfig) -> dict[str, int]:
    """DeltaNet state of one sequence of any length: ``recurrent`` float32, ``conv_bf16``, ``conv_float32``."""
    layers = text.layer_types.count("linear_attention")
    recurrent = text.linear_num_value_heads * text.linear_value_head_dim * text.linear_key_head_dim
    conv = text.conv_dim * (text.linear_conv_kernel_dim - 1)
    return {"recurrent": 4 * layers * recurrent, "conv_bf16": 2 * layers * conv, "conv_float32": 4 * layers * conv}


def bytes_report(config: ModelConfig) -> dict[str, object]:
    """Every byte count of spec §8 as a JSON object."""
    counts, text = count_parameters(config), config.text
    groups: Mapping[str, int] = {"text": counts.text, "mtp": counts.mtp, "vision": counts.vision}
    weights = {
        name: {fmt: weight_bytes(sum(groups[part] for part in parts), fmt) for fmt in WEIGHT_FORMATS}
        for name, parts in WEIGHT_SETS.items()
    }
    weights["active_per_token"] = {fmt: weight_bytes(counts.active, fmt) for fmt in WEIGHT_FORMATS}
    other = weight_bytes(counts.text - counts.routed_experts, "bf16")
    weights["experts_only"] = {fmt: other + weight_bytes(counts.routed_experts, fmt) for fmt in WEIGHT_FORMATS}
    return {
        "weights": weights,
        "kv_per_token": {fmt: kv_bytes_per_token(text, fmt) for fmt in KV_FORMATS},
        "kv_per_token_mtp": {
            fmt: kv_bytes_per_token(text, fmt, mtp=True) - kv_bytes_per_token(text, fmt) for fmt in KV_FORMATS
        },
        "state_per_sequence": state_bytes(text),
    }


def _size(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
