"""Reader of the rotary parameters in all the places where checkpoints put them (spec §1.1 "Reader rules", §5)."""

from __future__ import annotations

from typing import Any

from sterna.config.fields import Fields
from sterna.config.types import RopeParameters
from sterna.errors import ConfigError

FLAT = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")


def read_rope(fields: Fields, head_dim: int) -> RopeParameters:
    """Rotary parameters from ``rope_parameters``, ``rope_scaling`` or flat keys; a contradiction is a `ConfigError`."""
    rope = _merge(fields)
    rope.require("mrope_interleaved", True)
    kind = rope.get("rope_type", "default")
    # "mrope" is the older spelling of an unscaled rope with sections.
    if kind not in ("default", "mrope", "yarn"):
        raise rope.fail("rope_type", "default or yarn")
    yarn = kind == "yarn"
    result = RopeParameters(
        rope_theta=rope.number("rope_theta", above=1.0),
        partial_rotary_factor=rope.number("partial_rotary_factor", maximum=1.0),
        mrope_section=_section(rope),
        rope_type="yarn" if yarn else "default",
        factor=rope.number("factor", above=1.0) if yarn else None,
        original_max_position_embeddings=rope.integer("original_max_position_embeddings") if yarn else None,
    )
    if yarn:
        rope.require("beta_fast", 32, 32.0)
        rope.require("beta_slow", 1, 1.0)
        rope.require("truncate", True)
        rope.require("attention_factor", None)
    rope.finish(frozenset())
    rotary_dim = int(head_dim * result.partial_rotary_factor)
    if rotary_dim < 2 or rotary_dim % 2:
        raise ConfigError(f"{rotary_dim} of {head_dim} dimensions would be rotated, allowed is an even number from 2")
    half = rotary_dim // 2
    time, height, width = result.mrope_section
    if time + height + width != half or 3 * height > half + 1 or 3 * width > half:
        raise ConfigError(
            f"mrope_section is {list(result.mrope_section)}, "
            f"allowed are three interleaved parts of the {half} frequencies"
        )
    return result


def _merge(fields: Fields) -> Fields:
    merged: dict[str, Any] = {}
    sources = [fields.section("rope_parameters"), fields.section("rope_scaling")]
    sources.append({key: fields.get(key) for key in FLAT if key in fields.values})
    for source in sources:
        for key, value in (source or {}).items():
            name = "rope_type" if key == "type" else key
            if name in merged and merged[name] != value:
                raise ConfigError(f"{fields.where} gives {name} twice, as {merged[name]!r} and as {value!r}")
            merged[name] = value
    return Fields(merged, f"{fields.where} rope")


def _section(rope: Fields) -> tuple[int, int, int]:
    value = rope.get("mrope_section")
    valid = isinstance(value, list) and len(value) == 3
    if not valid or not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in value):
        raise rope.fail("mrope_section", "three integers from 0")
    return (value[0], value[1], value[2])
