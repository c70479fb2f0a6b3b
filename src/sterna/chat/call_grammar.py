"""The tags of a tool call: found while they arrive, and a closing tag told from text that looks like one."""

from __future__ import annotations

import re
from enum import Enum, auto

from sterna.chat.text_streams import CALL, CALL_END, THINK, THINK_END

MARKER = re.compile(f"[{THINK}{THINK_END}{CALL}{CALL_END}]")
_NAME = r"[^<>\n\ud800-\udfff]{1,256}"
FUNCTION = re.compile(rf"<function=({_NAME})>")
PARAMETER = re.compile(rf"<parameter=({_NAME})>")
FUNCTION_OPEN, PARAMETER_OPEN = "<function=", "<parameter="
FUNCTION_CLOSE, PARAMETER_CLOSE = "</function>", "</parameter>"
# More white space than this after a closing tag is part of the value, so that look-ahead stays short.
_MAX_GAP = 64
FORM = (
    "a call has the form <tool_call>, <function=NAME>, for each parameter <parameter=KEY>, its value and </parameter>, "
    "then </function> and </tool_call>, each on its own line"
)


class Ahead(Enum):
    """What follows a ``</parameter>``."""

    CLOSED = auto()
    TEXT = auto()
    WAIT = auto()


def may_become_tag(text: str, opening: str) -> bool:
    """Whether text is the beginning of a tag ``opening`` + NAME + ``>``."""
    if len(text) < len(opening):
        return opening.startswith(text)
    name = text[len(opening) :]
    return text.startswith(opening) and (not name or re.fullmatch(_NAME, name) is not None)


def look_ahead(text: str) -> Ahead:
    """Whether the text after a ``</parameter>`` goes on with the call, which makes that tag the end of its value."""
    rest = text.lstrip()
    if len(text) - len(rest) > _MAX_GAP:
        return Ahead.TEXT
    if not rest:
        return Ahead.WAIT
    if rest[0] == CALL_END or PARAMETER.match(rest):
        return Ahead.CLOSED
    if rest.startswith(FUNCTION_CLOSE):
        behind = rest[len(FUNCTION_CLOSE) :].lstrip()
        if len(rest) - len(FUNCTION_CLOSE) - len(behind) > _MAX_GAP:
            return Ahead.TEXT
        if not behind:
            return Ahead.WAIT
        return Ahead.CLOSED if behind[0] == CALL_END else Ahead.TEXT
    waiting = may_become_tag(rest, PARAMETER_OPEN) or FUNCTION_CLOSE.startswith(rest)
    return Ahead.WAIT if waiting else Ahead.TEXT
