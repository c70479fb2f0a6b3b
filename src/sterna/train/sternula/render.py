"""Rendering of episodes through Sternula's own chat template, as the run time does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sterna.chat.messages import Message
from sterna.errors import TemplateError


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def template_text() -> str:
    """The source of ``chat_template.jinja``."""
    return (resources.files("sterna.train.sternula") / "chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise
    return environment.from_string(template_text())


@lru_cache(maxsize=1)
def agent_tools() -> list[dict[str, Any]]:
    """The agent's tools as the template takes them."""
    text = (resources.files("sterna.agent") / "data" / "tools.json").read_text(encoding="utf-8")
    return [{"type": "function", "function": tool} for tool in json.loads(text)]


@lru_cache(maxsize=1)
def system_prompt() -> str:
    """The agent's system prompt."""
    return (resources.files("sterna.agent") / "data" / "system.md").read_text(encoding="utf-8").strip()


def _as_json(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.role == "assistant":
        turn["reasoning_content"] = message.reasoning or ""
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    return turn


def render(messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None, **options: bool) -> str:
    """The text that the model reads; ``options`` as of the template, ``preserve_thinking`` is on as in the agent."""
    variables = {"preserve_thinking": True, "add_generation_prompt": False, **options}
    return _template().render(messages=[_as_json(message) for message in messages], tools=tools, **variables)
