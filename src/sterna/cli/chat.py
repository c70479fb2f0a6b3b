"""``sterna chat``: talk to the model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from sterna.cli.common import Subparsers, add_model_flags, add_sampling_flags, add_session_flags, chat_request, load_llm
from sterna.cli.pictures import add_media_flags, mentioned, with_media
from sterna.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from sterna.chat.messages import Message
    from sterna.llm import LLM


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "chat",
        help="talk to the model",
        description="Talk to the model. Nothing is read twice: each turn computes its own tokens only. /new starts "
        "over, /exit or Ctrl-D ends, Ctrl-C stops an answer. @FILE shows an image or a video: what is wrong in @shot.png",
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message at the start")
    add_media_flags(parser)
    add_model_flags(parser)
    add_session_flags(parser)
    add_sampling_flags(parser, preset="thinking")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from sterna.chat.messages import Message
    from sterna.cli.terminal import data_console

    console = data_console()
    start = [Message("system", args.system)] if args.system else []
    history = list(start)
    shown = with_media(args, "")
    with load_llm(args) as llm:
        while (text := _ask()) is not None:
            if text == "/new":
                history = list(start)
            elif text:
                question = _question(text, shown)
                answer = _answer(args, llm, [*history, question], console) if question else None
                if question and answer is not None:
                    history += [question, answer]
                    shown = ""
    return 0


def _question(text: str, shown: str | list[dict[str, Any]]) -> Message | None:
    """The user's turn with the pictures that it mentions and those of the flags; ``None``, said why, if one cannot be read."""
    from sterna.chat.messages import Message

    try:
        content = mentioned(text)
    except UsageError as error:
        _refused(error)
        return None
    if not shown:
        return Message("user", content)
    return Message(
        "user", [*shown[:-1], *([{"type": "text", "text": content}] if isinstance(content, str) else content)]
    )


def _refused(error: UsageError) -> None:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def _ask() -> str | None:
    try:
        text = input("> ").strip()
    except EOFError:
        return None
    return None if text == "/exit" else text


def _answer(args: argparse.Namespace, llm: LLM, messages: list[Message], console: Console) -> Message | None:
    """Stream one answer; an interrupted one returns ``None`` and leaves no trace in the history."""
    from sterna.chat.messages import End, ReasoningDelta, TextDelta
    from sterna.cli.terminal import printable

    try:
        stream = llm.chat(chat_request(args, messages))
    except UsageError as error:
        # a picture that is too large or damaged; the conversation goes on without it
        _refused(error)
        return None
    try:
        for event in stream:
            if isinstance(event, ReasoningDelta):
                console.print(printable(event.text), style="dim italic", end="")
            elif isinstance(event, TextDelta):
                console.print(printable(event.text), end="")
            elif isinstance(event, End):
                usage = event.usage
                console.print(
                    f"\n[{usage.completion_tokens} tokens written, {usage.computed_tokens} read, "
                    f"{usage.cached_tokens} reused, {event.finish_reason}]",
                    style="dim",
                )
                return event.message
    except KeyboardInterrupt:
        console.print("\n[stopped]", style="yellow")
    finally:
        stream.close()
    return None
