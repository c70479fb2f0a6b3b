"""Images and videos on the command line: ``--image FILE``, ``--video FILE``, and ``@FILE`` in a line of a conversation."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from sterna.errors import UsageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")
# A word that begins with @, or @"a name with spaces".
_MENTION = re.compile(r'(?<!\S)@(?:"([^"]+)"|(\S+))')


def add_media_flags(parser: argparse.ArgumentParser) -> None:
    """``--image`` and ``--video``, each repeatable."""
    for kind in ("image", "video"):
        parser.add_argument(
            f"--{kind}", action="append", default=[], type=Path, metavar="FILE", help=f"show this {kind}; repeatable"
        )


def with_media(args: argparse.Namespace, text: str) -> str | list[dict[str, Any]]:
    """The content of a message: the files of the flags before the text, or the text alone."""
    parts = [media_part("image", path) for path in args.image] + [media_part("video", path) for path in args.video]
    return [*parts, {"type": "text", "text": text}] if parts else text


def mentioned(text: str) -> str | list[dict[str, Any]]:
    """The content of a line that may mention image and video files as ``@FILE``; other words with @ stay as they are.

    Raises `UsageError` for a file of these kinds that cannot be read.
    """
    parts: list[dict[str, Any]] = []
    at = 0
    for match in _MENTION.finditer(text):
        path = Path(match[1] or match[2]).expanduser()
        kind = _kind_of(path)
        if kind is None:
            continue
        parts += [{"type": "text", "text": text[at : match.start()]}, media_part(kind, path)]
        at = match.end()
    if not parts:
        return text
    rest = [*parts, {"type": "text", "text": text[at:]}]
    return [part for part in rest if part["type"] != "text" or part["text"]]


def media_part(kind: str, path: Path) -> dict[str, Any]:
    """A content part with the bytes of a file."""
    try:
        return {"type": kind, "data": path.expanduser().read_bytes()}
    except OSError as error:
        raise UsageError(f"the {kind} {path} cannot be read ({error.strerror})") from error


def _kind_of(path: Path) -> str | None:
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None
