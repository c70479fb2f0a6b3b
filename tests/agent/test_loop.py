"""The loop with a scripted model: real tools, real sandbox, every way a run can end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agent.projects import RUN_TESTS, TASK, write_broken_project
from sterna.agent.environment import CommandResult, Environment
from sterna.agent.events import AgentEvent, Finished, ModelEvent, Observation, Outcome, StepStarted, ToolStarted
from sterna.agent.loop import Agent, AgentLimits
from sterna.agent.tools import SYSTEM_PROMPT
from sterna.agent.trajectory import Trajectory, replay
from sterna.chat.messages import ChatEvent, End, Message, TextDelta, Tool
from sterna.errors import AgentError, ContextOverflowError, SandboxError
from sterna.types import FinishReason, Usage
from support.scripted_model import ScriptedModel, Turn, call, malformed, turn

REPAIR = call(
    "str_replace_editor",
    command="str_replace",
    path="clamp.py",
    old_str="    if value > high:\n        return low",
    new_str="    if value > high:\n        return high",
)


class FakeEnvironment:
    """Answers every command at once with the same text."""

    sandbox_name = "fake"

    def __init__(self, workspace: Path, *, interrupt: bool = False) -> None:
        self.workspace = workspace
        self.commands: list[str] = []
        self._interrupt = interrupt

    def run(self, command: str, *, timeout_s: float) -> CommandResult:
        self.commands.append(command)
        if self._interrupt:
            raise KeyboardInterrupt
        return CommandResult("same\n", 0)


def run_agent(
    tmp_path: Path, *turns: Turn, limits: AgentLimits | None = None, interrupt: bool = False
) -> tuple[Finished, list[AgentEvent], ScriptedModel, Trajectory]:
    model = ScriptedModel(*turns)
    path = tmp_path / "trajectory.json"
    agent = Agent(model, FakeEnvironment(tmp_path, interrupt=interrupt), limits=limits, trajectory_path=path)
    events = list(agent.run(TASK))
    assert isinstance(events[-1], Finished)
    saved = Trajectory.load(path)
    assert tuple(saved.messages) == agent.messages
    assert saved.runs[-1].outcome == events[-1].outcome
    return events[-1], events, model, saved


def observations(events: Sequence[AgentEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, Observation)]


def test_a_broken_project_gets_fixed_and_the_run_can_be_replayed(tmp_path: Path) -> None:
    project = write_broken_project(tmp_path / "project")
    model = ScriptedModel(
        turn(call("bash", command=f"ls && {RUN_TESTS}"), reasoning="Look first."),
        turn(call("bash", command="cat clamp.py"), reasoning="The value above is wrong."),
        turn(REPAIR, call("bash", command=RUN_TESTS)),
        turn(call("submit")),
    )
    path = tmp_path / "run.json"
    with Environment(project) as environment:
        agent = Agent(model, environment, trajectory_path=path, settings={"model": "scripted"})
        events = list(agent.run(TASK))
        assert environment.run("python -m unittest", timeout_s=30).exit_code == 0
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.outcome, finished.steps) == (Outcome.SUBMITTED, 4)
    seen = observations(events)
    assert seen[0].startswith("clamp.py\ntest_clamp.py\n")
    assert "AssertionError: 0 != 5" in seen[0] and seen[0].endswith("FAILED (failures=1)")
    assert seen[2] == "clamp.py edited at line 5"
    assert seen[3].endswith("OK")

    saved = Trajectory.load(path)
    assert saved.settings == {"model": "scripted"} and saved.sandbox == environment.sandbox_name
    with Environment(write_broken_project(tmp_path / "again")) as environment:
        assert replay(saved, environment) == []
        assert environment.run("python -m unittest", timeout_s=30).exit_code == 0
    with Environment(project) as environment:
        differences = replay(saved, environment)
    assert [(item.step, item.call) for item in differences] == [(1, 1), (2, 1), (3, 1)]
    assert differences[2].observed.startswith("error: old_str was not found in clamp.py")


def test_history_is_append_only_and_what_the_model_saw(tmp_path: Path) -> None:
    _, events, model, saved = run_agent(
        tmp_path, turn(call("bash", command="a"), call("bash", command="b")), turn(call("bash", command="c")), turn()
    )
    first, second, third = model.seen
    assert first == (Message("system", SYSTEM_PROMPT), Message("user", TASK))
    assert second[: len(first)] == first and third[: len(second)] == second
    assert [message.role for message in third] == ["system", "user", "assistant", "tool", "tool", "assistant", "tool"]
    assert [message.tool_call_id for message in third[3:5]] == ["call_0", "call_1"]
    assert tuple(saved.messages[: len(third)]) == third
    kinds = [type(event).__name__ for event in events if not isinstance(event, ModelEvent)]
    assert kinds == [
        *["StepStarted", "ToolStarted", "Observation", "ToolStarted", "Observation"],
        *["StepStarted", "ToolStarted", "Observation", "StepStarted", "Finished"],
    ]


def test_answer_without_call_ends_the_run_and_a_second_task_goes_on(tmp_path: Path) -> None:
    model = ScriptedModel(turn(text="Hello."), turn(text="Again."))
    agent = Agent(model, FakeEnvironment(tmp_path))
    for task in ("one", "two"):
        *_, finished = agent.run(task)
        assert isinstance(finished, Finished)
        assert (finished.outcome, finished.steps) == (Outcome.ANSWERED, 1)
    assert [message.role for message in agent.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [run.steps_end for run in agent.trajectory.runs] == [1, 2]


def test_malformed_call_is_returned_for_repair(tmp_path: Path) -> None:
    finished, events, model, saved = run_agent(
        tmp_path, malformed("<tool_call>\nbash", "the call is not closed"), turn(call("submit"))
    )
    assert finished.outcome is Outcome.SUBMITTED
    assert observations(events) == ["error: the call is not closed"]
    assert model.seen[1][-1] == Message("tool", "error: the call is not closed")
    assert saved.steps[0].calls[0].raw == "<tool_call>\nbash"


def test_format_errors_in_a_row_end_the_run_but_not_when_interrupted_by_a_good_turn(tmp_path: Path) -> None:
    bad = malformed("<tool_call>", "not closed")
    finished, _, model, _ = run_agent(
        tmp_path, bad, turn(call("bash", command="a")), bad, bad, turn(), limits=AgentLimits(format_errors=2)
    )
    assert finished.outcome is Outcome.FORMAT_ERRORS
    assert model.remaining == 1


def test_unknown_tool_and_wrong_arguments_are_errors_with_what_is_allowed(tmp_path: Path) -> None:
    _, events, _, _ = run_agent(
        tmp_path,
        turn(call("python", code="1"), call("bash"), call("bash", command="a", cwd="b"), call("bash", command=["a"])),
        turn(),
    )
    assert observations(events) == [
        "error: there is no tool 'python', allowed are bash, str_replace_editor, submit",
        "error: bash needs the parameter command",
        "error: bash has no parameter 'cwd', allowed are command",
        "error: command is ['a'], allowed is a value of type string",
    ]
    assert all(event.is_error for event in events if isinstance(event, Observation))


def test_calls_after_submit_are_not_run(tmp_path: Path) -> None:
    model = ScriptedModel(turn(call("bash", command="a"), call("submit"), call("bash", command="never")))
    environment = FakeEnvironment(tmp_path)
    agent = Agent(model, environment)
    *_, finished = agent.run(TASK)
    assert isinstance(finished, Finished) and finished.outcome is Outcome.SUBMITTED
    assert environment.commands == ["a"]
    assert [message.role for message in agent.messages] == ["system", "user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("limits", "outcome", "steps"),
    [
        (AgentLimits(steps=2), Outcome.STEP_LIMIT, 2),
        (AgentLimits(completion_tokens=2), Outcome.TOKEN_LIMIT, 2),
        (AgentLimits(wall_s=0.0), Outcome.TIME_LIMIT, 0),
    ],
)
def test_limits_are_outcomes(tmp_path: Path, limits: AgentLimits, outcome: Outcome, steps: int) -> None:
    finished, _, _, saved = run_agent(tmp_path, *[turn(call("bash", command="a"))] * 3, limits=limits)
    assert (finished.outcome, finished.steps) == (outcome, steps)
    assert not finished.outcome.by_choice
    assert len(saved.steps) == steps


def test_time_limit_is_noticed_inside_a_turn_and_closes_the_stream(tmp_path: Path) -> None:
    class Endless:
        closed = False

        def respond(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[ChatEvent]:
            try:
                while True:
                    time.sleep(0.005)
                    yield TextDelta("x")
            finally:
                self.closed = True

    model = Endless()
    agent = Agent(model, FakeEnvironment(tmp_path), limits=AgentLimits(wall_s=0.05))
    *_, finished = agent.run(TASK)
    assert isinstance(finished, Finished) and finished.outcome is Outcome.TIME_LIMIT
    assert model.closed
    assert [message.role for message in agent.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (ContextOverflowError("prompt has 9 tokens, context is 8"), Outcome.CONTEXT_OVERFLOW),
        (SandboxError("no sandbox"), Outcome.ERROR),
        (KeyboardInterrupt(), Outcome.INTERRUPTED),
        ([TextDelta("cut")], Outcome.ERROR),
        ([End(FinishReason.LENGTH, Message("assistant", "cut"), Usage())], Outcome.LENGTH),
        ([End(FinishReason.CANCELLED, Message("assistant", "cut"), Usage())], Outcome.INTERRUPTED),
    ],
)
def test_failures_are_outcomes(tmp_path: Path, failure: Turn, outcome: Outcome) -> None:
    finished, _, _, saved = run_agent(tmp_path, turn(call("bash", command="a")), failure)
    assert finished.outcome is outcome
    assert finished.detail and saved.runs[0].detail == finished.detail


def test_a_defect_raises_after_the_trajectory_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    agent = Agent(
        ScriptedModel(turn(call("bash", command="a")), ZeroDivisionError()),
        FakeEnvironment(tmp_path),
        trajectory_path=path,
    )
    with pytest.raises(ZeroDivisionError):
        list(agent.run(TASK))
    saved = Trajectory.load(path)
    assert (len(saved.steps), saved.runs[0].outcome) == (1, "error")


def test_interrupt_inside_a_tool_leaves_every_call_answered(tmp_path: Path) -> None:
    finished, _, _, saved = run_agent(
        tmp_path, turn(call("bash", command="a"), call("bash", command="b")), interrupt=True
    )
    assert finished.outcome is Outcome.INTERRUPTED
    assert [message.content for message in saved.messages if message.role == "tool"] == [
        "error: interrupted by the user"
    ] * 2


def test_a_listener_that_leaves_counts_as_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    agent = Agent(ScriptedModel(turn(call("bash", command="a"))), FakeEnvironment(tmp_path), trajectory_path=path)
    events = agent.run(TASK)
    for event in events:
        if isinstance(event, ToolStarted):
            events.close()
    saved = Trajectory.load(path)
    assert saved.runs[0].outcome == "interrupted"
    assert saved.messages[-1].role == "tool"


def test_trajectory_is_saved_after_every_step(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    agent = Agent(
        ScriptedModel(*[turn(call("bash", command="a"))] * 2, turn()), FakeEnvironment(tmp_path), trajectory_path=path
    )
    counts = []
    for event in agent.run(TASK):
        if isinstance(event, StepStarted) and event.step > 1:
            saved = Trajectory.load(path)
            counts.append((len(saved.steps), saved.runs[0].outcome, saved.messages[-1].content))
    assert counts == [(1, None, "same"), (2, None, "same")]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]


def test_going_in_circles_is_remarked_in_the_tool_result_only(tmp_path: Path) -> None:
    _, events, _, saved = run_agent(tmp_path, *[turn(call("bash", command="a"))] * 3, turn())
    remark = "[this call gave the same result 3 times in a row, try something else]"
    assert observations(events) == ["same", "same", f"same\n{remark}"]
    assert saved.messages[-2].content == f"same\n{remark}"
    assert (saved.steps[2].calls[0].observation, saved.steps[2].calls[0].remark) == ("same", remark)
    assert sum(message.role == "user" for message in saved.messages) == 1


def test_trajectory_keeps_token_ids_and_usage(tmp_path: Path) -> None:
    message = Message("assistant", "done", reasoning="", token_ids=(5, 6, 7))
    _, _, _, saved = run_agent(tmp_path, [End(FinishReason.STOP, message, Usage(prompt_tokens=4, cached_tokens=3))])
    assert saved.messages[-1] == message
    assert saved.steps[0].usage == Usage(prompt_tokens=4, cached_tokens=3)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":"sterna-trajectory","version":99}', '{"format":"st'])
def test_what_is_no_trajectory_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(AgentError, match="trajectory"):
        Trajectory.load(path)


def test_raw_text_of_the_model_drives_the_loop(tmp_path: Path) -> None:
    pytest.importorskip("sterna.chat.stream_parser", reason="the stream parser is not part of this checkout")
    broken = "Think.\n</think>\n\n<tool_call>\n<function=bash>\n<parameter=command>\nls -l"
    raw = f"{broken}\n</parameter>\n</function>\n</tool_call>"
    finished, events, model, _ = run_agent(tmp_path, raw, broken, "All good.")
    assert finished.outcome is Outcome.ANSWERED
    assert [event.call.arguments for event in events if isinstance(event, ToolStarted)] == [{"command": "ls -l"}]
    assert observations(events)[1].startswith("error: ")
    assert model.seen[1][2].reasoning == "Think."
