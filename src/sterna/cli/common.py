"""Flags that several commands share, and what they become."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sterna.chat.messages import ChatRequest, Message
from sterna.chat.presets import PRESETS, get_preset
from sterna.config import EngineConfig
from sterna.errors import UsageError

if TYPE_CHECKING:
    from sterna.llm import LLM

SAMPLING_FLAGS = (
    ("temperature", float, "0 means greedy"),
    ("top_p", float, "keep the most likely tokens up to this probability in all"),
    ("top_k", int, "keep this many of the most likely tokens, 0 for all"),
    ("min_p", float, "keep tokens of at least this share of the highest probability"),
    ("presence_penalty", float, "subtracted from tokens that the answer holds already"),
    ("frequency_penalty", float, "subtracted from them as often as the answer holds them"),
    ("repetition_penalty", float, "divides the logits of tokens that prompt or answer hold"),
)
Subparsers = Any


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--recipe``, ``--backend``, ``--max-model-len``."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help="checkpoint directory or GGUF file (default: the newest pulled one, else Sternula)",
    )
    add_recipe_flag(group)
    group.add_argument(
        "--backend",
        choices=("auto", "native", "torch", "numpy"),
        help="what computes (default: STERNA_BACKEND or auto)",
    )
    group.add_argument(
        "--mmproj", type=Path, metavar="FILE", help="GGUF file with the vision tower of a checkpoint without one"
    )
    group.add_argument(
        "--endpoint",
        metavar="URL",
        help="use the model of a running server instead, as http://127.0.0.1:8000/v1 (default: STERNA_ENDPOINT)",
    )
    group.add_argument(
        "--max-model-len",
        type=positive,
        metavar="N",
        help="longest context in tokens (default: 32768, or less where the model ends earlier)",
    )


def add_heal_flag(parser: argparse.ArgumentParser) -> None:
    """``--heal``, for commands whose clients send histories back."""
    parser.add_argument(
        "--heal",
        choices=("off", "format", "reasoning"),
        default="reasoning",
        help="continue earlier answers from the sampled tokens where the client changed only their form (format), or also "
        "dropped their reasoning (reasoning) (default: %(default)s)",
    )


def add_session_flags(parser: argparse.ArgumentParser) -> None:
    """``--sessions``, ``--session-quota``, for commands whose conversations are kept."""
    group = parser.add_argument_group("sessions")
    group.add_argument(
        "--sessions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep conversations on disk, so that after a restart nothing is read again (default: on)",
    )
    group.add_argument(
        "--session-quota",
        type=gibibytes,
        metavar="GIB",
        help="most disk space for kept conversations; those used longest ago go first (default: 16)",
    )


def gibibytes(text: str) -> int:
    """An argparse type: GiB as bytes."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} GiB is not allowed, allowed is above 0")
    return int(value * (1 << 30))


def add_recipe_flag(group: Any) -> None:
    """``--recipe``."""
    group.add_argument(
        "--recipe",
        metavar="NAME",
        help="quantise a checkpoint directory while it is loaded: q8, q4 or q4-small (default: as it is stored)",
    )


def add_sampling_flags(parser: argparse.ArgumentParser, *, preset: str, max_tokens: int | None = None) -> None:
    """``--preset`` and everything that overrides a part of it."""
    group = parser.add_argument_group("sampling")
    described = "; ".join(f"{name}: {p.description}" for name, p in PRESETS.items())
    group.add_argument("--preset", choices=tuple(PRESETS), default=preset, help=f"{described} (default: %(default)s)")
    group.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="reason before answering (default: as the preset says)",
    )
    group.add_argument("--seed", type=int, help="same seed, same text (default: a random one)")
    limit = "up to the end of the context" if max_tokens is None else "%(default)s"
    group.add_argument(
        "--max-tokens",
        type=positive,
        default=max_tokens,
        metavar="N",
        help=f"longest answer in tokens (default: {limit})",
    )
    for name, kind, text in SAMPLING_FLAGS:
        group.add_argument("--" + name.replace("_", "-"), type=kind, metavar="X", help=text)


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small, allowed is 1 or more")
    return value


def load_llm(args: argparse.Namespace, *, remote: bool = True) -> LLM:
    """The model that the flags name, or a running server where ``remote`` allows it; says on standard error which."""
    from sterna import env
    from sterna.llm import LLM

    asked = getattr(args, "endpoint", None)
    endpoint = asked or env.get("STERNA_ENDPOINT")
    if endpoint and not remote:
        raise UsageError(
            f"the endpoint {endpoint} serves already, allowed is a model in this process",
            hint="unset STERNA_ENDPOINT, or look at it with `sterna serve --check URL`",
        )
    if endpoint and args.model is None:
        return _remote(endpoint)
    if asked:
        raise UsageError("--model and --endpoint were both given, allowed is one of them")
    config = EngineConfig(max_model_len=args.max_model_len)
    return LLM.load(
        args.model,
        backend=args.backend or env.get("STERNA_BACKEND"),
        recipe=getattr(args, "recipe", None),
        engine_config=config,
        heal=getattr(args, "heal", "reasoning"),
        sessions=env.home() / "sessions" if getattr(args, "sessions", False) else None,
        session_quota_bytes=getattr(args, "session_quota", None),
        mmproj=getattr(args, "mmproj", None),
        features=env.home() / "features" if getattr(args, "sessions", False) else None,
    )


def _remote(endpoint: str) -> LLM:
    """A running server in place of a model in this process; it has what commands use of one: `GenerationService`."""
    from sterna import env
    from sterna.delegate import RemoteService

    service = RemoteService(endpoint, key=env.get("STERNA_ENDPOINT_KEY"))
    print(f"model: {service.name} at {service.url}", file=sys.stderr)
    return cast("LLM", service)


def chat_request(args: argparse.Namespace, messages: Sequence[Message]) -> ChatRequest:
    """A request with the preset and the flags that override it."""
    request = get_preset(args.preset).apply(ChatRequest(tuple(messages)))
    given = {name: getattr(args, name) for name, _, _ in SAMPLING_FLAGS if getattr(args, name) is not None}
    sampling = replace(request.sampling, seed=args.seed, max_tokens=args.max_tokens, **given)
    thinking = request.enable_thinking if args.thinking is None else args.thinking
    return replace(request, sampling=sampling, enable_thinking=thinking)
