"""Tokenizers, templates and a second, independent renderer for tests of ``sterna.chat``."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import decoders, models, pre_tokenizers, trainers

from sterna.chat.byte_level import BYTE_OF_CHARACTER, CONTROL_TOKENS, tokenizer_json
from sterna.chat.format import ChatFormat
from sterna.chat.messages import ChatRequest, Message, Tool
from sterna.chat.template import ChatTemplate
from sterna.chat.tokenizer import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_TEMPLATE = (REPOSITORY / "src/sterna/chat/data/chat_template.jinja").read_text()

WEATHER = Tool(
    "get_weather",
    "Weather now",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
EDIT = Tool(
    "edit",
    "Edit a file",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "text": {"type": "string"},
            "line": {"type": "integer"},
            "ratio": {"type": "number"},
            "force": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "options": {"type": "object"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["path"],
    },
)


def shared_directory(name: str) -> Path | None:
    """A directory of the material that lies beside the repository, or ``None`` where it does not."""
    for parent in REPOSITORY.parents:
        if (parent / "shared" / name).is_dir():
            return parent / "shared" / name
    return None


def official_template() -> str | None:
    """The official chat template, which is not ours to keep in the repository."""
    directory = shared_directory("spec/official")
    return None if directory is None else (directory / "chat_template.jinja").read_text()


@functools.cache
def tiny_tokenizer_json() -> str:
    """A small byte-level BPE of the family: merges learned from two of our sources, then the 33 control tokens."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    corpus = [Path(__file__).read_text(), OWN_TEMPLATE, "é ü 毕老师 😀 text im_start im_end think tool_call " * 20]
    trained.train_from_iterator(corpus, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab = {_as_bytes(token): token_id for token, token_id in model["vocab"].items()}
    return tokenizer_json(vocab, [(_as_bytes(left), _as_bytes(right)) for left, right in model["merges"]])


def _as_bytes(token: str) -> bytes:
    return bytes(BYTE_OF_CHARACTER[character] for character in token)


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """The tokenizer of ``tiny_tokenizer_json``."""
    added = {entry["content"]: entry["id"] for entry in json.loads(tiny_tokenizer_json())["added_tokens"]}
    assert tuple(added) == CONTROL_TOKENS
    return Tokenizer(tiny_tokenizer_json(), eos_token_ids=[added["<|im_end|>"], added["<|endoftext|>"]])


@functools.cache
def compiled(template: str) -> ChatTemplate:
    """The compiled template."""
    return ChatTemplate(template)


def chat_format(template: str = OWN_TEMPLATE) -> ChatFormat:
    """The tiny tokenizer with a template."""
    return ChatFormat(tiny_tokenizer(), compiled(template))


@functools.cache
def _reference_template(source: str) -> jinja2.Template:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)


def run_template(source: str, variables: Mapping[str, Any]) -> str:
    """The template as the family's reference library runs it, with nothing of ours in between."""
    return _reference_template(source).render(**variables)


def variables_of(request: ChatRequest) -> dict[str, Any]:
    """A request handed to a template as it is, without any normalisation."""
    return {
        "messages": [_as_json(message) for message in request.messages],
        "tools": [tool.as_json() for tool in request.tools] or None,
        "add_generation_prompt": True,
        "enable_thinking": request.enable_thinking,
        "preserve_thinking": request.preserve_thinking,
    }


def _as_json(message: Message) -> dict[str, Any]:
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        data["reasoning_content"] = message.reasoning
    if message.tool_calls:
        data["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return data


def intended_rendering(request: ChatRequest, tools_text: str) -> str:
    """What a conversation of plain texts should look like; ``tools_text`` stands in the first turn."""
    messages = list(request.messages)
    lead = []
    while messages and messages[0].role in ("system", "developer"):
        lead.append(str(messages.pop(0).content or "").strip())
    out = ""
    system = "\n\n".join(filter(None, lead))
    if tools_text or lead:
        out += f"<|im_start|>system\n{tools_text}{chr(10) * 2 if tools_text and system else ''}{system}<|im_end|>\n"
    queries = [i for i, message in enumerate(messages) if message.role == "user"]
    open_end = bool(messages) and messages[-1].role == "assistant" and not messages[-1].tool_calls
    for i, message in enumerate(messages):
        text = str(message.content or "").strip()
        if message.role == "tool":
            out += "" if i and messages[i - 1].role == "tool" else "<|im_start|>user"
            out += f"\n<tool_response>\n{text}\n</tool_response>"
            out += "" if i + 1 < len(messages) and messages[i + 1].role == "tool" else "<|im_end|>\n"
            continue
        role = "system" if message.role == "developer" else message.role
        if role == "assistant" and (request.preserve_thinking or not queries or i > queries[-1]):
            text = f"<think>\n{(message.reasoning or '').strip()}\n</think>\n\n{text}"
        out += f"<|im_start|>{role}\n{text}<|im_end|>\n"
    if open_end:
        return out.removesuffix("<|im_end|>\n")
    return out + "<|im_start|>assistant\n<think>\n" + ("" if request.enable_thinking else "\n</think>\n\n")
