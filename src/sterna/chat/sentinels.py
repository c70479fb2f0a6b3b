"""Stand-ins for text in a template, so that what people and tools wrote can never act as markup.

The template sees ``white space + stand-in + white space`` in place of every text: its trimming still works, and
nothing in the text can match what it looks for. Afterwards the stand-ins are exchanged for the text, marked as text.
A stand-in can also carry an order for the turn that it stands in: another role, cut the turn, leave it open, exchange
it for sampled tokens.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sterna.errors import TemplateError

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
TOOL_RESPONSE = ("<tool_response>", "</tool_response>")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the prompt: the template's own text (``is_control``), text of others, or tokens as sampled."""

    text: str
    is_control: bool
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What to do with the turn around a stand-in.

    ``before`` and ``after`` stand around it in the rendering and are removed there; a text that begins or ends with
    them keeps them as text. ``exact`` hides the text's outer white space from the template's trimming. ``role``
    renames the turn, ``cut`` removes it, ``leave_open`` ends the prompt after the text, ``token_ids`` replaces the
    turn's body by ``prefix`` and these tokens.
    """

    before: str = ""
    after: str = ""
    exact: bool = False
    role: str | None = None
    cut: bool = False
    leave_open: bool = False
    is_control: bool = False
    prefix: str = ""
    token_ids: tuple[int, ...] | None = None


_PLAIN = Order()

# Stand-ins are written in private-use characters, so that a piece of one that a template left over can be recognised.
_ALPHABET = 0xF0000
_DIGITS = "".join(chr(_ALPHABET + 256 + digit) for digit in range(10))
_STOP = chr(_ALPHABET + 256 + 10)
_TO_DIGITS = str.maketrans("0123456789", _DIGITS)
_FROM_DIGITS = str.maketrans(_DIGITS, "0123456789")
_REMAINS = re.compile(f"[{chr(_ALPHABET)}-{_STOP}]")


class Sentinels:
    """The stand-ins of one rendering; their names are random, so no text can contain one on purpose."""

    def __init__(self) -> None:
        self._nonce = "".join(chr(_ALPHABET + byte) for byte in secrets.token_bytes(16))
        self._texts: list[tuple[str, Order]] = []
        self._pattern = re.compile(f"{self._nonce}([{_DIGITS}]+){_STOP}")

    def protect(self, text: str, order: Order = _PLAIN) -> str:
        """A stand-in for ``text``, between the text's own outer white space; empty text without order stays empty."""
        core = text if order.exact else text.strip()
        if not core and order == _PLAIN:
            return text
        lead = text[: len(text) - len(text.lstrip())] if core and not order.exact else ""
        tail = text[len(text.rstrip()) :] if core and not order.exact else ""
        number = str(len(self._texts)).translate(_TO_DIGITS)
        self._texts.append((core, order))
        return f"{lead}{order.before}{self._nonce}{number}{_STOP}{order.after}{tail}"

    def _find(self, number: str) -> tuple[str, Order]:
        return self._texts[int(number.translate(_FROM_DIGITS))]

    def protect_all(self, value: Any) -> Any:
        """A copy of a JSON value with stand-ins for all its strings, keys included."""
        if isinstance(value, str):
            return self.protect(value)
        if isinstance(value, Mapping):
            return {self.protect(str(key)): self.protect_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect_all(item) for item in value]
        return value

    def reveal(self, text: str) -> str:
        """``text`` with the plain text in place of every stand-in."""
        return self._pattern.sub(lambda match: self._find(match.group(1))[0], text)

    def dump_json(self, value: Any, **options: Any) -> str:
        """JSON text of a value that holds stand-ins, as one stand-in: nothing that is printed as JSON is markup."""
        return self.protect(json.dumps(self._reveal_all(value), **options))

    def _reveal_all(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.reveal(value)
        if isinstance(value, Mapping):
            return {self._reveal_all(key): self._reveal_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._reveal_all(item) for item in value]
        return value

    def resolve(self, rendered: str) -> list[Segment]:
        """The segments of a rendering, with all orders carried out.

        Raises:
            TemplateError: the template broke a stand-in apart or printed a turn in a form that we do not know.
        """
        pieces = self._pattern.split(rendered)
        assembler = _Assembler(pieces[0])
        for number, control in zip(pieces[1::2], pieces[2::2], strict=True):
            text, order = self._find(number)
            assembler.add(text, order, control)
        segments = assembler.finish()
        if any(segment.is_control and _REMAINS.search(segment.text) for segment in segments):
            raise TemplateError("the chat template took a text apart that it may only print")
        return segments


class _Assembler:
    """Collects segments; ``_control`` is the template's own text since the last stand-in."""

    def __init__(self, control: str) -> None:
        self._segments: list[Segment] = []
        self._control = control
        self._skipping = False
        self._closed = False

    def add(self, text: str, order: Order, following: str) -> None:
        """Places one stand-in; ``following`` is the template's text up to the next one."""
        if self._closed:
            return
        if self._skipping:
            self._skip(following)
            return
        following = self._unwrap(order, following)
        if order.token_ids is not None:
            self._back_to_turn_start(keep_header=True)
            self._emit(Segment(self._control + order.prefix, True))
            self._emit(Segment(text, False, order.token_ids))
            self._control = ""
            self._closed = order.leave_open
            if not self._closed:
                self._skipping = True
                self._skip(following)
            return
        if order.cut:
            self._back_to_turn_start(keep_header=False)
            head, mark, rest = following.partition(TURN_END)
            if head.strip() or not mark:
                raise TemplateError(f"the chat template follows a user text by {following[:40]!r}, not by {TURN_END}")
            self._control += rest.removeprefix("\n")
            return
        if order.role is not None:
            header = re.search(r"user(\s*)$", self._control)
            if header is None:
                raise TemplateError(f"the chat template puts {self._control[-40:]!r} before a user text")
            self._control = self._control[: header.start()] + order.role + header.group(1)
        self._emit(Segment(self._control, True))
        self._emit(Segment(text, order.is_control))
        self._control = following
        if order.leave_open:
            self._control, self._closed = "", True

    def finish(self) -> list[Segment]:
        """All segments, neighbours of one kind merged."""
        if self._skipping:
            raise TemplateError(f"the chat template does not end an assistant turn by {TURN_END}")
        self._emit(Segment(self._control, True))
        return self._segments

    def _unwrap(self, order: Order, following: str) -> str:
        if not self._control.endswith(order.before) or not following.startswith(order.after):
            raise TemplateError("the chat template changed a user text that it may only print")
        if order.before:
            self._control = self._control[: -len(order.before)]
        return following[len(order.after) :]

    def _skip(self, following: str) -> None:
        position = following.find(TURN_END)
        if position >= 0:
            self._control, self._skipping = following[position:], False

    def _back_to_turn_start(self, *, keep_header: bool) -> None:
        start = self._control.rfind(TURN_START)
        if start < 0:
            raise TemplateError(f"the chat template starts a turn by {self._control[-40:]!r}, not by {TURN_START}")
        end = self._control.find("\n", start) + 1 if keep_header else start
        self._control = self._control[:end]

    def _emit(self, segment: Segment) -> None:
        last = self._segments[-1] if self._segments else None
        if not segment.text and segment.token_ids is None:
            return
        mergeable = last is not None and last.token_ids is None and segment.token_ids is None
        if last is not None and mergeable and last.is_control == segment.is_control:
            self._segments[-1] = replace(last, text=last.text + segment.text)
        else:
            self._segments.append(segment)
