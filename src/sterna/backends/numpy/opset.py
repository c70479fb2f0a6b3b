"""The op set made of the reference functions of `sterna.ops`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sterna.backends.numpy.vision import NumpyVisionOps
from sterna.config import TextConfig
from sterna.ops.base import (
    AttentionWeights,
    DenseMlpWeights,
    Float32,
    GatedDeltaNetWeights,
    Int32,
    SparseMoeWeights,
    StepContext,
)
from sterna.ops.bfloat16 import to_float32
from sterna.ops.dense_mlp import DenseMlp, dense_mlp
from sterna.ops.embedding import embedding, set_rows
from sterna.ops.gated_delta_net import DeltaNetState, gated_delta_net
from sterna.ops.gqa_attention import KvCache, gqa_attention
from sterna.ops.linear import linear
from sterna.ops.rms_norm import rms_norm
from sterna.ops.sparse_moe import Experts, sparse_moe


class NumpyOps(NumpyVisionOps):
    """Reference arithmetic in float32, or in float64 to measure what float32 rounds; weights are kept in that type."""

    name = "numpy"

    def __init__(self, dtype: npt.DTypeLike = np.float32) -> None:
        self.dtype = np.dtype(dtype)

    def tensor(self, array: np.ndarray) -> np.ndarray:
        return to_float32(array).astype(self.dtype)

    def pack_linear(self, weight: np.ndarray) -> np.ndarray:
        return self.tensor(weight)

    def pack_experts(self, gate_up_proj: np.ndarray, down_proj: np.ndarray) -> Experts:
        return Experts(self.tensor(gate_up_proj), self.tensor(down_proj))

    def pack_mlp(self, gate_proj: np.ndarray, up_proj: np.ndarray, down_proj: np.ndarray) -> DenseMlp:
        return DenseMlp(self.tensor(gate_proj), self.tensor(up_proj), self.tensor(down_proj))

    def prepare(self, context: StepContext) -> StepContext:
        return context

    def embedding(self, token_ids: Int32, weight: np.ndarray) -> np.ndarray:
        return embedding(token_ids, weight)

    def set_rows(self, x: np.ndarray, rows: Int32, values: Float32) -> np.ndarray:
        return set_rows(x, rows, values)

    def take_rows(self, x: np.ndarray, rows: Int32) -> np.ndarray:
        return x[rows]

    def concat(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, b], axis=-1)

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x + y

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return rms_norm(x, weight, eps)

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return linear(x, weight)

    def gated_delta_net(
        self,
        u: np.ndarray,
        weights: GatedDeltaNetWeights,
        state: DeltaNetState,
        context: StepContext,
        config: TextConfig,
    ) -> np.ndarray:
        return gated_delta_net(u, weights, state, context, config)

    def gqa_attention(
        self, u: np.ndarray, weights: AttentionWeights, kv_cache: KvCache, context: StepContext, config: TextConfig
    ) -> np.ndarray:
        return gqa_attention(u, weights, kv_cache, context, config)

    def sparse_moe(self, u: np.ndarray, weights: SparseMoeWeights, config: TextConfig) -> np.ndarray:
        return sparse_moe(u, weights, config)

    def dense_mlp(self, u: np.ndarray, weights: DenseMlpWeights) -> np.ndarray:
        return dense_mlp(u, weights.packed)

    def to_numpy(self, x: np.ndarray) -> Float32:
        return x.astype(np.float32)

    def allocate_state(self, num_slots: int, config: TextConfig) -> DeltaNetState:
        heads, key, value = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
        return DeltaNetState(
            np.zeros((num_slots, heads, value, key), self.dtype),
            np.zeros((num_slots, config.conv_dim, config.linear_conv_kernel_dim - 1), self.dtype),
        )

    def allocate_kv(self, num_blocks: int, block_size: int, config: TextConfig) -> KvCache:
        shape = (num_blocks, block_size, config.num_key_value_heads, config.head_dim)
        return KvCache(np.zeros(shape, self.dtype), np.zeros(shape, self.dtype))

    def read_state(self, state: DeltaNetState, slot: int) -> tuple[np.ndarray, np.ndarray]:
        return state.recurrent[slot].copy(), state.conv[slot].copy()

    def write_state(self, state: DeltaNetState, slot: int, recurrent: np.ndarray, conv: np.ndarray) -> None:
        state.recurrent[slot], state.conv[slot] = recurrent, conv

    def copy_state(self, state: DeltaNetState, source: int, target: int) -> None:
        for array in (state.recurrent, state.conv):
            array[target] = 0 if source == -1 else array[source]

    def read_kv(self, kv_cache: KvCache, block: int) -> np.ndarray:
        return np.stack([kv_cache.keys[block], kv_cache.values[block]])

    def write_kv(self, kv_cache: KvCache, block: int, data: np.ndarray) -> None:
        kv_cache.keys[block], kv_cache.values[block] = data

    def copy_kv(self, kv_cache: KvCache, source: int, target: int) -> None:
        self.write_kv(kv_cache, target, self.read_kv(kv_cache, source))
