"""The op set over which the model is written once. numpy (reference), native and torch each provide one.

All tensors are opaque handles of the op set (`Tensor`, `Weight`); host arrays go in through `Batch` and the
``pack_*`` functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sterna.config import TextConfig

Tensor = Any
Weight = Any
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class GatedDeltaNetWeights:
    """One Gated DeltaNet mixer (spec §3.1), fields as in the checkpoint; projections packed, vectors as tensors."""

    in_proj_qkv: Weight
    in_proj_z: Weight
    in_proj_b: Weight
    in_proj_a: Weight
    conv1d: Tensor  # [C, kernel]
    A_log: Tensor  # [HV]
    dt_bias: Tensor  # [HV]
    norm: Tensor  # [V], plain weight: no 1 is added
    out_proj: Weight
    tiled_value_heads: bool = False  # value head n uses key head n % H, as GGUF stores them, else n // (HV / H)


@dataclass(slots=True)
class AttentionWeights:
    """One gated attention mixer (spec §3.2). ``q_proj`` holds query and gate interleaved per head."""

    q_proj: Weight
    k_proj: Weight
    v_proj: Weight
    o_proj: Weight
    q_norm: Tensor
    k_norm: Tensor


@dataclass(slots=True)
class SparseMoeWeights:
    """One mixture of experts (spec §3.3): router ``gate``, routed ``experts`` fused, one gated shared expert."""

    gate: Weight  # [E, D]
    experts: Weight  # packed from gate_up_proj [E, 2I, D] (gate rows first) and down_proj [E, D, I]
    shared_gate_proj: Weight
    shared_up_proj: Weight
    shared_down_proj: Weight
    shared_expert_gate: Weight  # [1, D]


@dataclass(slots=True)
class DenseMlpWeights:
    """The MLP of a dense model, in the form that `OpSet.pack_mlp` gives it."""

    packed: Weight


@dataclass(frozen=True, slots=True)
class StepContext:
    """What every layer of one forward pass needs, prepared once per pass from a `Batch` by `OpSet.prepare`.

    ``cu_seqlens`` int32 [B+1]; ``context_lens`` int32 [B] tokens already cached before this pass; ``block_tables``
    int32 [B, max_blocks]; ``slot_mapping`` int32 [T]; ``state_slots`` int32 [B]; ``snapshot_at`` int32 [S, 2] pairs
    (row, slot); ``cos``/``sin`` float32 [T, rotary_dim / 2] with the YaRN factor multiplied in. ``device`` is the op
    set's own view of them. The caller has zeroed the state slots of sequences whose context is 0.
    """

    cu_seqlens: Int32
    context_lens: Int32
    block_tables: Int32
    slot_mapping: Int32
    state_slots: Int32
    snapshot_at: Int32
    cos: Float32
    sin: Float32
    device: Any = None


class OpSet(Protocol):
    """About ten coarse operations. ``T`` is data: there is no separate prefill or decode variant."""

    name: str

    # weights ---------------------------------------------------------------------------------------------------------
    def tensor(self, array: np.ndarray) -> Tensor:
        """Keep a small parameter (norm weight, bias, convolution) as float32."""

    def pack_linear(self, weight: Any) -> Weight:
        """Keep a matrix [N, K] in its storage type: float32, float16, or uint16 that holds bfloat16 bits.

        An op set with kernels for them takes a `sterna.quant.tensor.QuantizedTensor` too.
        """

    def pack_experts(self, gate_up_proj: Any, down_proj: Any) -> Weight:
        """Keep routed experts, likewise: gate_up_proj [E, 2I, D] with the gate rows first, down_proj [E, D, I]."""

    def pack_mlp(self, gate_proj: Any, up_proj: Any, down_proj: Any) -> Weight:
        """Keep the MLP of a dense model: gate_proj and up_proj [I, D], down_proj [D, I]."""

    # per pass --------------------------------------------------------------------------------------------------------
    def prepare(self, context: StepContext) -> StepContext:
        """Return the context with ``device`` filled."""

    def embedding(self, token_ids: Int32, weight: Weight) -> Tensor:
        """Rows of the embedding table: [T, D] float32."""

    def set_rows(self, x: Tensor, rows: Int32, values: Float32) -> Tensor:
        """Replace rows of x, for image features."""

    def take_rows(self, x: Tensor, rows: Int32) -> Tensor:
        """x[rows]."""

    def concat(self, a: Tensor, b: Tensor) -> Tensor:
        """Concatenate along the last axis: [T, Da], [T, Db] -> [T, Da + Db]."""

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y; may reuse x."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Zero-centred RMSNorm ``x * rsqrt(mean(x²) + eps) * (1 + weight)`` (spec §3.0)."""

    def linear(self, x: Tensor, weight: Weight) -> Tensor:
        """x @ W.T: [T, K] -> [T, N]."""

    def gated_delta_net(
        self, u: Tensor, weights: GatedDeltaNetWeights, state: Any, context: StepContext, config: TextConfig
    ) -> Tensor:
        """The whole DeltaNet mixer from normalised input to out_proj (spec §3.1), reading and writing ``state``."""

    def gqa_attention(
        self, u: Tensor, weights: AttentionWeights, kv_cache: Any, context: StepContext, config: TextConfig
    ) -> Tensor:
        """The whole gated attention mixer from normalised input to o_proj (spec §3.2) over the paged ``kv_cache``."""

    def sparse_moe(self, u: Tensor, weights: SparseMoeWeights, config: TextConfig) -> Tensor:
        """Router, routed experts summed in top-k order (ties to the lower id), and shared expert (spec §3.3)."""

    def dense_mlp(self, u: Tensor, weights: DenseMlpWeights) -> Tensor:
        """``down_proj(silu(gate_proj u) * up_proj u)``: [T, D] -> [T, D]."""

    def to_numpy(self, x: Tensor) -> Float32:
        """Copy to a host float32 array."""

    # storage ---------------------------------------------------------------------------------------------------------
    def allocate_state(self, num_slots: int, config: TextConfig) -> Any:
        """Zeroed state of one layer for ``num_slots`` slots: recurrent [HV, V, K], convolution [C, kernel - 1]."""

    def allocate_kv(self, num_blocks: int, block_size: int, config: TextConfig) -> Any:
        """KV cache of one attention layer: keys and values [num_blocks, block_size, Hkv, head_dim]."""

    def read_state(self, state: Any, slot: int) -> tuple[Float32, Float32]:
        """(recurrent [HV, V, K], convolution [C, kernel - 1]) of one slot, in interface layout."""

    def write_state(self, state: Any, slot: int, recurrent: Float32, conv: Float32) -> None:
        """Inverse of `read_state`, lossless."""

    def copy_state(self, state: Any, source: int, target: int) -> None:
        """Copy one slot to another; source -1 means the zero state."""

    def read_kv(self, kv_cache: Any, block: int) -> np.ndarray:
        """[2, block_size, Hkv, head_dim] of one block in storage type."""

    def write_kv(self, kv_cache: Any, block: int, data: np.ndarray) -> None:
        """Inverse of `read_kv`, lossless."""

    def copy_kv(self, kv_cache: Any, source: int, target: int) -> None:
        """Copy one block."""
