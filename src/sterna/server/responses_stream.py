"""The events of the Responses protocol, and responses that are kept."""

from __future__ import annotations

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sterna.chat.messages import (
    ChatEvent,
    End,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
)
from sterna.server.openai_responses import CalledName, ResponsesRequest
from sterna.server.sse import named
from sterna.server.turns import TurnStore, new_key
from sterna.types import FinishReason, Usage

_MAX_STORED = 1000


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A finished response, and the conversation that a next one continues; ``key`` is whose it is."""

    body: dict[str, Any]
    messages: tuple[Message, ...]
    key: str


class ResponseStore:
    """Responses by id, in memory; the oldest are forgotten."""

    def __init__(self, max_stored: int = _MAX_STORED) -> None:
        self._max_stored = max_stored
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()

    def put(self, response: StoredResponse) -> None:
        """Keep a response."""
        self._stored[response.body["id"]] = response
        while len(self._stored) > self._max_stored:
            self._stored.popitem(last=False)

    def get(self, response_id: str, *, key: str) -> StoredResponse | None:
        """The response, if it is there and the key's own."""
        found = self._stored.get(response_id)
        return found if found is not None and found.key == key else None

    def delete(self, response_id: str) -> None:
        """Forget a response."""
        self._stored.pop(response_id, None)


def usage_json(usage: Usage) -> dict[str, Any]:
    """Token counts as this protocol names them."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class StreamRenderer:
    """The events of one answer, numbered; ``response`` is the whole response once they are all sent."""

    def __init__(self, model: str, turns: TurnStore, parsed: ResponsesRequest) -> None:
        self._turns = turns
        self._parsed = parsed
        self._key = new_key()
        self._sequence = 0
        self._item: dict[str, Any] | None = None
        self._text: list[str] = []
        self.answer: Message | None = None
        self.response: dict[str, Any] = {
            "id": "resp_" + secrets.token_hex(16),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "tools": [],
            "tool_choice": "auto",
            "usage": None,
            **parsed.echo,
        }

    def start(self) -> Iterator[bytes]:
        """The response without output."""
        yield self._event("response.created", response={**self.response, "output": []})
        yield self.keep_alive()

    def keep_alive(self) -> bytes:
        """The protocol has no ping; its clients take this one as often as it comes."""
        return self._event("response.in_progress", response={**self.response, "output": []})

    def feed(self, index: int, event: ChatEvent) -> Iterator[bytes]:
        """The events of one event."""
        if isinstance(event, ReasoningDelta):
            yield from self._switch("reasoning")
            yield self._delta("response.reasoning_text.delta", event.text, content_index=0)
        elif isinstance(event, TextDelta):
            yield from self._switch("message")
            yield self._delta("response.output_text.delta", event.text, content_index=0, logprobs=[])
        elif isinstance(event, ToolCallStart):
            yield from self._close()
            yield from self._open(self._call_item(event))
        elif isinstance(event, ToolCallArgumentsDelta):
            assert self._item is not None
            if self._item["type"] == "custom_tool_call":
                # the text is inside the JSON, so it is passed on once it is whole
                self._text.append(event.json)
            else:
                yield self._delta("response.function_call_arguments.delta", event.json)
        elif isinstance(event, End):
            yield from self._close()
            yield from self._end(event)

    def end(self) -> Iterator[bytes]:
        """Nothing: the last event is the response."""
        return iter(())

    def _event(self, kind: str, **more: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **more}
        self._sequence += 1
        return named(event)

    @property
    def _place(self) -> dict[str, Any]:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.response["output"])}

    def _delta(self, kind: str, text: str, **more: Any) -> bytes:
        self._text.append(text)
        return self._event(kind, **self._place, delta=text, **more)

    def _switch(self, kind: str) -> Iterator[bytes]:
        """Opens an item of a kind unless one is open."""
        if self._item is not None and self._item["type"] == kind:
            return
        yield from self._close()
        if kind == "reasoning":
            item = {"id": "rs_" + secrets.token_hex(12), "type": "reasoning", "summary": [], "content": []}
            yield from self._open({**item, "encrypted_content": None, "status": "in_progress"})
        else:
            item = {"id": "msg_" + secrets.token_hex(12), "type": "message", "role": "assistant", "content": []}
            yield from self._open({**item, "status": "in_progress"})

    def _call_item(self, event: ToolCallStart) -> dict[str, Any]:
        called = self._parsed.names.get(event.name, CalledName(event.name))
        item: dict[str, Any] = {"call_id": event.id, "name": called.name, "status": "in_progress"}
        if called.namespace is not None:
            item["namespace"] = called.namespace
        if called.is_custom:
            return {"id": "ctc_" + secrets.token_hex(12), "type": "custom_tool_call", "input": "", **item}
        return {"id": "fc_" + secrets.token_hex(12), "type": "function_call", "arguments": "", **item}

    def _open(self, item: dict[str, Any]) -> Iterator[bytes]:
        self._item, self._text = item, []
        yield self._event("response.output_item.added", output_index=len(self.response["output"]), item=dict(item))
        part = _part(item, "")
        if part is not None:
            yield self._event("response.content_part.added", **self._place, content_index=0, part=part)

    def _close(self) -> Iterator[bytes]:
        item = self._item
        if item is None:
            return
        text, place = "".join(self._text), self._place
        part = _part(item, text)
        if item["type"] == "reasoning":
            yield self._event("response.reasoning_text.done", **place, content_index=0, text=text)
            item["encrypted_content"] = self._key if self._parsed.wants_key else None
        elif item["type"] == "message":
            yield self._event("response.output_text.done", **place, content_index=0, text=text, logprobs=[])
        elif item["type"] == "function_call":
            item["arguments"] = text or "{}"
            name = item["name"]
            done = "response.function_call_arguments.done"
            yield self._event(done, **place, arguments=item["arguments"], name=name)
        else:
            value = json.loads(text or "{}").get("input", "")
            item["input"] = value if isinstance(value, str) else json.dumps(value)
            yield self._event("response.custom_tool_call_input.delta", **place, delta=item["input"])
            yield self._event("response.custom_tool_call_input.done", **place, input=item["input"])
        if part is not None:
            item["content"] = [part]
            yield self._event("response.content_part.done", **place, content_index=0, part=part)
        item["status"] = "completed"
        yield self._event("response.output_item.done", output_index=place["output_index"], item=dict(item))
        self.response["output"].append(item)
        self._item = None

    def _end(self, end: End) -> Iterator[bytes]:
        self._turns.remember(end.message, key=self._key)
        self.answer = end.message
        is_cut = end.finish_reason is FinishReason.LENGTH
        self.response["status"] = "incomplete" if is_cut else "completed"
        if is_cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        self.response["usage"] = usage_json(end.usage)
        yield self._event(f"response.{self.response['status']}", response=self.response)


def _part(item: dict[str, Any], text: str) -> dict[str, Any] | None:
    if item["type"] == "reasoning":
        return {"type": "reasoning_text", "text": text}
    if item["type"] == "message":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return None
