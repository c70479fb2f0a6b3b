"""Sternula's tokenizer: byte-level BPE of 4,096 ids with the architecture's own pre-tokenizer and added tokens (spec §1.5)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sterna.train.sternula.render import template_text

VOCAB_SIZE = 4096
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
PLAIN_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
AUDIO_TOKENS = (
    "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>", "<tts_text_bos_single>",
    "<|audio_pad|>",
)  # fmt: skip
ADDED_TOKENS = (*SPECIAL_TOKENS, *PLAIN_TOKENS, *AUDIO_TOKENS)


def _bare() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    # the stubs of the library lack these arguments
    decoder: Any = decoders.ByteLevel
    tokenizer.decoder = decoder(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return tokenizer


def _for_training(text: str) -> str:
    """Without added tokens, and without the marker lines of tracebacks: every length would become a token."""
    for token in ADDED_TOKENS:
        text = text.replace(token, "\n")
    return re.sub(r"[~^]{2,}", " ", text)


MARKER_RUNS = "\n".join(mark * 16 for mark in "~^" for _ in range(2000))


def build_tokenizer(corpus: Iterable[str]) -> str:
    """The text of ``tokenizer.json`` trained on ``corpus``; ids 4063 to 4095 are the 33 added tokens in official order."""
    tokenizer = _bare()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(ADDED_TOKENS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*map(_for_training, corpus), MARKER_RUNS], trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE - len(ADDED_TOKENS):
        raise ValueError(
            f"the corpus gives only {tokenizer.get_vocab_size()} tokens of {VOCAB_SIZE - len(ADDED_TOKENS)}"
        )
    for literal in ADDED_TOKENS:
        token = AddedToken(literal, normalized=False, special=literal not in PLAIN_TOKENS)
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
    return str(tokenizer.to_str(pretty=True))


def tokenizer_config() -> dict[str, Any]:
    """``tokenizer_config.json``: end of turn, padding, and the classes that other software loads it with."""
    first = VOCAB_SIZE - len(ADDED_TOKENS)
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first + number): {
                "content": literal, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                "special": literal not in PLAIN_TOKENS,
            }
            for number, literal in enumerate(ADDED_TOKENS)
        },
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }  # fmt: skip


def generation_config() -> dict[str, Any]:
    """``generation_config.json``: both end tokens and the sampling of the agent preset."""
    first = VOCAB_SIZE - len(ADDED_TOKENS)
    end_of_text, end_of_turn = first, first + ADDED_TOKENS.index("<|im_end|>")
    return {
        "bos_token_id": end_of_text, "do_sample": True, "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text, "temperature": 1.0, "top_k": 20, "top_p": 0.95,
    }  # fmt: skip


def write_tokenizer(folder: Path, tokenizer_json: str) -> None:
    """Write the four files of a checkpoint that concern text: tokenizer, its configuration, generation, template."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    for name, value in (("tokenizer_config", tokenizer_config()), ("generation_config", generation_config())):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template_text() + "\n", encoding="utf-8")
