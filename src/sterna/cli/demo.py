"""``sterna demo``: watch the agent repair a small project."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.cli.code import add_agent_flags
from sterna.cli.common import Subparsers, add_model_flags, add_sampling_flags, load_llm

if TYPE_CHECKING:
    from rich.console import Console

    from sterna.agent.environment import Environment

TASK = "Fix the bug. The tests must pass."
SEED = 0
DEMO_DIRECTORY = Path(__file__).parents[1] / "data" / "demo"


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="watch the agent repair a small project",
        description="Copy a small broken project to a temporary directory, let the agent repair it, and run its tests. "
        "Exit code 0 only if they pass.",
    )
    parser.add_argument("--keep", action="store_true", help="leave the repaired project there")
    add_agent_flags(parser)
    add_model_flags(parser)
    add_sampling_flags(parser, preset="agent", max_tokens=4_096)
    parser.set_defaults(seed=SEED, max_steps=30)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from sterna.agent.environment import Environment
    from sterna.agent.sandbox import choose_sandbox
    from sterna.cli.agent_run import make_agent, run_task, trajectory_path
    from sterna.cli.terminal import data_console, message_console
    from sterna.evals.project_tests import restore_tests, run_project_tests

    console = message_console() if args.json else data_console()
    sandbox = choose_sandbox(args.sandbox)
    print(sandbox.notice, file=sys.stderr)
    root = Path(tempfile.mkdtemp(prefix="sterna-demo-"))
    try:
        project = root / "stats"
        shutil.copytree(DEMO_DIRECTORY, project, ignore=shutil.ignore_patterns("__pycache__"))
        with Environment(project, sandbox=sandbox) as environment, load_llm(args) as llm:
            _show_tests(environment, console, title=f"A broken project in {project}:")
            console.print(f'\nThe agent gets the task "{TASK}"', style="bold")
            agent = make_agent(llm, environment, args, path := trajectory_path(args))
            result = run_task(agent, TASK, workspace=project, path=path, console=console)
            # the agent may not win by editing the tests
            restore_tests(project, _test_files())
            _show_tests(environment, console, title="The tests as they were, on the agent's work:")
            passed = run_project_tests(environment)
        console.print("the tests pass" if passed else "the tests fail", style="bold green" if passed else "bold red")
        if args.json:
            print(json.dumps({**result.as_json(), "passed": passed, "sandbox": sandbox.name, "model": llm.name}))
        return 0 if passed else 1
    finally:
        if not args.keep:
            shutil.rmtree(root, ignore_errors=True)


def _test_files() -> dict[str, str]:
    return {path.name: path.read_text() for path in DEMO_DIRECTORY.glob("test_*.py")}


def _show_tests(environment: Environment, console: Console, *, title: str) -> None:
    from sterna.cli.terminal import printable
    from sterna.evals.project_tests import TEST_COMMAND

    environment.cwd = str(environment.workspace)
    result = environment.run(f"ls && {TEST_COMMAND} 2>&1 | tail -n 20", timeout_s=60)
    console.print(f"\n{title}", style="bold")
    console.print(printable(result.output), style="dim")
