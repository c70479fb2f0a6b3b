"""Tiny random members of the family as `transformers` builds, saves and computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

BASE: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"], "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "tie_word_embeddings": False, "mtp_num_hidden_layers": 0, "eos_token_id": 1, "pad_token_id": None,
    "rope_parameters": {
        "mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default", "rope_theta": 10000000,
        "partial_rotary_factor": 0.5,
    },
}  # fmt: skip
MIXTURE = {
    "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip
VISION = {
    "depth": 1, "hidden_size": 32, "hidden_act": "gelu_pytorch_tanh", "intermediate_size": 48, "num_heads": 4,
    "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 64,
    "num_position_embeddings": 36, "deepstack_visual_indexes": [],
}  # fmt: skip

# name -> (model type, what differs from BASE, with vision tower). The ratios are those of published members.
MEMBERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    # 122B-A10B and 397B-A17B: more value heads per key head, more experts per token
    "mixture-larger": (
        "qwen3_5_moe",
        {**MIXTURE, "num_experts": 12, "num_experts_per_tok": 5, "linear_num_value_heads": 8, "num_attention_heads": 8},
        True,
    ),
    "mixture-text-only": ("qwen3_5_moe", MIXTURE, False),
    # 27B: three value heads per key head, six query heads per key head, an MLP wider than the model
    "dense": (
        "qwen3_5",
        {"intermediate_size": 208, "linear_num_value_heads": 6, "num_attention_heads": 12, "num_key_value_heads": 2},
        True,
    ),
    # 0.8B to 4B: the head is the embedding, and as many value heads as key heads
    "dense-tied": (
        "qwen3_5",
        {"intermediate_size": 176, "linear_num_value_heads": 2, "tie_word_embeddings": True},
        False,
    ),
    "dense-odd-period": (
        "qwen3_5",
        {"intermediate_size": 72, "num_hidden_layers": 3, "num_key_value_heads": 4,
         "layer_types": ["full_attention", "linear_attention", "full_attention"]},
        False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A saved checkpoint, token ids [T], logits of the whole text and of a prompt with cached steps after it."""

    name: str
    directory: Path
    ids: np.ndarray
    full: np.ndarray
    prompt: int
    cached: np.ndarray


def save_member(name: str, directory: Path) -> Member:
    """Build one member with random weights, save it as `transformers` does and compute the reference logits."""
    torch.manual_seed(0)
    model = _build(*MEMBERS[name])
    _randomise(model)
    model.save_pretrained(directory)
    ids = torch.randint(2, 250, (1, 80), generator=torch.Generator().manual_seed(3))
    prompt = 70
    with torch.no_grad():
        full = model(input_ids=ids, use_cache=False).logits[0]
        out = model(input_ids=ids[:, :prompt], use_cache=True)
        rows = [out.logits[0]]
        for position in range(prompt, ids.shape[1]):
            out = model(input_ids=ids[:, position : position + 1], past_key_values=out.past_key_values, use_cache=True)
            rows.append(out.logits[0])
    return Member(name, directory, ids[0].numpy(), full.numpy(), prompt, torch.cat(rows).numpy())


def _build(model_type: str, changes: dict[str, Any], with_vision: bool) -> Any:
    import transformers

    text = {**BASE, **changes}
    family = "Qwen3_5Moe" if model_type == "qwen3_5_moe" else "Qwen3_5"
    if with_vision:
        config = getattr(transformers, f"{family}Config")(
            text_config={**text, "model_type": f"{model_type}_text"},
            vision_config={**VISION, "model_type": f"{model_type}_vision"},
            image_token_id=250, video_token_id=251, vision_start_token_id=252, vision_end_token_id=253,
            tie_word_embeddings=text["tie_word_embeddings"],
        )  # fmt: skip
    else:
        config = getattr(transformers, f"{family}TextConfig")(**text)
    config._attn_implementation = "eager"
    kind = "ForConditionalGeneration" if with_vision else "ForCausalLM"
    return getattr(transformers, f"{family}{kind}")(config).float().eval()


def _randomise(model: Any) -> None:
    """Visible spread everywhere; the default initialisation hides mistakes in norms and decays."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in _parameters(model):
            noise = torch.randn(values.shape, generator=generator)
            if name.endswith("A_log"):
                values.copy_(torch.empty_like(values).uniform_(0.01, 4, generator=generator).log())
            elif name.endswith("dt_bias"):
                values.copy_(noise - 3)
            elif "norm" in name and name.endswith("weight"):
                values.copy_(0.2 * noise + (1 if "linear_attn.norm" in name or "visual" in name else 0))
            elif values.ndim == 1:
                values.copy_(0.1 * noise)
            else:
                damped = name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight", "down_proj"))
                scale = 0.5 if name.endswith("conv1d.weight") else (0.3 if damped else 1.0) / values.shape[-1] ** 0.5
                values.copy_(scale * noise)


def _parameters(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
