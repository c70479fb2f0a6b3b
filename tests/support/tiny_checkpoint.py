"""A whole checkpoint directory: random weights, a tiny tokenizer, our template. Every path runs, nothing is learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sterna.checkpoint import TensorView, expected_tensors, write_safetensors
from sterna.config import read_model_config
from support.chat import OWN_TEMPLATE, tiny_tokenizer, tiny_tokenizer_json

CONFIG = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "text_config": {
        "model_type": "qwen3_5_moe_text", "hidden_size": 32, "num_hidden_layers": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"], "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu", "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False,
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default", "rope_theta": 10000000,
            "partial_rotary_factor": 0.5,
        },
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
        "linear_num_key_heads": 1, "linear_num_value_heads": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2, "num_experts": 4,
        "mtp_num_hidden_layers": 0,
    },
}  # fmt: skip


VISION_CONFIG = {
    "model_type": "qwen3_5_moe_vision", "depth": 2, "hidden_size": 24, "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 40, "num_heads": 2, "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [],
}  # fmt: skip
# Small pictures have few tokens: 64x64 pixels are 4.
PREPROCESSOR = {"size": {"shortest_edge": 4096, "longest_edge": 65536}, "patch_size": 16, "image_mean": [0.5] * 3}


def write_tiny_checkpoint(directory: Path, *, seed: int = 0, vision: bool = False) -> Path:
    """Write config, weights, tokenizer and template; the same seed gives the same weights."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    eos = list(tokenizer.eos_token_ids)
    config = {
        **CONFIG,
        "text_config": {**CONFIG["text_config"], "vocab_size": tokenizer.vocab_size, "eos_token_id": eos},
    }
    if vision:
        control = tokenizer.control_tokens
        config["vision_config"] = VISION_CONFIG
        for key in ("image", "video"):
            config[f"{key}_token_id"] = control[f"<|{key}_pad|>"]
        config |= {f"vision_{edge}_token_id": control[f"<|vision_{edge}|>"] for edge in ("start", "end")}
        (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    files = {
        "config.json": json.dumps(config),
        "generation_config.json": json.dumps({"eos_token_id": eos}),
        "tokenizer.json": tiny_tokenizer_json(),
        "tokenizer_config.json": json.dumps({}),
        "chat_template.jinja": OWN_TEMPLATE,
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    rng = np.random.default_rng(seed)
    tensors = {
        name: TensorView(name, "F32", rng.standard_normal(spec.shape).astype(np.float32) * np.float32(0.3))
        for name, spec in expected_tensors(read_model_config(directory)).items()
    }
    write_safetensors(directory / "model.safetensors", tensors)
    return directory
