"""Continues conversations from the tokens that were sampled, where a client dropped or reformatted what it was given.

Clients parse tool arguments and print them anew, trim white space, drop or move reasoning. Rendered from what they send, such
a history differs from what the model read and wrote, and everything after the first difference would be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from sterna.chat.messages import ChatRequest, Message
from sterna.errors import UsageError
from sterna.sessions.same_turn import is_same_form, is_same_turn, reasoning_of, text_of
from sterna.sessions.turn_log import START, TurnLog, extend

HealLevel = Literal["off", "format", "reasoning"]
HEAL_LEVELS: tuple[HealLevel, ...] = get_args(HealLevel)


@dataclass(frozen=True, slots=True)
class Healed:
    """A request whose known turns carry their sampled tokens.

    ``turns`` counts those that the client had changed; ``context`` is the digest of the whole conversation, under which its
    answer is to be logged.
    """

    request: ChatRequest
    turns: int
    context: bytes


class Healer:
    """Heals requests from a log: ``format`` everything but dropped reasoning, ``reasoning`` that too, ``off`` nothing.

    A turn is healed only when it says the same as the one in the log; otherwise it stays as the client sent it and the
    conversation branches there. The last message is never touched when the answer is to continue it. ``stored`` gives the
    turns (context, message) of a namespace that an earlier process left.
    """

    def __init__(
        self,
        log: TurnLog,
        level: HealLevel = "reasoning",
        *,
        stored: Callable[[str], Iterable[tuple[bytes, Message]]] = lambda namespace: (),
    ) -> None:
        if level not in HEAL_LEVELS:
            raise UsageError(f"heal is {level!r}, allowed is {', '.join(HEAL_LEVELS)}")
        self.log = log
        self.level = level
        self._stored = stored
        self._loaded: set[str] = set()

    def heal(self, request: ChatRequest, *, namespace: str = "") -> Healed:
        """The request with sampled tokens in place of turns that are known in this namespace."""
        if self.level == "off":
            return Healed(request, 0, START)
        if namespace not in self._loaded:
            self._loaded.add(namespace)
            for known, message in self._stored(namespace):
                self.log.add(namespace, known, message)
        messages: list[Message] = []
        context, healed, index = START, 0, 0
        first = 0 if request.preserve_thinking else _last_user(request.messages)
        while index < len(request.messages):
            used, message = 1, request.messages[index]
            if index >= first and _is_answer(request.messages, index):
                used, found = self._find(namespace, context, request, index)
                if found is not None:
                    healed += used == 2 or not is_same_form(found, message)
                    message = found
            messages.append(message)
            context = extend(context, message)
            index += used
        return Healed(replace(request, messages=tuple(messages)), healed, context)

    def remember(self, healed: Healed, answer: Message, *, namespace: str = "") -> None:
        """Log the answer to a healed request."""
        if self.level != "off":
            self.log.add(namespace, healed.context, answer)

    def _find(self, namespace: str, context: bytes, request: ChatRequest, index: int) -> tuple[int, Message | None]:
        """How many messages the turn was sent as, and the turn of the log."""
        allow = self.level == "reasoning"
        sent = request.messages[index]
        for count, form in ((1, sent), (2, _joined(request.messages, index))):
            if form is None:
                continue
            for logged in self.log.find(namespace, context, form):
                if is_same_turn(logged, form, tools=request.tools, allow_dropped_reasoning=allow):
                    return count, logged
        return 1, None


def _is_answer(messages: Sequence[Message], index: int) -> bool:
    """Whether a message is an earlier answer without its tokens, and not one that is to be continued."""
    message = messages[index]
    if message.role != "assistant" or message.token_ids is not None:
        return False
    return index < len(messages) - 1 or bool(message.tool_calls)


def _joined(messages: Sequence[Message], index: int) -> Message | None:
    """A turn whose reasoning was sent as an answer of its own, in front of it."""
    message = messages[index]
    following = messages[index + 1] if index + 1 < len(messages) else None
    if message.tool_calls or following is None or not _is_answer(messages, index + 1) or reasoning_of(following):
        return None
    text = text_of(message)
    return replace(following, reasoning=text) if text else None


def _last_user(messages: Sequence[Message]) -> int:
    return max((i for i, message in enumerate(messages) if message.role == "user"), default=0)
