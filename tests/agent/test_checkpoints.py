"""Undo of files: bytes, modes, links, new and deleted files; nothing of the workspace's own git is touched or run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sterna.agent import checkpoints as module
from sterna.agent.checkpoints import Checkpoints
from sterna.errors import AgentError


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"one\r\ntwo\n\xff")
    (root / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (root / "sub" / "run.sh").chmod(0o755)
    (root / "link").symlink_to("a.txt")
    (root / ".gitignore").write_text("*.log\n")
    (root / "kept.log").write_text("1")
    return root


def _files(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(root))] = (path.read_bytes(), os.access(path, os.X_OK))
    return found


def test_everything_comes_back(workspace: Path, tmp_path: Path) -> None:
    store = Checkpoints(workspace, tmp_path / "home")
    before = _files(workspace)
    saved = store.save("before")
    (workspace / "a.txt").write_text("changed")
    (workspace / "sub" / "run.sh").unlink()
    (workspace / "new ü\n.txt").write_text("untracked")
    (workspace / "link").unlink()
    (workspace / "link").write_text("a file now")
    assert store.restore(saved) == ["a.txt", "link", "new ü\n.txt", "sub/run.sh"]
    assert _files(workspace) == before


def test_ignored_files_stay_as_they_are(workspace: Path, tmp_path: Path) -> None:
    store = Checkpoints(workspace, tmp_path / "home")
    saved = store.save("before")
    (workspace / "kept.log").write_text("2")
    assert store.restore(saved) == []
    assert (workspace / "kept.log").read_text() == "2"


def test_undo_goes_back_task_by_task(workspace: Path, tmp_path: Path) -> None:
    store = Checkpoints(workspace, tmp_path / "home")
    file = workspace / "a.txt"
    for number in range(3):
        file.write_text(f"state {number}")
        store.save(f"task {number}")
    file.write_text("state 3")
    for wanted in ("state 2", "state 1", "state 0"):
        earlier = store.before_last_task()
        assert earlier is not None
        store.restore(earlier)
        assert file.read_text() == wanted
    assert store.before_last_task() is None
    assert "before undo" not in [checkpoint.label for checkpoint in store.saved() if checkpoint.kind == "task"]


def test_diff_shows_what_changed(workspace: Path, tmp_path: Path) -> None:
    store = Checkpoints(workspace, tmp_path / "home")
    saved = store.save("before")
    (workspace / "sub" / "run.sh").write_text("#!/bin/sh\necho hi\n")
    assert "+echo hi" in store.diff(saved)


def test_the_projects_own_repository_is_not_touched_and_its_hooks_do_not_run(workspace: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "."], cwd=workspace, check=True)
    hook = workspace / ".git" / "hooks" / "post-index-change"
    trap = tmp_path / "trap"
    hook.write_text(f"#!/bin/sh\ntouch {trap}\n")
    hook.chmod(0o755)
    with (workspace / ".git" / "config").open("a") as file:
        file.write(f'[filter "evil"]\n\tclean = touch {trap}; cat\n[core]\n\tfsmonitor = touch {trap}\n')
    (workspace / ".gitattributes").write_text("* filter=evil diff=evil\n")
    own = _files(workspace / ".git")
    store = Checkpoints(workspace, tmp_path / "home")
    saved = store.save("before")
    (workspace / "a.txt").write_text("changed")
    store.diff(saved)
    store.restore(saved)
    assert not trap.exists()
    assert _files(workspace / ".git") == own
    assert (workspace / "a.txt").read_bytes() == b"one\r\ntwo\n\xff"


def test_nothing_is_written_through_a_link_out_of_the_workspace(workspace: Path, tmp_path: Path) -> None:
    store = Checkpoints(workspace, tmp_path / "home")
    saved = store.save("before")
    outside = tmp_path / "outside"
    outside.mkdir()
    (workspace / "sub" / "run.sh").unlink()
    (workspace / "sub").rmdir()
    (workspace / "sub").symlink_to(outside)
    store.restore(saved)
    assert list(outside.iterdir()) == []
    assert (workspace / "sub" / "run.sh").is_file()


def test_too_much_to_save_is_refused(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NEW_BYTES", 1 << 20)
    with (workspace / "big").open("wb") as file:
        file.truncate(3 << 20)
    with pytest.raises(AgentError, match="3 MiB are new, allowed is 1 MiB"):
        Checkpoints(workspace, tmp_path / "home").save("before")


def test_without_git_it_says_so(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AgentError, match="git is not installed"):
        Checkpoints(workspace, tmp_path / "home")
