"""``sterna serve --engine``: write, check and start another engine's command; ``--check`` looks at a running endpoint."""

from __future__ import annotations

import argparse
import json
import os
import sys

from sterna.cli.common import positive
from sterna.errors import UsageError


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that hand the work to vLLM or SGLang."""
    group = parser.add_argument_group("another engine")
    group.add_argument(
        "--engine", choices=("vllm", "sglang"), help="let this engine serve; it is started with our settings"
    )
    group.add_argument(
        "--print", dest="print_as", nargs="?", const="shell", choices=("shell", "kubernetes"),
        help="only print what would be started, as shell commands or a Kubernetes manifest",
    )  # fmt: skip
    group.add_argument("--check", metavar="URL", help="check a running endpoint, as http://127.0.0.1:8000/v1, and exit")
    group.add_argument(
        "--nodes", type=positive, default=1, metavar="N", help="machines that share the model (default: 1)"
    )
    group.add_argument(
        "--tensor-parallel-size", type=positive, default=8, metavar="N", help="devices in all (default: %(default)s)"
    )
    group.add_argument(
        "--hardware", metavar="NAME", help="devices to check the memory of, as in `sterna fit`: h100-80g, 8x80g, ..."
    )
    group.add_argument("--text-only", action="store_true", help="without the vision tower (vllm)")
    group.add_argument("--no-mtp", action="store_true", help="without speculation by the prediction head")
    group.add_argument(
        "--engine-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="passed on to the engine; may be given several times",
    )


def run_engine(args: argparse.Namespace) -> int:
    """Print, or replace this process by the engine."""
    from sterna.delegate.engine import (
        DEFAULT_MODEL,
        NATIVE_CONTEXT,
        LaunchRequest,
        check_version,
        installed_version,
        plan_launch,
    )
    from sterna.delegate.manifest import as_kubernetes, as_shell
    from sterna.fit import find_hardware

    request = LaunchRequest(
        args.engine, model=str(args.model or DEFAULT_MODEL), host=args.host, port=args.port, nodes=args.nodes,
        tensor_parallel=args.tensor_parallel_size, context=args.max_model_len or NATIVE_CONTEXT,
        text_only=args.text_only, mtp=not args.no_mtp, extra=tuple(args.engine_arg),
        hardware=find_hardware(args.hardware) if args.hardware else None,
    )  # fmt: skip
    launch = plan_launch(request)
    if args.print_as == "kubernetes":
        print(as_kubernetes(launch, request), end="")
        return 0
    if args.print_as:
        print(as_shell(launch))
        return 0
    if request.nodes > 1:
        raise UsageError(
            f"this starts one machine, --nodes is {request.nodes}", hint="--print shows what to run on each of them"
        )
    version = check_version(args.engine, installed_version(args.engine))
    for note in launch.notes:
        print(note, file=sys.stderr)
    command = list(launch.commands[0])
    if command[0] == "python":
        command[0] = sys.executable
    print(f"starting {args.engine} {version}: {' '.join(command)}", file=sys.stderr, flush=True)
    os.environ.update(launch.environment)
    os.execvp(command[0], command)


def run_check(args: argparse.Namespace) -> int:
    """Probe a running endpoint; exit code 1 if anything fails."""
    import httpx

    from sterna.delegate import RemoteService, probe

    checks = []
    with RemoteService(args.check) as service, httpx.Client(timeout=30.0) as client:
        for check in probe(service, client):
            checks.append(check)
            print(f"{check.status} {check.name}: {check.detail}", flush=True)
            if check.hint and check.status != "PASS":
                print(f"     hint: {check.hint}", flush=True)
    failed = sum(check.status == "FAIL" for check in checks)
    print(json.dumps({"checks": [check.as_json() for check in checks], "failed": failed}))
    return 1 if failed else 0
