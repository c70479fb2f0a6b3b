"""The notes that a project keeps for agents, AGENTS.md, as a part of the system message."""

from __future__ import annotations

from pathlib import Path

from sterna.agent.output import truncate
from sterna.agent.textfile import WorkspaceRoot
from sterna.errors import AgentError

NAME = "AGENTS.md"
MAX_CHARS = 32_000


def project_notes(workspace: Path) -> str:
    """The text of ``AGENTS.md`` in the workspace, its middle left out when it is long; empty when there is none.

    Raises:
        AgentError: it is there and cannot be read as text.
    """
    try:
        with WorkspaceRoot(workspace) as root:
            return truncate(root.read(NAME).text.strip(), max_chars=MAX_CHARS) if root.exists(NAME) else ""
    except AgentError as error:
        raise AgentError(
            f"the notes of the project cannot be used: {error.message}", hint="repair them, or give --no-notes"
        ) from error


def with_notes(system_prompt: str, notes: str) -> str:
    """The system message with the notes below it, unchanged without notes."""
    return f"{system_prompt}\n\n# Notes of this project ({NAME})\n\n{notes}" if notes else system_prompt
