"""Reference logits of the golden checkpoint under YaRN, by transformers: writes yarn.npz beside the checkpoint.

Usage: python make_yarn.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, Qwen3_5MoeForConditionalGeneration

HERE = Path(__file__).parent / "tiny-hf"
# An original context far below the 150 tokens, so that the interpolation covers the frequencies that matter.
SCALING = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def main() -> None:
    """Load the checkpoint with scaled rotary parameters and store logits and inverse frequencies."""
    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(HERE)
    rope = json.loads((HERE / "config.json").read_text())["text_config"]["rope_parameters"] | SCALING
    config.text_config.rope_parameters = rope
    config._attn_implementation = "eager"
    model = Qwen3_5MoeForConditionalGeneration.from_pretrained(HERE, config=config, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.load(HERE / "ref.npz")["ids"])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0]
    rotary = model.model.language_model.rotary_emb
    np.savez(
        HERE / "yarn.npz",
        logits=logits[::5].numpy(),
        rows=np.arange(0, ids.shape[1], 5),
        inv_freq=rotary.inv_freq.numpy(),
        attention_factor=rotary.attention_scaling,
    )


if __name__ == "__main__":
    main()
