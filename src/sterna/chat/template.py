"""The checkpoint's own chat template, run where it can do no harm, on texts that it cannot mistake for markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sterna.chat.jinja_sandbox import SandboxedTemplate
from sterna.chat.normalise import Conversation, Media, Part, Turn, is_tool_response, strip_parts
from sterna.chat.sentinels import TOOL_RESPONSE, Order, Segment, Sentinels
from sterna.errors import TemplateError

_PLACEHOLDER = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
}


class ChatTemplate:
    """A compiled chat template. Safe to share between threads: it keeps no state of a rendering."""

    def __init__(self, source: str) -> None:
        """Compiles the template.

        Raises:
            TemplateError: a syntax error, or something that the sandbox does not have.
        """
        self._template = SandboxedTemplate(source)
        self._generation_prompts: dict[bool, str] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> ChatTemplate:
        """Reads ``chat_template.jinja``, or else the ``chat_template`` of ``tokenizer_config.json``.

        Raises:
            TemplateError: the directory has no chat template.
        """
        path = directory / "chat_template.jinja"
        try:
            if path.exists():
                return cls(path.read_text(encoding="utf-8"))
            path = directory / "tokenizer_config.json"
            config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise TemplateError(f"{path} cannot be read: {error}") from error
        source = config.get("chat_template") if isinstance(config, dict) else None
        if isinstance(source, list):
            source = {entry.get("name"): entry.get("template") for entry in source}.get("default")
        if not isinstance(source, str):
            raise TemplateError(
                f"{directory} has no chat template", hint="put the checkpoint's chat_template.jinja next to its weights"
            )
        return cls(source)

    def render(self, conversation: Conversation) -> list[Segment]:
        """The prompt as segments of template text, other text and sampled tokens.

        Raises:
            TemplateError: the template raises, or exceeds its limits of time and size.
        """
        sentinels = Sentinels()
        try:
            messages = [self._message(turn, sentinels) for turn in conversation.turns]
        except RecursionError as error:
            raise TemplateError("arguments of a tool call are nested too deeply") from error
        rendered = self._template.render(
            {
                "messages": messages,
                "tools": [tool.as_json() for tool in conversation.tools] or None,
                "add_generation_prompt": conversation.add_generation_prompt,
                "enable_thinking": conversation.enable_thinking,
                "preserve_thinking": conversation.preserve_thinking,
            },
            to_json=sentinels.dump_json,
        )
        return sentinels.resolve(rendered)

    def generation_prompt(self, *, enable_thinking: bool) -> str:
        """What the template prints to open an answer, header included."""
        if enable_thinking not in self._generation_prompts:
            prompts = [self._plain(enable_thinking, add_generation_prompt=add) for add in (False, True)]
            if not prompts[1].startswith(prompts[0]):
                raise TemplateError("the chat template prints earlier turns differently when it opens an answer")
            self._generation_prompts[enable_thinking] = prompts[1][len(prompts[0]) :]
        return self._generation_prompts[enable_thinking]

    def _plain(self, enable_thinking: bool, *, add_generation_prompt: bool) -> str:
        variables = {
            "messages": [{"role": "user", "content": "x"}],
            "tools": None,
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": enable_thinking,
        }
        return self._template.render(variables, to_json=json.dumps)

    def _message(self, turn: Turn, sentinels: Sentinels) -> dict[str, Any]:
        if turn.role == "system":
            return _system_message(turn, sentinels)
        if turn.role == "user":
            return _user_message(turn, sentinels)
        if turn.role == "tool":
            return {"role": "tool", "content": _content(turn.parts, sentinels)}
        return self._assistant_message(turn, sentinels)

    def _assistant_message(self, turn: Turn, sentinels: Sentinels) -> dict[str, Any]:
        reasoning_order, content_order = Order(), Order()
        if turn.token_ids is not None:
            thinking = turn.reasoning is not None
            opening = self.generation_prompt(enable_thinking=thinking)
            reasoning_order = Order(
                token_ids=turn.token_ids,
                prefix=opening[opening.find("\n") + 1 :],
                leave_open=bool(turn.leave_open),
            )
        elif turn.leave_open == "reasoning":
            reasoning_order = Order(leave_open=True)
        if turn.leave_open == "content":
            content_order = Order(leave_open=True)
        elif turn.is_exact and any(turn.parts):
            content_order = Order(exact=True)
        message: dict[str, Any] = {"role": "assistant"}
        if turn.reasoning is not None or turn.token_ids is not None:
            message["reasoning_content"] = sentinels.protect(turn.reasoning or "", reasoning_order)
        message["content"] = _content(turn.parts, sentinels, last=content_order)
        if turn.calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": sentinels.protect(name), "arguments": sentinels.protect_all(arguments)},
                }
                for name, arguments in turn.calls
            ]
        return message


def _system_message(turn: Turn, sentinels: Sentinels) -> dict[str, Any]:
    content = "".join(_protect_part(part, sentinels) for part in turn.parts)
    if not turn.late_system:
        return {"role": "system", "content": content}
    # In a tool result's wrapping a user turn does not count as a question, so no reasoning is dropped because of it.
    inner = "".join(_protect_part(part, sentinels) for part in strip_parts(turn.parts))
    start = sentinels.protect("", Order(before=TOOL_RESPONSE[0], role="system"))
    return {"role": "user", "content": start + inner + sentinels.protect("", Order(after=TOOL_RESPONSE[1]))}


def _user_message(turn: Turn, sentinels: Sentinels) -> dict[str, Any]:
    before, after = ("", "") if turn.is_query else TOOL_RESPONSE
    if turn.filler:
        return {"role": "user", "content": sentinels.protect("", Order(before=before, after=after, cut=True))}
    if turn.is_query or not is_tool_response(turn.parts):
        return {"role": "user", "content": _content(turn.parts, sentinels)}
    first, last = Order(before=before), Order(after=after)
    if len(turn.parts) == 1:
        first = last = Order(before=before, after=after)
    return {"role": "user", "content": _content(turn.parts, sentinels, first=first, last=last)}


def _protect_part(part: Part, sentinels: Sentinels) -> str:
    if isinstance(part, Media):
        return sentinels.protect(_PLACEHOLDER[part.kind], Order(is_control=True))
    return sentinels.protect(part)


def _content(
    parts: tuple[Part, ...], sentinels: Sentinels, *, first: Order | None = None, last: Order | None = None
) -> Any:
    """Content for the template: text where there is only text, else a list; orders go to the first and last text."""
    items: list[Any] = []
    for i, part in enumerate(parts):
        order = last if last is not None and i == len(parts) - 1 else first if i == 0 else None
        if isinstance(part, Media):
            items.append({"type": part.kind})
        else:
            items.append({"type": "text", "text": sentinels.protect(part, order or Order())})
    if last is not None and last.leave_open and (not parts or isinstance(parts[-1], Media)):
        items.append({"type": "text", "text": sentinels.protect("", last)})
    if all(item["type"] == "text" for item in items):
        return "".join(item["text"] for item in items)
    return items
