"""A GGUF file talks as the checkpoint that it was made of: same token ids, same template, same answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sterna.chat.format import ChatFormat
from sterna.chat.gguf_tokenizer import chat_format, tokenizer_json
from sterna.chat.messages import ChatRequest, End, Message
from sterna.chat.tokenizer import Tokenizer
from sterna.checkpoint import Checkpoint
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.gguf_metadata import GgufTokenizer
from sterna.checkpoint.gguf_writer import uniform, write_gguf
from sterna.config import EngineConfig
from sterna.errors import TokenizerError, UsageError
from sterna.llm import LLM
from sterna.locate import STERNULA_DIRECTORY
from sterna.types import SamplingParams

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
TEXTS = ("def f(x):\n\treturn x  # ä é\u0301 数\n\n", "it's 1234 <|im_end|> <think>", " \u200b🦆\r\n   ")
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


def stored_tokenizer(directory: Path) -> GgufTokenizer:
    """The tokenizer of a directory as converters write it."""
    data = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    added = {each["id"]: each for each in data["added_tokens"]}
    tokens = {i: token for token, i in data["model"]["vocab"].items()} | {i: a["content"] for i, a in added.items()}
    kinds = [NORMAL if i not in added else CONTROL if added[i]["special"] else USER_DEFINED for i in range(len(tokens))]
    return GgufTokenizer(
        model="gpt2",
        pre="qwen35",
        tokens=[tokens[i] for i in range(len(tokens))],
        merges=[" ".join(merge) for merge in data["model"]["merges"]],
        token_types=kinds,
        chat_template=(directory / "chat_template.jinja").read_text(encoding="utf-8"),
        eos_token_id=Tokenizer.from_directory(directory).eos_token_ids[0],
        bos_token_id=None,
        padding_token_id=None,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    target = tmp_path_factory.mktemp("gguf") / "sternula.gguf"
    source = Checkpoint(STERNULA_DIRECTORY)
    write_gguf(target, source, choose=uniform("F16"), file_type="F16", tokenizer=stored_tokenizer(STERNULA_DIRECTORY))
    yield target
    target.unlink()


def test_the_same_token_ids_and_the_same_prompt(path: Path) -> None:
    ours, theirs = chat_format(GgufCheckpoint(path)), ChatFormat.load(STERNULA_DIRECTORY)
    for text in TEXTS:
        assert ours.tokenizer.encode(text) == theirs.tokenizer.encode(text)
        assert ours.tokenizer.decode(ours.tokenizer.encode(text)) == text
    assert ours.tokenizer.control_tokens == theirs.tokenizer.control_tokens
    assert ours.tokenizer.special_ids == theirs.tokenizer.special_ids
    assert set(ours.tokenizer.eos_token_ids) >= set(theirs.tokenizer.eos_token_ids[:1])
    request = ChatRequest((Message("system", "be brief"), Message("user", TEXTS[0])))
    assert ours.render(request) == theirs.render(request)


def test_the_same_answer(path: Path) -> None:
    config = EngineConfig(max_model_len=512)
    request = ChatRequest((Message("user", "Who are you?"),), sampling=GREEDY)
    answers = []
    for source in (path, STERNULA_DIRECTORY):
        with LLM.load(source, backend="native", engine_config=config) as llm:
            end = list(llm.chat(request))[-1]
            assert isinstance(end, End)
            answers.append(end.message.token_ids)
    assert len(answers[0]) > 5
    assert answers[0] == answers[1]


def test_a_recipe_for_a_gguf_file_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="for checkpoint directories only"):
        LLM.load(path, recipe="q4")


@pytest.mark.parametrize(("field", "value"), [("model", "llama"), ("pre", "qwen2")])
def test_unknown_kinds_are_refused_by_name(field: str, value: str) -> None:
    with pytest.raises(TokenizerError, match=f"is '{value}'"):
        tokenizer_json(replace(stored_tokenizer(STERNULA_DIRECTORY), **{field: value}))
