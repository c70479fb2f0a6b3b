"""Text for a terminal: what a model or a tool wrote can move no cursor and set no title."""

from __future__ import annotations

import re
import sys

from rich.console import Console

# C0 and C1 controls apart from tab and newline, and the marks that reverse the direction of text
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with every control character shown as ``\\xNN``; a carriage return before a newline is dropped."""
    return _UNSAFE.sub(lambda match: f"\\x{ord(match.group()):02x}", text.replace("\r\n", "\n"))


def message_console() -> Console:
    """Where messages go: standard error."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def data_console() -> Console:
    """Where data goes: standard output."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
