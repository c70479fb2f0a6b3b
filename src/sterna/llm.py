"""The only door to generation: `GenerationService`, and `LLM`, which joins an engine and a chat format in this process.

with LLM.load(Path("checkpoint")) as llm:
    for event in llm.chat(ChatRequest((Message("user", "hello"),))):
        ...
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from weakref import WeakValueDictionary

from sterna.backends.base import Backend
from sterna.chat.format import ChatFormat
from sterna.chat.gguf_tokenizer import chat_format as gguf_chat_format
from sterna.chat.messages import ChatEvent, ChatRequest
from sterna.chat.stop_strings import StopStringMatcher
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.opening import open_checkpoint
from sterna.config import EngineConfig
from sterna.engine.engine import Engine
from sterna.errors import BackendError
from sterna.locate import locate_model, make_backend
from sterna.types import FinishReason, SamplingParams, TokenEvent, Usage

# a longer context is asked for by name, because its blocks are allocated at the start
DEFAULT_MAX_MODEL_LEN = 32_768


class GenerationService(Protocol):
    """What server, agent, evaluations and benchmarks see of a model. Closing an iterator aborts its generation."""

    name: str
    max_model_len: int

    def generate(self, token_ids: Sequence[int], sampling: SamplingParams) -> Iterator[TokenEvent]:
        """Sampled tokens after a prompt; the last event has a finish reason. Stop strings do not act on tokens."""

    def chat(self, request: ChatRequest) -> Iterator[ChatEvent]:
        """One assistant turn; the last event is ``End``."""

    def complete(self, text: str, sampling: SamplingParams) -> Iterator[str]:
        """Plain continuation of a text, piece by piece, without any template."""

    def close(self) -> None:
        """Free everything."""


class TokenStream(Iterator[TokenEvent]):
    """The tokens of one request. ``usage`` is current; ``close`` aborts, ``finish`` ends early and keeps the cache."""

    def __init__(self, llm: LLM, request_id: int, usage: Usage) -> None:
        self._llm = llm
        self._request_id = request_id
        self.events: deque[TokenEvent] = deque()
        self.usage = usage
        self._done = False

    def __next__(self) -> TokenEvent:
        if self._done:
            raise StopIteration
        event = self._llm._next_event(self._request_id, self)
        self._done = event.finish_reason is not None
        return event

    def close(self) -> None:
        """Abort: blocks and state are free at once."""
        self._done = True
        self._llm._leave(self._request_id, keep=False)

    def finish(self) -> None:
        """End before the model does; a later prompt may continue from what was computed."""
        self._done = True
        self._llm._leave(self._request_id, keep=True)

    def __del__(self) -> None:
        if not self._done:
            self.close()


class LLM:
    """A `GenerationService` on this machine. Streams may be read in turns or from several threads and share passes."""

    def __init__(self, backend: Backend, chat_format: ChatFormat, engine_config: EngineConfig, *, name: str) -> None:
        self.name = name
        self.backend = backend
        self.chat_format = chat_format
        self.engine = Engine(backend, engine_config, token_text=self._token_text)
        self.max_model_len = self.engine.max_model_len
        # weak: a stream that nobody holds any more cancels its request
        self._streams: WeakValueDictionary[int, TokenStream] = WeakValueDictionary()
        self._lock = threading.RLock()

    @classmethod
    def load(
        cls,
        model: Path | None = None,
        *,
        backend: str = "auto",
        recipe: str | None = None,
        engine_config: EngineConfig | None = None,
    ) -> Self:
        """Load a checkpoint directory or a GGUF file, by default what `locate_model` finds; says on standard error which.

        ``recipe`` quantises the matrices of a directory while it is loaded.
        Raises `CheckpointError`, `ConfigError`, `TokenizerError`, `TemplateError`, `BackendError`, `OutOfMemoryError`.
        """
        located = locate_model(model)
        chosen, why = make_backend(backend)
        quantized = f", recipe {recipe}" if recipe else ""
        print(f"model: {located.description}, {why}{quantized}", file=sys.stderr)
        checkpoint, config = open_checkpoint(located.path, recipe=recipe, quantized=chosen.computes_quantized)
        chosen.load(checkpoint, config)
        if isinstance(checkpoint, GgufCheckpoint):
            chat_format = gguf_chat_format(checkpoint)
        else:
            chat_format = ChatFormat.load(located.path)
        engine_config = engine_config or EngineConfig()
        if engine_config.max_model_len is None:
            length = min(DEFAULT_MAX_MODEL_LEN, config.text.max_position_embeddings)
            engine_config = replace(engine_config, max_model_len=length)
        return cls(chosen, chat_format, engine_config, name=located.name)

    def generate(
        self,
        token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        turn_starts: Sequence[int] = (),
        namespace: str = "",
    ) -> TokenStream:
        """See `GenerationService.generate` and `Engine.add_request`. A bad request raises before anything is computed."""
        with self._lock:
            request_id = self.engine.add_request(token_ids, sampling, turn_starts=turn_starts, namespace=namespace)
            stream = TokenStream(self, request_id, Usage(prompt_tokens=len(token_ids)))
            self._streams[request_id] = stream
        return stream

    def chat(self, request: ChatRequest, *, namespace: str = "") -> Generator[ChatEvent, None, None]:
        """See `GenerationService.chat`. Turns of the history that carry ``token_ids`` are never tokenised again.

        Nothing that was computed for one ``namespace`` (an API key) is reused, or seen to exist, in another.
        """
        prompt = self.chat_format.render(request)
        stream = self.generate(prompt.token_ids, request.sampling, turn_starts=prompt.turn_starts, namespace=namespace)
        return self._answer(request, stream)

    def complete(self, text: str, sampling: SamplingParams) -> Generator[str, None, None]:
        """See `GenerationService.complete`."""
        return self._continue(self.generate(self.chat_format.tokenizer.encode(text), sampling), sampling)

    def close(self) -> None:
        """Free everything; further calls are errors."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _token_text(self, token_id: int) -> str:
        return repr(self.chat_format.tokenizer.decode([token_id]))

    def _answer(self, request: ChatRequest, stream: TokenStream) -> Generator[ChatEvent, None, None]:
        parser = self.chat_format.parser(request)
        matcher = StopStringMatcher(request.sampling.stop, self.chat_format.tokenizer)
        finish_reason = FinishReason.CANCELLED
        try:
            for event in stream:
                finish_reason = event.finish_reason or finish_reason
                # a stop string inside a tool call is part of an argument
                released = [event.token_id] if parser.in_tool_call else matcher.feed(event.token_id)
                for token_id in released:
                    yield from parser.feed(token_id)
                if matcher.matched is not None:
                    finish_reason = FinishReason.STOP
                    stream.finish()
            for token_id in matcher.flush():
                yield from parser.feed(token_id)
            yield from parser.finish(finish_reason, stream.usage)
        finally:
            stream.close()

    def _continue(self, stream: TokenStream, sampling: SamplingParams) -> Generator[str, None, None]:
        tokenizer = self.chat_format.tokenizer
        matcher = StopStringMatcher(sampling.stop, tokenizer)
        decoder = tokenizer.decoder(skip_special=True)
        try:
            for event in stream:
                for token_id in matcher.feed(event.token_id):
                    yield decoder.feed(token_id)
                if matcher.matched is not None:
                    stream.finish()
            for token_id in matcher.flush():
                yield decoder.feed(token_id)
            yield decoder.flush()
        finally:
            stream.close()

    def _next_event(self, request_id: int, stream: TokenStream) -> TokenEvent:
        while True:
            with self._lock:
                if stream.events:
                    return stream.events.popleft()
                if not self.engine.is_active(request_id):
                    raise BackendError("the generation was dropped because the backend failed")
                self._step()

    def _step(self) -> None:
        for event in self.engine.step():
            stream = self._streams.get(event.request_id)
            if stream is not None:
                stream.usage = event.usage
                stream.events.append(event.token)
            if event.token.finish_reason is not None:
                self._streams.pop(event.request_id, None)

    def _leave(self, request_id: int, *, keep: bool) -> None:
        with self._lock:
            self._streams.pop(request_id, None)
            if keep:
                self.engine.finish(request_id)
            else:
                self.engine.cancel(request_id)
