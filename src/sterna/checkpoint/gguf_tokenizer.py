"""From ``tokenizer.json`` of the family to the tokenizer that a GGUF file holds (spec §2.5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sterna.checkpoint.gguf_metadata import GgufTokenizer
from sterna.errors import CheckpointError

MODEL, PRE = "gpt2", "qwen35"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def gguf_tokenizer(directory: Path, *, vocab_size: int) -> GgufTokenizer | None:
    """The tokenizer of a checkpoint directory, padded to ``vocab_size`` rows; ``None`` if there is none.

    Special tokens become control tokens, other added ones user-defined, so that both are matched whole in prompts.
    Raises `CheckpointError` for a tokenizer that is not byte-level BPE or has more tokens than the model has rows.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    stored = _read(path)
    model = stored.get("model", {})
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise CheckpointError(f"{path} holds no byte-level BPE model with vocab and merges")
    tokens: dict[int, tuple[str, int]] = {index: (token, NORMAL) for token, index in vocab.items()}
    for each in stored.get("added_tokens", []):
        tokens[each["id"]] = (each["content"], CONTROL if each["special"] else USER_DEFINED)
    if tokens and max(tokens) >= vocab_size:
        raise CheckpointError(f"{path} has token {max(tokens)}, the model has {vocab_size} rows")
    # Rows of the embedding without a token get one that no text contains.
    listed = [tokens.get(i, (f"[PAD{i}]", UNUSED)) for i in range(vocab_size)]
    config = _read(directory / "tokenizer_config.json")
    ids = {token: index for index, (token, _) in enumerate(listed)}
    return GgufTokenizer(
        model=MODEL,
        pre=PRE,
        tokens=[token for token, _ in listed],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        token_types=[kind for _, kind in listed],
        chat_template=_template(directory, config),
        eos_token_id=_id_of(config, "eos_token", ids),
        bos_token_id=_id_of(config, "bos_token", ids),
        padding_token_id=_id_of(config, "pad_token", ids),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path} ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, expected is an object")
    return content


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    return template if isinstance(template, str) else None


def _id_of(config: dict[str, Any], key: str, ids: dict[str, int]) -> int | None:
    token = config.get(key)
    content = token.get("content") if isinstance(token, dict) else token
    return ids.get(content) if isinstance(content, str) else None
