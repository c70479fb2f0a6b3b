"""Between the event loop and the engine: admission, one worker thread per running generation, cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from sterna.chat.format import RenderedPrompt
from sterna.chat.messages import ChatEvent, ChatRequest, End, Message, TextDelta, Tool, ToolCallError, ToolCallStart
from sterna.errors import BackendError, SternaError
from sterna.llm import LLM, TokenStream
from sterna.server.errors import BusyError, FieldError, PromptTooLongError
from sterna.server.limits import Limits
from sterna.server.metrics import Metrics
from sterna.server.turns import TurnStore
from sterna.types import FinishReason, SamplingParams

BROKEN_CALL_NOTE = "[a tool call was malformed and was not made]"
LOGGER = logging.getLogger("sterna.server")


@dataclass(frozen=True, slots=True)
class Job:
    """One choice of an answer: its prompt, and how its tokens become events."""

    token_ids: Sequence[int]
    sampling: SamplingParams
    read: Callable[[TokenStream], Iterator[ChatEvent]]


class CancelledGenerationError(SternaError):
    """A generation that was cancelled while its reader still waited."""

    code = "cancelled"


class Admission:
    """At most ``max_active`` generations at once; others wait, one turn per key, first come first served within one."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.active = 0
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(map(len, self._queues.values()))

    def check(self, count: int) -> None:
        """Raises `BusyError` when ``count`` more would not fit into the queue."""
        if self.active + self.waiting + count > self.limits.max_active + self.limits.max_waiting:
            raise BusyError(self.waiting, retry_after=2)

    async def acquire(self, key: str) -> None:
        """Wait for a turn."""
        if self.active < self.limits.max_active:
            self.active += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(key, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            queue = self._queues.get(key)
            if queue is not None and turn in queue:
                queue.remove(turn)
                if not queue:
                    del self._queues[key]
            elif turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give the turn to the next key."""
        while self._queues:
            key, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._queues[key] = queue
            if not turn.done():
                turn.set_result(None)
                return
        self.active -= 1


class Generation:
    """The events of one request's choices, read on the event loop."""

    def __init__(self, service: Service, count: int, *, prompt_tokens: int) -> None:
        self._service = service
        self._items: asyncio.Queue[tuple[int, ChatEvent | BaseException]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._streams: dict[int, TokenStream] = {}
        self._open = count
        self.prompt_tokens = prompt_tokens
        self.cancelled = False
        # called once, when everything that is wanted of this generation was read or it was given up
        self.on_closed: Callable[[], None] | None = None

    @property
    def done(self) -> bool:
        """Every choice has ended."""
        return self._open == 0

    async def next(self, *, timeout_s: float | None = None) -> tuple[int, ChatEvent] | None:
        """The number of a choice and its next event; ``None`` when nothing came in time. Raises what the engine did."""
        try:
            async with asyncio.timeout(timeout_s):
                index, item = await self._items.get()
        except TimeoutError:
            return None
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, End):
            self._open -= 1
        return index, item

    def close(self) -> None:
        """The reader is done with it, or gone; what still runs is cancelled."""
        self.cancel()
        if self.on_closed is not None:
            self.on_closed()
            self.on_closed = None

    def cancel(self) -> None:
        """End what still runs: within the pass that is being computed, and what was computed stays in the cache."""
        if self.cancelled or self.done:
            return
        self.cancelled = True
        self._service.metrics.cancelled += 1
        for task in self._tasks:
            task.cancel()
        for stream in list(self._streams.values()):
            # the engine's lock may be held for a whole pass, so not on the event loop
            self._service.in_background(stream.finish)
        self.put(0, CancelledGenerationError("the generation was cancelled"))

    def put(self, index: int, item: ChatEvent | BaseException) -> None:
        """Add an event; on the event loop."""
        self._items.put_nowait((index, item))


class Service:
    """Everything that the protocols ask of the model."""

    def __init__(self, llm: LLM, limits: Limits) -> None:
        self.llm = llm
        self.limits = limits
        self.metrics = Metrics()
        self.turns = TurnStore()
        self.admission = Admission(limits)
        self.draining = False
        self._workers = ThreadPoolExecutor(limits.max_active, thread_name_prefix="generation")
        self._background = ThreadPoolExecutor(4, thread_name_prefix="background")
        self._running: set[asyncio.Task[None]] = set()

    async def render(self, request: ChatRequest) -> RenderedPrompt:
        """The prompt of a request, off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._background, self.llm.chat_format.render, request)

    async def chat(
        self, request: ChatRequest, *, key: str, choices: int = 1, callable_tools: tuple[Tool, ...] | None = None
    ) -> Generation:
        """Start answering a request; the prompt is checked before this returns.

        ``callable_tools`` are those that the model may call, where they are more than the prompt's head lists.

        Raises:
            PromptTooLongError, BusyError, UsageError, TemplateError, TokenizerError
        """
        self.admission.check(choices)
        self._check_bias(request.sampling)
        prompt = await self.render(request)
        self.check_length(len(prompt.token_ids))
        asked = request if callable_tools is None else replace(request, tools=callable_tools)
        jobs = []
        for index in range(choices):
            seed = request.sampling.seed
            sampling = replace(request.sampling, seed=None if seed is None else seed + index)
            jobs.append(Job(prompt.token_ids, sampling, partial(self._answer, asked)))
        return self.start(jobs, key=key)

    def complete(self, token_ids: Sequence[int], sampling: SamplingParams, *, key: str, choices: int = 1) -> Generation:
        """Start continuing tokens; raises as ``chat``."""
        self.admission.check(choices)
        self._check_bias(sampling)
        self.check_length(len(token_ids))
        jobs = []
        for index in range(choices):
            own = replace(sampling, seed=None if sampling.seed is None else sampling.seed + index)
            jobs.append(Job(token_ids, own, partial(self._continue, own)))
        return self.start(jobs, key=key)

    def check_length(self, tokens: int) -> None:
        """Raises `PromptTooLongError` when a prompt leaves no room for a token."""
        if tokens >= self.llm.max_model_len:
            raise PromptTooLongError(tokens, self.llm.max_model_len)

    def _check_bias(self, sampling: SamplingParams) -> None:
        # the engine says so too, but by then a stream has begun
        size = self.llm.backend.config.text.vocab_size
        wrong = next((token for token in sampling.logit_bias if not 0 <= token < size), None)
        if wrong is not None:
            raise FieldError("logit_bias", f"names token {wrong}, allowed is 0 to {size - 1}")

    def start(self, jobs: Sequence[Job], *, key: str) -> Generation:
        """Queue jobs whose prompts were checked."""
        generation = Generation(self, len(jobs), prompt_tokens=len(jobs[0].token_ids))
        for index, job in enumerate(jobs):
            task = asyncio.create_task(self._run(generation, index, job, key))
            generation._tasks.append(task)
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return generation

    def in_background(self, function: Callable[[], object]) -> None:
        """Run something short that may wait for the engine."""
        self._background.submit(function)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work and wait for what runs, at most so long."""
        self.draining = True
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout_s)

    def close(self) -> None:
        """Stop the threads; the model stays the caller's."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._background.shutdown(wait=False, cancel_futures=True)

    async def _run(self, generation: Generation, index: int, job: Job, key: str) -> None:
        loop = asyncio.get_running_loop()
        entered = self.metrics.clock()
        await self.admission.acquire(key)
        work = loop.run_in_executor(self._workers, self._work, generation, index, job, loop, entered)
        try:
            # the thread ends on its own once its stream is finished; its turn must not be given away before
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
        finally:
            self.admission.release()

    def _work(
        self, generation: Generation, index: int, job: Job, loop: asyncio.AbstractEventLoop, entered: float
    ) -> None:
        def put(item: ChatEvent | BaseException) -> None:
            loop.call_soon_threadsafe(generation.put, index, item)

        try:
            stream = self.llm.generate(job.token_ids, job.sampling)
            generation._streams[index] = stream
            if generation.cancelled:
                stream.finish()
                return
            first = True
            for event in job.read(stream):
                if first:
                    self.metrics.first_token(self.metrics.clock() - entered)
                    first = False
                if isinstance(event, End):
                    self.metrics.finished(event)
                put(event)
        except BaseException as error:
            if not (generation.cancelled and isinstance(error, BackendError)):
                LOGGER.exception("generation failed")
                self.metrics.failed += 1
                put(error)
        finally:
            generation._streams.pop(index, None)

    def _answer(self, request: ChatRequest, stream: TokenStream) -> Iterator[ChatEvent]:
        started: set[int] = set()
        for event in self.llm.answer(request, stream):
            if isinstance(event, ToolCallStart):
                started.add(event.index)
            if isinstance(event, End):
                self.turns.remember(event.message)
            if isinstance(event, ToolCallError):
                # a call that never got as far as its name has left no other trace
                if event.index not in started:
                    yield TextDelta(BROKEN_CALL_NOTE)
                continue
            yield event

    def _continue(self, sampling: SamplingParams, stream: TokenStream) -> Iterator[ChatEvent]:
        parts = []
        for piece in self.llm.continue_text(stream, sampling):
            if piece:
                parts.append(piece)
                yield TextDelta(piece)
        # no reason is on record where a stop string ended the text
        yield End(stream.finish_reason or FinishReason.STOP, Message("assistant", "".join(parts)), stream.usage)
