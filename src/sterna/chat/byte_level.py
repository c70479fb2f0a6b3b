"""The byte-level BPE of this model family: byte alphabet, pre-tokenizer pattern, control tokens, ``tokenizer.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

PRETOKENIZER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# In the order of their ids, which follow the last id of the vocabulary.
CONTROL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>",
    "</think>", "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>",
    "<tts_text_bos_single>", "<|audio_pad|>",
)  # fmt: skip
# These survive decoding with ``skip_special``.
_NOT_SPECIAL = frozenset(CONTROL_TOKENS[CONTROL_TOKENS.index("<tool_call>") : CONTROL_TOKENS.index("</think>") + 1])


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte: itself where it is printable, else the next free one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


CHARACTER_OF_BYTE: Sequence[str] = tuple(_byte_alphabet())
BYTE_OF_CHARACTER: Mapping[str, int] = MappingProxyType({c: byte for byte, c in enumerate(CHARACTER_OF_BYTE)})


def as_characters(token: bytes) -> str:
    """A token's bytes in the alphabet of ``vocab.json``."""
    return "".join([CHARACTER_OF_BYTE[byte] for byte in token])


def tokenizer_json(
    vocab: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], *, control_tokens: Sequence[str] = CONTROL_TOKENS
) -> str:
    """Text of a ``tokenizer.json``: this vocabulary, these merges in order of priority, then the control tokens.

    ``vocab`` maps bytes to ids from 0 without gaps; the control tokens take the ids after it.
    """
    added = [
        {
            "id": len(vocab) + i,
            "content": literal,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": literal not in _NOT_SPECIAL,
        }
        for i, literal in enumerate(control_tokens)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PRETOKENIZER_PATTERN}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {as_characters(token): token_id for token, token_id in vocab.items()},
        "merges": [[as_characters(left), as_characters(right)] for left, right in merges],
    }
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": model,
    }
    return json.dumps(data, ensure_ascii=False)
