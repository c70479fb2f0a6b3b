"""``sterna doctor``: hardware, chosen kernels, and self-tests of the loaded model."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.cli.common import Subparsers, add_model_flags, load_llm

if TYPE_CHECKING:
    from sterna.llm import LLM

GIB = 1 << 30
CPUINFO = Path("/proc/cpuinfo")


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="hardware, chosen kernels, self-tests",
        description="Show what was chosen on this machine and why, then prove on the loaded model that chunking, batching, "
        "cache hits and restored sessions do not change a bit, and that cancelled requests leave nothing behind. Exit "
        "code 1 when a check fails.",
    )
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    add_model_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from sterna.doctor import DoctorRun

    out = sys.stderr if args.json else sys.stdout
    with load_llm(args) as llm:
        machine, model = describe_machine(), describe_model(llm)
        kernels = describe_kernels(llm)
        for line in (*_machine_lines(machine), *_kernel_lines(kernels), *_model_lines(model)):
            print(line, file=out)
        checks = []
        for check in DoctorRun(llm).checks():
            checks.append(check)
            print(f"{check.status}  {check.name}: {check.detail} ({check.seconds:.1f} s)", file=out, flush=True)
    failed = [check.name for check in checks if check.status == "FAIL"]
    if args.json:
        result = {"machine": machine, "kernels": kernels, "model": model, "checks": [asdict(each) for each in checks]}
        print(json.dumps(result))
    else:
        print(f"failed: {', '.join(failed)}" if failed else "no check failed")
    return 1 if failed else 0


def describe_machine() -> dict[str, Any]:
    """Processor, cores and memory."""
    from sterna.backends.host_memory import available_host_bytes

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": usable,
        "available_bytes": available_host_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def describe_kernels(llm: LLM) -> dict[str, Any]:
    """Backend, kernel variant, and why it and none of the others."""
    backend = llm.backend
    result: dict[str, Any] = {"backend": backend.name, "variant": None, "reason": "", "variants": [], "threads": None}
    if backend.name != "native":
        return result
    from sterna import _native, env
    from sterna.backends.native import choose_variant, variants

    forced = env.get("STERNA_NATIVE_VARIANT")
    reason = "as STERNA_NATIVE_VARIANT says" if forced else "the fastest that this build holds and this processor runs"
    table = [dict(variant) for variant in variants()]
    return result | {
        "variant": choose_variant(),
        "reason": reason,
        "variants": table,
        "threads": _native.num_threads(),
    }


def describe_model(llm: LLM) -> dict[str, Any]:
    """Name, context and the exact bytes of its plan."""
    plan = llm.engine.plan
    return {
        "name": llm.name,
        "max_model_len": llm.max_model_len,
        "bytes": {**asdict(plan), "total": plan.total_bytes},
        "plan": str(plan),
        "fingerprint": llm.backend.fingerprint()[:16],
    }


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown processor"


def _machine_lines(machine: dict[str, Any]) -> list[str]:
    memory = machine["available_bytes"]
    free = "unknown memory" if memory is None else f"{memory / GIB:.1f} GiB of memory free"
    return [f"machine  {machine['cpu']}, {machine['usable_cpus']} of {machine['logical_cpus']} CPUs usable, {free}"]


def _kernel_lines(kernels: dict[str, Any]) -> list[str]:
    if kernels["variant"] is None:
        return [f"kernels  backend {kernels['backend']}"]
    lines = [f"kernels  {kernels['backend']} {kernels['variant']}: {kernels['reason']}, {kernels['threads']} threads"]
    refused = [v for v in kernels["variants"] if not v["available"]]
    return lines + [f"         {variant['name']} cannot run here: {variant['reason']}" for variant in refused]


def _model_lines(model: dict[str, Any]) -> list[str]:
    return [f"model    {model['name']}, context {model['max_model_len']:,} tokens", f"memory   {model['plan']}"]
