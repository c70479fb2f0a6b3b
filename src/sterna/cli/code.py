"""``sterna code``: the agent, in this directory."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sterna.cli.common import Subparsers, add_model_flags, add_sampling_flags, add_session_flags, load_llm, positive

EXAMPLE_TASK = "Fix the bug. The tests must pass."


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "code",
        help="the agent: works on the project in this directory",
        description="Let the agent work on the project in this directory. It works in a sandbox without network, "
        "writes nowhere else, and shows what it changed. Without TASK you are asked for one. "
        f'Example: sterna code "{EXAMPLE_TASK}"',
    )
    parser.add_argument("task", nargs="?", metavar="TASK", help="what to do")
    parser.add_argument("--directory", type=Path, default=Path("."), metavar="DIR", help="the project (default: here)")
    add_agent_flags(parser)
    add_model_flags(parser)
    add_session_flags(parser)
    add_sampling_flags(parser, preset="agent", max_tokens=8_192)
    return parser


def add_agent_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of commands that run the agent."""
    parser.add_argument("--max-steps", type=positive, default=50, metavar="N", help="most steps (default: %(default)s)")
    parser.add_argument(
        "--sandbox",
        choices=("auto", "bubblewrap", "landlock", "none"),
        help="how the agent's commands are confined; none means not at all (default: STERNA_SANDBOX or auto)",
    )
    parser.add_argument("--trajectory", type=Path, metavar="FILE", help="where to record the run (default: a new file)")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from sterna.agent.environment import Environment
    from sterna.agent.sandbox import choose_sandbox
    from sterna.cli.agent_run import exit_code, make_agent, run_task, trajectory_path
    from sterna.cli.terminal import data_console, message_console

    console = message_console() if args.json else data_console()
    sandbox = choose_sandbox(args.sandbox)
    print(sandbox.notice, file=sys.stderr)
    with Environment(args.directory, sandbox=sandbox) as environment, load_llm(args) as llm:
        path = trajectory_path(args)
        agent = make_agent(llm, environment, args, path)
        code = 0
        task = args.task if args.task is not None else _ask()
        while task:
            result = run_task(agent, task, workspace=environment.workspace, path=path, console=console)
            code = exit_code(result.finished.outcome)
            if args.json:
                print(json.dumps(result.as_json()))
            task = _ask() if args.task is None else ""
    return code


def _ask() -> str:
    """The next task from the user; empty at the end of input."""
    try:
        return input("task> ").strip()
    except EOFError:
        return ""
