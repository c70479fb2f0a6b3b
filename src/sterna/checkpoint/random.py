"""Random weights in the shapes of any configuration, for benchmarks and tests: tame enough that activations stay finite."""

from __future__ import annotations

import hashlib

import numpy as np

from sterna.checkpoint.manifest import expected_tensors
from sterna.checkpoint.tensor_view import TensorView
from sterna.config import ModelConfig
from sterna.ops.bfloat16 import to_bfloat16


class RandomCheckpoint:
    """Stands in for `Checkpoint`. Every tensor is a function of (seed, name); nothing is kept.

    ``dtype`` is ``BF16``, ``F16`` or ``F32``. The prediction head follows the configuration, the vision tower only with
    ``with_vision``.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, dtype: str = "BF16", with_vision: bool = False) -> None:
        self.config = config
        self._seed = seed
        self._dtype = dtype
        expected = expected_tensors(config).items()
        self._shapes = {name: spec for name, spec in expected if with_vision or spec.group != "vision"}

    @property
    def has_mtp(self) -> bool:
        """Whether the configuration has a multi-token prediction head."""
        return any(spec.group == "mtp" for spec in self._shapes.values())

    def names(self, *groups: str) -> list[str]:
        """Names of the tensors of the given groups."""
        return [name for name, spec in self._shapes.items() if spec.group in groups]

    def storage(self, name: str) -> tuple[tuple[int, ...], int]:
        """(shape, bytes per value) of a tensor."""
        return self._shapes[name].shape, 4 if self._dtype == "F32" else 2

    def array(self, name: str) -> np.ndarray:
        """The values in storage type; bfloat16 as its bits in uint16."""
        values = self._values(name)
        if self._dtype == "BF16":
            return to_bfloat16(values)
        return values.astype(np.float16) if self._dtype == "F16" else values

    def tensor(self, name: str) -> TensorView:
        """The tensor as `Checkpoint.tensor` gives it."""
        return TensorView(name, self._dtype, self.array(name))

    def fingerprint(self) -> str:
        """Changes with seed, type and configuration."""
        parts = (self._seed, self._dtype, self.config, len(self._shapes))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _values(self, name: str) -> np.ndarray:
        shape = self._shapes[name].shape
        digest = hashlib.sha256(name.encode()).digest()
        rng = np.random.default_rng([self._seed, int.from_bytes(digest[:8], "little")])
        values = rng.standard_normal(shape, np.float32)
        if name.endswith("A_log"):
            return np.log(rng.uniform(0.1, 4.0, shape)).astype(np.float32)
        if name.endswith("dt_bias"):
            return values - np.float32(3.0)
        if name.endswith("linear_attn.norm.weight"):
            return 1 + np.float32(0.1) * values
        if len(shape) == 1:
            is_scale = name.startswith("model.visual.") and "norm" in name and name.endswith(".weight")
            return np.float32(is_scale) + np.float32(0.1) * values
        if name.endswith("conv1d.weight"):
            return np.float32(0.5) * values
        damped = name.endswith(
            ("out_proj.weight", "o_proj.weight", "down_proj.weight", "down_proj", "linear_fc2.weight")
        )
        shape = (shape[0], int(np.prod(shape[1:]))) if "patch_embed" in name else shape
        return values * np.float32((0.3 if damped else 1.0) / np.sqrt(shape[-1]))
