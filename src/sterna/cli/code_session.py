"""A conversation with the agent on a terminal: tasks, /commands, questions, undo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.syntax import Syntax

from sterna.agent.approval import Answer, Approval, Mode, Question
from sterna.cli.agent_run import RunResult, run_task
from sterna.cli.code_prompt import TaskPrompt, mentioned_files
from sterna.cli.terminal import printable
from sterna.errors import AgentError

if TYPE_CHECKING:
    from sterna.agent.checkpoints import Checkpoint, Checkpoints
    from sterna.agent.loop import Agent

COMMANDS = {
    "/help": "what can be typed here",
    "/undo": "put the files back as they were before the last task",
    "/diff": "what changed since this session began",
    "/mode": "show or set what needs your yes: /mode ask, auto-edit, sandboxed or plan",
    "/context": "how full the context is, and what was computed and reused",
    "/quit": "leave (also Ctrl-D)",
}


@dataclass
class Session:
    """One agent, its approval and its checkpoints. ``checkpoints`` is ``None`` where undo is not to be had."""

    agent: Agent
    approval: Approval
    checkpoints: Checkpoints | None
    workspace: Path
    trajectory: Path
    max_model_len: int
    console: Console

    _first: Checkpoint | None = None

    def run(self, task: str) -> RunResult:
        """Save the files, then work on ``task``."""
        self._save(task)
        files = mentioned_files(task, self.workspace)
        if files:
            task += f"\n\nFiles named above: {', '.join(files)}"
        return run_task(self.agent, task, workspace=self.workspace, path=self.trajectory, console=self.console)

    def loop(self, prompt: TaskPrompt) -> RunResult | None:
        """Tasks and commands until the user leaves; the result of the last task."""
        last: RunResult | None = None
        while (line := prompt.read()) is not None and line != "/quit":
            if line.startswith("/"):
                self.command(line)
            elif line:
                last = self.run(line)
        return last

    def command(self, line: str) -> None:
        """Do one /command."""
        name, _, argument = line.partition(" ")
        if name == "/undo":
            self._undo()
        elif name == "/diff":
            self._diff()
        elif name == "/mode":
            self._mode(argument.strip())
        elif name == "/context":
            self._context()
        elif name == "/help":
            for command, meaning in COMMANDS.items():
                self._say(f"{command:10} {meaning}")
            self._say("@PATH names a file (Tab completes); Ctrl-C stops the agent, and the next line steers it")
        else:
            self._say(f"{printable(name)} is not known, allowed are {', '.join(COMMANDS)}", style="red")

    def _save(self, task: str) -> None:
        if self.checkpoints is None:
            return
        try:
            saved = self.checkpoints.save(" ".join(task.split())[:100])
            self._first = self._first or saved
        except AgentError as error:
            self._say(error.message + (f"; {error.hint}" if error.hint else ""), style="yellow")

    def _undo(self) -> None:
        earlier = None
        try:
            if self.checkpoints is not None:
                earlier = self.checkpoints.before_last_task()
            if self.checkpoints is None or earlier is None:
                self._say("there is nothing to undo", style="yellow")
                return
            changed = self.checkpoints.restore(earlier)
        except AgentError as error:
            self._say(error.message, style="red")
            return
        self._say(f"put back as before {printable(earlier.label)!r}: {printable(', '.join(changed))}")

    def _diff(self) -> None:
        if self.checkpoints is None or self._first is None:
            self._say("nothing is recorded to compare with", style="yellow")
            return
        text = printable(self.checkpoints.diff(self._first))
        if text:
            self.console.print(Syntax(text, "diff", theme="ansi_dark", background_color="default"))
        else:
            self._say("no file changed")

    def _mode(self, wanted: str) -> None:
        if wanted:
            if wanted not in list(Mode):
                self._say(f"mode is {printable(wanted)!r}, allowed are {', '.join(Mode)}", style="red")
                return
            self.approval.mode = Mode(wanted)
        self._say(f"mode: {self.approval.mode}")

    def _context(self) -> None:
        steps = self.agent.trajectory.steps
        if not steps:
            self._say(f"context: 0 of {self.max_model_len:,} tokens")
            return
        usage = steps[-1].usage
        used = usage.prompt_tokens + usage.completion_tokens
        computed, cached = (sum(getattr(s.usage, n) for s in steps) for n in ("computed_tokens", "cached_tokens"))
        self._say(
            f"context: {used:,} of {self.max_model_len:,} tokens ({used / self.max_model_len:.0%}); "
            f"in {len(steps)} steps {computed:,} tokens read, {cached:,} reused"
        )

    def _say(self, text: str, *, style: str = "") -> None:
        self.console.print(text, style=style)


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks on the terminal before a call."""

    console: Console
    prompt: TaskPrompt

    def __call__(self, question: Question) -> Answer:
        """Yes, always, or no with an optional remark for the model. The end of input is a no."""
        if question.reason:
            self.console.print(f"this {question.reason}", style="bold yellow")
        choices = "[y]es, [n]o" if question.reason else "[y]es, [a]lways, [n]o"
        text = self.prompt.read(f"allow? {choices}, or what to do instead: ")
        if text is None or text.lower() in ("", "n", "no"):
            return Answer(False)
        if text.lower() in ("y", "yes"):
            return Answer(True)
        if text.lower() in ("a", "always") and not question.reason:
            return Answer(True, always=True)
        return Answer(False, text)
