"""Write a trained model as a checkpoint in the official layout: BF16 safetensors, configuration, tokenizer, template."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sterna.errors import CheckpointError, ConfigError
from sterna.train.loop import read_checkpoint
from sterna.train.model import TrainingModel
from sterna.train.shape import ModelShape
from sterna.train.validation import Vocabulary, evaluate, held_out_batches

MAX_BYTES = 32_000_000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
)  # fmt: skip


def special_token_ids(tokenizer_json: Path) -> dict[str, int]:
    """Ids of the added tokens that the configuration names; `ConfigError` if one is missing."""
    try:
        added = json.loads(tokenizer_json.read_text(encoding="utf-8"))["added_tokens"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"cannot read the added tokens of {tokenizer_json}: {error}") from error
    ids = {token["content"]: int(token["id"]) for token in added}
    if missing := [name for name in SPECIAL_TOKENS if name not in ids]:
        raise ConfigError(f"{tokenizer_json} lacks the special tokens {missing}")
    return ids


def rounded_to_bfloat16(model: TrainingModel) -> dict[str, torch.Tensor]:
    """All parameters in BF16 under their official names; the fused expert layout is the model's own."""
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.named_parameters()}


def load_exported(model: TrainingModel, tensors: dict[str, torch.Tensor]) -> None:
    """Put (rounded) tensors back into a float32 model; every name must match."""
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)


def export_checkpoint(model: TrainingModel, *, tokenizer_dir: Path, out: Path, max_bytes: int = MAX_BYTES) -> int:
    """Write the checkpoint directory ``out`` and return the size of ``model.safetensors`` in bytes.

    Args:
        model: the trained model.
        tokenizer_dir: holds ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.
        out: created; files of these names in it are replaced, each atomically.
        max_bytes: a larger weight file is refused before anything in ``out`` changes.
    """
    for name in TOKENIZER_FILES:
        if not (tokenizer_dir / name).is_file():
            raise CheckpointError(
                f"{tokenizer_dir / name} does not exist",
                hint="write the tokenizer first: `sterna train sternula --steps data`",
            )
    special = special_token_ids(tokenizer_dir / "tokenizer.json")
    tensors = rounded_to_bfloat16(model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > max_bytes:
        raise CheckpointError(f"the weights take {size:,} bytes, allowed are {max_bytes:,}")
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / "model.safetensors.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    os.replace(temporary, out / "model.safetensors")
    _write_json(out / "config.json", model.shape.config_json(special=special))
    _write_json(
        out / "generation_config.json",
        {
            "bos_token_id": special["<|endoftext|>"],
            "do_sample": True,
            "eos_token_id": [special["<|im_end|>"], special["<|endoftext|>"]],
            "pad_token_id": special["<|endoftext|>"],
            "temperature": 1.0,
            "top_k": 20,
            "top_p": 0.95,
        },
    )
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_dir / name, out / name)
    return (out / "model.safetensors").stat().st_size


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def export_from_run(
    run: Path, *, data: Path, tokenizer_dir: Path, out: Path, threads: int = 2, episodes: int = 64
) -> dict[str, Any]:
    """Export the newest training checkpoint of ``run`` and measure its weights as rounded to BF16.

    Returns ``bytes`` of the weight file, ``step``, ``tokens`` and ``held_out`` (see `sterna.train.validation.evaluate`).
    """
    torch.set_num_threads(threads)
    state = read_checkpoint(run / "checkpoint.pt")
    shape = dict(state["shape"]) | {"mrope_section": tuple(state["shape"]["mrope_section"])}
    model = TrainingModel(ModelShape(**shape))
    model.load_state_dict(state["model"])
    size = export_checkpoint(model, tokenizer_dir=tokenizer_dir, out=out)
    load_exported(model, rounded_to_bfloat16(model))
    batches = held_out_batches(data, episodes=episodes, micro_tokens=6_144, max_length=8_192)
    measures = evaluate(model, batches, Vocabulary.load(tokenizer_dir / "tokenizer.json"))
    progress = state["progress"]
    return {"bytes": size, "step": progress["step"], "tokens": progress["tokens"], "held_out": measures}
