"""The input line of ``sterna code``: history, completion of /commands and @files, plain input where there is no terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sterna import env

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

MAX_FILES = 5_000
_HIDDEN = re.compile(r"^(\.|__pycache__$|node_modules$)")


class TaskPrompt:
    """``read`` gives the next line of the user, or ``None`` at the end of input.

    On a terminal it keeps a history in ``STERNA_HOME`` and completes; Ctrl-C clears the line.
    """

    def __init__(self, workspace: Path, commands: dict[str, str]) -> None:
        self._session: PromptSession[str] | None = None
        if sys.stdin.isatty() and sys.stderr.isatty():
            self._session = _session(workspace, commands)

    def read(self, prompt: str = "task> ") -> str | None:
        """One line without surrounding white space."""
        try:
            line = self._session.prompt(prompt) if self._session else input(prompt)
        except EOFError:
            return None
        except KeyboardInterrupt:
            if self._session is None:
                raise
            return ""
        return line.strip()


def mentioned_files(text: str, workspace: Path) -> list[str]:
    """Paths after an ``@`` in ``text`` that are files of the workspace, in order and once each."""
    found = (match[1].rstrip(".,:;!?") for match in re.finditer(r"(?<!\S)@(\S+)", text))
    return list(dict.fromkeys(path for path in found if _inside(path, workspace)))


def _inside(path: str, workspace: Path) -> bool:
    try:
        real = (workspace / path).resolve()
        return real.is_relative_to(workspace) and real.is_file()
    except (OSError, ValueError):
        return False


def project_files(workspace: Path) -> Iterator[str]:
    """Relative paths of the files below, hidden ones and caches left out, at most `MAX_FILES`."""
    count = 0
    for folder, folders, names in os.walk(workspace):
        folders[:] = sorted(name for name in folders if not _HIDDEN.match(name))
        for name in sorted(names):
            if not name.startswith("."):
                yield str((Path(folder) / name).relative_to(workspace))
                count += 1
                if count == MAX_FILES:
                    return


def _session(workspace: Path, commands: dict[str, str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.output import create_output

    home = env.home()
    home.mkdir(parents=True, exist_ok=True)
    history = home / "history"
    history.touch(mode=0o600)
    return PromptSession(
        history=FileHistory(str(history)),
        completer=_completer(commands, lambda: project_files(workspace)),
        complete_while_typing=False,
        # messages go to standard error, so that standard output can be redirected while somebody types
        output=create_output(stdout=sys.stderr),
    )


def _completer(commands: dict[str, str], files: Callable[[], Iterable[str]]) -> Completer:
    from prompt_toolkit.completion import Completer, Completion

    class TaskCompleter(Completer):
        """``/`` at the start of the line completes commands, ``@`` anywhere completes files."""

        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            text = document.text_before_cursor
            if text.startswith("/") and " " not in text:
                for name, meaning in commands.items():
                    if name.startswith(text):
                        yield Completion(name, start_position=-len(text), display_meta=meaning)
                return
            match = re.search(r"(?:^|\s)@(\S*)$", text)
            if match:
                for path in files():
                    if match[1].lower() in path.lower():
                        yield Completion(path, start_position=-len(match[1]))

    return TaskCompleter()
