"""One combination of precision, context and sessions in exact bytes, and the most that a machine would hold instead."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from sterna.accounting import kv_bytes_per_token, state_bytes
from sterna.backends.planner import MAX_SNAPSHOT_SLOTS, workspace_bytes
from sterna.config import EngineConfig, ModelConfig, TextConfig
from sterna.fit.hardware import Hardware
from sterna.fit.precision import bytes_per_rank, tensor_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes are those of the fullest device; on one device they are exact.

    ``weights`` is a precision, ``kv`` the type of keys and values. ``fits``, ``max_context`` (per session, for that many
    sessions) and ``max_sessions`` (of that context) are ``None`` where the memory is unknown or ``obstacle`` says why
    the combination cannot be made at all.
    """

    hardware: str
    weights: str
    kv: str
    context: int
    sessions: int
    mtp: bool
    vision: bool
    bytes: dict[str, int]
    kv_bytes_per_token: int
    kv_copies: int
    total_bytes: int
    available_bytes: int | None
    fits: bool | None
    max_context: int | None
    max_sessions: int | None
    obstacle: str | None = None

    def as_json(self) -> dict[str, Any]:
        """A JSON object with these fields."""
        return asdict(self)


def make_plan(
    config: ModelConfig,
    hardware: Hardware,
    *,
    weights: str,
    kv: str = "bf16",
    context: int,
    sessions: int = 1,
    mtp: bool = True,
    vision: bool = False,
    engine: EngineConfig | None = None,
    weight_bytes: int | None = None,
) -> Plan:
    """Plan one combination; snapshots, blocks and the prefill chunk are those of ``engine``.

    ``weight_bytes`` says how large the weights are that exist; ``weights`` is then a mere label.
    Raises `UsageError` for a precision that cannot hold the shapes of this model.
    """
    engine, text = engine or EngineConfig(), config.text
    mtp, vision = mtp and text.mtp_num_hidden_layers > 0, vision and config.vision is not None
    groups = ("text", *(("mtp",) if mtp else ()), *(("vision",) if vision else ()))
    ranks = hardware.devices
    heads = text.num_key_value_heads
    if weight_bytes is None:
        sizes = tensor_bytes(config, weights, groups=groups)
        weight_bytes = bytes_per_rank(sizes, ranks=ranks, num_key_value_heads=heads)
    copies = max(1, ranks // heads)
    per_token = kv_bytes_per_token(text, kv, mtp=mtp) * copies // ranks
    state = state_slot_bytes(text) // ranks
    parts = {
        "weights": weight_bytes,
        "kv": sessions * blocks_of(context, engine) * engine.block_size * per_token,
        "state": sessions * state,
        "snapshots": min(MAX_SNAPSHOT_SLOTS, engine.snapshot_bytes // max(state * ranks, 1)) * state,
        "workspace": _workspace(text, sessions, engine),
    }
    total, available = sum(parts.values()), hardware.usable_bytes
    obstacle = _obstacle(text, ranks)
    known = available is not None and obstacle is None
    room = (available or 0) - parts["weights"] - parts["snapshots"]
    return Plan(
        hardware=hardware.key, weights=weights, kv=kv, context=context, sessions=sessions, mtp=mtp, vision=vision,
        bytes=parts, kv_bytes_per_token=per_token, kv_copies=copies, total_bytes=total, available_bytes=available,
        fits=total <= (available or 0) if known else None,
        max_context=_max_context(text, engine, room, sessions, state, per_token) if known else None,
        max_sessions=_max_sessions(text, engine, room, context, state, per_token) if known else None,
        obstacle=obstacle,
    )  # fmt: skip


def state_slot_bytes(text: TextConfig) -> int:
    """DeltaNet state of one sequence as the backends keep it."""
    state = state_bytes(text)
    return state["recurrent"] + state["conv_float32"]


def blocks_of(tokens: int, engine: EngineConfig) -> int:
    """KV blocks of so many tokens."""
    return -(-tokens // engine.block_size)


def _workspace(text: TextConfig, sessions: int, engine: EngineConfig) -> int:
    return workspace_bytes(text, replace(engine, max_num_seqs=sessions))


def _max_context(text: TextConfig, engine: EngineConfig, room: int, sessions: int, state: int, per_token: int) -> int:
    room -= sessions * state + _workspace(text, sessions, engine)
    blocks = max(0, room) // (sessions * engine.block_size * per_token)
    return min(blocks * engine.block_size, text.max_position_embeddings)


def _max_sessions(text: TextConfig, engine: EngineConfig, room: int, context: int, state: int, per_token: int) -> int:
    """The workspace grows with the sessions, so the answer of the first estimate is lowered until it fits."""
    each = state + blocks_of(context, engine) * engine.block_size * per_token
    sessions = max(0, room) // each
    while sessions > 0 and sessions * each + _workspace(text, sessions, engine) > room:
        sessions -= max(
            1, (sessions * each + _workspace(text, sessions, engine) - room) // (each + 4 * text.vocab_size)
        )
    return max(0, sessions)


def _obstacle(text: TextConfig, ranks: int) -> str | None:
    """Why so many ranks cannot share the heads, or ``None``."""
    heads = text.num_key_value_heads
    if ranks > heads and ranks % heads:
        return f"{ranks} ranks cannot share {heads} key and value heads, allowed is a multiple or a divisor of {heads}"
    for name, count in (
        ("query", text.num_attention_heads),
        ("key and value", max(heads, ranks)),
        ("DeltaNet key", text.linear_num_key_heads),
        ("DeltaNet value", text.linear_num_value_heads),
    ):
        if count % ranks:
            return f"{ranks} ranks cannot share {count} {name} heads, allowed is a divisor of {count}"
    return None
