"""The op set over the kernels of `sterna._native`.

A row's result never depends on the other rows of a pass, on how a prompt was cut into passes, or on the number of threads:
the bits are those of one kernel variant and one KV type.
"""

from __future__ import annotations

import mmap
from dataclasses import replace
from typing import Literal

import numpy as np

from sterna import _native
from sterna.backends.native.dense_mlp import pack_mlp
from sterna.backends.native.threads import default_threads
from sterna.backends.native.variants import choose_variant
from sterna.backends.native.vision import NativeVisionOps
from sterna.config import TextConfig
from sterna.errors import BackendError
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
from sterna.quant.tensor import QuantizedTensor

KvDtype = Literal["bfloat16", "float32"]
# Formats with kernels (int8 activations, integer sums per group): columns of a block, and bytes that one takes in tiles.
QUANTIZED_FORMATS = {name: (block, size) for name, block, size in _native.quantized_types()}
# The width of the key and value panels in a KV block.
BLOCK_MULTIPLE = 16


class NativeOpSet(NativeVisionOps):
    """Weights in their storage type, packed once: float32, float16 and bfloat16 with float activations, `QUANTIZED_FORMATS`
    with activations rounded to int8 per token and group of 32. Memory-mapped tensors of our own formats are not copied.

    ``variant`` as in `choose_variant`. Keys and values are rounded to ``kv_dtype`` before any row reads them.
    ``num_threads`` is a setting of the whole process; results do not depend on it.
    """

    name = "native"

    def __init__(
        self, *, variant: str | None = None, kv_dtype: KvDtype = "bfloat16", num_threads: int | None = None
    ) -> None:
        if kv_dtype not in ("bfloat16", "float32"):
            raise BackendError(f"the KV type is {kv_dtype!r}, allowed are bfloat16 and float32")
        self._ops = _native.Ops(choose_variant(variant))
        self.variant = self._ops.variant
        self.kv_dtype = kv_dtype
        _native.set_num_threads(default_threads() if num_threads is None else num_threads)

    # weights ---------------------------------------------------------------------------------------------------------

    def tensor(self, array: np.ndarray) -> _native.Tensor:
        return _native.tensor(np.ascontiguousarray(to_float32(array)))

    def pack_linear(self, weight: np.ndarray | QuantizedTensor) -> _native.Matrix:
        if isinstance(weight, QuantizedTensor):
            rows, columns = weight.shape
            return self._ops.pack_quantized(
                weight.data, format=_kernel_format(weight), rows=rows, columns=columns, borrow=_is_mapped(weight.data)
            )
        return self._ops.pack_linear(np.ascontiguousarray(weight))

    def pack_experts(
        self, gate_up_proj: np.ndarray | QuantizedTensor, down_proj: np.ndarray | QuantizedTensor
    ) -> _native.Experts:
        if isinstance(gate_up_proj, QuantizedTensor) and isinstance(down_proj, QuantizedTensor):
            count, hidden, width = down_proj.shape
            return self._ops.pack_quantized_experts(
                gate_up_proj.data,
                down_proj.data,
                format=_kernel_format(gate_up_proj),
                down_format=_kernel_format(down_proj),
                count=count,
                hidden=hidden,
                width=width,
                borrow=_is_mapped(gate_up_proj.data) and _is_mapped(down_proj.data),
            )
        if isinstance(gate_up_proj, QuantizedTensor) or isinstance(down_proj, QuantizedTensor):
            raise BackendError("gate_up_proj and down_proj of the experts must both be quantised or both not")
        return self._ops.pack_experts(np.ascontiguousarray(gate_up_proj), np.ascontiguousarray(down_proj))

    def pack_mlp(
        self,
        gate_proj: np.ndarray | QuantizedTensor,
        up_proj: np.ndarray | QuantizedTensor,
        down_proj: np.ndarray | QuantizedTensor,
    ) -> SparseMoeWeights:
        return pack_mlp(self, gate_proj, up_proj, down_proj)

    # per pass --------------------------------------------------------------------------------------------------------

    def prepare(self, context: StepContext) -> StepContext:
        device = _native.Context(
            cu_seqlens=np.ascontiguousarray(context.cu_seqlens, np.int32),
            context_lens=np.ascontiguousarray(context.context_lens, np.int32),
            block_tables=np.ascontiguousarray(context.block_tables, np.int32),
            slot_mapping=np.ascontiguousarray(context.slot_mapping, np.int32),
            state_slots=np.ascontiguousarray(context.state_slots, np.int32),
            snapshot_at=np.ascontiguousarray(context.snapshot_at, np.int32),
            cos=np.ascontiguousarray(context.cos, np.float32),
            sin=np.ascontiguousarray(context.sin, np.float32),
        )
        return replace(context, device=device)

    def embedding(self, token_ids: Int32, weight: _native.Matrix) -> _native.Tensor:
        return self._ops.embedding(np.ascontiguousarray(token_ids, np.int32), weight)

    def set_rows(self, x: _native.Tensor, rows: Int32, values: Float32) -> _native.Tensor:
        self._ops.set_rows(x, np.ascontiguousarray(rows, np.int32), np.ascontiguousarray(values, np.float32))
        return x

    def take_rows(self, x: _native.Tensor, rows: Int32) -> _native.Tensor:
        return self._ops.take_rows(x, np.ascontiguousarray(rows, np.int32))

    def concat(self, a: _native.Tensor, b: _native.Tensor) -> _native.Tensor:
        return self._ops.concat(a, b)

    def add(self, x: _native.Tensor, y: _native.Tensor) -> _native.Tensor:
        self._ops.add(x, y)
        return x

    def rms_norm(self, x: _native.Tensor, weight: _native.Tensor, eps: float) -> _native.Tensor:
        return self._ops.rms_norm(x, weight, eps)

    def linear(self, x: _native.Tensor, weight: _native.Matrix) -> _native.Tensor:
        return self._ops.linear(x, weight)

    def gated_delta_net(
        self,
        u: _native.Tensor,
        weights: GatedDeltaNetWeights,
        state: _native.DeltaNetState,
        context: StepContext,
        config: TextConfig,
    ) -> _native.Tensor:
        return self._ops.gated_delta_net(
            u,
            weights.in_proj_qkv,
            weights.in_proj_z,
            weights.in_proj_b,
            weights.in_proj_a,
            weights.conv1d,
            weights.A_log,
            weights.dt_bias,
            weights.norm,
            weights.out_proj,
            weights.tiled_value_heads,
            state,
            context.device,
            config.linear_num_key_heads,
            config.rms_norm_eps,
        )

    def gqa_attention(
        self,
        u: _native.Tensor,
        weights: AttentionWeights,
        kv_cache: _native.KvCache,
        context: StepContext,
        config: TextConfig,
    ) -> _native.Tensor:
        return self._ops.gqa_attention(
            u,
            weights.q_proj,
            weights.k_proj,
            weights.v_proj,
            weights.o_proj,
            weights.q_norm,
            weights.k_norm,
            kv_cache,
            context.device,
            config.num_attention_heads,
            config.rms_norm_eps,
        )

    def sparse_moe(self, u: _native.Tensor, weights: SparseMoeWeights, config: TextConfig) -> _native.Tensor:
        return self._sparse_moe(u, weights, config.num_experts_per_tok)

    def dense_mlp(self, u: _native.Tensor, weights: DenseMlpWeights) -> _native.Tensor:
        return self._sparse_moe(u, weights.packed, 1)

    def _sparse_moe(self, u: _native.Tensor, weights: SparseMoeWeights, experts_per_token: int) -> _native.Tensor:
        return self._ops.sparse_moe(
            u,
            weights.gate,
            weights.experts,
            weights.shared_gate_proj,
            weights.shared_up_proj,
            weights.shared_down_proj,
            weights.shared_expert_gate,
            experts_per_token,
        )

    def to_numpy(self, x: _native.Tensor) -> Float32:
        return x.numpy()

    # storage ---------------------------------------------------------------------------------------------------------

    def allocate_state(self, num_slots: int, config: TextConfig) -> _native.DeltaNetState:
        return _native.DeltaNetState(
            slots=num_slots,
            value_heads=config.linear_num_value_heads,
            key_dim=config.linear_key_head_dim,
            value_dim=config.linear_value_head_dim,
            channels=config.conv_dim,
            kernel=config.linear_conv_kernel_dim,
        )

    def allocate_kv(self, num_blocks: int, block_size: int, config: TextConfig) -> _native.KvCache:
        if block_size < 1 or block_size % BLOCK_MULTIPLE:
            raise BackendError(f"the block size is {block_size}, allowed are multiples of {BLOCK_MULTIPLE}")
        return _native.KvCache(
            blocks=num_blocks,
            block_size=block_size,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            float32=self.kv_dtype == "float32",
        )

    def read_state(self, state: _native.DeltaNetState, slot: int) -> tuple[Float32, Float32]:
        return state.read(slot)

    def write_state(self, state: _native.DeltaNetState, slot: int, recurrent: Float32, conv: Float32) -> None:
        state.write(slot, np.ascontiguousarray(recurrent), np.ascontiguousarray(conv))

    def copy_state(self, state: _native.DeltaNetState, source: int, target: int) -> None:
        state.copy(source, target)

    def read_kv(self, kv_cache: _native.KvCache, block: int) -> np.ndarray:
        return kv_cache.read(block)

    def write_kv(self, kv_cache: _native.KvCache, block: int, data: np.ndarray) -> None:
        kv_cache.write(block, np.ascontiguousarray(data))

    def copy_kv(self, kv_cache: _native.KvCache, source: int, target: int) -> None:
        kv_cache.copy(source, target)


def _is_mapped(data: np.ndarray) -> bool:
    """Whether an array is memory-mapped from a file; such tiles are used where they lie, other arrays are copied."""
    base: object = data
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def _kernel_format(tensor: QuantizedTensor) -> str:
    if tensor.format.name not in QUANTIZED_FORMATS:
        raise BackendError(
            f"the native backend has no kernels for {tensor.format.name} (tensor {tensor.name}), "
            f"allowed are {', '.join(QUANTIZED_FORMATS)}",
            hint="convert the checkpoint, or read it with its exact values in F32",
        )
    return tensor.format.name
