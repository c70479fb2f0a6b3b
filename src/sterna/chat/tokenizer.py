"""Text to token ids and back, with control tokens that no text can forge.

A checkpoint's ``tokenizer.json`` is split in two: the byte-level BPE, which encodes text and knows no control token,
and the table of added tokens, which is applied by literal, and only where the caller says that the text is the
template's own.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from sterna.chat.byte_level import BYTE_OF_CHARACTER
from sterna.errors import TokenizerError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


class TokenDecoder:
    """Turns a stream of token ids into valid text: an incomplete UTF-8 sequence is held back until it is complete."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The text that became certain with this token, perhaps empty."""
        if token_id in self._tokenizer.control_literals:
            if self._skip_special and token_id in self._tokenizer.special_ids:
                return self.flush()
            return self.flush() + self._tokenizer.control_literals[token_id]
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is held back; an incomplete sequence becomes U+FFFD."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class Tokenizer:
    """Encoder and decoder of one checkpoint.

    Attributes:
        control_tokens: literal -> id of every added token (``<|im_end|>``, ``<think>``, …).
        control_literals: the same, id -> literal.
        special_ids: added tokens that ``skip_special`` removes; ``<think>`` and ``<tool_call>`` are not among them.
        eos_token_ids: tokens that end a turn, the usual one first.
        vocab_size: number of ids in use; the embedding may have more (padding) rows.
    """

    def __init__(self, tokenizer_json: str, *, eos_token_ids: Iterable[int]) -> None:
        """Builds the tokenizer from the text of a ``tokenizer.json``.

        Raises:
            TokenizerError: the file is damaged, not byte-level BPE, or an added token needs more than its literal.
        """
        data = _parse(tokenizer_json)
        added = data.get("added_tokens") or []
        self.control_tokens: Mapping[str, int] = MappingProxyType(_control_tokens(added))
        self.control_literals: Mapping[int, str] = MappingProxyType({i: t for t, i in self.control_tokens.items()})
        self.special_ids = frozenset(entry["id"] for entry in added if entry.get("special"))
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self._bpe = _text_only_backend(data, self.control_tokens)
        self.vocab_size = max([*self.control_literals, *data["model"]["vocab"].values()], default=-1) + 1
        self._bytes: dict[int, bytes] = {}
        for token_id in self.eos_token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(f"end token {token_id} is not in the vocabulary of {self.vocab_size} tokens")
        # Longest first: of two literals that start at one place the longer wins, as in the reference.
        literals = sorted(self.control_tokens, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, literals)) if literals else r"(?!)")

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Reads ``tokenizer.json``; the end tokens come from ``generation_config.json`` and ``tokenizer_config.json``.

        Raises:
            TokenizerError: a file is missing or damaged, or no end token is named.
        """
        text = _read(directory / "tokenizer.json")
        added = _control_tokens(_parse(text).get("added_tokens") or [])
        eos: list[int] = []
        generation = _read_json_object(directory / "generation_config.json").get("eos_token_id")
        if generation is not None:
            eos += generation if isinstance(generation, list) else [generation]
        named = _read_json_object(directory / "tokenizer_config.json").get("eos_token")
        literal = named.get("content") if isinstance(named, dict) else named
        if literal is not None:
            if literal not in added:
                raise TokenizerError(f"eos_token {literal!r} of tokenizer_config.json is not an added token")
            eos.append(added[literal])
        if not eos:
            raise TokenizerError(
                f"{directory} names no end-of-turn token",
                hint="add `eos_token_id` to generation_config.json",
            )
        return cls(text, eos_token_ids=eos)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; control tokens are not recognised: ``<|im_end|>`` becomes the tokens of its letters.

        Raises:
            TokenizerError: the text holds a lone surrogate.
        """
        if not text:
            return []
        try:
            ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise TokenizerError(f"text is not valid Unicode: {error}") from error
        return ids

    def encode_control(self, text: str) -> list[int]:
        """Token ids of text in which every control token is recognised. Only for text that no user or tool wrote."""
        ids: list[int] = []
        for piece, token_id in self.split_control(text):
            ids += self.encode(piece) if token_id is None else [token_id]
        return ids

    def split_control(self, text: str) -> list[tuple[str, int | None]]:
        """The text cut at control tokens, as pairs (literal, id) and (other text, None), in order, none empty."""
        pieces: list[tuple[str, int | None]] = []
        end = 0
        for match in self._control_pattern.finditer(text):
            if match.start() > end:
                pieces.append((text[end : match.start()], None))
            pieces.append((match.group(), self.control_tokens[match.group()]))
            end = match.end()
        if end < len(text):
            pieces.append((text[end:], None))
        return pieces

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of the tokens; bytes that are no UTF-8 become U+FFFD. ``skip_special`` leaves out ``special_ids``."""
        decoder = self.decoder(skip_special=skip_special)
        return "".join([decoder.feed(token_id) for token_id in token_ids]) + decoder.flush()

    def decoder(self, *, skip_special: bool = False) -> TokenDecoder:
        """A decoder for a stream of ids."""
        return TokenDecoder(self, skip_special=skip_special)

    def control_id(self, literal: str) -> int:
        """Id of the control token with this literal.

        Raises:
            TokenizerError: the checkpoint has no such token.
        """
        if literal not in self.control_tokens:
            raise TokenizerError(f"the tokenizer has no token {literal!r}")
        return self.control_tokens[literal]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for. Padding ids past the vocabulary give the bytes of U+FFFD.

        Raises:
            TokenizerError: the id is negative.
        """
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._token_bytes(token_id)
        return known

    def _token_bytes(self, token_id: int) -> bytes:
        if token_id < 0:
            raise TokenizerError(f"token id is {token_id}, allowed is 0 or more")
        if token_id in self.control_literals:
            return self.control_literals[token_id].encode()
        token = self._bpe.id_to_token(token_id)
        if token is None:
            return _REPLACEMENT
        try:
            return bytes(BYTE_OF_CHARACTER[character] for character in token)
        except KeyError as error:
            raise TokenizerError(f"token {token_id} is {token!r}, which is not byte-level text") from error


