"""A `GenerationService` behind HTTP: any server of Chat Completions stands in for the engine in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from sterna.chat.messages import (
    ChatEvent,
    ChatRequest,
    End,
    Message,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallArgumentsDelta,
    ToolCallEnd,
    ToolCallError,
    ToolCallStart,
)
from sterna.errors import BackendError, ContextOverflowError, UsageError
from sterna.types import FinishReason, SamplingParams, TokenEvent, Usage

if TYPE_CHECKING:
    import httpx

DEFAULT_CONTEXT = 32_768
_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "tool_calls": FinishReason.TOOL_CALLS}


@dataclass(frozen=True, slots=True)
class RemoteBackend:
    """What records of a run say in place of a backend: that the weights lie behind an address."""

    fingerprint_text: str
    name: str = "remote"

    def fingerprint(self) -> str:
        """The address and the name of the model; what lies behind them cannot be seen."""
        return self.fingerprint_text


class RemoteService:
    """See `GenerationService`. ``url`` is the base of the API, as ``http://127.0.0.1:8000/v1``."""

    def __init__(
        self, url: str, *, model: str | None = None, key: str | None = None, client: httpx.Client | None = None
    ) -> None:
        """Asks the server which model it serves. Raises `BackendError` if nothing sensible answers there."""
        import httpx

        if not url.startswith(("http://", "https://")):
            raise UsageError(f"the endpoint is {url!r}, allowed is an address that begins with http:// or https://")
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A long prompt is read before the first byte comes.
        self._client = client or httpx.Client(headers=headers, timeout=httpx.Timeout(600.0, connect=10.0))
        models = self._models()
        self.name = model or models[0]["id"]
        served = next((each for each in models if each["id"] == self.name), None)
        if served is None:
            known = ", ".join(str(each["id"]) for each in models)
            raise UsageError(f"{self.url} does not serve {self.name!r}, allowed is {known}")
        length = served.get("max_model_len")
        self.backend = RemoteBackend(f"{self.url} {self.name}")
        self.max_model_len = length if isinstance(length, int) and length > 0 else DEFAULT_CONTEXT

    def chat(self, request: ChatRequest) -> Iterator[ChatEvent]:
        """See `GenerationService.chat`; closing the iterator closes the connection, which aborts the generation."""
        turn = _Turn()
        for chunk in self._stream("/chat/completions", chat_body(request, self.name)):
            yield from turn.feed(chunk)
        yield from turn.finish()

    def complete(self, text: str, sampling: SamplingParams) -> Iterator[str]:
        """See `GenerationService.complete`."""
        body = {"model": self.name, "prompt": text, "stream": True, **sampling_fields(sampling)}
        for chunk in self._stream("/completions", body):
            for choice in chunk.get("choices") or ():
                if choice.get("text"):
                    yield choice["text"]

    def generate(self, token_ids: Sequence[int], sampling: SamplingParams) -> Iterator[TokenEvent]:
        """Not over HTTP: raises `BackendError`, since a server of texts does not give token ids back."""
        raise BackendError(
            f"{self.url} serves texts, not tokens", hint="logits, benchmarks and the like need a model in this process"
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _models(self) -> list[dict[str, Any]]:
        import httpx

        try:
            response = self._client.get(f"{self.url}/models")
        except httpx.TransportError as error:
            raise BackendError(
                f"nothing answers at {self.url} ({type(error).__name__})",
                hint="is the engine up? loading 72 GB takes minutes",
            ) from error
        if response.status_code != 200:
            _refused(response.status_code, response.text, self.url)
        try:
            models = response.json()["data"]
            if not models or not all(isinstance(each["id"], str) for each in models):
                raise ValueError("no models")
        except (ValueError, KeyError, TypeError) as error:
            raise BackendError(
                f"{self.url}/models does not answer with a list of models", hint="the address must end in /v1"
            ) from error
        return list(models)

    def _stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream of events; raises what the server reports."""
        import httpx

        try:
            with self._client.stream("POST", self.url + path, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    _refused(response.status_code, response.text, self.url)
                for line in response.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        return
                    yield _event(data, self.url)
        except httpx.TransportError as error:
            raise BackendError(
                f"{self.url} broke off ({type(error).__name__})", hint="see the engine's own log"
            ) from error


def chat_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """A chat request in the words of Chat Completions, with the switches of the template beside it."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "chat_template_kwargs": {
            "enable_thinking": request.enable_thinking, "preserve_thinking": request.preserve_thinking,
        },
        **sampling_fields(request.sampling),
    }  # fmt: skip
    if request.tools:
        body["tools"] = [
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
            for t in request.tools
        ]
    return body


