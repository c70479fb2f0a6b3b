"""From generated tokens, or text, to typed events, as early as each is certain.

The grammar is what the template prints: reasoning up to ``</think>``, text, then calls of the form

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

``<think>``, ``</think>``, ``<tool_call>`` and ``</tool_call>`` are tokens of their own and recognised by id; the
inner tags are ordinary text. A value may contain anything: ``</parameter>`` ends it only where the call goes on as
the grammar says.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum, auto

from sterna.chat.call_grammar import (
    FORM,
    FUNCTION,
    FUNCTION_CLOSE,
    FUNCTION_OPEN,
    MARKER,
    PARAMETER,
    PARAMETER_CLOSE,
    PARAMETER_OPEN,
    Ahead,
    look_ahead,
    may_become_tag,
)
from sterna.chat.messages import (
    ChatEvent,
    End,
    Message,
    ReasoningDelta,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallArgumentsDelta,
    ToolCallEnd,
    ToolCallError,
    ToolCallStart,
)
from sterna.chat.normalise import as_turn
from sterna.chat.text_streams import (
    CALL,
    CALL_END,
    MARKER_LITERALS,
    THINK,
    THINK_END,
    ArgumentStream,
    MarkerLexer,
    TrimmedStream,
    held_back,
    with_literals,
)
from sterna.chat.tokenizer import Tokenizer
from sterna.chat.tool_calls import ToolTable
from sterna.types import FinishReason, Usage

_SLICE = 4096


class _State(Enum):
    REASONING = auto()
    CONTENT = auto()
    CALL_OPEN = auto()
    CALL_BODY = auto()
    VALUE = auto()
    CALL_CLOSE = auto()
    BROKEN = auto()


def _new_call_id() -> str:
    return "call_" + uuid.uuid4().hex[:24]


class StreamParser:
    """The parser of one answer. Feed it ids or text, not both; then ``finish``.

    Joined ``TextDelta`` and ``ReasoningDelta`` equal the final message's ``content`` and ``reasoning`` (without the
    part that was given, when an answer continues a message). The argument pieces of every started call are one valid
    JSON object, also after an error. A call whose syntax is complete is in ``message.tool_calls`` even if its schema
    check failed, so that the history shows it; only calls that ended with ``ToolCallEnd`` may be run.
    """

    def __init__(
        self,
        *,
        tools: Sequence[Tool] = (),
        enable_thinking: bool = True,
        starts_in_reasoning: bool | None = None,
        tokenizer: Tokenizer | None = None,
        continued: Message | None = None,
        new_call_id: Callable[[], str] = _new_call_id,
    ) -> None:
        """``tokenizer`` is needed for ``feed``; ``continued`` is the message that the answer goes on with."""
        self._tools = ToolTable(tools)
        self._enable_thinking = enable_thinking
        self._tokenizer = tokenizer
        self._decoder = tokenizer.decoder() if tokenizer is not None else None
        self._marker_ids: dict[int, str] = {}
        if tokenizer is not None:
            known = tokenizer.control_tokens
            self._marker_ids = {known[text]: mark for mark, text in MARKER_LITERALS.items() if text in known}
        self._continued = continued
        self._new_call_id = new_call_id
        in_reasoning = enable_thinking if starts_in_reasoning is None else starts_in_reasoning
        self._state = _State.REASONING if in_reasoning else _State.CONTENT
        self._reasoning = TrimmedStream(started=continued is not None and in_reasoning)
        self._content = TrimmedStream(started=continued is not None and not in_reasoning)
        self._lexer = MarkerLexer()
        self._buffer = ""
        self._events: list[ChatEvent] = []
        self._token_ids: list[int] = []
        self._reasoning_tokens = 0
        self._calls: list[ToolCall] = []
        self._index = -1
        self._call_id = ""
        self._name = ""
        self._raw: list[str] = []
        self._arguments: ArgumentStream | None = None
        self._value_is_new = False
        self._error = ""
        self._steps = {
            _State.REASONING: self._read_reasoning,
            _State.CONTENT: self._read_content,
            _State.CALL_OPEN: self._read_function,
            _State.CALL_BODY: self._read_parameter,
            _State.VALUE: self._read_value,
            _State.CALL_CLOSE: self._read_call_end,
            _State.BROKEN: self._read_broken,
        }

    @property
    def in_reasoning(self) -> bool:
        """Whether the model is writing reasoning now."""
        return self._state is _State.REASONING

    @property
    def in_tool_call(self) -> bool:
        """Whether the model is inside a tool call now; stop strings should not act there."""
        return self._state not in (_State.REASONING, _State.CONTENT)

    def feed(self, token_id: int) -> list[ChatEvent]:
        """The events that became certain with one sampled token. End tokens say nothing and are only recorded."""
        assert self._tokenizer is not None and self._decoder is not None, "a parser without tokenizer is fed by text"
        self._token_ids.append(token_id)
        if token_id in self._tokenizer.eos_token_ids:
            return []
        if self._state is _State.REASONING:
            self._reasoning_tokens += 1
        marker = self._marker_ids.get(token_id)
        text = self._decoder.feed(token_id) if marker is None else self._decoder.flush() + marker
        return self._consume(text)

    def feed_text(self, text: str) -> list[ChatEvent]:
        """The events that became certain with a piece of text; markers are recognised by their spelling."""
        return self._consume(self._lexer.feed(text))

    def finish(self, finish_reason: FinishReason, usage: Usage | None = None) -> list[ChatEvent]:
        """What was held back, an error for a call that is not complete, and ``End``.

        ``finish_reason`` STOP becomes TOOL_CALLS when the message has calls.
        """
        rest = self._lexer.flush() + (self._decoder.flush() if self._decoder is not None else "")
        events = self._consume(rest)
        if self.in_tool_call:
            self._end_unfinished(finish_reason)
            events += self._take_events()
        if finish_reason is FinishReason.STOP and self._calls:
            finish_reason = FinishReason.TOOL_CALLS
        usage = usage or Usage()
        if self._token_ids:
            usage = replace(usage, reasoning_tokens=self._reasoning_tokens)
        return [*events, End(finish_reason, self._message(), usage)]

    def _message(self) -> Message:
        reasoning: str | None = self._reasoning.text
        if not reasoning and not self._enable_thinking:
            reasoning = None
        content, token_ids = self._content.text, tuple(self._token_ids) or None
        if self._continued is not None:
            turn = as_turn(self._continued)
            given = "".join(part for part in turn.parts if isinstance(part, str)).strip()
            content, token_ids = given + content, None
            if turn.reasoning is not None:
                reasoning = turn.reasoning.strip() + (reasoning or "")
        return Message("assistant", content, reasoning, tuple(self._calls), None, token_ids)

    def _consume(self, text: str) -> list[ChatEvent]:
        # In slices, because every step copies what is left of the buffer.
        for start in range(0, len(text), _SLICE):
            self._buffer += text[start : start + _SLICE]
            self._read()
        return self._take_events()

    def _read(self) -> None:
        while self._buffer and self._steps[self._state]():
            pass

    def _take_events(self) -> list[ChatEvent]:
        events, self._events = self._events, []
        return events

    def _take(self, length: int) -> str:
        """Removes text from the front of the buffer; inside a call it is kept as ``raw``."""
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        if self.in_tool_call:
            self._raw.append(taken)
        return taken

    def _read_to_marker(self) -> tuple[str, str]:
        match = MARKER.search(self._buffer)
        if match is None:
            return self._take(len(self._buffer)), ""
        return self._take(match.start()), self._take(1)

    def _read_reasoning(self) -> bool:
        text, marker = self._read_to_marker()
        self._say_reasoning(text)
        if marker == THINK_END:
            self._state = _State.CONTENT
        elif marker == CALL:
            self._open_call()
        elif marker == CALL_END or (marker == THINK and not self._reasoning.is_blank):
            self._say_reasoning(MARKER_LITERALS[marker])
        return True

    def _read_content(self) -> bool:
        text, marker = self._read_to_marker()
        emitted = self._content.feed(text)
        if emitted:
            self._say(TextDelta(emitted))
        if marker == THINK:
            self._reasoning.separate()
            self._state = _State.REASONING
        elif marker == CALL:
            self._open_call()
        # A stray closing marker closes nothing and says nothing.
        return True

    def _say_reasoning(self, text: str) -> None:
        emitted = self._reasoning.feed(text)
        if emitted:
            self._say(ReasoningDelta(emitted))

    def _say(self, event: ChatEvent) -> None:
        """Adds an event; pieces of one kind that become certain together are one event."""
        last = self._events[-1] if self._events else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            self._events[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            self._events[-1] = ReasoningDelta(last.text + event.text)
        elif (
            isinstance(event, ToolCallArgumentsDelta)
            and isinstance(last, ToolCallArgumentsDelta)
            and last.index == event.index
        ):
            self._events[-1] = replace(last, json=last.json + event.json)
        else:
            self._events.append(event)

    def _open_call(self) -> None:
        self._content.separate()
        self._state = _State.CALL_OPEN
        self._index += 1
        self._call_id, self._name, self._error = self._new_call_id(), "", ""
        self._raw = [CALL]
        self._arguments = None

    def _skip_space(self) -> None:
        self._take(len(self._buffer) - len(self._buffer.lstrip()))

    def _read_tag(self, pattern: re.Pattern[str], opening: str) -> str | None:
        """The name in an opening tag at the front of the buffer; empty: tag is incomplete, ``None``: not such a tag."""
        match = pattern.match(self._buffer)
        if match is not None:
            self._take(match.end())
            return match.group(1).strip()
        return "" if may_become_tag(self._buffer, opening) else None

    def _read_function(self) -> bool:
        self._skip_space()
        name = self._read_tag(FUNCTION, FUNCTION_OPEN)
        if name is None:
            return self._break("<tool_call> is not followed by <function=NAME>")
        if not name:
            return False
        self._name = name
        self._say(ToolCallStart(self._index, self._call_id, name))
        index = self._index
        self._arguments = ArgumentStream(self._tools, name, lambda text: self._say(ToolCallArgumentsDelta(index, text)))
        self._state = _State.CALL_BODY
        return True

    def _read_parameter(self) -> bool:
        self._skip_space()
        if self._buffer.startswith(FUNCTION_CLOSE):
            self._take(len(FUNCTION_CLOSE))
            self._state = _State.CALL_CLOSE
            return True
        key = self._read_tag(PARAMETER, PARAMETER_OPEN)
        if key is None and not FUNCTION_CLOSE.startswith(self._buffer):
            return self._break("expected <parameter=KEY> or </function>")
        if not key:
            return False
        assert self._arguments is not None
        self._arguments.open(key)
        self._state, self._value_is_new = _State.VALUE, True
        return True

    def _read_value(self) -> bool:
        if self._value_is_new:
            if self._buffer.startswith("\n"):
                self._take(1)
            self._value_is_new = False
        end = self._buffer.find(PARAMETER_CLOSE)
        if end < 0:
            held = max(held_back(self._buffer, "\n" + PARAMETER_CLOSE), held_back(self._buffer, PARAMETER_CLOSE))
            self._take_value(len(self._buffer) - held)
            return False
        ahead = look_ahead(self._buffer[end + len(PARAMETER_CLOSE) :])
        if ahead is Ahead.TEXT:
            self._take_value(end + len(PARAMETER_CLOSE))
            return True
        newline = 1 if self._buffer[:end].endswith("\n") else 0
        self._take_value(end - newline)
        if ahead is Ahead.WAIT:
            return False
        self._close_value(newline)
        return True

    def _take_value(self, length: int) -> None:
        assert self._arguments is not None
        self._arguments.feed(with_literals(self._take(length)))

    def _close_value(self, newline: int) -> None:
        assert self._arguments is not None
        self._take(newline + len(PARAMETER_CLOSE))
        self._arguments.close()
        self._state = _State.CALL_BODY

    def _read_call_end(self) -> bool:
        self._skip_space()
        if not self._buffer:
            return False
        if self._buffer[0] != CALL_END:
            return self._break("</function> is not followed by </tool_call>")
        self._take(1)
        self._end_call()
        return True

    def _end_call(self) -> None:
        assert self._arguments is not None
        self._arguments.finish()
        call = ToolCall(self._name, self._arguments.arguments, self._call_id)
        self._calls.append(call)
        problems = [*self._tools.problems(self._name, call.arguments), *self._arguments.problems]
        if problems:
            self._say(ToolCallError(self._index, self._raw_text(), "; ".join(problems), self._call_id))
        else:
            self._say(ToolCallEnd(self._index, call))
        self._state = _State.CONTENT

    def _raw_text(self) -> str:
        return with_literals("".join(self._raw))

    def _break(self, message: str) -> bool:
        self._error = f"{message}; {FORM}"
        self._state = _State.BROKEN
        return True

    def _read_broken(self) -> bool:
        """Passes over a malformed call, to its end or to the next one."""
        match = re.search(f"[{CALL}{CALL_END}]", self._buffer)
        if match is None:
            self._take(len(self._buffer))
            return False
        self._take(match.start())
        closes = self._buffer[0] == CALL_END
        if closes:
            self._take(1)
        self._report_broken()
        self._state = _State.CONTENT
        return True

    def _report_broken(self) -> None:
        if self._arguments is not None:
            self._arguments.finish()
        tool = f"tool {self._name!r}: " if self._name else ""
        self._say(ToolCallError(self._index, self._raw_text(), tool + self._error, self._call_id))

    def _end_unfinished(self, finish_reason: FinishReason) -> None:
        """The error for a call that the end of the answer cuts off."""
        if self._state is _State.VALUE:
            end = self._buffer.find(PARAMETER_CLOSE)
            value = self._buffer if end < 0 else self._buffer[:end]
            self._take_value(len(value.removesuffix("\n")))
        self._take(len(self._buffer))
        if self._state is not _State.BROKEN:
            cut = "the answer reached its token limit" if finish_reason is FinishReason.LENGTH else "the answer ended"
            self._error = f"{cut} before </tool_call>; {FORM}"
        self._report_broken()
        self._state = _State.CONTENT
