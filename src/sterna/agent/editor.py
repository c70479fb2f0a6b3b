"""``str_replace_editor``: view, create and edit text files of the workspace."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sterna.agent.output import truncate
from sterna.agent.textfile import TextFile, WorkspaceRoot
from sterna.errors import AgentError

_NEEDED = {"view": (), "create": ("file_text",), "str_replace": ("old_str",), "insert": ("insert_line", "new_str")}
_MAX_LINES_LISTED = 20
# Looking for the line that was meant stays quick in large files and with long lines.
_MAX_COMPARED_LINES = 3000
_MAX_COMPARED_CHARS = 300
_LIKENESS = 0.6


def edit_file(workspace: Path, arguments: Mapping[str, Any]) -> str:
    """Carries out one call whose argument types are already checked, and returns the observation.

    Raises:
        AgentError: the call cannot be carried out; the message is for the model. Nothing has been changed then.
    """
    command = arguments["command"]
    if command not in _COMMANDS:
        raise AgentError(f"command is {command!r}, allowed are {', '.join(_COMMANDS)}")
    for name in _NEEDED[command]:
        if name not in arguments:
            raise AgentError(f"{command} needs the parameter {name}")
    with WorkspaceRoot(workspace) as root:
        return _COMMANDS[command](root, arguments["path"], arguments)


def _view(root: WorkspaceRoot, path: str, arguments: Mapping[str, Any]) -> str:
    if root.is_directory(path):
        if "view_range" in arguments:
            raise AgentError(f"{path} is a directory, view_range is allowed for files only")
        return truncate("\n".join(root.list_directory(path)) or "(empty directory)")
    lines = _split_lines(root.read(path).text)
    first, last = _view_range(arguments.get("view_range"), path, len(lines))
    numbered = (f"{number:6d}\t{lines[number - 1]}" for number in range(first, last + 1))
    return truncate("\n".join(numbered) or "(empty file)")


def _view_range(view_range: Any, path: str, count: int) -> tuple[int, int]:
    if view_range is None:
        return 1, count
    if len(view_range) != 2 or not all(isinstance(line, int) for line in view_range):
        raise AgentError(f"view_range is {list(view_range)}, allowed are two line numbers")
    first, last = view_range
    last = count if last == -1 else last
    if not 1 <= first <= max(count, 1) or last < first:
        raise AgentError(f"view_range is {list(view_range)}, {path} has lines 1 to {count}")
    return first, min(last, count)


def _create(root: WorkspaceRoot, path: str, arguments: Mapping[str, Any]) -> str:
    if root.exists(path):
        old = None if root.is_directory(path) else root.read(path)
        if old is None:
            raise AgentError(f"{path} is a directory")
        if old.text == arguments["file_text"]:
            raise AgentError(f"{path} has exactly this content already")
        root.write(path, TextFile(arguments["file_text"], mode=old.mode, owner=old.owner))
    else:
        root.write(path, TextFile(arguments["file_text"]))
    return f"{path} created"


def _str_replace(root: WorkspaceRoot, path: str, arguments: Mapping[str, Any]) -> str:
    file = root.read(path)
    old, new = file.normal(arguments["old_str"]), file.normal(arguments.get("new_str", ""))
    if not old:
        raise AgentError("old_str is empty, allowed is text that occurs in the file")
    if old == new:
        raise AgentError("old_str and new_str are the same, the edit would change nothing")
    positions = _occurrences(file.text, old)
    if not positions:
        raise AgentError(f"old_str was not found in {path}", hint=similar_line(file.text, old))
    lines = [file.text.count("\n", 0, position) + 1 for position in positions]
    if len(positions) > 1:
        listed = ", ".join(map(str, lines[:_MAX_LINES_LISTED])) + (", …" if len(lines) > _MAX_LINES_LISTED else "")
        raise AgentError(
            f"old_str occurs {len(positions)} times in {path}, at lines {listed}", hint="include more surrounding lines"
        )
    start = positions[0]
    root.write(path, file.with_text(file.text[:start] + new + file.text[start + len(old) :]))
    return f"{path} edited at line {lines[0]}"


def _occurrences(text: str, part: str) -> list[int]:
    """Every start of ``part``, overlapping ones included: each is a place that could be meant."""
    found = []
    position = text.find(part)
    while position >= 0:
        found.append(position)
        position = text.find(part, position + 1)
    return found


def similar_line(text: str, old: str) -> str | None:
    """Where the first line of ``old`` that has content occurs, white space ignored; else the line most like it."""
    wanted = next((_squeeze(line) for line in old.splitlines() if line.strip()), None)
    if wanted is None or len(wanted) > _MAX_COMPARED_CHARS:
        return None
    lines = _split_lines(text)
    squeezed = [_squeeze(line) for line in lines]
    if wanted not in squeezed:
        short = {line for line in squeezed[:_MAX_COMPARED_LINES] if 0 < len(line) <= _MAX_COMPARED_CHARS}
        # Sorted, because the order of a set must not decide between lines that are equally like it.
        wanted = next(iter(difflib.get_close_matches(wanted, sorted(short), n=1, cutoff=_LIKENESS)), "")
        if not wanted:
            return None
    number = squeezed.index(wanted) + 1
    return f"line {number} is similar:\n{lines[number - 1]}"


def _squeeze(line: str) -> str:
    return "".join(line.split())


def _insert(root: WorkspaceRoot, path: str, arguments: Mapping[str, Any]) -> str:
    file = root.read(path)
    after, new = arguments["insert_line"], file.normal(arguments["new_str"])
    if not new:
        raise AgentError("new_str is empty, the edit would change nothing")
    lines = file.text.split("\n")
    count = len(_split_lines(file.text))
    if not 0 <= after <= count:
        raise AgentError(f"insert_line is {after}, {path} has lines 1 to {count}, 0 is the top")
    # Splitting at newlines keeps the end of the file as it was, with or without a final newline.
    inserted = new.removesuffix("\n").split("\n")
    root.write(path, file.with_text("\n".join(lines[:after] + inserted + lines[after:])))
    return f"{path} edited at line {after + 1}"


def _split_lines(text: str) -> list[str]:
    """The lines as ``cat -n`` counts them: only a newline ends a line."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


_COMMANDS: dict[str, Callable[[WorkspaceRoot, str, Mapping[str, Any]], str]] = {
    "view": _view,
    "create": _create,
    "str_replace": _str_replace,
    "insert": _insert,
}
