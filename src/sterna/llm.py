"""The only door to generation: `GenerationService`, and `LLM`, which joins an engine and a chat format in this process.

with LLM.load(Path("checkpoint")) as llm:
    for event in llm.chat(ChatRequest((Message("user", "hello"),))):
        ...
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from weakref import WeakValueDictionary

from sterna.backends.base import Backend, MemoryPlan
from sterna.chat.format import ChatFormat, RenderedPrompt
from sterna.chat.gguf_tokenizer import chat_format as gguf_chat_format
from sterna.chat.messages import ChatEvent, ChatRequest, End, Message
from sterna.chat.stop_strings import StopStringMatcher
from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.mmproj import MmprojFile
from sterna.checkpoint.opening import open_checkpoint
from sterna.config import EngineConfig
from sterna.engine.engine import Engine
from sterna.engine.fair_lock import FairLock
from sterna.engine.media import MediaEncoder, PromptMedia, media_kind, placeholder_texts
from sterna.errors import BackendError, UsageError
from sterna.locate import locate_model, make_backend
from sterna.sessions.healing import Healed, Healer, HealLevel
from sterna.sessions.keeper import SessionKeeper
from sterna.sessions.store import DEFAULT_QUOTA_BYTES, SessionStore
from sterna.sessions.turn_log import TurnLog
from sterna.types import FinishReason, SamplingParams, TokenEvent, Usage
from sterna.vision import MediaSpan, VisionLimits, read_settings

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


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A healed request, its prompt and its images and videos, ready to be given to `LLM.generate`."""

    healed: Healed
    prompt: RenderedPrompt
    media: PromptMedia = field(default_factory=PromptMedia)

    @property
    def request(self) -> ChatRequest:
        """The request with the sampled tokens of the turns that are known."""
        return self.healed.request


