"""The tensor manifest: names, shapes, types and counts, and whether every value is a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from sterna.checkpoint import Checkpoint
from sterna.checkpoint.manifest import GROUPS, expected_tensors
from sterna.checkpoint.names import canonical_name
from sterna.config import ModelConfig
from sterna.verify.checks import PASS, SKIP, Check, verdict

# Bits of the exponent: all set means infinity or NaN.
_EXPONENTS = {"BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}
_SCAN_VALUES = 1 << 24
FP8_SCALED = (
    ".experts.", ".shared_expert.", ".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.",
    ".self_attn.o_proj.", ".in_proj_qkv.", ".in_proj_z.", ".out_proj.",
)  # fmt: skip


def tensor_checks(checkpoint: Checkpoint) -> Iterator[Check]:
    """Counts per group and types; `Checkpoint` has checked names and shapes already."""
    config = checkpoint.config
    stored = [name for file in checkpoint.files for name in file]
    groups = Counter(group_of(name) for name in stored)
    yield Check("tensor names and shapes", PASS, _words(groups, len(stored)))
    yield _count_check(config, checkpoint, groups)
    yield _type_check(checkpoint)
    yield from _absent(config, checkpoint)


def group_of(name: str) -> str:
    """``mtp``, ``vision`` or ``text``."""
    official = canonical_name(name)
    return "mtp" if official.startswith("mtp.") else "vision" if official.startswith("model.visual.") else "text"


def _words(groups: Counter[str], total: int) -> str:
    return f"{total:,} tensors: " + ", ".join(f"{groups[group]:,} {group}" for group in GROUPS if groups[group])


def published_counts(config: ModelConfig, *, fp8: bool) -> Counter[str]:
    """How many tensors per group the official files of a configuration hold: BF16 with fused experts, or FP8 per expert.

    In FP8 files every scaled matrix comes with its ``weight_scale_inv``, and every expert's three matrices are apart.
    """
    counts: Counter[str] = Counter()
    for name, spec in expected_tensors(config).items():
        number = 1
        if fp8 and spec.group != "vision":
            if ".mlp.experts." in name:
                number = spec.shape[0] * (2 if name.endswith("gate_up_proj") else 1) * 2
            elif any(part in name for part in FP8_SCALED):
                number = 2
        counts[spec.group] += number
    return counts


def _count_check(config: ModelConfig, checkpoint: Checkpoint, groups: Counter[str]) -> Check:
    fused = published_counts(config, fp8=False)
    split = published_counts(config, fp8=True)
    present = [group for group in GROUPS if group in checkpoint.groups]
    for words, expected in (("official BF16 files", fused), ("official FP8 files", split)):
        if all(groups[group] == expected[group] for group in present):
            return Check("tensor counts", PASS, f"laid out as {words}: {_words(expected, sum(expected.values()))}")
    return Check(
        "tensor counts", SKIP,
        f"another layout than the official ones ({_words(groups, sum(groups.values()))}), so there is no count to compare",
    )  # fmt: skip


def _type_check(checkpoint: Checkpoint) -> Check:
    types = Counter(file[name].dtype for file in checkpoint.files for name in file)
    return Check("tensor types", PASS, ", ".join(f"{count:,} {dtype}" for dtype, count in types.most_common()))


def _absent(config: ModelConfig, checkpoint: Checkpoint) -> Iterator[Check]:
    if config.text.mtp_num_hidden_layers and not checkpoint.has_mtp:
        yield Check(
            "prediction head", SKIP, "config.json promises a multi-token prediction head, the weights hold none",
            "a checkpoint that was saved again with transformers loses it; without it there is no speculation",
        )  # fmt: skip
    if config.vision is not None and not checkpoint.has_vision:
        yield Check(
            "vision tower", SKIP, "config.json promises a vision tower, the weights hold none", "images cannot be read"
        )


def finite_check(checkpoint: Checkpoint, say: Callable[[str], None]) -> Check:
    """Every value of every floating-point tensor is a number."""
    problems, count = [], 0
    for file in checkpoint.files:
        say(f"reading every value of {file.path.name}")
        for name, view in file.items():
            if view.dtype not in _EXPONENTS:
                continue
            bits, mask = _EXPONENTS[view.dtype]
            values = view.array.reshape(-1).view(bits)
            bad = sum(
                int(((values[start : start + _SCAN_VALUES] & mask) == mask).sum())
                for start in range(0, values.size, _SCAN_VALUES)
            )
            count += values.size
            if bad:
                problems.append(f"{name} holds {bad:,} values that are infinite or no number")
    return verdict("values", problems, f"{count:,} floating-point values are finite", hint="the file is damaged")
