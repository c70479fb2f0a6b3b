"""A run of the agent on a terminal, as it happens."""

from __future__ import annotations

from rich.console import Console

from sterna.agent.events import AgentEvent, Finished, ModelEvent, Observation, StepStarted, ToolStarted
from sterna.chat.messages import ReasoningDelta, TextDelta, ToolCall, ToolCallError
from sterna.cli.terminal import printable

OBSERVATION_LINES = 12


class AgentView:
    """Prints events: reasoning dim, calls bold, results indented and cut in the middle."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._at_line_start = True

    def show(self, event: AgentEvent) -> None:
        """Print one event."""
        if isinstance(event, StepStarted):
            self._line(f"── step {event.step}", style="blue")
        elif isinstance(event, ModelEvent):
            self._show_model(event)
        elif isinstance(event, ToolStarted):
            self._show_call(event.call)
        elif isinstance(event, Observation):
            self._show_observation(event)
        elif isinstance(event, Finished):
            style = "bold green" if event.outcome.by_choice else "bold red"
            self._line(f"── {event.outcome}: {printable(event.detail)}", style=style)

    def _show_model(self, event: ModelEvent) -> None:
        if isinstance(event.event, ReasoningDelta):
            self._stream(event.event.text, style="dim italic")
        elif isinstance(event.event, TextDelta):
            self._stream(event.event.text, style="")
        elif isinstance(event.event, ToolCallError):
            self._line(f"malformed call: {printable(event.event.raw)}", style="red")

    def _show_call(self, call: ToolCall) -> None:
        arguments = call.arguments
        if call.name == "bash":
            self._line(f"$ {printable(str(arguments.get('command', '')))}", style="bold")
            return
        named = " ".join(printable(str(arguments[key])) for key in ("command", "path") if key in arguments)
        self._line(f"{call.name} {named}".rstrip(), style="bold")
        for key, sign, style in (("old_str", "-", "red"), ("new_str", "+", "green"), ("file_text", "+", "green")):
            for line in str(arguments.get(key, "")).splitlines():
                self._line(f"  {sign} {printable(line)}", style=style)

    def _show_observation(self, event: Observation) -> None:
        lines = printable(event.text).splitlines()
        if len(lines) > OBSERVATION_LINES:
            half = OBSERVATION_LINES // 2
            lines = [*lines[:half], f"… {len(lines) - 2 * half} lines …", *lines[-half:]]
        for line in lines:
            self._line(f"  {line}", style="red" if event.is_error else "dim")

    def _stream(self, text: str, *, style: str) -> None:
        self._console.print(printable(text), style=style, end="")
        self._at_line_start = text.endswith("\n")

    def _line(self, text: str, *, style: str) -> None:
        if not self._at_line_start:
            self._console.print()
        self._console.print(text, style=style)
        self._at_line_start = True
