"""``sterna run``: one completion to standard output."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from sterna.cli.common import Subparsers, add_model_flags, add_sampling_flags, chat_request, load_llm
from sterna.cli.pictures import add_media_flags, with_media
from sterna.errors import UsageError


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        help="one answer to standard output",
        description="Answer one prompt. The answer goes to standard output, everything else to standard error. With "
        "--raw the text is continued as it is, without the chat template.",
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt (default: read from standard input)")
    parser.add_argument("--system", metavar="TEXT", help="a system message before it")
    add_media_flags(parser)
    parser.add_argument("--raw", action="store_true", help="continue the text itself")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    add_model_flags(parser)
    add_sampling_flags(parser, preset="instruct")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    text = sys.stdin.read() if args.prompt is None else args.prompt
    if not text:
        raise UsageError("the prompt is empty", hint="sterna run -p 'some text', or pipe it in")
    if args.raw and args.system is not None:
        raise UsageError("--system has no place in --raw, which knows no messages")
    if args.raw and (args.image or args.video):
        raise UsageError("--image and --video have no place in --raw, which knows no messages")
    with load_llm(args) as llm:
        result = _complete(args, llm, text) if args.raw else _answer(args, llm, text)
    print(json.dumps(result) if args.json else "")
    return 0


def _complete(args: argparse.Namespace, llm: Any, text: str) -> dict[str, Any]:
    from dataclasses import replace

    sampling = replace(chat_request(args, ()).sampling, stop=tuple(args.stop))
    pieces = []
    for piece in llm.complete(text, sampling):
        pieces.append(piece)
        _say(piece, quiet=args.json)
    return {"text": "".join(pieces)}


def _answer(args: argparse.Namespace, llm: Any, text: str) -> dict[str, Any]:
    from dataclasses import asdict, replace

    from sterna.chat.messages import End, Message, ReasoningDelta, TextDelta

    system = [Message("system", args.system)] if args.system else []
    request = chat_request(args, [*system, Message("user", with_media(args, text))])
    request = replace(request, sampling=replace(request.sampling, stop=tuple(args.stop)))
    end: End | None = None
    for event in llm.chat(request):
        if isinstance(event, TextDelta):
            _say(event.text, quiet=args.json)
        elif isinstance(event, ReasoningDelta) and not args.json:
            print(event.text, end="", file=sys.stderr, flush=True)
        elif isinstance(event, End):
            end = event
    assert end is not None, "a chat stream ends with End"
    return {
        "text": end.message.content,
        "reasoning": end.message.reasoning,
        "finish_reason": str(end.finish_reason),
        "usage": asdict(end.usage),
    }


def _say(text: str, *, quiet: bool) -> None:
    if not quiet:
        print(text, end="", flush=True)