def sampling_fields(sampling: SamplingParams) -> dict[str, Any]:
    """Sampling parameters by the names that vLLM and SGLang know; neutral ones are left out, except the temperature."""
    fields: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    neutral = SamplingParams()
    names = ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "max_tokens")
    fields |= {name: getattr(sampling, name) for name in names if getattr(sampling, name) != getattr(neutral, name)}
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        fields["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return fields


def _message(message: Message) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        # The template reads one name, some servers the other.
        result |= {"reasoning_content": message.reasoning, "reasoning": message.reasoning}
    if message.tool_calls:
        result["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": json.dumps(dict(c.arguments))}}
            for c in message.tool_calls
        ]
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    return result


def _event(data: str, url: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError as error:
        raise BackendError(f"{url} sent an event that is not JSON: {data[:100]!r}") from error
    if not isinstance(event, dict):
        raise BackendError(f"{url} sent an event that is not an object: {data[:100]!r}")
    if "error" in event:
        error_text = event["error"].get("message") if isinstance(event["error"], dict) else event["error"]
        raise BackendError(f"{url} reports: {str(error_text)[:500]}", hint="see the engine's own log")
    return event


def _refused(status: int, text: str, url: str) -> NoReturn:
    words = text[:500]
    try:
        error = json.loads(text)
        inner = error.get("error", error)
        words = str(inner.get("message", inner) if isinstance(inner, dict) else inner)[:500]
    except (ValueError, AttributeError):
        pass
    if status == 400 and "context" in words.lower() and ("length" in words.lower() or "tokens" in words.lower()):
        raise ContextOverflowError(words, hint="start the engine with a longer --max-model-len")
    hint = "give a key with STERNA_ENDPOINT_KEY" if status in (401, 403) else "see the engine's own log"
    raise BackendError(f"{url} answered HTTP {status}: {words}", hint=hint)


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class _Turn:
    """Chunks of one answer, turned into events; what they add up to becomes the message of the end."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)

    def feed(self, chunk: Mapping[str, Any]) -> Iterator[ChatEvent]:
        """Events of one chunk."""
        if chunk.get("usage"):
            self.usage = _usage(chunk["usage"])
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            reasoning = delta.get("reasoning_content") or delta.get("reasoning")
            if reasoning:
                self.reasoning.append(reasoning)
                yield ReasoningDelta(reasoning)
            if delta.get("content"):
                self.text.append(delta["content"])
                yield TextDelta(delta["content"])
            for part in delta.get("tool_calls") or ():
                yield from self._call(part)
            if choice.get("finish_reason"):
                self.finish_reason = _FINISH.get(choice["finish_reason"], FinishReason.STOP)

    def _call(self, part: Mapping[str, Any]) -> Iterator[ChatEvent]:
        index, function = int(part.get("index") or 0), part.get("function") or {}
        if index not in self.calls:
            call = self.calls[index] = _Call(part.get("id") or f"call_{index}", function.get("name") or "")
            yield ToolCallStart(index, call.id, call.name)
        if function.get("arguments"):
            self.calls[index].arguments += function["arguments"]
            yield ToolCallArgumentsDelta(index, function["arguments"])

    def finish(self) -> Iterator[ChatEvent]:
        """The calls as a whole, and the end. Raises `BackendError` if the server never said that it had finished."""
        if self.finish_reason is None:
            raise BackendError("the server ended its answer without a finish reason", hint="see the engine's own log")
        done: list[ToolCall] = []
        for index, call in sorted(self.calls.items()):
            try:
                arguments = json.loads(call.arguments or "{}")
                if not isinstance(arguments, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                yield ToolCallError(index, call.arguments, f"the arguments are not a JSON object ({error})", call.id)
                continue
            done.append(ToolCall(call.name, arguments, call.id))
            yield ToolCallEnd(index, done[-1])
        message = Message("assistant", "".join(self.text), "".join(self.reasoning) or None, tuple(done))
        reason = FinishReason.TOOL_CALLS if done and self.finish_reason == FinishReason.STOP else self.finish_reason
        yield End(reason, message, self.usage)


def _usage(values: Mapping[str, Any]) -> Usage:
    details = values.get("prompt_tokens_details") or {}
    prompt, cached = int(values.get("prompt_tokens") or 0), int(details.get("cached_tokens") or 0)
    completion = values.get("completion_tokens_details") or {}
    return Usage(
        prompt_tokens=prompt, completion_tokens=int(values.get("completion_tokens") or 0), cached_tokens=cached,
        computed_tokens=prompt - cached, reasoning_tokens=int(completion.get("reasoning_tokens") or 0),
    )  # fmt: skip
