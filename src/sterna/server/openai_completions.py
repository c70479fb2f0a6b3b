"""``POST /v1/completions``: plain continuation of a text, and filling a gap by ``suffix``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sterna.chat.messages import ChatEvent, End, TextDelta
from sterna.chat.tokenizer import Tokenizer
from sterna.server import fields, requests
from sterna.server.errors import FieldError
from sterna.server.openai_chat import joined_usage, usage_json
from sterna.server.sse import DONE, data
from sterna.types import FinishReason, SamplingParams, Usage

_DEFAULT_MAX_TOKENS = 16
_FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
_UNSUPPORTED = ("logprobs", "echo", "best_of", "guided_json", "guided_regex", "guided_grammar", "guided_choice")
_KNOWN = frozenset(
    {
        "model", "prompt", "suffix", "stream", "stream_options", "n", "stop", "max_tokens",
        *requests.SAMPLING_FIELDS, *_UNSUPPORTED,
    }
)  # fmt: skip


@dataclass(slots=True)
class Completion:
    """A parsed request."""

    token_ids: list[int]
    sampling: SamplingParams
    stream: bool = False
    include_usage: bool = False
    choices: int = 1


def parse(body: Mapping[str, Any], tokenizer: Tokenizer, *, max_choices: int) -> Completion:
    """The request in a JSON body.

    Raises:
        UsageError: a field of the wrong type or value, or one that cannot be honoured.
        TokenizerError: the prompt is not valid Unicode.
    """
    fields.note_unknown("completions", body, _KNOWN)
    # one candidate of one is what everybody gets
    fields.refuse({**body, "best_of": body.get("best_of") not in (None, 1)}, _UNSUPPORTED, why="is not supported")
    choices = fields.whole(body, "n") or 1
    if not 1 <= choices <= max_choices:
        raise FieldError("n", f"is {choices}, allowed is 1 to {max_choices}")
    max_tokens = requests.limit(body, "max_tokens") or _DEFAULT_MAX_TOKENS
    sampling = SamplingParams(max_tokens=max_tokens, stop=fields.strings(body, "stop"))
    return Completion(
        _prompt(body, tokenizer),
        requests.override(sampling, body),
        stream=fields.flag(body, "stream"),
        include_usage=fields.flag(fields.mapping(body, "stream_options"), "include_usage"),
        choices=choices,
    )


def _prompt(body: Mapping[str, Any], tokenizer: Tokenizer) -> list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        ids = [int(item) for item in prompt]
        if any(not 0 <= item < tokenizer.vocab_size for item in ids):
            raise FieldError("prompt", f"holds a token outside 0 to {tokenizer.vocab_size - 1}")
    elif isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    else:
        raise FieldError("prompt", "is neither one text nor one list of tokens")
    suffix = fields.text(body, "suffix")
    if suffix:
        missing = [literal for literal in _FIM if literal not in tokenizer.control_tokens]
        if missing:
            raise FieldError("suffix", f"needs {missing[0]}, which this model does not have")
        prefix_id, suffix_id, middle_id = (tokenizer.control_tokens[literal] for literal in _FIM)
        ids = [prefix_id, *ids, suffix_id, *tokenizer.encode(suffix), middle_id]
    if not ids:
        raise FieldError("prompt", "is empty, allowed is one token or more")
    return ids


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    reason: str | None = None
    usage: Usage = field(default_factory=Usage)


class StreamRenderer:
    """The chunks of a streamed answer; ``collect`` and ``body`` make one that is not streamed."""

    def __init__(self, model: str, parsed: Completion) -> None:
        self._head = {
            "id": "cmpl-" + secrets.token_hex(12), "object": "text_completion", "created": int(time.time()),
            "model": model,
        }  # fmt: skip
        self._include_usage = parsed.include_usage
        self._choices = [_Choice() for _ in range(parsed.choices)]

    def start(self) -> Iterator[bytes]:
        """Nothing."""
        return iter(())

    def collect(self, index: int, event: ChatEvent) -> None:
        """Add an event to its choice."""
        choice = self._choices[index]
        if isinstance(event, TextDelta):
            choice.text.append(event.text)
        elif isinstance(event, End):
            choice.reason = "length" if event.finish_reason is FinishReason.LENGTH else "stop"
            choice.usage = event.usage

    def feed(self, index: int, event: ChatEvent) -> Iterator[bytes]:
        """The chunk of one event."""
        self.collect(index, event)
        yield self._chunk(index, event.text if isinstance(event, TextDelta) else "", self._choices[index].reason)

    def keep_alive(self) -> bytes:
        """A chunk without text."""
        return self._chunk(0, "", None)

    def end(self) -> Iterator[bytes]:
        """Usage when it was asked for, and the end mark."""
        if self._include_usage:
            yield data({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {"index": index, "text": "".join(choice.text), "logprobs": None, "finish_reason": choice.reason}
            for index, choice in enumerate(self._choices)
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        return usage_json(joined_usage(choice.usage for choice in self._choices))

    def _chunk(self, index: int, text: str, reason: str | None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        return data({**self._head, "choices": [choice]})
