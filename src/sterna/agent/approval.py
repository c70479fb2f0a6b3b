"""Who may do what without being asked: the approval modes, decided call by call before a tool runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sterna.agent.danger import danger
from sterna.chat.messages import ToolCall


class Mode(StrEnum):
    """``ask``: every command and edit; ``auto-edit``: commands only; ``sandboxed``: only what destroys work;
    ``plan``: nothing is changed, commands and edits are refused, files may be viewed."""

    ASK = "ask"
    AUTO_EDIT = "auto-edit"
    SANDBOXED = "sandboxed"
    PLAN = "plan"


@dataclass(frozen=True, slots=True)
class Question:
    """What the user is asked; ``reason`` says why when the mode alone would not have asked."""

    call: ToolCall
    reason: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the user says; ``remark`` goes to the model with a no, ``always`` allows calls of this tool from now on."""

    yes: bool
    remark: str = ""
    always: bool = False


Ask = Callable[[Question], Answer]


def refuse(question: Question) -> Answer:
    """The answer where there is nobody to ask."""
    why = f": it {question.reason}" if question.reason else ""
    return Answer(False, f"nobody is there to allow it{why}")


class Approval:
    """Decides on calls in a mode; destructive commands are asked for every time, whatever was allowed before."""

    def __init__(self, mode: Mode, ask: Ask = refuse) -> None:
        self.mode = mode
        self._ask = ask
        self._always: set[str] = set()

    def refusal(self, call: ToolCall) -> str | None:
        """``None`` when the call may run, else what the model sees instead of a result."""
        if call.name == "submit" or _only_reads(call):
            return None
        if self.mode is Mode.PLAN:
            return "error: this is plan mode: nothing may be run or changed; view files and answer with a plan"
        reason = danger(str(call.arguments.get("command", ""))) if call.name == "bash" else None
        if reason is None and not self._mode_asks(call):
            return None
        answer = self._ask(Question(call, reason))
        if answer.yes:
            if answer.always and reason is None:
                self._always.add(call.name)
            return None
        return "error: the user refused this call" + (f": {answer.remark}" if answer.remark else "")

    def _mode_asks(self, call: ToolCall) -> bool:
        if call.name in self._always or self.mode is Mode.SANDBOXED:
            return False
        return self.mode is Mode.ASK or call.name == "bash"


def _only_reads(call: ToolCall) -> bool:
    return call.name == "str_replace_editor" and call.arguments.get("command") == "view"
