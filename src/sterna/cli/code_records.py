"""Recorded runs of ``sterna code``: list them, go on with one, put the files back."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sterna import env
from sterna.agent.checkpoints import Checkpoints
from sterna.agent.trajectory import Trajectory
from sterna.cli.terminal import printable
from sterna.errors import AgentError, UsageError


def trajectories_of(workspace: Path) -> Iterator[tuple[Path, Trajectory]]:
    """The recorded runs in ``workspace``, newest first; files that cannot be read are passed over."""
    folder = env.home() / "trajectories"
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            trajectory = Trajectory.load(path)
        except AgentError:
            continue
        if trajectory.workspace == str(workspace):
            yield path, trajectory


def resumed(name: str, workspace: Path) -> Trajectory:
    """The record to go on with: ``name`` as a file, or the last one of ``workspace`` when it is empty.

    Raises:
        UsageError: there is none, or it belongs to another directory.
    """
    if not name:
        newest = next(trajectories_of(workspace), None)
        if newest is None:
            raise UsageError(f"there is no recorded run of {workspace}", hint="start one: `sterna code`")
        return newest[1]
    trajectory = Trajectory.load(Path(name))
    if trajectory.workspace != str(workspace):
        raise UsageError(
            f"{name} is a run in {trajectory.workspace}, this directory is {workspace}",
            hint="start in that directory, or give it with --directory",
        )
    return trajectory


def print_records(directory: Path) -> int:
    """One line per recorded run of ``directory`` to standard output."""
    for path, trajectory in trajectories_of(directory.resolve()):
        stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(trajectory.created_unix_s))
        task = trajectory.runs[0].task if trajectory.runs else ""
        outcome = (trajectory.runs[-1].outcome or "unfinished") if trajectory.runs else "empty"
        shown = printable(" ".join(task.split())[:80])
        print(f"{stamp}  {len(trajectory.steps):4} steps  {outcome:12} {shown}  {path}")
    return 0


def open_checkpoints(workspace: Path) -> Checkpoints | None:
    """The saved states of the files of ``workspace``, or ``None``, said on standard error."""
    try:
        return Checkpoints(workspace, env.home() / "checkpoints")
    except AgentError as error:
        print(error.message, file=sys.stderr)
        return None


def undo_last(directory: Path) -> int:
    """Put the files back as they were before the last task that changed them."""
    workspace = directory.resolve()
    checkpoints = Checkpoints(workspace, env.home() / "checkpoints")
    earlier = checkpoints.before_last_task()
    if earlier is None:
        raise UsageError(f"there is nothing to undo in {workspace}")
    changed = checkpoints.restore(earlier)
    print("\n".join(printable(path) for path in changed))
    print(f"{len(changed)} files put back as before: {printable(earlier.label)}", file=sys.stderr)
    return 0
