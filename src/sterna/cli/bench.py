"""``sterna bench``: the machine's limits first, then the measured speed beside them."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.cli.common import Subparsers, positive
from sterna.config import PRESETS, ModelConfig, preset
from sterna.errors import OutOfMemoryError, UsageError
from sterna.quant.recipes import RECIPES

if TYPE_CHECKING:
    from sterna.backends.base import Backend
    from sterna.bench.points import PointPlan
    from sterna.bench.roofline import Roofline

GB = 1e9
PREFILL, DEPTHS = (512, 2048, 8192), (0, 4096, 16384)
PLAIN_FORMATS = ("F32", "F16", "BF16")


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="the machine's limits, and how near the model comes to them",
        description="Measure the memory bandwidth and the arithmetic peak of this machine, say what one token of the model "
        "needs of them, then measure prefill and decode. MBU is the bytes that a token must move over what the measured "
        "bandwidth moves in that time, MFU likewise for multiply-adds.",
    )
    source = parser.add_argument_group("model")
    source.add_argument(
        "--model", type=Path, metavar="PATH", help="checkpoint directory or .gguf file (default: Sternula)"
    )
    source.add_argument("--preset", choices=PRESETS, help="the shape of a published model; needs --weights random")
    source.add_argument("--weights", choices=("random",), help="make weights up instead of reading them")
    source.add_argument("--layers", type=positive, metavar="N", help="with --preset: only the first N layers")
    source.add_argument("--recipe", choices=tuple(RECIPES), help="formats of the weights (default: q4 with --preset)")
    source.add_argument("--backend", choices=("auto", "native", "torch", "numpy"), default="auto", help="what computes")
    source.add_argument("--threads", type=positive, metavar="N", help="threads (default: physical cores)")
    what = parser.add_argument_group("measurement")
    what.add_argument(
        "--prefill", type=_numbers, default=PREFILL, metavar="N,…", help=_default("prompt lengths", PREFILL)
    )
    what.add_argument(
        "--prefill-depth", type=int, default=0, metavar="N", help="tokens before those prompts (default: 0)"
    )
    what.add_argument("--decode-depth", type=_numbers, default=DEPTHS, metavar="N,…", help=_default("depths", DEPTHS))
    what.add_argument("--decode-tokens", type=positive, default=32, metavar="N", help="tokens per depth (default: 32)")
    what.add_argument(
        "--chunk", type=positive, default=512, metavar="N", help="tokens per pass of a prefill (default: 512)"
    )
    what.add_argument("--repeat", type=positive, default=3, metavar="N", help="runs of each prefill (default: 3)")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from sterna.bench.machine import describe_machine
    from sterna.bench.points import PointPlan, PointRunner
    from sterna.locate import make_backend

    _check(args)
    if args.threads is not None:
        os.environ["STERNA_NUM_THREADS"] = str(args.threads)
    backend, why = make_backend(args.backend)
    model = _open(args, backend)
    plan = PointPlan(
        prefill=args.prefill,
        prefill_depth=args.prefill_depth,
        decode_depths=args.decode_depth,
        decode_tokens=args.decode_tokens,
        repeats=args.repeat,
        chunk=args.chunk,
    )
    longest = model.config.text.max_position_embeddings
    if plan.longest > longest:
        raise UsageError(f"--prefill and --decode-depth reach {plan.longest:,} tokens, the context is {longest:,}")
    machine = describe_machine()
    limits = _limits(args, backend, model)
    roof = limits()
    machine["backend"] = why
    result: dict[str, Any] = {"machine": machine, "roofline": _roofline(roof), "model": _model(args, model, plan, roof)}
    _say_limits(args, result)
    start = time.perf_counter()
    _check_memory(model)
    backend.load(model.checkpoint, model.config)
    runner = PointRunner(backend, model.checkpoint, model.config, plan, limits=limits)
    result["load_seconds"] = round(time.perf_counter() - start, 2)
    machine["variant"] = str(getattr(backend, "variant", lambda: "")())
    points = []
    for measure, values in ((runner.prefill, plan.prefill), (runner.decode, plan.decode_depths)):
        for value in values:
            points.append(measure(value))
            _say_point(args, points[-1])
    result |= {"points": points, "peak_memory_bytes": runner.peak_memory_bytes}
    backend.close()
    if args.json:
        print(json.dumps(result))
    else:
        print(f"load {result['load_seconds']} s, peak memory {result['peak_memory_bytes'] / GB:.2f} GB")
    return 0


@dataclass(frozen=True, slots=True)
class _Model:
    """What is measured, not loaded yet."""

    checkpoint: Any
    config: ModelConfig
    name: str


def _check(args: argparse.Namespace) -> None:
    if args.preset and args.model:
        raise UsageError("--model and --preset name two models, allowed is one")
    if bool(args.preset) != bool(args.weights):
        raise UsageError(
            "--preset and --weights random belong together", hint="sterna bench --preset … --weights random"
        )
    if args.layers and not args.preset:
        raise UsageError("--layers is for --preset; a checkpoint has the layers it has")
    if 0 in args.prefill:
        raise UsageError("--prefill is 0, allowed is 1 or more")
    if args.prefill_depth < 0:
        raise UsageError(f"--prefill-depth is {args.prefill_depth}, allowed is 0 or more")


def _open(args: argparse.Namespace, backend: Backend) -> _Model:
    from sterna.checkpoint.opening import open_checkpoint
    from sterna.checkpoint.random_quantized import RandomQuantizedCheckpoint
    from sterna.locate import locate_model

    if args.preset is None:
        located = locate_model(args.model)
        quantized = bool(getattr(backend, "computes_quantized", False))
        checkpoint, config = open_checkpoint(located.path, recipe=args.recipe, quantized=quantized)
        return _Model(checkpoint, config, located.name)
    config = cut(preset(args.preset), args.layers)
    return _Model(RandomQuantizedCheckpoint(config, args.recipe or "q4"), config, args.preset)


def cut(config: ModelConfig, layers: int | None) -> ModelConfig:
    """The text model of a configuration with its first layers, without prediction head and vision tower."""
    text = config.text
    count = text.num_hidden_layers if layers is None else layers
    if count > text.num_hidden_layers:
        raise UsageError(f"--layers is {count}, allowed is 1 to {text.num_hidden_layers}")
    text = replace(text, num_hidden_layers=count, layer_types=text.layer_types[:count], mtp_num_hidden_layers=0)
    return replace(config, text=text, vision=None)


def _weight_bytes(model: _Model) -> int:
    from sterna.bench.cost import nbytes

    return sum(nbytes(model.checkpoint, name) for name in model.checkpoint.names("text", "mtp"))


def _check_memory(model: _Model) -> None:
    """Refuse before anything is made: random weights are held, files are only mapped."""
    from sterna.backends.host_memory import available_host_bytes

    needed, free = _weight_bytes(model), available_host_bytes()
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"the weights take {needed / GB:.2f} GB, {free / GB:.2f} GB are free",
            hint="use fewer layers (--layers), or a smaller recipe",
        )


def _limits(args: argparse.Namespace, backend: Backend, model: _Model) -> Callable[[], Roofline]:
    """A function that measures the limits again: integers where most of the weights are quantised and the kernels use them."""
    from sterna.bench import roofline

    quantized = _mostly_quantized(model)
    floats: list[float] = []

    def measure_native() -> Roofline:
        from sterna.backends.native.roofline import measure_roofline

        found = measure_roofline(num_threads=args.threads, repeats=3, read_bytes=roofline.READ_BYTES)
        if quantized:
            return roofline.Roofline(found.read_bytes_per_second, found.products_per_second or None, "int8")
        floats[:] = floats or [roofline.float_peak(found.threads)]
        return roofline.Roofline(found.read_bytes_per_second, floats[0], "float32")

    def measure_other() -> Roofline:
        threads = args.threads or len(os.sched_getaffinity(0))
        floats[:] = floats or [roofline.float_peak(threads)]
        return roofline.measure_host(threads, peak=floats[0])

    return measure_native if getattr(backend, "name", "") == "native" else measure_other


def _mostly_quantized(model: _Model) -> bool:
    form = getattr(model.checkpoint, "format_of", None)
    if form is None:
        return False
    return form("model.language_model.layers.0.mlp.experts.gate_up_proj").name not in PLAIN_FORMATS


def _roofline(roof: Roofline) -> dict[str, Any]:
    return {
        "bandwidth_gb_s": round(roof.read_bytes_per_second / GB, 2),
        "peak_gop_s": None if roof.peak is None else round(2 * roof.peak / GB, 1),
        "peak_kind": roof.peak_kind,
    }


def _model(args: argparse.Namespace, model: _Model, plan: PointPlan, roof: Roofline) -> dict[str, Any]:
    from sterna.bench.cost import token_cost

    costs = [token_cost(model.config, model.checkpoint, depth) for depth in plan.decode_depths]
    return {
        "name": model.name,
        "weights": args.weights or "stored",
        "recipe": args.recipe or ("q4" if args.preset else None),
        "layers": model.config.text.num_hidden_layers,
        "weight_bytes": _weight_bytes(model),
        "token": [
            {
                **cost.as_json(),
                "decode_limit_tok_s": float(f"{roof.read_bytes_per_second / cost.bytes:.4g}"),
                "prefill_limit_tok_s": None if roof.peak is None else float(f"{roof.peak / cost.prefill_products:.4g}"),
            }
            for cost in costs
        ],
    }


def _say_limits(args: argparse.Namespace, result: dict[str, Any]) -> None:
    roof, model, machine = result["roofline"], result["model"], result["machine"]
    out = sys.stderr if args.json else sys.stdout
    peak = "unknown" if roof["peak_gop_s"] is None else f"{roof['peak_gop_s']:,} GOP/s ({roof['peak_kind']})"
    print(
        f"{machine['processor']}, {machine['cpus']} CPUs, load {machine['load_average']}; {machine['backend']}",
        file=out,
    )
    print(f"limits measured now: {roof['bandwidth_gb_s']} GB/s read, {peak}", file=out)
    print(f"{model['name']}, {model['layers']} layers, weights {model['weight_bytes'] / GB:.2f} GB", file=out)
    for cost in model["token"]:
        print(
            f"  one token at depth {cost['depth']:>6,}: {cost['bytes'] / 1e6:,.1f} MB "
            f"(experts {cost['expert_bytes'] / 1e6:,.1f}, head {cost['head_bytes'] / 1e6:,.1f}, "
            f"other weights {cost['other_weight_bytes'] / 1e6:,.1f}, cache {cost['kv_bytes'] / 1e6:,.1f}, "
            f"state {cost['state_bytes'] / 1e6:,.1f}), {2 * cost['prefill_products'] / 1e9:,.3f} GOP in a prefill: "
            f"at most {cost['decode_limit_tok_s']:,} tok/s decoding, {cost['prefill_limit_tok_s'] or 0:,} in a prefill",
            file=out,
        )


def _say_point(args: argparse.Namespace, point: dict[str, Any]) -> None:
    out = sys.stderr if args.json else sys.stdout
    speed = point.get("prefill_tok_s", point.get("decode_tok_s"))
    shares = "  ".join(f"{key.upper()} {point[key]:.3f}" for key in ("mbu", "mfu") if point[key] is not None)
    peak = "" if point["peak_gop_s"] is None else f", {point['peak_gop_s']:,} GOP/s"
    print(
        f"{point['kind']:>8} {point['tokens']:>6,} at depth {point['depth']:>6,}: {speed:>9,} tok/s  {shares}  "
        f"spread {100 * point['spread']:.0f} %  (beside it {point['bandwidth_gb_s']} GB/s{peak})",
        file=out,
        flush=True,
    )


def _numbers(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers from 0; empty for none."""
    values = tuple(int(part) for part in text.split(",") if part)
    if any(value < 0 for value in values):
        raise argparse.ArgumentTypeError(f"{min(values)} is too small, allowed is 0 or more")
    return values


def _default(what: str, values: tuple[int, ...]) -> str:
    return f"{what} (default: {','.join(map(str, values))})"
