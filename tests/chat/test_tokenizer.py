"""The tokenizer against the library's own handling of the same file, and its streaming decoder."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.chat.byte_level import CONTROL_TOKENS
from sterna.chat.tokenizer import Tokenizer
from sterna.errors import TokenizerError
from support.chat import tiny_tokenizer, tiny_tokenizer_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MIXED = st.lists(st.one_of(TEXT, st.sampled_from(CONTROL_TOKENS)), max_size=6).map("".join)


REFERENCE = tokenizers.Tokenizer.from_str(tiny_tokenizer_json())


def reference_ids(text: str) -> list[int]:
    ids: list[int] = REFERENCE.encode(text, add_special_tokens=False).ids
    return ids


@settings(max_examples=150, deadline=None)
@given(MIXED)
def test_with_control_tokens_it_encodes_as_the_library_does(text: str) -> None:
    assert tiny_tokenizer().encode_control(text) == reference_ids(text)


@settings(max_examples=150, deadline=None)
@given(MIXED)
def test_plain_text_never_gives_a_control_token_and_comes_back_whole(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.control_literals)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_text_is_composed_before_it_is_encoded() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=30), st.booleans())
def test_streaming_equals_decoding_at_once(ids: list[int], skip_special: bool) -> None:
    tokenizer = tiny_tokenizer()
    decoder = tokenizer.decoder(skip_special=skip_special)
    pieces = [decoder.feed(token_id) for token_id in ids]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids, skip_special=skip_special)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 599), max_size=30))
def test_decoding_equals_the_librarys(ids: list[int]) -> None:
    assert tiny_tokenizer().decode(ids) == REFERENCE.decode(ids, skip_special_tokens=False)


def test_an_incomplete_character_is_held_back() -> None:
    tokenizer = tiny_tokenizer()
    single = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}
    decoder = tokenizer.decoder()
    pieces = [decoder.feed(single[bytes([byte])]) for byte in "a😀é".encode()]
    assert pieces == ["a", "", "", "", "😀", "", "é"]
    assert decoder.feed(single[b"\xf0"]) == ""
    assert decoder.flush() == "\N{REPLACEMENT CHARACTER}"
    assert decoder.feed(single[b"\xf0"]) + decoder.feed(tokenizer.control_id("<think>")) == "\ufffd<think>"


def test_all_single_bytes_decode_as_python_does() -> None:
    tokenizer = tiny_tokenizer()
    single = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}
    everything = bytes(range(256)) * 2
    expected = codecs.decode(everything, "utf-8", "replace")
    assert tokenizer.decode([single[bytes([byte])] for byte in everything]) == expected


def test_what_skip_special_removes() -> None:
    tokenizer = tiny_tokenizer()
    text = "".join(CONTROL_TOKENS)
    kept = tokenizer.decode(tokenizer.encode_control(text), skip_special=True)
    for literal in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"):
        assert literal in kept
    for literal in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|image_pad|>"):
        assert literal not in kept


def test_padding_ids_are_visible_and_negative_ids_refused() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.vocab_size == 633
    assert tokenizer.decode([tokenizer.vocab_size + 10]) == "\N{REPLACEMENT CHARACTER}"
    with pytest.raises(TokenizerError, match="token id is -1, allowed is 0 or more"):
        tokenizer.decode([-1])


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(TokenizerError, match="not valid Unicode"):
        tiny_tokenizer().encode("a\ud800b")


def test_unknown_control_token_is_refused_by_name() -> None:
    with pytest.raises(TokenizerError, match="no token '<nope>'"):
        tiny_tokenizer().control_id("<nope>")


def write(directory: Path, name: str, data: Any) -> None:
    (directory / name).write_text(data if isinstance(data, str) else json.dumps(data))


def test_end_tokens_come_from_both_files(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.json", tiny_tokenizer_json())
    with pytest.raises(TokenizerError, match="names no end-of-turn token"):
        Tokenizer.from_directory(tmp_path)
    write(tmp_path, "tokenizer_config.json", {"eos_token": {"content": "<|im_end|>"}})
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == (602,)
    write(tmp_path, "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    write(tmp_path, "generation_config.json", {"eos_token_id": 600})
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == (600, 602)
    write(tmp_path, "generation_config.json", {"eos_token_id": [602, 600]})
    assert Tokenizer.from_directory(tmp_path).eos_token_ids == (602, 600)
    write(tmp_path, "generation_config.json", {"eos_token_id": [9999]})
    with pytest.raises(TokenizerError, match="end token 9999 is not in the vocabulary of 633 tokens"):
        Tokenizer.from_directory(tmp_path)
    write(tmp_path, "tokenizer_config.json", {"eos_token": "<eos>"})
    with pytest.raises(TokenizerError, match="'<eos>'"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ({"model": {"type": "Unigram"}}, "'Unigram', only byte-level BPE"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "cannot be used"),
        ({"added_tokens": [{"id": 1, "content": "<x>", "lstrip": True}]}, "'<x>' sets lstrip"),
        ({"added_tokens": [{"id": "1", "content": "<x>"}]}, "no literal or no id"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_directory(tmp_path)
    data = change if isinstance(change, str) else {**json.loads(tiny_tokenizer_json()), **change}
    write(tmp_path, "tokenizer.json", data)
    write(tmp_path, "generation_config.json", {"eos_token_id": 1})
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_directory(tmp_path)


def test_control_tokens_inside_the_vocabulary_are_no_text_either() -> None:
    data = json.loads(tiny_tokenizer_json())
    data["model"]["vocab"]["<|im_end|>"] = 602
    data["model"]["ignore_merges"] = True
    tokenizer = Tokenizer(json.dumps(data), eos_token_ids=[602])
    assert 602 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.encode_control("<|im_end|>") == [602]
