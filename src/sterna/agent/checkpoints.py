"""Undo for files: a git repository of its own beside the workspace, never the workspace's.

before = Checkpoints(workspace, home / "checkpoints").save("before the task")
...
checkpoints.restore(before)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from sterna.errors import AgentError

MAX_NEW_BYTES = 512 << 20
_REF = "refs/sterna/checkpoints"
_TIMEOUT_S = 300.0
# Nothing that the workspace or the user configured may run, rewrite line ends or sign: bytes in, bytes out.
_CONFIG = (
    "core.hooksPath=/dev/null", "core.autocrlf=false", "core.safecrlf=false", "core.fsmonitor=false", "commit.gpgSign=false",
    "gc.auto=0", "core.quotePath=false", "core.untrackedCache=false", "advice.addEmbeddedRepo=false",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of the files. ``kind``: ``task`` before a task, ``undo`` before files were put back."""

    commit: str
    tree: str
    kind: str
    label: str
    unix_s: int


class Checkpoints:
    """States of the files of one workspace, untracked ones included; what ``.gitignore`` names is left out.

    A repository inside the workspace is recorded by its commit only, its files are not. ``home`` holds one bare
    repository per workspace. Everything raises `AgentError` where git is missing or fails.
    """

    def __init__(self, workspace: Path, home: Path) -> None:
        self._workspace = workspace.resolve()
        self._git_dir = home / f"{hashlib.sha256(os.fsencode(self._workspace)).hexdigest()[:32]}.git"
        git = shutil.which("git")
        if git is None:
            raise AgentError("files cannot be saved for undo: git is not installed")
        self._executable = git

    def save(self, label: str, *, kind: str = "task") -> Checkpoint:
        """The files as they are now; ``label`` is one line."""
        tree = self._tree()
        newest = self._git("for-each-ref", "--format=%(objectname)", _REF).strip()
        parent = ("-p", newest) if newest else ()
        now = int(time.time())
        commit = self._git("commit-tree", tree, *parent, "-m", f"{kind}: {label}", unix_s=now).strip()
        self._git("update-ref", _REF, commit)
        return Checkpoint(commit, tree, kind, label, now)

    def saved(self) -> list[Checkpoint]:
        """All checkpoints of this workspace, newest first."""
        if not self._git_dir.is_dir() or not self._git("for-each-ref", _REF).strip():
            return []
        lines = self._git("log", "--first-parent", "--format=%H%x00%T%x00%ct%x00%s", _REF, "--").splitlines()
        found = []
        for commit, tree, unix_s, subject in (line.split("\x00") for line in lines):
            kind, _, label = subject.partition(": ")
            found.append(Checkpoint(commit, tree, kind, label, int(unix_s)))
        return found

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Make the files as they were; returns the paths that changed. The state before it is saved first."""
        before = self.save(checkpoint.label, kind="undo")
        changed = self._git("diff", "--name-only", "-z", before.commit, checkpoint.commit).split("\x00")
        self._git("read-tree", "--reset", "-u", checkpoint.commit)
        return [path for path in changed if path]

    def before_last_task(self) -> Checkpoint | None:
        """The newest state before a task that differs from now; asked again after `restore`, the one before that."""
        now = self._tree()
        tasks = [checkpoint for checkpoint in self.saved() if checkpoint.kind == "task"]
        same = [index for index, checkpoint in enumerate(tasks) if checkpoint.tree == now]
        return next((task for task in tasks[same[0] if same else 0 :] if task.tree != now), None)

    def diff(self, checkpoint: Checkpoint) -> str:
        """A unified diff from ``checkpoint`` to the files as they are now."""
        return self._git("diff", "--no-ext-diff", "--no-textconv", "--no-color", checkpoint.tree, self._tree())

    def _tree(self) -> str:
        """The files as they are now, as a tree of the repository."""
        self._prepare()
        self._check_size()
        self._git("add", "--all", "--", ".")
        return self._git("write-tree").strip()

    def _prepare(self) -> None:
        if not (self._git_dir / "HEAD").exists():
            self._git_dir.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._git("init", "--quiet", "--bare", str(self._git_dir))
            self._git_dir.chmod(0o700)

    def _check_size(self) -> None:
        listed = self._git("ls-files", "--others", "--modified", "--exclude-standard", "-z").split("\x00")
        total = 0
        for path in filter(None, listed):
            try:
                total += (self._workspace / path).lstat().st_size
            except OSError:
                continue
        if total > MAX_NEW_BYTES:
            raise AgentError(
                f"files cannot be saved for undo: {total >> 20} MiB are new, allowed is {MAX_NEW_BYTES >> 20} MiB",
                hint="name large files in .gitignore",
            )

    def _git(self, *arguments: str, unix_s: int | None = None) -> str:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0",
            "GIT_AUTHOR_NAME": "sterna", "GIT_AUTHOR_EMAIL": "sterna@localhost",
            "GIT_COMMITTER_NAME": "sterna", "GIT_COMMITTER_EMAIL": "sterna@localhost",
        }  # fmt: skip
        if unix_s is not None:
            environment |= {"GIT_AUTHOR_DATE": f"{unix_s} +0000", "GIT_COMMITTER_DATE": f"{unix_s} +0000"}
        config = [part for entry in _CONFIG for part in ("-c", entry)]
        where = [f"--git-dir={self._git_dir}", f"--work-tree={self._workspace}"] if arguments[0] != "init" else []
        try:
            done = subprocess.run(
                [self._executable, *config, *where, *arguments],
                cwd=self._workspace, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise AgentError(f"git {arguments[0]} failed: {error}") from error
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            raise AgentError(f"git {arguments[0]} failed: {lines[-1]}")
        return done.stdout.decode(errors="surrogateescape")
