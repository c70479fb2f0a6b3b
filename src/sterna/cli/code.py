"""``sterna code``: the agent, in this directory."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sterna.cli.common import Subparsers, add_model_flags, add_sampling_flags, add_session_flags, load_llm, positive

if TYPE_CHECKING:
    from rich.console import Console

    from sterna.agent.environment import Environment
    from sterna.cli.code_prompt import TaskPrompt
    from sterna.cli.code_session import Session
    from sterna.llm import LLM

EXAMPLE_TASK = "Fix the bug. The tests must pass."


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "code",
        help="the agent: works on the project in this directory",
        description="Let the agent work on the project in this directory. It works in a sandbox without network, "
        "writes nowhere else, and shows what it changed. Without TASK it is a conversation, /help says what it knows. "
        f'Example: sterna code "{EXAMPLE_TASK}"',
    )
    parser.add_argument("task", nargs="?", metavar="TASK", help="what to do")
    parser.add_argument("--directory", type=Path, default=Path("."), metavar="DIR", help="the project (default: here)")
    parser.add_argument(
        "--approve",
        choices=("ask", "auto-edit", "sandboxed", "plan"),
        help="what needs your yes: ask = everything, auto-edit = commands, sandboxed = only what destroys work, "
        "plan = nothing is changed (default: sandboxed, without a sandbox ask)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="FILE",
        help="go on with a recorded run, without FILE the last one in this directory",
    )
    parser.add_argument("--list", action="store_true", help="show the recorded runs of this directory and end")
    parser.add_argument("--undo", action="store_true", help="put the files back as before the last task and end")
    parser.add_argument("--no-notes", action="store_true", help="do not read the project's AGENTS.md")
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
    from sterna.cli.code_records import print_records, undo_last

    if args.list:
        return print_records(args.directory)
    if args.undo:
        return undo_last(args.directory)
    from sterna.agent.environment import Environment
    from sterna.agent.sandbox import choose_sandbox
    from sterna.cli.agent_run import exit_code
    from sterna.cli.code_prompt import TaskPrompt
    from sterna.cli.terminal import data_console, message_console

    console = message_console() if args.json else data_console()
    sandbox = choose_sandbox(args.sandbox)
    print(sandbox.notice, file=sys.stderr)
    with Environment(args.directory, sandbox=sandbox) as environment, load_llm(args) as llm:
        from sterna.cli.code_session import COMMANDS

        prompt = TaskPrompt(environment.workspace, COMMANDS)
        session = _session(args, llm, environment, console, prompt)
        result = session.run(args.task) if args.task is not None else session.loop(prompt)
        if result is None:
            return 0
        if args.json:
            print(json.dumps(result.as_json()))
        return exit_code(result.finished.outcome)


def _session(
    args: argparse.Namespace, llm: LLM, environment: Environment, console: Console, prompt: TaskPrompt
) -> Session:
    from sterna.agent.approval import Approval, Mode, refuse
    from sterna.agent.notes import project_notes, with_notes
    from sterna.agent.tools import SYSTEM_PROMPT
    from sterna.cli.agent_run import make_agent, trajectory_path
    from sterna.cli.code_records import open_checkpoints, resumed
    from sterna.cli.code_session import Asker, Session

    workspace = environment.workspace
    mode = Mode(args.approve or ("ask" if environment.sandbox_name == "none" else "sandboxed"))
    approval = Approval(mode, Asker(console, prompt) if sys.stdin.isatty() or args.task is None else refuse)
    notes = "" if args.no_notes else project_notes(workspace)
    if notes:
        print("notes of the project: AGENTS.md", file=sys.stderr)
    path = trajectory_path(args)
    agent = make_agent(
        llm,
        environment,
        args,
        path,
        system_prompt=with_notes(SYSTEM_PROMPT, notes),
        approval=approval,
        trajectory=None if args.resume is None else resumed(args.resume, workspace),
    )
    return Session(agent, approval, open_checkpoints(workspace), workspace, path, llm.max_model_len, console)
