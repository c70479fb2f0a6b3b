"""The package's public names, and a checkpoint directory from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sterna.chat
from sterna.chat import ChatFormat
from sterna.chat.messages import ChatRequest, End, Message, ToolCallError
from sterna.types import FinishReason
from support.chat import OWN_TEMPLATE, tiny_tokenizer_json


def test_every_public_name_is_there() -> None:
    for name in sterna.chat.__all__:
        assert getattr(sterna.chat, name).__class__ is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sterna.chat.nothing


def test_messages_load_neither_jinja_nor_the_tokenizer() -> None:
    code = (
        "import sys, sterna.chat.messages; print(sorted({'jinja2', 'tokenizers', 'torch', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_checkpoint_directory(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (tmp_path / "chat_template.jinja").write_text(OWN_TEMPLATE)
    chat = ChatFormat.load(tmp_path)
    request = ChatRequest((Message("user", "2 + 2?"),))
    prompt = chat.render(request)
    assert chat.tokenizer.decode(prompt.token_ids) == prompt.text
    assert prompt.text == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert prompt.starts_in_reasoning
    parser = chat.parser(request)
    generated = chat.tokenizer.encode_control("Easy.\n</think>\n\n4<|im_end|>")
    events = [event for token_id in generated for event in parser.feed(token_id)]
    end = [*events, *parser.finish(FinishReason.STOP)][-1]
    assert isinstance(end, End)
    assert end.message == Message("assistant", "4", "Easy.", token_ids=tuple(generated))
    follow = chat.render(ChatRequest((*request.messages, end.message, Message("user", "Sure?"))))
    assert follow.token_ids[: len(prompt.token_ids) + len(generated)] == prompt.token_ids + tuple(generated)


def test_a_malformed_call_comes_back_with_the_id_that_its_answer_needs(tmp_path: Path) -> None:
    parser = sterna.chat.StreamParser()
    events = [*parser.feed_text("</think><tool_call>?</tool_call>"), *parser.finish(FinishReason.STOP)]
    error, end = events
    assert isinstance(error, ToolCallError) and error.id.startswith("call_")
    assert isinstance(end, End) and end.finish_reason is FinishReason.STOP