def _control_tokens(added: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    tokens: dict[str, int] = {}
    for entry in added:
        literal, token_id = entry.get("content"), entry.get("id")
        if not isinstance(literal, str) or not literal or not isinstance(token_id, int):
            raise TokenizerError(f"added token {entry!r} has no literal or no id")
        for flag in ("lstrip", "rstrip", "single_word", "normalized"):
            if entry.get(flag):
                raise TokenizerError(f"added token {literal!r} sets {flag}, only literal tokens are supported")
        tokens[literal] = token_id
    return tokens


def _text_only_backend(data: dict[str, Any], control_tokens: Mapping[str, int]) -> tokenizers.Tokenizer:
    """The BPE without its control tokens, so that no text can become one."""
    model = data.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"tokenizer model is {model.get('type')!r}, only byte-level BPE is supported")
    vocab = {token: i for token, i in model["vocab"].items() if token not in control_tokens}
    plain = {**data, "added_tokens": [], "post_processor": None, "model": {**model, "vocab": vocab}}
    plain |= {"truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:
        raise TokenizerError(f"tokenizer.json cannot be used: {error}") from error


def _parse(tokenizer_json: str) -> dict[str, Any]:
    try:
        data = json.loads(tokenizer_json)
    except ValueError as error:
        raise TokenizerError(f"tokenizer.json is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"tokenizer.json holds a {type(data).__name__}, expected an object")
    return data


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TokenizerError(
            f"{path} does not exist", hint="a checkpoint directory needs its tokenizer.json"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error


def _read_json_object(path: Path) -> dict[str, Any]:
    """The object in an optional file; an absent file is an empty object."""
    if not path.exists():
        return {}
    try:
        data = json.loads(_read(path))
    except ValueError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    return data if isinstance(data, dict) else {}
