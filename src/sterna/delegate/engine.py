"""The exact command of vLLM or SGLang for a model and a set of devices, from data/engines.toml."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from sterna.config import ModelConfig, preset, read_model_config
from sterna.errors import BackendError, OutOfMemoryError, UsageError
from sterna.fit import Hardware, Plan, make_plan

ENGINES = ("vllm", "sglang")
NATIVE_CONTEXT, LONGEST_CONTEXT = 262_144, 1_010_000
DEFAULT_MODEL = "Qwen/Qwen3.6-35B-A3B"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What to serve with which engine. ``hardware`` describes the devices of all nodes together, ``None`` if unknown."""

    engine: str
    model: str = DEFAULT_MODEL
    host: str = "127.0.0.1"
    port: int = 8000
    nodes: int = 1
    tensor_parallel: int = 8
    context: int = NATIVE_CONTEXT
    text_only: bool = False
    mtp: bool = True
    hardware: Hardware | None = None
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"engine is {self.engine!r}, allowed is {' or '.join(ENGINES)}")
        for name in ("nodes", "tensor_parallel", "context"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, allowed is 1 or more")
        if self.tensor_parallel % self.nodes:
            raise UsageError(
                f"tensor parallel size is {self.tensor_parallel}, allowed is a multiple of the {self.nodes} nodes"
            )
        if self.context > LONGEST_CONTEXT:
            raise UsageError(f"context is {self.context:,}, allowed is up to {LONGEST_CONTEXT:,}")
        if self.text_only and "text_only" not in settings(self.engine):
            raise UsageError(f"{self.engine} has no switch to leave out the vision tower, allowed is vllm")
        if self.hardware is not None and self.hardware.devices not in (1, self.tensor_parallel):
            raise UsageError(
                f"hardware {self.hardware.key} has {self.hardware.devices} devices, "
                f"allowed is one of them or {self.tensor_parallel}"
            )


@dataclass(frozen=True, slots=True)
class Launch:
    """Environment and command per node (the first is the head), the plan per device, and what one should know."""

    engine: str
    environment: Mapping[str, str]
    commands: tuple[tuple[str, ...], ...]
    plan: Plan | None
    notes: tuple[str, ...]


@cache
def settings(engine: str) -> Mapping[str, Any]:
    """The table of one engine."""
    table: dict[str, Any] = tomllib.loads((files("sterna") / "data" / "engines.toml").read_text())
    chosen: Mapping[str, Any] = table[engine]
    return chosen


def plan_launch(request: LaunchRequest) -> Launch:
    """Commands and memory of a launch.

    Raises `UsageError` for devices that cannot share the model's heads, `OutOfMemoryError` where a device is too small.
    """
    config = _config(request.model)
    environment, yarn = _yarn(request, config)
    commands = tuple(_command(request, yarn, rank) for rank in range(_ranks(request)))
    plan, notes = _memory(request, config)
    return Launch(request.engine, environment, commands, plan, tuple(notes))


def _ranks(request: LaunchRequest) -> int:
    """How many commands there are: SGLang runs one per node, vLLM one on the head of a Ray cluster."""
    return request.nodes if request.engine == "sglang" else 1


def _command(request: LaunchRequest, yarn: list[str], rank: int) -> tuple[str, ...]:
    table = settings(request.engine)
    values = {
        "model": request.model, "host": request.host, "port": str(request.port), "nodes": str(request.nodes),
        "tensor_parallel": str(request.tensor_parallel), "context": str(request.context), "rank": str(rank),
        "head": "HEAD",
    }  # fmt: skip
    parts: list[str] = []
    for key, wanted in (
        ("program", True), ("host", request.host != "127.0.0.1"), ("port", True), ("tensor_parallel", True),
        ("context", True), ("parsers", True), ("mtp", request.mtp), ("text_only", request.text_only),
        ("nodes", request.nodes > 1),
    ):  # fmt: skip
        if wanted:
            parts += [_filled(part, values) for part in table[key]]
    return (*parts, *yarn, *request.extra)


def _filled(part: str, values: Mapping[str, str]) -> str:
    """A template with its ``{names}`` filled in; JSON with other braces stays as it is."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), part)


def _config(model: str) -> ModelConfig:
    directory = Path(model).expanduser()
    if (directory / "config.json").is_file():
        return read_model_config(directory)
    if not _REPOSITORY.fullmatch(model):
        raise UsageError(
            f"the model is {model!r}, allowed is a checkpoint directory or OWNER/NAME", hint="as Qwen/Qwen3.6-35B-A3B"
        )
    return preset("qwen3.6-35b-a3b")


def _yarn(request: LaunchRequest, config: ModelConfig) -> tuple[dict[str, str], list[str]]:
    """What a context beyond the model's own needs: a variable, and rope parameters with the factor that suffices."""
    longest = config.text.max_position_embeddings
    if request.context <= longest:
        return {}, []
    table, rope = settings(request.engine), config.text.rope_parameters
    factor = next((f for f in (2.0, 4.0) if request.context <= f * longest), 4.0)
    parameters = {
        "mrope_interleaved": True, "mrope_section": list(rope.mrope_section), "rope_type": "yarn",
        "rope_theta": int(rope.rope_theta), "partial_rotary_factor": rope.partial_rotary_factor, "factor": factor,
        "original_max_position_embeddings": longest,
    }  # fmt: skip
    overrides = json.dumps({"text_config": {"rope_parameters": parameters}}, separators=(",", ":"))
    return {table["yarn_variable"]: "1"}, [_filled(part, {"overrides": overrides}) for part in table["yarn"]]


def _memory(request: LaunchRequest, config: ModelConfig) -> tuple[Plan | None, list[str]]:
    text, ranks = config.text, request.tensor_parallel
    share = settings(request.engine)["memory_share"]
    usable = None if request.hardware is None else request.hardware.usable_bytes
    device = Hardware(
        f"{ranks} devices", f"{ranks} devices", "gpu", ranks, None if usable is None else math.floor(usable * share)
    )
    precision = "fp8" if "fp8" in request.model.lower() else "bf16"
    context = min(request.context, text.max_position_embeddings)
    plan = make_plan(
        config, device, weights=precision, context=context, mtp=request.mtp, vision=not request.text_only,
    )  # fmt: skip
    if plan.obstacle:
        raise UsageError(plan.obstacle, hint="choose another --tensor-parallel-size")
    notes = [
        f"each of {ranks} devices: {_gb(plan.bytes['weights'])} of weights ({precision}), "
        f"{_gb(plan.kv_bytes_per_token * request.context)} for {request.context:,} tokens, workspace not counted"
    ]
    if plan.kv_copies > 1:
        extra = (plan.kv_copies - 1) * plan.kv_bytes_per_token * ranks // plan.kv_copies * request.context
        notes.append(
            f"{text.num_key_value_heads} key and value heads on {ranks} devices: each is kept {plan.kv_copies} times, "
            f"which costs {_gb(extra)} more at that context; {text.num_key_value_heads} devices would keep it once"
        )
    if precision == "bf16" and not Path(request.model).exists() and request.model != DEFAULT_MODEL:
        notes.append(
            "the figures are those of Qwen3.6-35B-A3B in BF16; give a directory for those of another checkpoint"
        )
    if request.nodes > 1 and request.engine == "vllm":
        notes.append(
            f"on the head: ray start --head --port=6379; on the other {request.nodes - 1}: ray start --address=HEAD:6379; "
            "then the command on the head"
        )
    if usable is not None:
        needed = plan.bytes["weights"] + plan.kv_bytes_per_token * request.context
        if needed > usable * share:
            raise OutOfMemoryError(
                f"each device needs {_gb(needed)}, {request.engine} uses {_gb(math.floor(usable * share))} of it",
                hint="use more devices, a shorter context (--max-model-len), FP8 weights or --text-only",
            )
    return plan, notes


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def installed_version(engine: str) -> str | None:
    """The version of an engine in this Python environment, ``None`` if it is not there."""
    try:
        return metadata.version(settings(engine)["package"])
    except metadata.PackageNotFoundError:
        return None


def check_version(engine: str, version: str | None) -> str:
    """The version, if it is new enough; raises `BackendError` if the engine is not installed or too old."""
    minimum = settings(engine)["minimum"]
    hint = f"install it in this environment: pip install '{engine}>={minimum}', or use --print"
    if version is None:
        raise BackendError(f"{engine} is not installed, needed is {minimum} or newer", hint=hint)
    if _numbers(version) < _numbers(minimum):
        raise BackendError(f"{engine} is {version}, needed is {minimum} or newer", hint=hint)
    return version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])
