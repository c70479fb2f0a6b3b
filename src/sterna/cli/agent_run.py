"""One run of the agent for the terminal: stream, diff, figures. Used by ``sterna code`` and ``sterna demo``."""

from __future__ import annotations

import argparse
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.syntax import Syntax

from sterna import env
from sterna.agent.events import Finished, Outcome
from sterna.agent.loop import Agent, AgentLimits
from sterna.agent.service_model import ServiceModel
from sterna.cli.agent_view import AgentView
from sterna.cli.common import chat_request
from sterna.cli.terminal import printable
from sterna.cli.workspace_diff import snapshot, unified_diff

if TYPE_CHECKING:
    from sterna.agent.environment import Environment
    from sterna.llm import LLM

DEFAULT_MAX_TOKENS = 8_192


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to; ``diff`` is ``None`` in a directory with too many files to compare."""

    finished: Finished
    diff: str | None
    trajectory: Path
    tokens_per_s: float

    def as_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {
            "outcome": str(self.finished.outcome),
            "detail": self.finished.detail,
            "steps": self.finished.steps,
            "usage": asdict(self.finished.usage),
            "duration_s": round(self.finished.duration_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "diff": self.diff,
            "trajectory": str(self.trajectory),
        }


def trajectory_path(args: argparse.Namespace) -> Path:
    """Where the run is recorded: ``--trajectory`` or a new file under ``STERNA_HOME``."""
    if args.trajectory is not None:
        path: Path = args.trajectory
        return path
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return env.home() / "trajectories" / f"{stamp}-{uuid.uuid4().hex[:6]}.json"


def make_agent(llm: LLM, environment: Environment, args: argparse.Namespace, path: Path, **options: Any) -> Agent:
    """An agent with the model, sampling and limits of the flags; ``options`` go to `Agent` as they are."""
    request = chat_request(args, ())
    settings = {
        "model": llm.name,
        "preset": args.preset,
        "thinking": request.enable_thinking,
        "sampling": {**asdict(request.sampling), "logit_bias": {}},
        "max_model_len": llm.max_model_len,
        "backend": llm.backend.name,
    }
    model = ServiceModel(llm, request.sampling, enable_thinking=request.enable_thinking)
    limits = AgentLimits(steps=args.max_steps)
    return Agent(model, environment, limits=limits, trajectory_path=path, settings=settings, **options)


def run_task(agent: Agent, task: str, *, workspace: Path, path: Path, console: Console) -> RunResult:
    """Run one task to its end, streaming to ``console``, then print the diff and the figures."""
    before = snapshot(workspace)
    first_step = len(agent.trajectory.steps)
    view = AgentView(console)
    finished: Finished | None = None
    for event in agent.run(task):
        view.show(event)
        if isinstance(event, Finished):
            finished = event
    assert finished is not None, "the agent ended without its last event"
    after = snapshot(workspace)
    diff = None if before is None or after is None else unified_diff(before, after)
    model_s = sum(step.model_s for step in agent.trajectory.steps[first_step:])
    tokens_per_s = finished.usage.completion_tokens / model_s if model_s else 0.0
    result = RunResult(finished, diff, path, tokens_per_s)
    _print_summary(result, console)
    return result


def exit_code(outcome: Outcome) -> int:
    """0 when the model ended the run itself, 130 when the user did, 1 otherwise."""
    if outcome is Outcome.INTERRUPTED:
        return 130
    return 0 if outcome.by_choice else 1


def _print_summary(result: RunResult, console: Console) -> None:
    if result.diff is None:
        console.print("too many files to show what changed, see `git diff`", style="yellow")
    elif not result.diff:
        console.print("no file changed", style="yellow")
    else:
        console.print(Syntax(printable(result.diff), "diff", theme="ansi_dark", background_color="default"))
    usage = result.finished.usage
    console.print(
        f"{result.finished.steps} steps in {result.finished.duration_s:.1f} s: {usage.completion_tokens:,} tokens "
        f"written at {result.tokens_per_s:.0f}/s, {usage.computed_tokens:,} read, {usage.cached_tokens:,} reused",
        style="bold",
    )
    console.print(f"trajectory: {result.trajectory}", style="dim")
