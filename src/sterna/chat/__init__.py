"""Requests to prompts and tokens to events: tokenizer, template, incremental parser, tool calls, presets.

    chat = ChatFormat.load(checkpoint_dir)            # format.py: tokenizer.json + chat_template.jinja
    prompt = chat.render(request)                     # RenderedPrompt: token_ids, text, turn_starts, media
    parser = chat.parser(request)                     # stream_parser.py, one per answer
    events = parser.feed(token_id)                    # list[ChatEvent]; feed_text(text) where there are no ids
    events = parser.finish(finish_reason, usage)      # the rest, last of all End with the whole Message
    request = get_preset("agent").apply(request)      # presets.py

``messages`` holds the request and the events, ``normalise.parse_arguments`` reads tool arguments as clients send them.
This package knows neither the engine nor any protocol.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sterna.chat.format import ChatFormat, RenderedPrompt
    from sterna.chat.presets import PRESETS, get_preset
    from sterna.chat.stream_parser import StreamParser

__all__ = ["PRESETS", "ChatFormat", "RenderedPrompt", "StreamParser", "get_preset"]

_HOME = {
    "ChatFormat": "format",
    "RenderedPrompt": "format",
    "StreamParser": "stream_parser",
    "PRESETS": "presets",
    "get_preset": "presets",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for, so that ``messages`` costs neither Jinja nor the tokenizer."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
