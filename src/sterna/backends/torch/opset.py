"""The op set in eager PyTorch: whole batches at once where the ops allow it, float32 throughout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sterna.backends.torch.mixers import attention, delta_net, rms_norm
from sterna.backends.torch.vision import TorchVisionOps
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


@dataclass(slots=True)
class StateSlots:
    """Recurrent [slots, HV, V, K] and convolution [slots, C, kernel - 1] state of one layer."""

    recurrent: Tensor
    conv: Tensor


class Experts(NamedTuple):
    """gate_up_proj [E, 2I, D] with the gate rows first, down_proj [E, D, I]."""

    gate_up_proj: Tensor
    down_proj: Tensor


class DeviceContext(NamedTuple):
    """The arrays of a step on the device."""

    slot_mapping: Tensor
    cos: Tensor
    sin: Tensor
    block_tables: Tensor


class TorchOps(TorchVisionOps):
    """Weights and activations are float32 tensors on one device."""

    name = "torch"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            # TF32 keeps ten bits of mantissa, which the tolerances of a float32 backend do not allow.
            torch.backends.cuda.matmul.allow_tf32 = False

    def tensor(self, array: np.ndarray) -> Tensor:
        """A host array in storage type (float32, float16, or uint16 that holds bfloat16 bits) as float32."""
        array = np.ascontiguousarray(array)
        if not array.flags.writeable:
            array = array.copy()
        if array.dtype == np.uint16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(self.device).float()
        return torch.from_numpy(array).to(self.device).float()

    def pack_linear(self, weight: np.ndarray) -> Tensor:
        return self.tensor(weight)

    def pack_experts(self, gate_up_proj: np.ndarray, down_proj: np.ndarray) -> Experts:
        return Experts(self.tensor(gate_up_proj), self.tensor(down_proj))

    def pack_mlp(
        self, gate_proj: np.ndarray, up_proj: np.ndarray, down_proj: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.tensor(gate_proj), self.tensor(up_proj), self.tensor(down_proj)

    def prepare(self, context: StepContext) -> StepContext:
        device = DeviceContext(
            slot_mapping=self._index(context.slot_mapping),
            cos=self.tensor(context.cos),
            sin=self.tensor(context.sin),
            block_tables=self._index(context.block_tables),
        )
        return replace(context, device=device)

    def _index(self, values: Int32) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.device)

    def embedding(self, token_ids: Int32, weight: Tensor) -> Tensor:
        return F.embedding(self._index(token_ids), weight)

    def set_rows(self, x: Tensor, rows: Int32, values: Float32) -> Tensor:
        return x.index_copy(0, self._index(rows), self.tensor(values))

    def take_rows(self, x: Tensor, rows: Int32) -> Tensor:
        return x[self._index(rows)]

    def concat(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=-1)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def gated_delta_net(
        self, u: Tensor, weights: GatedDeltaNetWeights, state: StateSlots, context: StepContext, config: TextConfig
    ) -> Tensor:
        return delta_net(u, weights, state.recurrent, state.conv, context, config)

    def gqa_attention(
        self, u: Tensor, weights: AttentionWeights, kv_cache: Tensor, context: StepContext, config: TextConfig
    ) -> Tensor:
        return attention(u, weights, kv_cache, context, config)

    def sparse_moe(self, u: Tensor, weights: SparseMoeWeights, config: TextConfig) -> Tensor:
        probabilities = F.linear(u, weights.gate).softmax(dim=-1)
        # A stable sort, unlike topk, gives ties to the lower id.
        ranked, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
        top, chosen = ranked[:, : config.num_experts_per_tok], order[:, : config.num_experts_per_tok]
        shares = top / top.sum(dim=-1, keepdim=True)
        outputs = u.new_empty(*chosen.shape, u.shape[1])
        for expert in chosen.unique().tolist():
            rows, ranks = torch.nonzero(chosen == expert, as_tuple=True)
            gate, up = F.linear(u[rows], weights.experts.gate_up_proj[expert]).chunk(2, dim=-1)
            outputs[rows, ranks] = F.linear(F.silu(gate) * up, weights.experts.down_proj[expert])
        routed = (shares[..., None] * outputs).sum(dim=1)
        hidden = F.silu(F.linear(u, weights.shared_gate_proj)) * F.linear(u, weights.shared_up_proj)
        gate = torch.sigmoid(F.linear(u, weights.shared_expert_gate))
        return routed + gate * F.linear(hidden, weights.shared_down_proj)

    def dense_mlp(self, u: Tensor, weights: DenseMlpWeights) -> Tensor:
        gate_proj, up_proj, down_proj = weights.packed
        return F.linear(F.silu(F.linear(u, gate_proj)) * F.linear(u, up_proj), down_proj)

    def to_numpy(self, x: Tensor) -> Float32:
        result: Float32 = x.detach().cpu().numpy()
        return result

    # storage ---------------------------------------------------------------------------------------------------------

    def allocate_state(self, num_slots: int, config: TextConfig) -> StateSlots:
        heads, key, value = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
        return StateSlots(
            torch.zeros(num_slots, heads, value, key, device=self.device),
            torch.zeros(num_slots, config.conv_dim, config.linear_conv_kernel_dim - 1, device=self.device),
        )

    def allocate_kv(self, num_blocks: int, block_size: int, config: TextConfig) -> Tensor:
        """Keys and values: [2, num_blocks, block_size, Hkv, head_dim]."""
        shape = (2, num_blocks, block_size, config.num_key_value_heads, config.head_dim)
        return torch.zeros(shape, device=self.device)

    def read_state(self, state: StateSlots, slot: int) -> tuple[Float32, Float32]:
        return self.to_numpy(state.recurrent[slot].clone()), self.to_numpy(state.conv[slot].clone())

    def write_state(self, state: StateSlots, slot: int, recurrent: Float32, conv: Float32) -> None:
        state.recurrent[slot], state.conv[slot] = self.tensor(recurrent), self.tensor(conv)

    def copy_state(self, state: StateSlots, source: int, target: int) -> None:
        for slots in (state.recurrent, state.conv):
            slots[target] = 0 if source == -1 else slots[source]

    def read_kv(self, kv_cache: Tensor, block: int) -> np.ndarray:
        return self.to_numpy(kv_cache[:, block].clone())

    def write_kv(self, kv_cache: Tensor, block: int, data: np.ndarray) -> None:
        kv_cache[:, block] = self.tensor(data)

    def copy_kv(self, kv_cache: Tensor, source: int, target: int) -> None:
        kv_cache[:, target] = kv_cache[:, source]
