"""Approval modes, call by call."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.agent.approval import Answer, Approval, Mode, Question
from sterna.agent.environment import Environment
from sterna.agent.loop import Agent
from sterna.agent.sandbox import choose_sandbox
from sterna.chat.messages import ToolCall
from support.scripted_model import ScriptedModel, call, turn

EDIT = ToolCall("str_replace_editor", {"command": "create", "path": "a", "file_text": "x"})
VIEW = ToolCall("str_replace_editor", {"command": "view", "path": "a"})
LIST = ToolCall("bash", {"command": "ls"})
WIPE = ToolCall("bash", {"command": "rm -rf src"})
SUBMIT = ToolCall("submit", {})
ALL = (VIEW, SUBMIT, EDIT, LIST, WIPE)


@pytest.mark.parametrize(
    ("mode", "asked"),
    [(Mode.ASK, [EDIT, LIST, WIPE]), (Mode.AUTO_EDIT, [LIST, WIPE]), (Mode.SANDBOXED, [WIPE]), (Mode.PLAN, [])],
)
def test_what_each_mode_asks(mode: Mode, asked: list[ToolCall]) -> None:
    questions: list[Question] = []

    def ask(question: Question) -> Answer:
        questions.append(question)
        return Answer(True)

    approval = Approval(mode, ask)
    refusals = [approval.refusal(one) for one in ALL]
    assert [question.call for question in questions] == asked
    assert [question.reason is not None for question in questions] == [one is WIPE for one in asked]
    if mode is Mode.PLAN:
        assert refusals[:2] == [None, None]
        assert all(text is not None and "plan mode" in text for text in refusals[2:])
    else:
        assert refusals == [None] * 5


def test_always_covers_a_tool_but_never_what_destroys() -> None:
    questions: list[Question] = []

    def ask(question: Question) -> Answer:
        questions.append(question)
        return Answer(True, always=True)

    approval = Approval(Mode.ASK, ask)
    for one in (LIST, LIST, WIPE, WIPE, LIST, EDIT, EDIT):
        assert approval.refusal(one) is None
    assert [question.call for question in questions] == [LIST, WIPE, WIPE, EDIT]


def test_a_no_reaches_the_model_with_its_remark() -> None:
    approval = Approval(Mode.ASK, lambda question: Answer(False, "use git rm"))
    assert approval.refusal(WIPE) == "error: the user refused this call: use git rm"
    assert Approval(Mode.ASK, lambda question: Answer(False)).refusal(LIST) == "error: the user refused this call"


def test_without_anybody_to_ask_work_is_not_destroyed(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    model = ScriptedModel(
        turn(call("bash", command="rm -rf src")), turn(call("bash", command="ls")), turn(call("submit"))
    )
    with Environment(tmp_path, sandbox=choose_sandbox("none")) as environment:
        agent = Agent(model, environment, approval=Approval(Mode.SANDBOXED))
        list(agent.run("clean up"))
    results = [message.content for message in agent.messages if message.role == "tool"]
    assert results[0].startswith("error: the user refused this call: nobody is there to allow it")
    assert results[1] == "src"
