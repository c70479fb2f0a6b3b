"""``sterna eval``: benchmarks with pinned settings and confidence intervals."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.cli.common import Subparsers, add_model_flags, add_sampling_flags, chat_request, load_llm, positive

if TYPE_CHECKING:
    from sterna.agent.sandbox import Sandbox
    from sterna.evals.log import EvalLog
    from sterna.evals.small_bugs.project import Project
    from sterna.evals.small_bugs.solvers import Solver

SPLIT_NAMES = ("unseen-instances", "unseen-families", "real-code", "hand-written")
SEED = 0


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        help="benchmarks with pinned settings and confidence intervals",
        description="Run a benchmark, or compare and report the runs of one. An interrupted run goes on where it ended "
        "when started again with the same settings.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_small_bugs(actions)
    compare = actions.add_parser(
        "compare",
        help="two runs over the same tasks",
        description="Compare two runs task by task: rates, the difference with a 95 %% interval (paired bootstrap), "
        "McNemar's exact test, and which tasks only one of them solved.",
    )
    compare.add_argument("first", type=Path, metavar="A", help="directory of a run")
    compare.add_argument("second", type=Path, metavar="B", help="directory of another run")
    compare.add_argument("--json", action="store_true", help="last line of standard output: the result as JSON")
    compare.set_defaults(action=_compare)
    report = actions.add_parser(
        "report",
        help="a run as a page",
        description="Write report.md and report.html into the directory of a run.",
    )
    report.add_argument("directory", type=Path, metavar="DIR", help="directory of a run")
    report.set_defaults(action=_report)
    return parser


def _add_small_bugs(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "small-bugs",
        help="repair small Python projects",
        description="The agent repairs small Python projects with one bug each, judged by their own tests.",
    )
    parser.add_argument("--split", choices=SPLIT_NAMES, default="unseen-instances", help="default: %(default)s")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N projects")
    parser.add_argument(
        "--baseline", choices=("random-mutation",), help="instead of a model: change random places until the tests pass"
    )
    parser.add_argument(
        "--attempts", type=positive, default=6, metavar="N", help="tries of the baseline (default: %(default)s)"
    )
    parser.add_argument("--max-steps", type=positive, default=30, metavar="N", help="most steps (default: %(default)s)")
    parser.add_argument("--sandbox", choices=("auto", "bubblewrap", "landlock", "none"), help="as for `sterna code`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results and trajectories go")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    add_model_flags(parser)
    # a figure must not depend on what was said before
    parser.set_defaults(heal="off")
    add_sampling_flags(parser, preset="agent", max_tokens=4_096)
    parser.set_defaults(seed=SEED, task="small-bugs", action=_small_bugs)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    code: int = args.action(args)
    return code


def _small_bugs(args: argparse.Namespace) -> int:
    from sterna.agent.sandbox import choose_sandbox
    from sterna.evals.report import write_report
    from sterna.evals.small_bugs.splits import split_projects

    projects = split_projects(args.split, limit=args.limit)
    sandbox = choose_sandbox(args.sandbox)
    print(sandbox.notice, file=sys.stderr)
    with _solver(args, sandbox) as (solver, log):
        _run_all(projects, solver, sandbox, log)
    chosen = {project.name for project in projects}
    log.results = {name: result for name, result in log.results.items() if name in chosen}
    summary = log.summary(task=args.task, split=args.split)
    low, high = summary["ci95"]
    _, page = write_report(log)
    print(
        f"{args.split}: {summary['passed']} of {summary['n']} passed, {summary['pass_rate']:.1%} "
        f"(95 % interval {low:.1%} to {high:.1%}), {summary['errors']} errors; {page}",
        file=sys.stderr if args.json else sys.stdout,
    )
    if args.json:
        print(json.dumps(summary))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from sterna.evals.compare import compare_runs
    from sterna.evals.log import EvalLog

    result = compare_runs(EvalLog.read(args.first), EvalLog.read(args.second))
    low, high = result.ci95
    lines = [
        f"A {args.first}: {result.first_passed} of {result.n} passed",
        f"B {args.second}: {result.second_passed} of {result.n} passed",
        f"B - A: {result.difference:+.1%} (95 % interval {low:+.1%} to {high:+.1%}), McNemar p = {result.p_value:.3g}",
        f"only A: {', '.join(result.only_first) or '-'}",
        f"only B: {', '.join(result.only_second) or '-'}",
    ]
    lines += [f"{key}: {a!r} in A, {b!r} in B" for key, (a, b) in result.different_settings.items()]
    if result.not_shared:
        lines.append(f"{len(result.not_shared)} tasks are in one run only and left out")
    print("\n".join(lines), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result.as_json()))
    return 0


def _report(args: argparse.Namespace) -> int:
    from sterna.evals.log import EvalLog
    from sterna.evals.report import write_report

    for path in write_report(EvalLog.read(args.directory)):
        print(path)
    return 0


@contextlib.contextmanager
def _solver(args: argparse.Namespace, sandbox: Sandbox) -> Iterator[tuple[Solver, EvalLog]]:
    """The agent or the baseline, with the log that its settings belong to."""
    from sterna.evals.small_bugs.solvers import RandomMutation

    common = {"task": args.task, "split": args.split, "seed": args.seed, "sandbox": sandbox.name}
    if args.baseline:
        settings = {**common, "baseline": args.baseline, "attempts": args.attempts}
        yield RandomMutation(args.attempts, args.seed), _log(args, settings, args.baseline)
        return
    from sterna.agent.loop import AgentLimits
    from sterna.agent.service_model import ServiceModel
    from sterna.evals.small_bugs.solvers import AgentSolver

    with load_llm(args) as llm:
        request = chat_request(args, ())
        settings = {
            **common,
            "model": llm.name,
            "weights": llm.backend.fingerprint(),
            "backend": llm.backend.name,
            "preset": args.preset,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "top_k": request.sampling.top_k,
            "presence_penalty": request.sampling.presence_penalty,
            "max_tokens": args.max_tokens,
            "thinking": request.enable_thinking,
            "max_steps": args.max_steps,
        }
        mode = "thinking" if request.enable_thinking else "instruct"
        log = _log(args, settings, f"{llm.name}-{mode}")
        model = ServiceModel(llm, request.sampling, enable_thinking=request.enable_thinking)
        limits = AgentLimits(steps=args.max_steps, wall_s=600.0, command_timeout_s=20.0)
        yield AgentSolver(model, limits, log.directory / "trajectories", settings), log


def _log(args: argparse.Namespace, settings: dict[str, Any], who: str) -> EvalLog:
    from sterna import env
    from sterna.evals.log import EvalLog

    return EvalLog(args.out or env.home() / "evals" / f"{args.task}-{args.split}-{who}", settings)


def _run_all(projects: list[Project], solver: Solver, sandbox: Sandbox, log: EvalLog) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sterna.cli.terminal import message_console
    from sterna.evals.small_bugs.solvers import solve

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=message_console()) as progress:
        bar = progress.add_task("", total=len(projects))
        for project in projects:
            if project.name not in log.results:
                log.add(solve(project, solver, sandbox))
            done = [log.results[p.name].outcome for p in projects if p.name in log.results]
            progress.update(bar, advance=1, description=f"{done.count('passed')} passed")
