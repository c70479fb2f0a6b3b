"""Tensor names: the official ones, and the prefixes that re-packed checkpoints use instead (spec §2.1–2.2)."""

from __future__ import annotations

import re

# First match wins, so longer prefixes stand before the shorter ones that they contain.
_PREFIXES = (
    ("model.language_model.", "model.language_model."),
    ("language_model.model.", "model.language_model."),
    ("language_model.mtp.", "mtp."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", "model.visual."),
    ("model.mtp.", "mtp."),
    ("vision_tower.", "model.visual."),
    ("visual.", "model.visual."),
    ("mtp.", "mtp."),
    ("lm_head.", "lm_head."),
    ("model.", "model.language_model."),
)
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
_SWITCH = re.compile(r"(.*\.mlp)\.switch_mlp\.(gate_proj|up_proj|down_proj)\.weight")


def canonical_name(name: str) -> str:
    """The official name of a tensor; a name under no known prefix is returned unchanged.

    Fused experts lose an appended ``.weight``, since the official ones carry none.
    """
    for alias, official in _PREFIXES:
        if name.startswith(alias):
            name = official + name[len(alias) :]
            break
    if name.endswith((".mlp.experts.gate_up_proj.weight", ".mlp.experts.down_proj.weight")):
        return name.removesuffix(".weight")
    return name


def expert_part(name: str) -> tuple[str, int | None, str] | None:
    """(``….mlp.experts``, expert or ``None`` for all, projection) of a canonical name in a split layout, if it is."""
    if match := _EXPERT.fullmatch(name):
        return match[1], int(match[2]), match[3]
    if match := _SWITCH.fullmatch(name):
        return f"{match[1]}.experts", None, match[2]
    return None
