"""``sterna sessions``: the conversations that are kept on disk."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from sterna.cli.common import (
    Subparsers,
    add_model_flags,
    add_sampling_flags,
    add_session_flags,
    chat_request,
    load_llm,
)
from sterna.errors import SessionError, UsageError

if TYPE_CHECKING:
    from sterna.llm import LLM
    from sterna.sessions.session import Session
    from sterna.sessions.store import SessionStore

ACTIONS = ("list", "resume", "fork", "delete", "size")
SHOWN_TOKENS = 400


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sessions",
        help="list, resume, fork, delete stored conversations",
        description="Conversations are kept on disk with everything that was computed for them, so that they go on after a "
        "restart without being read again. list shows them; resume goes on with one; fork copies one, sharing its files; "
        "delete removes one, or all; size says what they take.",
    )
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument(
        "id", nargs="?", metavar="ID", help="a session, or the beginning of its id; for delete also: all"
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="resume: say this and end (default: ask)")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    add_model_flags(parser)
    add_session_flags(parser)
    add_sampling_flags(parser, preset="thinking")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if (args.id is None) != (args.action in ("list", "size")):
        raise UsageError(
            f"{args.action} needs the id of a session" if args.id is None else f"{args.action} takes no id",
            hint="`sterna sessions list` shows the ids",
        )
    if args.action == "resume":
        return _resume(args)
    store = _open_store()
    try:
        result = {"list": _list, "size": _size, "fork": _fork, "delete": _delete}[args.action](store, args.id)
    finally:
        store.close()
    print(json.dumps(result) if args.json else result["text"])
    return 0


def _open_store() -> SessionStore:
    from sterna import env
    from sterna.sessions.store import SessionStore

    return SessionStore(env.home() / "sessions", say=lambda line: print(line, file=sys.stderr))


def _list(store: SessionStore, _: str | None) -> dict[str, Any]:
    rows = [_row(session) for session in store.sessions()]
    lines = [f"{'id':<12} {'last used':<17} {'tokens':>9} {'MB':>9}  model"]
    for row in rows:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["updated"]))
        lines.append(f"{row['id']:<12} {used:<17} {row['tokens']:>9,} {row['bytes'] / 1e6:>9.1f}  {row['model']}")
    text = "\n".join(lines) if rows else "no sessions are stored"
    return {"sessions": rows, "bytes": store.total_bytes(), "text": text}


def _size(store: SessionStore, _: str | None) -> dict[str, Any]:
    total, count = store.total_bytes(), len(store.sessions())
    text = f"{total:,} bytes in {count} sessions in {store.directory}"
    return {"bytes": total, "sessions": count, "directory": str(store.directory), "text": text}


def _fork(store: SessionStore, prefix: str | None) -> dict[str, Any]:
    fork = store.fork(prefix or "")
    return {**_row(fork), "text": fork.id}


def _delete(store: SessionStore, prefix: str | None) -> dict[str, Any]:
    wanted = [session.id for session in store.sessions()] if prefix == "all" else [store.get(prefix or "").id]
    freed = sum(store.delete(name) for name in wanted)
    return {"deleted": wanted, "bytes": freed, "text": f"deleted {len(wanted)} sessions, {freed:,} bytes are free"}


def _row(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "model": session.model,
        "tokens": len(session.tokens),
        "bytes": session.size,
        "created": session.created,
        "updated": session.updated,
        "fingerprint": session.fingerprint[:16],
    }


def _resume(args: argparse.Namespace) -> int:
    from sterna.sessions.resume import plain_tokens, transcript

    args.sessions = True
    with load_llm(args) as llm:
        assert llm.keeper is not None
        session = llm.keeper.store.get(args.id)
        if session.model != llm.name:
            raise SessionError(
                f"session {session.id} belongs to {session.model}, the loaded model is {llm.name}",
                hint="name its checkpoint directory: `--model DIR`",
            )
        if llm.keeper.store.writable:
            # of several that share their tokens this one is to go on
            llm.keeper.store.put(session)
        print(transcript(session, llm.chat_format, last_tokens=SHOWN_TOKENS), file=sys.stderr)
        tokens, result = plain_tokens(session), None
        while text := args.prompt if args.prompt is not None and result is None else _ask(args):
            tokens, result = _turn(args, llm, session, tokens, text)
            if args.json:
                print(json.dumps(result))
    return 0


def _ask(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return ""
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _turn(
    args: argparse.Namespace, llm: LLM, session: Session, tokens: list[int], text: str
) -> tuple[list[int], dict[str, Any]]:
    """Say something and print the answer; returns all tokens so far and the result for ``--json``."""
    from dataclasses import asdict

    from sterna.chat.messages import End, Message, TextDelta
    from sterna.sessions.resume import next_prompt
    from sterna.sessions.session import namespace_of

    request = chat_request(args, [Message("user", text)])
    prompt = next_prompt(tokens, llm.chat_format, request)
    stream = llm.generate(prompt, request.sampling, namespace=namespace_of(session))
    end: End | None = None
    for event in llm.answer(request, stream):
        if isinstance(event, TextDelta) and not args.json:
            print(event.text, end="", flush=True)
        elif isinstance(event, End):
            end = event
    assert end is not None, "a chat stream ends with End"
    if not args.json:
        print()
    usage = end.usage
    print(f"{usage.cached_tokens} tokens reused, {usage.computed_tokens} computed", file=sys.stderr)
    result = {"text": end.message.content, "reasoning": end.message.reasoning, "usage": asdict(usage)}
    return [*prompt, *(end.message.token_ids or ())], result
