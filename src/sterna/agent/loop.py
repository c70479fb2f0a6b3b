"""The agent: one linear, append-only history that is exactly what the model saw, and three tools.

agent = Agent(model, environment, trajectory_path=Path("run.json"))
for event in agent.run("Fix the bug. The tests must pass."):
    ...
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sterna.agent.approval import Approval
from sterna.agent.environment import CommandRunner
from sterna.agent.events import AgentEvent, Finished, ModelEvent, Observation, Outcome, StepStarted, ToolStarted
from sterna.agent.tools import SYSTEM_PROMPT, TOOLS, ToolResult, run_tool
from sterna.agent.trajectory import CallRecord, RunRecord, StepRecord, Trajectory
from sterna.chat.messages import ChatEvent, End, Message, Tool, ToolCall, ToolCallEnd, ToolCallError, ToolCallStart
from sterna.errors import ContextOverflowError, SternaError
from sterna.types import FinishReason, Usage

_INTERRUPTED = "error: interrupted by the user"


class Model(Protocol):
    """Whoever answers: the local service, a server over HTTP, or a script in a test."""

    def respond(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[ChatEvent]:
        """Streams one assistant turn; the last event is ``End``. Closing the iterator aborts the generation."""


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Limits of one run. ``completion_tokens`` counts what the model wrote; ``format_errors`` counts turns in a row.

    ``repeats`` is how often the same calls may give the same results in a row before the result says so.
    """

    steps: int = 250
    wall_s: float = 3_600.0
    completion_tokens: int = 1_000_000
    format_errors: int = 5
    command_timeout_s: float = 120.0
    repeats: int = 3


