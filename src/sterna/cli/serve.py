"""``sterna serve``: the HTTP server."""

from __future__ import annotations

import argparse
import sys

from sterna.cli.common import Subparsers, add_model_flags, load_llm, positive
from sterna.cli.serve_engine import add_engine_flags, run_check, run_engine
from sterna.errors import UsageError


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve",
        help="the HTTP server",
        description="Serve the model over HTTP to clients of OpenAI's Chat Completions, Completions and Responses and of "
        "Anthropic's Messages. On this machine no key is asked for; any other address needs one, which is made and "
        "printed once. Ctrl-C or SIGTERM lets running answers finish and exits with 0.",
    )
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s)")
    group.add_argument(
        "--port", type=int, default=8080, metavar="N", help="which port, 0 for a free one (default: %(default)s)"
    )
    group.add_argument("--require-key", action="store_true", help="ask for a key on this machine too")
    group.add_argument("--new-key", metavar="NAME", help="make a key, print it, and go on")
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name that clients call this server by",
    )
    group.add_argument(
        "--max-active", type=positive, default=16, metavar="N", help="most answers at once (default: %(default)s)"
    )
    group.add_argument(
        "--max-waiting",
        type=positive,
        default=64,
        metavar="N",
        help="most requests that wait; more are refused with Retry-After (default: %(default)s)",
    )
    group.add_argument(
        "--max-body-mib", type=positive, default=64, metavar="N", help="largest request body (default: %(default)s)"
    )
    add_model_flags(parser)
    add_engine_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.check:
        return run_check(args)
    if args.engine or args.print_as:
        if not args.engine:
            raise UsageError("--print was given without --engine, allowed with it are vllm and sglang")
        return run_engine(args)
    import logging

    from sterna import env
    from sterna.server.auth import Guard, KeyFile, is_loopback
    from sterna.server.limits import Limits
    from sterna.server.run import serve
    from sterna.server.service import Service

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    keys = KeyFile(env.home() / "server-keys.json")
    asks_for_key = args.require_key or args.new_key is not None or not is_loopback(args.host)
    if args.new_key is not None or (asks_for_key and not keys.load()):
        print(f"key (shown this once): {keys.create(args.new_key or 'default')}", flush=True)
    guard = Guard.make(bind=args.host, hashes=keys.load() if asks_for_key else {}, hosts=args.allow_host)
    limits = Limits(max_active=args.max_active, max_waiting=args.max_waiting, body_bytes=args.max_body_mib * 2**20)
    with load_llm(args, remote=False) as llm:
        serve(Service(llm, limits), guard, host=args.host, port=args.port)
    return 0
