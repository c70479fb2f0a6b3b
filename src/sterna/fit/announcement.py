"""The table of the announcement, recomputed row by row for Qwen3.6-35B-A3B.

"Not exceeding" is never rounded: a row holds if its bytes fit the memory that it names, with the vision tower and the
multi-token prediction head, one session and the context that it claims.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sterna.accounting import count_parameters
from sterna.config import ModelConfig, preset
from sterna.fit.hardware import find_hardware
from sterna.fit.plan import Plan, make_plan
from sterna.fit.precision import stored_bytes

EVERYTHING = ("text", "mtp", "vision")
NATIVE_CONTEXT = 262_144


@dataclass(frozen=True, slots=True)
class Row:
    """One claim, what the arithmetic says, and the verdict: holds, imprecise or wrong."""

    claim: str
    verdict: str
    answer: str
    plans: tuple[Plan, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """A JSON object with these fields."""
        return asdict(self)


def announcement_rows() -> list[Row]:
    """Every row of the table of weights and hardware, and the two claims about context that hang on it."""
    config = preset("qwen3.6-35b-a3b")
    return [_int4(config), _int8(config), _bf16(config), _ceiling(config), _tensor_parallel(config)]


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _plan(config: ModelConfig, key: str, weights: str, *, context: int = 32_768, kv: str = "bf16") -> Plan:
    return make_plan(config, find_hardware(key), weights=weights, kv=kv, context=context, vision=True)


def _fit_words(plan: Plan) -> str:
    if plan.obstacle:
        return f"{plan.hardware}: {plan.obstacle}"
    if not plan.fits:
        missing = plan.total_bytes - (plan.available_bytes or 0)
        return f"{plan.hardware} with {plan.weights}: {_gb(missing)} missing for {plan.context:,} tokens, {plan.kv}"
    return f"{plan.hardware} with {plan.weights}: {plan.max_context or 0:,} tokens with {plan.kv} keys and values"


def _int4(config: ModelConfig) -> Row:
    low, high = 18, 22
    sizes = {name: stored_bytes(config, name, groups=EVERYTHING) for name in ("q4-small", "q4")}
    plans = tuple(_plan(config, key, name) for key in ("rtx4090", "rtx3090") for name in sizes)
    inside = all(low <= size / 1e9 <= high for size in sizes.values())
    answer = ", ".join(f"{name} {_gb(size)}" for name, size in sizes.items())
    return Row(
        "INT4: about 18-22 GB, one 24 GB card (RTX 4090 or 3090)",
        "holds" if inside and all(plan.fits for plan in plans) else "imprecise",
        f"everything in {answer}; " + "; ".join(map(_fit_words, plans)),
        plans,
    )


def _int8(config: ModelConfig) -> Row:
    bare = count_parameters(config).total
    sizes = {name: stored_bytes(config, name, groups=EVERYTHING) for name in ("fp8", "q8")}
    plans = tuple(_plan(config, key, name) for key in ("2x24g", "a100-40g") for name in sizes)
    near = all(abs(size / 36e9 - 1) < 0.03 for size in sizes.values())
    answer = ", ".join(f"{name} {_gb(size)}" for name, size in sizes.items())
    return Row(
        "INT8: about 36 GB, two 24 GB cards or one A100 40 GB",
        "holds" if near and all(plan.fits for plan in plans) else "imprecise",
        f"{_gb(bare)} at one byte per weight and no scales; {answer}; " + "; ".join(map(_fit_words, plans)),
        plans,
    )


def _bf16(config: ModelConfig) -> Row:
    size = stored_bytes(config, "bf16", groups=EVERYTHING)
    plans = tuple(_plan(config, key, "bf16") for key in ("h100-80g", "4x24g"))
    three = make_plan(config, find_hardware("3x24g"), weights="bf16", context=32_768, vision=True)
    together = 3 * (three.available_bytes or 0)
    return Row(
        "BF16: about 72 GB, one H100 80 GB or four 24 GB cards",
        "holds" if abs(size / 72e9 - 1) < 0.01 and all(plan.fits for plan in plans) else "imprecise",
        f"{_gb(size)}; {'; '.join(map(_fit_words, plans))}; three 24 GB cards have {_gb(together)} together, "
        f"but {three.obstacle}",
        plans,
    )


def _ceiling(config: ModelConfig) -> Row:
    plans = tuple(
        _plan(config, "rtx4090", name, context=NATIVE_CONTEXT, kv=kv)
        for name in ("q4-small", "q4")
        for kv in ("bf16", "int8")
    )
    longest = max(plan.max_context or 0 for plan in plans)
    return Row(
        "64K tokens are the ceiling of a 24 GB card at 4 bits",
        "wrong" if longest > 65_536 else "holds",
        "; ".join(map(_fit_words, plans)),
        plans,
    )


def _tensor_parallel(config: ModelConfig) -> Row:
    plans = tuple(_plan(config, key, "bf16", context=NATIVE_CONTEXT) for key in ("h100-80g", "8x80g"))
    return Row(
        "eight-way tensor parallelism is the lower bound for 262K tokens",
        "wrong" if plans[0].fits else "holds",
        f"one 80 GB card needs {_gb(plans[0].total_bytes)} of {_gb(plans[0].available_bytes or 0)}; eight ranks keep "
        f"{plans[1].kv_copies} copies of every key and value, because there are {config.text.num_key_value_heads} heads",
        plans,
    )