class _StopRun(Exception):
    """Ends a run from wherever it is noticed; never leaves ``Agent.run``."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


@dataclass(slots=True)
class _Run:
    """The counters of one run."""

    record: RunRecord
    start: float
    steps: int = 0
    format_errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, usage: Usage) -> None:
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cached_tokens += usage.cached_tokens
        self.computed_tokens += usage.computed_tokens
        self.reasoning_tokens += usage.reasoning_tokens

    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.computed_tokens, self.reasoning_tokens
        )


@dataclass(slots=True)
class _Turn:
    """What one turn of the model came to: its end, and the good and malformed calls in order."""

    end: End
    calls: list[ToolCallEnd | ToolCallError]
    call_ids: dict[int, str]


class Agent:
    """A model at work in an environment.

    ``run(task)`` may be called again with the next request of the user: the history goes on. ``settings`` are recorded
    in the trajectory (model name, sampling, …) and not read. ``trajectory_path`` is written after every step.
    Without ``approval`` every call runs. ``trajectory`` continues a recorded history, whose system message stays.
    """

    def __init__(
        self,
        model: Model,
        environment: CommandRunner,
        *,
        limits: AgentLimits | None = None,
        trajectory_path: Path | None = None,
        settings: dict[str, Any] | None = None,
        system_prompt: str = SYSTEM_PROMPT,
        approval: Approval | None = None,
        trajectory: Trajectory | None = None,
    ) -> None:
        self._approval = approval
        self._model = model
        self._environment = environment
        self._limits = limits if limits is not None else AgentLimits()
        self._path = trajectory_path
        self._recent: deque[tuple[str, str]] = deque(maxlen=max(self._limits.repeats, 1))
        self.trajectory = trajectory or Trajectory(
            sandbox=environment.sandbox_name,
            workspace=str(environment.workspace),
            settings=dict(settings or {}),
            messages=[Message("system", system_prompt)],
        )

    @property
    def messages(self) -> tuple[Message, ...]:
        """The history so far, exactly as the model gets it."""
        return tuple(self.trajectory.messages)

    def run(self, task: str) -> Generator[AgentEvent, None, None]:
        """Works on ``task``; yields events as they happen, the last one is ``Finished``.

        Limits, errors meant for the user and Ctrl-C end the run with an ``Outcome``. Closing the generator counts as an
        interruption. Only a defect of Sterna itself raises, after the trajectory has been saved.
        """
        run = _Run(RunRecord(task), time.monotonic())
        self.trajectory.runs.append(run.record)
        self.trajectory.messages.append(Message("user", task))
        stop = _StopRun(Outcome.ERROR, "the agent failed")
        try:
            while True:
                yield from self._step(run)
        except _StopRun as reached:
            stop = reached
        except KeyboardInterrupt:
            stop = _StopRun(Outcome.INTERRUPTED, "interrupted by the user")
        except GeneratorExit:
            stop = _StopRun(Outcome.INTERRUPTED, "the caller stopped listening")
            raise
        except ContextOverflowError as error:
            stop = _StopRun(Outcome.CONTEXT_OVERFLOW, error.message)
        except SternaError as error:
            stop = _StopRun(Outcome.ERROR, error.message)
        finally:
            run.record.outcome, run.record.detail = stop.outcome.value, stop.detail
            run.record.steps_end = len(self.trajectory.steps)
            self._save()
        yield Finished(stop.outcome, stop.detail, run.steps, run.usage(), time.monotonic() - run.start)

    def _step(self, run: _Run) -> Generator[AgentEvent, None, None]:
        """One turn of the model and the results of its calls; raises ``_StopRun`` at the end of the run."""
        self._check_limits(run)
        run.steps += 1
        step = len(self.trajectory.steps) + 1
        yield StepStarted(step)
        model_start = time.monotonic()
        turn = yield from self._ask(run, step)
        run.add(turn.end.usage)
        record = StepRecord(
            message_index=len(self.trajectory.messages),
            model_s=time.monotonic() - model_start,
            usage=turn.end.usage,
            finish_reason=turn.end.finish_reason.value,
        )
        self.trajectory.messages.append(turn.end.message)
        self.trajectory.steps.append(record)
        if not turn.calls:
            raise _ended_without_call(turn.end)
        yield from self._answer_calls(turn, record, step, run)
        self._save()
        malformed = all(isinstance(call, ToolCallError) for call in turn.calls)
        run.format_errors = run.format_errors + 1 if malformed else 0
        if run.format_errors >= self._limits.format_errors:
            raise _StopRun(Outcome.FORMAT_ERRORS, f"{run.format_errors} turns in a row had only malformed tool calls")

    def _check_limits(self, run: _Run) -> None:
        limits = self._limits
        if run.steps >= limits.steps:
            raise _StopRun(Outcome.STEP_LIMIT, f"the limit of {limits.steps} steps is reached")
        if run.completion_tokens >= limits.completion_tokens:
            raise _StopRun(Outcome.TOKEN_LIMIT, f"the limit of {limits.completion_tokens} written tokens is reached")
        if self._seconds_left(run) <= 0:
            raise _StopRun(Outcome.TIME_LIMIT, f"the limit of {limits.wall_s:g} s is reached")

    def _seconds_left(self, run: _Run) -> float:
        return self._limits.wall_s - (time.monotonic() - run.start)

    def _ask(self, run: _Run, step: int) -> Generator[AgentEvent, None, _Turn]:
        """Streams the model's turn. A turn that does not come to its end leaves no trace in the history."""
        calls: dict[int, ToolCallEnd | ToolCallError] = {}
        call_ids: dict[int, str] = {}
        stream = self._model.respond(self.messages, TOOLS)
        try:
            for event in stream:
                yield ModelEvent(step, event)
                if isinstance(event, ToolCallStart):
                    call_ids[event.index] = event.id
                elif isinstance(event, ToolCallEnd | ToolCallError):
                    calls[event.index] = event
                elif isinstance(event, End):
                    return _Turn(event, [calls[index] for index in sorted(calls)], call_ids)
                if self._seconds_left(run) <= 0:
                    raise _StopRun(Outcome.TIME_LIMIT, f"the limit of {self._limits.wall_s:g} s is reached")
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        raise _StopRun(Outcome.ERROR, "the model's stream ended without an end event")

    def _answer_calls(self, turn: _Turn, record: StepRecord, step: int, run: _Run) -> Generator[AgentEvent, None, None]:
        """Runs the calls in order; whatever happens, every call has a result in the history afterwards."""
        unanswered = [_call_id(event, turn) for event in turn.calls]
        try:
            for event in turn.calls:
                if isinstance(event, ToolCallError):
                    observation = Observation(step, None, _malformed_text(event), is_error=True, duration_s=0.0)
                    record.calls.append(CallRecord(None, observation.text, 0.0, is_error=True, raw=event.raw))
                else:
                    yield ToolStarted(step, event.call)
                    observation = self._run_call(event.call, record, step, run)
                self.trajectory.messages.append(_tool_message(observation.text, unanswered.pop(0)))
                yield observation
        except _StopRun:
            # A submitted turn has no results: nothing after the call was asked for any more.
            unanswered.clear()
            raise
        finally:
            for call_id in unanswered:
                self.trajectory.messages.append(_tool_message(_INTERRUPTED, call_id))

    def _run_call(self, call: ToolCall, record: StepRecord, step: int, run: _Run) -> Observation:
        start = time.monotonic()
        timeout_s = max(min(self._limits.command_timeout_s, self._seconds_left(run)), 1.0)
        refusal = None if self._approval is None else self._approval.refusal(call)
        if refusal is None:
            result = run_tool(call, self._environment, command_timeout_s=timeout_s)
        else:
            result = ToolResult(refusal, is_error=True)
        duration_s = time.monotonic() - start
        if result.submitted:
            record.calls.append(CallRecord(call, "", duration_s))
            raise _StopRun(Outcome.SUBMITTED, "the model submitted its work")
        remark = self._remark(call, result)
        record.calls.append(CallRecord(call, result.text, duration_s, is_error=result.is_error, remark=remark))
        text = result.text if remark is None else f"{result.text}\n{remark}"
        return Observation(step, call, text, is_error=result.is_error, duration_s=duration_s)

    def _remark(self, call: ToolCall, result: ToolResult) -> str | None:
        """A line for a model that goes round in circles."""
        self._recent.append((f"{call.name} {sorted(call.arguments.items())!r}", result.text))
        repeats = self._limits.repeats
        if repeats < 2 or len(self._recent) < repeats or len(set(self._recent)) > 1:
            return None
        return f"[this call gave the same result {repeats} times in a row, try something else]"

    def _save(self) -> None:
        if self._path is not None:
            self.trajectory.save(self._path)


def _ended_without_call(end: End) -> _StopRun:
    if end.finish_reason is FinishReason.LENGTH:
        return _StopRun(Outcome.LENGTH, "the model's turn was cut at the token limit before it called a tool")
    if end.finish_reason is FinishReason.CANCELLED:
        return _StopRun(Outcome.INTERRUPTED, "the generation was cancelled")
    return _StopRun(Outcome.ANSWERED, "the model answered without calling a tool")


def _malformed_text(event: ToolCallError) -> str:
    return event.message if event.message.startswith("error:") else f"error: {event.message}"


def _call_id(event: ToolCallEnd | ToolCallError, turn: _Turn) -> str:
    return event.call.id if isinstance(event, ToolCallEnd) else turn.call_ids.get(event.index, "")


def _tool_message(text: str, call_id: str) -> Message:
    return Message("tool", text, tool_call_id=call_id or None)
