"""The tokenizer and template of a GGUF file in the form that `Tokenizer` and `ChatTemplate` read."""

from __future__ import annotations

import json
from typing import Any

from sterna.chat.format import ChatFormat
from sterna.chat.template import ChatTemplate
from sterna.chat.tokenizer import Tokenizer
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.gguf_metadata import GgufTokenizer
from sterna.errors import TemplateError, TokenizerError

# Regular expressions by the name that files give their pre-tokenizer; spec §1.4.
PRE_TOKENIZERS = {
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
BYTE_LEVEL_BPE = "gpt2"
# Token types of the format: special tokens, and added ones that stay visible in decoded text.
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5


def chat_format(checkpoint: GgufCheckpoint) -> ChatFormat:
    """Tokenizer and template of a file. Raises `TokenizerError` or `TemplateError` where it holds none that we know."""
    stored = checkpoint.tokenizer()
    if stored is None:
        raise TokenizerError(f"{checkpoint.path} holds no tokenizer", hint="convert the model with its tokenizer")
    if stored.chat_template is None:
        raise TemplateError(f"{checkpoint.path} has no chat template", hint="convert the model with its chat template")
    text = json.dumps(tokenizer_json(stored))
    return ChatFormat(
        Tokenizer(text, eos_token_ids=checkpoint.config.eos_token_ids), ChatTemplate(stored.chat_template)
    )


def tokenizer_json(stored: GgufTokenizer) -> dict[str, Any]:
    """The content of the ``tokenizer.json`` that describes a stored tokenizer. Raises `TokenizerError` for an unknown kind."""
    if stored.model != BYTE_LEVEL_BPE:
        raise TokenizerError(f"tokenizer.ggml.model is {stored.model[:50]!r}, allowed is {BYTE_LEVEL_BPE!r}")
    if stored.pre not in PRE_TOKENIZERS:
        raise TokenizerError(f"tokenizer.ggml.pre is {stored.pre[:50]!r}, allowed is {', '.join(PRE_TOKENIZERS)}")
    added = [_added(i, stored) for i, kind in enumerate(stored.token_types) if kind in (CONTROL, USER_DEFINED)]
    plain = (i for i, kind in enumerate(stored.token_types) if kind not in (CONTROL, USER_DEFINED, UNUSED))
    split = {"Regex": PRE_TOKENIZERS[stored.pre]}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {stored.tokens[i]: i for i in plain},
            "merges": [merge.split(" ") for merge in stored.merges],
        },
    }


def _added(token_id: int, stored: GgufTokenizer) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = stored.token_types[token_id] == CONTROL
    return {"id": token_id, "content": stored.tokens[token_id], **flags, "special": special}
