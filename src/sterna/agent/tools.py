"""The tools the model may call: their schemas (``data/tools.json``) and what a call of each answers.

The wording of every result is the contract of docs/dev/transcript.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from sterna.agent.editor import edit_file
from sterna.agent.environment import CommandResult, CommandRunner
from sterna.chat.messages import Tool, ToolCall
from sterna.errors import AgentError


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call answered. ``submitted`` ends the run; ``text`` is what the model sees otherwise."""

    text: str
    is_error: bool = False
    submitted: bool = False


def load_tools() -> tuple[Tool, ...]:
    """The tools in the order in which the model is told of them."""
    text = resources.files("sterna.agent").joinpath("data/tools.json").read_text(encoding="utf-8")
    return tuple(Tool(**entry) for entry in json.loads(text))


def load_system_prompt() -> str:
    """The system message, without the newline that ends the file."""
    return resources.files("sterna.agent").joinpath("data/system.md").read_text(encoding="utf-8").strip()


TOOLS = load_tools()
SYSTEM_PROMPT = load_system_prompt()


def run_tool(call: ToolCall, environment: CommandRunner, *, command_timeout_s: float) -> ToolResult:
    """Does what ``call`` asks. Mistakes of the model become a result with ``is_error``, so that it can repair them.

    Raises:
        SandboxError: the sandbox itself cannot start commands.
    """
    try:
        _check_arguments(call)
        if call.name == "submit":
            return ToolResult("", submitted=True)
        if call.name == "bash":
            result = environment.run(call.arguments["command"], timeout_s=command_timeout_s)
            return ToolResult(bash_observation(result, timeout_s=command_timeout_s))
        return ToolResult(edit_file(environment.workspace, call.arguments))
    except AgentError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        return ToolResult(f"error: {error.message}{hint}", is_error=True)


def bash_observation(result: CommandResult, *, timeout_s: float) -> str:
    """The text for a finished command."""
    lines = [result.output.removesuffix("\n")] if result.output not in ("", "\n") else []
    if result.timed_out:
        lines.append(f"[timed out after {timeout_s:g} s]")
    elif result.note is not None:
        lines.append(f"[{result.note}]")
    elif result.exit_code != 0:
        lines.append(f"[exit code {result.exit_code}]")
    return "\n".join(lines) or "(no output)"


_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "array": (list, tuple)}


def _check_arguments(call: ToolCall) -> None:
    tool = next((tool for tool in TOOLS if tool.name == call.name), None)
    if tool is None:
        raise AgentError(f"there is no tool {call.name!r}, allowed are {', '.join(tool.name for tool in TOOLS)}")
    properties: Mapping[str, Any] = tool.parameters["properties"]
    for name in tool.parameters.get("required", ()):
        if name not in call.arguments:
            raise AgentError(f"{call.name} needs the parameter {name}")
    for name, value in call.arguments.items():
        if name not in properties:
            allowed = ", ".join(properties) or "none"
            raise AgentError(f"{call.name} has no parameter {name!r}, allowed are {allowed}")
        kind = properties[name]["type"]
        if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
            raise AgentError(f"{name} is {value!r}, allowed is a value of type {kind}")
        if isinstance(value, str) and "\0" in value:
            raise AgentError(f"{name} contains a NUL character, allowed is text without")