class TokenStream(Iterator[TokenEvent]):
    """The tokens of one request. ``usage`` is current; ``close`` aborts, ``finish`` ends early and keeps the cache.

    Both may be called while another thread waits for the next token, which then ends or raises `BackendError`.
    """

    def __init__(
        self,
        llm: LLM,
        request_id: int,
        prompt: Sequence[int],
        usage: Usage,
        *,
        namespace: str = "",
        healed: Healed | None = None,
    ) -> None:
        self._llm = llm
        self._request_id = request_id
        self.events: deque[TokenEvent] = deque()
        self.usage = usage
        self.prompt = prompt
        self.namespace = namespace
        self.healed = healed
        self.finish_reason: FinishReason | None = None
        self._done = False

    def __next__(self) -> TokenEvent:
        if self._done:
            raise StopIteration
        event = self._llm._next_event(self._request_id, self)
        self.finish_reason = event.finish_reason
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

    def __init__(
        self,
        backend: Backend,
        chat_format: ChatFormat,
        engine_config: EngineConfig,
        *,
        name: str,
        heal: HealLevel = "reasoning",
        store: SessionStore | None = None,
        on_plan: Callable[[MemoryPlan], None] | None = None,
        media: MediaEncoder | None = None,
    ) -> None:
        self.name = name
        self.media = media
        self.backend = backend
        self.chat_format = chat_format
        self.engine = Engine(backend, engine_config, token_text=self._token_text, on_plan=on_plan)
        self.max_model_len = self.engine.max_model_len
        self.keeper: SessionKeeper | None = None
        if store is not None:
            self.keeper = SessionKeeper(store, backend, self.engine.cache, model=name, say=store.say)
            self.engine.keeper = self.keeper
        stored = self.keeper.turns if self.keeper is not None else lambda namespace: []
        self.healer = Healer(TurnLog(), heal, stored=stored)
        # weak: a stream that nobody holds any more cancels its request
        self._streams: WeakValueDictionary[int, TokenStream] = WeakValueDictionary()
        # fair: a thread whose stream decodes must not hold up the others turn after turn
        self._lock = FairLock()

    @classmethod
    def load(
        cls,
        model: Path | None = None,
        *,
        backend: str = "auto",
        recipe: str | None = None,
        engine_config: EngineConfig | None = None,
        heal: HealLevel = "reasoning",
        sessions: Path | None = None,
        session_quota_bytes: int | None = None,
        mmproj: Path | None = None,
        vision_limits: VisionLimits | None = None,
        features: Path | None = None,
    ) -> Self:
        """Load a checkpoint directory or a GGUF file, by default what `locate_model` finds; says on standard error which.

        ``recipe`` quantises the matrices of a directory while it is loaded.
        ``sessions`` is a directory in which conversations are kept and found again after a restart, ``features`` one for what
        the vision tower made of images and videos. ``mmproj`` is a GGUF file with a vision tower for a checkpoint without one.

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
        media, vision_config = None, config.vision
        if mmproj is not None:
            if chosen.vision is not None:
                raise UsageError(f"{located.name} has its own vision tower, --mmproj has no place beside it")
            file = MmprojFile(mmproj)
            vision_config = file.config
            chosen.load_vision(file, file.config)
        if chosen.vision is not None and vision_config is not None:
            settings = read_settings(located.path if located.path.is_dir() else located.path.parent, vision_config)
            media = MediaEncoder.open(chosen.vision, settings, features, limits=vision_limits)
        store = None
        if sessions is not None:
            store = SessionStore(sessions, quota_bytes=session_quota_bytes or DEFAULT_QUOTA_BYTES, say=_say)
        return cls(
            chosen,
            chat_format,
            engine_config,
            name=located.name,
            heal=heal,
            store=store,
            on_plan=_say_plan,
            media=media,
        )

    def generate(
        self,
        token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        turn_starts: Sequence[int] = (),
        namespace: str = "",
        priority: int = 0,
        healed: Healed | None = None,
        media: PromptMedia | None = None,
    ) -> TokenStream:
        """See `GenerationService.generate` and `Engine.add_request`. A bad request raises before anything is computed.

        ``healed`` is the request whose prompt this is; its answer is logged under it, to heal later requests. ``media`` are its
        images and videos, which are encoded first, while other streams go on.
        """
        spans: list[MediaSpan] = []
        # a prompt that is too long is refused below, before anything is encoded
        if media is not None and media.items and self.media is not None and len(token_ids) < self.max_model_len:
            spans = self.media.encode(media, self._lock)
        with self._lock:
            request_id = self.engine.add_request(
                token_ids, sampling, turn_starts=turn_starts, namespace=namespace, priority=priority, spans=spans
            )
            usage = Usage(prompt_tokens=len(token_ids), healed_turns=healed.turns if healed else 0)
            stream = TokenStream(self, request_id, token_ids, usage, namespace=namespace, healed=healed)
            self._streams[request_id] = stream
        return stream

    def prepare(self, request: ChatRequest, *, namespace: str = "") -> PreparedChat:
        """Heal a request from the token log of its namespace, decode its images and videos, render it; computes nothing.

        Raises as `ChatFormat.render` and `MediaEncoder.read`.
        """
        healed = self.healer.heal(request, namespace=namespace)
        parts = self.chat_format.media_parts(healed.request)
        if not parts:
            return PreparedChat(healed, self.chat_format.render(healed.request))
        if self.media is None:
            raise UsageError(
                f"{self.name} has no vision weights and cannot see the {media_kind(parts[0])} in this request",
                hint="use a checkpoint with its vision tower, or leave it out",
            )
        items = self.media.read(parts)
        prompt = self.chat_format.render(healed.request, placeholder_texts(items))
        return PreparedChat(healed, prompt, PromptMedia(items, prompt.placeholders))

    def chat(self, request: ChatRequest, *, namespace: str = "") -> Generator[ChatEvent, None, None]:
        """See `GenerationService.chat`. Turns of the history that carry ``token_ids`` are never tokenised again.

        Nothing that was computed for one ``namespace`` (an API key) is reused, or seen to exist, in another.
        """
        prepared = self.prepare(request, namespace=namespace)
        stream = self.generate(
            prepared.prompt.token_ids,
            request.sampling,
            turn_starts=prepared.prompt.turn_starts,
            namespace=namespace,
            healed=prepared.healed,
            media=prepared.media,
        )
        return self.answer(prepared.request, stream)

    def complete(self, text: str, sampling: SamplingParams, *, namespace: str = "") -> Generator[str, None, None]:
        """See `GenerationService.complete`."""
        token_ids = self.chat_format.tokenizer.encode(text)
        return self.continue_text(self.generate(token_ids, sampling, namespace=namespace), sampling)

    def close(self) -> None:
        """Store what waits to be stored and free everything; further calls are errors."""
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = self.engine.keeper = None
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _token_text(self, token_id: int) -> str:
        if not 0 <= token_id < self.backend.config.text.vocab_size:
            return "an image"
        return repr(self.chat_format.tokenizer.decode([token_id]))

    def answer(self, request: ChatRequest, stream: TokenStream) -> Generator[ChatEvent, None, None]:
        """The events of a turn whose prompt was rendered and given to ``generate`` before; ``chat`` does both."""
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
            for last in parser.finish(finish_reason, stream.usage):
                if isinstance(last, End):
                    self.log_turn(stream, last.message)
                yield last
        finally:
            stream.close()

    def log_turn(self, stream: TokenStream, answer: Message) -> None:
        """Remember the turn that a stream gave, to heal later requests of its namespace; `answer` does so itself."""
        healed = stream.healed
        if healed is None or self.healer.level == "off":
            return
        self.healer.remember(healed, answer, namespace=stream.namespace)
        if self.keeper is not None:
            self.keeper.save_turn(stream.namespace, stream.prompt, healed.context, answer)

    def continue_text(self, stream: TokenStream, sampling: SamplingParams) -> Generator[str, None, None]:
        """The text of a stream up to a stop string; ``complete`` without the encoding of the prompt."""
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
                stream.usage = replace(event.usage, healed_turns=stream.usage.healed_turns)
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


def _say_plan(plan: MemoryPlan) -> None:
    _say(f"memory: {plan}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
