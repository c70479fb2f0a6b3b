"""The record of a run: written after every step, read back, and replayed without a model."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sterna.agent.environment import CommandRunner
from sterna.agent.tools import run_tool
from sterna.chat.messages import Message, ToolCall
from sterna.errors import AgentError
from sterna.types import Usage

FORMAT = "sterna-trajectory"
VERSION = 1


@dataclass(slots=True)
class CallRecord:
    """One tool call and its observation; the model also saw ``remark``, on a line below it, where there is one.

    ``call`` is ``None`` after a malformed call, whose text is kept in ``raw``.
    """

    call: ToolCall | None
    observation: str
    duration_s: float
    is_error: bool = False
    raw: str | None = None
    remark: str | None = None


@dataclass(slots=True)
class StepRecord:
    """One turn of the model and what its calls answered. ``message_index`` is the turn's place in ``messages``."""

    message_index: int
    model_s: float
    usage: Usage
    finish_reason: str
    calls: list[CallRecord] = field(default_factory=list)


@dataclass(slots=True)
class RunRecord:
    """One request of the user: how many steps were recorded when it ended, and how it ended."""

    task: str
    outcome: str | None = None
    detail: str = ""
    steps_end: int = 0


@dataclass(slots=True)
class Trajectory:
    """Everything needed to read a run, to continue it, and to replay its calls."""

    sandbox: str
    workspace: str
    settings: dict[str, Any]
    messages: list[Message] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    runs: list[RunRecord] = field(default_factory=list)
    created_unix_s: float = field(default_factory=time.time)

    def save(self, path: Path) -> None:
        """Writes the record in one step, readable by its owner only (it holds source code and command output)."""
        data = json.dumps(self._as_json(), ensure_ascii=False, separators=(",", ":"))
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(fd, "w", encoding="utf-8", errors="surrogatepass") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Reads a record.

        Raises:
            AgentError: not a trajectory, or one of another version.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        except (OSError, ValueError) as error:
            raise AgentError(f"trajectory {path} cannot be read: {error}") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
            raise AgentError(f"{path} is not a trajectory of version {VERSION}")
        try:
            return cls(
                sandbox=record["sandbox"],
                workspace=record["workspace"],
                settings=record["settings"],
                messages=[_message(entry) for entry in record["messages"]],
                steps=[_step(entry) for entry in record["steps"]],
                runs=[RunRecord(**entry) for entry in record["runs"]],
                created_unix_s=record["created_unix_s"],
            )
        except (KeyError, TypeError) as error:
            raise AgentError(f"trajectory {path} is damaged: {error!r}") from error

    def _as_json(self) -> dict[str, Any]:
        # dataclasses.asdict copies deeply and slowly; the records are flat enough to be written by hand.
        return {
            "format": FORMAT,
            "version": VERSION,
            "created_unix_s": self.created_unix_s,
            "sandbox": self.sandbox,
            "workspace": self.workspace,
            "settings": self.settings,
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "messages": [_message_json(message) for message in self.messages],
            "steps": [_step_json(step) for step in self.steps],
        }


def _message_json(message: Message) -> dict[str, Any]:
    record: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        record["reasoning"] = message.reasoning
    if message.tool_calls:
        record["tool_calls"] = [_call_json(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        record["tool_call_id"] = message.tool_call_id
    if message.token_ids is not None:
        record["token_ids"] = list(message.token_ids)
    return record


def _message(record: Mapping[str, Any]) -> Message:
    ids = record.get("token_ids")
    return Message(
        role=record["role"],
        content=record["content"],
        reasoning=record.get("reasoning"),
        tool_calls=tuple(ToolCall(**call) for call in record.get("tool_calls", ())),
        tool_call_id=record.get("tool_call_id"),
        token_ids=None if ids is None else tuple(ids),
    )


def _call_json(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": dict(call.arguments), "id": call.id}


def _step_json(step: StepRecord) -> dict[str, Any]:
    calls = [
        {
            "call": None if record.call is None else _call_json(record.call),
            "observation": record.observation,
            "duration_s": record.duration_s,
            "is_error": record.is_error,
            "raw": record.raw,
            "remark": record.remark,
        }
        for record in step.calls
    ]
    return {
        "message_index": step.message_index,
        "model_s": step.model_s,
        "usage": dataclasses.asdict(step.usage),
        "finish_reason": step.finish_reason,
        "calls": calls,
    }


def _step(record: Mapping[str, Any]) -> StepRecord:
    calls = [
        CallRecord(**{**entry, "call": None if entry["call"] is None else ToolCall(**entry["call"])})
        for entry in record["calls"]
    ]
    return StepRecord(**{**record, "usage": Usage(**record["usage"]), "calls": calls})


@dataclass(frozen=True, slots=True)
class Difference:
    """A replayed call whose observation is another one. ``step`` and ``call`` count from 1."""

    step: int
    call: int
    recorded: str
    observed: str


# What differs between two runs of the same command without meaning anything: durations and addresses.
_VOLATILE = re.compile(r"\b\d+(?:\.\d+)?\s?(?:ms|s|sec|seconds)\b|\b0x[0-9a-f]{6,}\b")


def replay(
    trajectory: Trajectory, environment: CommandRunner, *, command_timeout_s: float = 120.0, exact: bool = False
) -> list[Difference]:
    """Runs every recorded call again, in order, and reports where the observations differ.

    ``environment`` must begin as the recorded one began; its workspace may be another directory, whose path is put
    in place of the recorded one. Durations and memory addresses are ignored unless ``exact``.
    """
    old, new = trajectory.workspace, str(environment.workspace)
    differences = []
    for step_number, step in enumerate(trajectory.steps, start=1):
        for call_number, record in enumerate(step.calls, start=1):
            if record.call is None:
                continue
            call = dataclasses.replace(record.call, arguments=_moved(record.call.arguments, old, new))
            observed = run_tool(call, environment, command_timeout_s=command_timeout_s).text
            recorded = record.observation.replace(old, new)
            if _comparable(recorded, exact) != _comparable(observed, exact):
                differences.append(Difference(step_number, call_number, recorded, observed))
    return differences


def _moved(arguments: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    return {name: value.replace(old, new) if isinstance(value, str) else value for name, value in arguments.items()}


def _comparable(text: str, exact: bool) -> str:
    return text if exact else _VOLATILE.sub("#", text)
