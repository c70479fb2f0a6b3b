"""Flags that several commands share, and what they become."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.chat.messages import ChatRequest, Message
from sterna.chat.presets import PRESETS, get_preset
from sterna.config import EngineConfig

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
        "--max-model-len",
        type=positive,
        metavar="N",
        help="longest context in tokens (default: 32768, or less where the model ends earlier)",
    )


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


def load_llm(args: argparse.Namespace) -> LLM:
    """The model that the flags name; the first line on standard error says which."""
    from sterna import env
    from sterna.llm import LLM

    config = EngineConfig(max_model_len=args.max_model_len)
    backend = args.backend or env.get("STERNA_BACKEND")
    return LLM.load(args.model, backend=backend, recipe=args.recipe, engine_config=config)


def chat_request(args: argparse.Namespace, messages: Sequence[Message]) -> ChatRequest:
    """A request with the preset and the flags that override it."""
    request = get_preset(args.preset).apply(ChatRequest(tuple(messages)))
    given = {name: getattr(args, name) for name, _, _ in SAMPLING_FLAGS if getattr(args, name) is not None}
    sampling = replace(request.sampling, seed=args.seed, max_tokens=args.max_tokens, **given)
    thinking = request.enable_thinking if args.thinking is None else args.thinking
    return replace(request, sampling=sampling, enable_thinking=thinking)
