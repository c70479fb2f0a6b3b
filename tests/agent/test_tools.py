"""The tools' results, word for word as docs/dev/transcript.md has them, and what the editor refuses."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from sterna.agent.environment import CommandResult
from sterna.agent.output import HeadTail, truncate
from sterna.agent.textfile import MAX_FILE_BYTES
from sterna.agent.tools import TOOLS, bash_observation, run_tool
from sterna.chat.messages import ToolCall


class NoCommands:
    """An environment for calls that run no command."""

    sandbox_name = "fake"

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace

    def run(self, command: str, *, timeout_s: float) -> CommandResult:
        raise AssertionError("no command was asked for")


def edit(workspace: Path, command: str, path: str, **arguments: Any) -> str:
    call = ToolCall("str_replace_editor", {"command": command, "path": path, **arguments})
    return run_tool(call, NoCommands(workspace), command_timeout_s=1.0).text


def test_tools_are_those_of_the_contract() -> None:
    assert [tool.name for tool in TOOLS] == ["bash", "str_replace_editor", "submit"]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (CommandResult("a\nb\n", 0), "a\nb"),
        (CommandResult("a\n\n", 0), "a\n"),
        (CommandResult("", 0), "(no output)"),
        (CommandResult("\n", 0), "(no output)"),
        (CommandResult("a", 2), "a\n[exit code 2]"),
        (CommandResult("", 1), "[exit code 1]"),
        (CommandResult("a\n", 137, timed_out=True), "a\n[timed out after 5 s]"),
        (CommandResult("", 137, timed_out=True), "[timed out after 5 s]"),
        (CommandResult("a\n", 137, note="killed: more than 9 processes"), "a\n[killed: more than 9 processes]"),
    ],
)
def test_bash_observation(result: CommandResult, text: str) -> None:
    assert bash_observation(result, timeout_s=5.0) == text


@pytest.mark.parametrize("length", [15_999, 16_000, 16_001, 40_000])
@pytest.mark.parametrize("chunk", [1, 997, 65_536])
def test_output_is_cut_in_the_middle_whatever_the_pieces(length: int, chunk: int) -> None:
    text = "".join(chr(33 + index % 90) for index in range(length))
    kept = HeadTail()
    data = text.encode()
    for start in range(0, length, chunk):
        kept.feed(data[start : start + chunk])
    assert kept.text() == truncate(text)
    if length > 16_000:
        assert truncate(text) == f"{text[:8000]}\n[… {length - 16_000} characters left out …]\n{text[-8000:]}"
    else:
        assert truncate(text) == text


def test_characters_cut_between_pieces_and_invalid_bytes() -> None:
    kept = HeadTail()
    for byte in "é€😀".encode() + b"\xff\xe2\x82":
        kept.feed(bytes([byte]))
    kept.feed(b"", final=True)
    assert kept.text() == "é€😀\ufffd\ufffd"


def test_view(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one\n\tx\x0cy\n\nfour")
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("sub")
    assert edit(tmp_path, "view", "a.py") == "     1\tone\n     2\t\tx\x0cy\n     3\t\n     4\tfour"
    assert edit(tmp_path, "view", "a.py", view_range=[2, 3]) == "     2\t\tx\x0cy\n     3\t"
    assert edit(tmp_path, "view", "a.py", view_range=[4, -1]) == "     4\tfour"
    assert edit(tmp_path, "view", "a.py", view_range=[3, 99]) == "     3\t\n     4\tfour"
    for path in (".", str(tmp_path), "sub/.."):
        assert edit(tmp_path, "view", path) == "a.py\nempty\nlink\nsub/"
    assert edit(tmp_path, "view", "empty") == "(empty file)"
    assert edit(tmp_path, "view", "link") == "(empty directory)"
    assert edit(tmp_path, "view", "a.py", view_range=[5, 6]).startswith("error: view_range is [5, 6], a.py has")
    assert edit(tmp_path, "view", "a.py", view_range=[2]).startswith("error: view_range is [2], allowed are")
    assert edit(tmp_path, "view", "sub", view_range=[1, 2]).startswith("error: sub is a directory")


def test_str_replace(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("def f():\n    return 1\n")
    assert edit(tmp_path, "str_replace", "a.py", old_str="return 1", new_str="return 2") == "a.py edited at line 2"
    assert file.read_text() == "def f():\n    return 2\n"
    absolute = str(file)
    assert edit(tmp_path, "str_replace", absolute, old_str=" 2", new_str=" 3") == f"{absolute} edited at line 2"
    assert edit(tmp_path, "str_replace", "a.py", old_str="    return 3\n") == "a.py edited at line 2"
    assert file.read_text() == "def f():\n"


def test_the_search_for_a_similar_line_has_bounds(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x" * 400 + "\n" + "value = other\n" * 4000 + "count = 1\n")
    hint = "error: old_str was not found in a.py\nhint: line 2 is similar:\nvalue = other"
    assert edit(tmp_path, "str_replace", "a.py", old_str="value = others", new_str="1") == hint
    missing = "error: old_str was not found in a.py"
    assert edit(tmp_path, "str_replace", "a.py", old_str="count = 12", new_str="1") == missing
    assert edit(tmp_path, "str_replace", "a.py", old_str="x" * 399 + "y", new_str="1") == missing


def test_str_replace_that_does_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    text = "def f():\n\tif x:\n\t\treturn  1\n\nreturn 1\nreturn 1\naaa\n"
    file.write_text(text)

    def replace(old: str, new: str = "other") -> str:
        return edit(tmp_path, "str_replace", "a.py", old_str=old, new_str=new)

    assert replace("nothing") == "error: old_str was not found in a.py"
    assert (
        replace("\n    if x:\n        pass")
        == "error: old_str was not found in a.py\nhint: line 2 is similar:\n\tif x:"
    )
    assert (
        replace("    if y:\n        pass") == "error: old_str was not found in a.py\nhint: line 2 is similar:\n\tif x:"
    )
    assert replace("   ") == "error: old_str was not found in a.py"
    several = "error: old_str occurs {} times in a.py, at lines {}\nhint: include more surrounding lines"
    assert replace("return 1") == several.format(2, "5, 6")
    assert replace("aa") == several.format(2, "7, 7")
    assert replace("aaa", "aaa") == "error: old_str and new_str are the same, the edit would change nothing"
    assert replace("").startswith("error: old_str is empty")
    assert file.read_text() == text


def test_create(tmp_path: Path) -> None:
    assert edit(tmp_path, "create", "new/deep/a.txt", file_text="x") == "new/deep/a.txt created"
    assert (tmp_path / "new/deep/a.txt").read_text() == "x"
    assert edit(tmp_path, "create", "new/deep/a.txt", file_text="y") == "new/deep/a.txt created"
    assert edit(tmp_path, "create", "new/deep/a.txt", file_text="y").startswith("error: new/deep/a.txt has exactly")
    assert edit(tmp_path, "create", "new", file_text="y") == "error: new is a directory"
    assert edit(tmp_path, "create", "b").startswith("error: create needs the parameter file_text")


@pytest.mark.parametrize(
    ("before", "line", "new", "after"),
    [
        ("a\nb\n", 0, "x", "x\na\nb\n"),
        ("a\nb\n", 1, "x\ny\n", "a\nx\ny\nb\n"),
        ("a\nb\n", 2, "x", "a\nb\nx\n"),
        ("a\nb", 2, "x", "a\nb\nx"),
        ("a\nb", 1, "\n", "a\n\nb"),
        ("", 0, "x", "x\n"),
    ],
)
def test_insert(tmp_path: Path, before: str, line: int, new: str, after: str) -> None:
    (tmp_path / "a").write_text(before)
    assert edit(tmp_path, "insert", "a", insert_line=line, new_str=new) == f"a edited at line {line + 1}"
    assert (tmp_path / "a").read_text() == after


def test_insert_outside_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a\nb\n")
    for line in (-1, 3):
        text = edit(tmp_path, "insert", "a", insert_line=line, new_str="x")
        assert text == f"error: insert_line is {line}, a has lines 1 to 2, 0 is the top"
    assert edit(tmp_path, "insert", "a", insert_line=1, new_str="").startswith("error: new_str is empty")


def test_mode_line_endings_and_byte_order_mark_survive(tmp_path: Path) -> None:
    file = tmp_path / "run.sh"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    file.chmod(0o751)
    assert edit(tmp_path, "str_replace", "run.sh", old_str="one\ntwo", new_str="1\r\n2\n3") == "run.sh edited at line 1"
    assert edit(tmp_path, "insert", "run.sh", insert_line=0, new_str="top") == "run.sh edited at line 1"
    assert file.read_bytes() == b"\xef\xbb\xbftop\r\n1\r\n2\r\n3\r\n"
    assert file.stat().st_mode & 0o777 == 0o751
    mixed = tmp_path / "mixed"
    mixed.write_bytes(b"a\r\nb\nc\r\n")
    edit(tmp_path, "str_replace", "mixed", old_str="b", new_str="B")
    assert mixed.read_bytes() == b"a\r\nB\nc\r\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mixed", "run.sh"]


def test_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    (tmp_path / "binary").write_bytes(b"ab\0c")
    with open(tmp_path / "huge", "wb") as huge:
        huge.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(tmp_path / "pipe")
    assert edit(tmp_path, "view", "latin") == "error: latin is not UTF-8 text: invalid byte at offset 3"
    assert edit(tmp_path, "view", "binary") == "error: binary is a binary file: NUL byte at offset 2"
    assert edit(tmp_path, "view", "huge").startswith(f"error: huge has {MAX_FILE_BYTES + 1} bytes, allowed are")
    assert edit(tmp_path, "view", "pipe") == "error: pipe is not a regular file"
    assert edit(tmp_path, "view", "none") == "error: none does not exist"
    assert edit(tmp_path, "create", "x", file_text="a\0b").startswith("error: file_text contains a NUL")
    assert edit(tmp_path, "create", "x", file_text="\ud800").startswith("error: the new content of x is not valid")
    assert edit(tmp_path, "create", "latin/x", file_text="a").startswith("error: latin/x cannot be used: Not a dir")
    assert edit(tmp_path, "undo", "x").startswith("error: command is 'undo', allowed are view, create")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        assert edit(tmp_path, "view", "sock").startswith("error: sock cannot be used")


@pytest.fixture
def escape(tmp_path: Path) -> tuple[Path, Path]:
    """A workspace with every kind of way out, and the file outside."""
    secret = tmp_path / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_text("secret\n")
    workspace = tmp_path / "ws"
    (workspace / "sub").mkdir(parents=True)
    (workspace / "inside").write_text("inside\n")
    (workspace / "absolute").symlink_to(secret)
    (workspace / "relative").symlink_to("../outside/secret")
    (workspace / "directory").symlink_to("../outside")
    (workspace / "chain").symlink_to("sub/second")
    (workspace / "sub" / "second").symlink_to("../../outside/secret")
    (workspace / "loop").symlink_to("loop")
    (workspace / "good").symlink_to("sub/../inside")
    (workspace / "absolute_good").symlink_to(workspace / "inside")
    return workspace, secret


@pytest.mark.parametrize(
    "path",
    [
        "absolute",
        "relative",
        "directory/secret",
        "chain",
        "../outside/secret",
        "sub/../../outside/secret",
        "loop",
        "",
        "OUT",
    ],
)
@pytest.mark.parametrize("command", ["view", "create", "str_replace", "insert"])
def test_no_way_out_of_the_workspace(escape: tuple[Path, Path], path: str, command: str) -> None:
    workspace, secret = escape
    given = str(secret) if path == "OUT" else path
    extra: dict[str, Any] = {
        "view": {},
        "create": {"file_text": "changed"},
        "str_replace": {"old_str": "secret", "new_str": "changed"},
        "insert": {"insert_line": 0, "new_str": "changed"},
    }[command]
    text = edit(workspace, command, given, **extra)
    assert text.startswith("error: ")
    assert secret.read_text() == "secret\n"
    assert [entry.name for entry in secret.parent.iterdir()] == ["secret"]


def test_links_inside_the_workspace_are_followed(escape: tuple[Path, Path]) -> None:
    workspace, _ = escape
    assert edit(workspace, "str_replace", "good", old_str="inside", new_str="1") == "good edited at line 1"
    assert edit(workspace, "str_replace", "absolute_good", old_str="1", new_str="2").endswith("at line 1")
    assert (workspace / "inside").read_text() == "2\n"
    assert (workspace / "good").is_symlink()


def test_what_runs_outside_the_sandbox_later_cannot_be_edited(tmp_path: Path) -> None:
    hooks = tmp_path / ".git" / "hooks"
    hooks.mkdir(parents=True)
    (tmp_path / "shortcut").symlink_to(".git/hooks")
    for path in (".git/hooks/pre-commit", "shortcut/pre-commit", ".git/config", "sub/.git/config"):
        assert edit(tmp_path, "create", path, file_text="x").startswith(f"error: {path} is protected")
    assert list(hooks.iterdir()) == []
    assert edit(tmp_path, "create", ".gitignore", file_text="x") == ".gitignore created"
