"""From tensor names to the weight structs of the op set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sterna.checkpoint.gguf_checkpoint import GgufCheckpoint
from sterna.checkpoint.opening import LoadableCheckpoint
from sterna.config import TextConfig
from sterna.ops.base import (
    AttentionWeights,
    DenseMlpWeights,
    GatedDeltaNetWeights,
    OpSet,
    SparseMoeWeights,
    Tensor,
    Weight,
)
from sterna.quant.tensor import QuantizedTensor


@dataclass(slots=True)
class DecoderLayer:
    """One decoder layer; the types of ``mixer`` and ``mlp`` say which kind it is."""

    input_layernorm: Tensor
    mixer: GatedDeltaNetWeights | AttentionWeights
    post_attention_layernorm: Tensor
    mlp: SparseMoeWeights | DenseMlpWeights


@dataclass(slots=True)
class MtpHead:
    """The multi-token prediction head (spec §3.4)."""

    fc: Weight
    pre_fc_norm_embedding: Tensor
    pre_fc_norm_hidden: Tensor
    layer: DecoderLayer
    norm: Tensor


class WeightLoader:
    """Reads tensors of one checkpoint by name and hands them to an op set."""

    def __init__(self, ops: OpSet, checkpoint: LoadableCheckpoint, config: TextConfig) -> None:
        self.ops = ops
        self.checkpoint = checkpoint
        self.config = config

    def linear(self, name: str) -> Weight:
        """A matrix in its storage type."""
        return self.ops.pack_linear(self.stored(f"{name}.weight"))

    def stored(self, name: str) -> np.ndarray | QuantizedTensor:
        """A tensor as it is stored: raw values, or the bytes of a quantised format."""
        view = self.checkpoint.tensor(name)
        return view if isinstance(view, QuantizedTensor) else view.array

    def vector(self, name: str) -> Tensor:
        """A small parameter as float32."""
        return self.ops.tensor(self.checkpoint.tensor(name).to_float32())

    def layer(self, prefix: str, layer_type: str) -> DecoderLayer:
        """All weights of one decoder layer."""
        return DecoderLayer(
            input_layernorm=self.vector(f"{prefix}.input_layernorm.weight"),
            mixer=self.attention(prefix) if layer_type == "full_attention" else self.delta_net(prefix),
            post_attention_layernorm=self.vector(f"{prefix}.post_attention_layernorm.weight"),
            mlp=self.dense_mlp(f"{prefix}.mlp") if self.config.is_dense else self.moe(f"{prefix}.mlp"),
        )

    def delta_net(self, prefix: str) -> GatedDeltaNetWeights:
        """A Gated DeltaNet mixer."""
        prefix = f"{prefix}.linear_attn"
        conv1d = self.checkpoint.tensor(f"{prefix}.conv1d.weight").to_float32()
        return GatedDeltaNetWeights(
            in_proj_qkv=self.linear(f"{prefix}.in_proj_qkv"),
            in_proj_z=self.linear(f"{prefix}.in_proj_z"),
            in_proj_b=self.linear(f"{prefix}.in_proj_b"),
            in_proj_a=self.linear(f"{prefix}.in_proj_a"),
            conv1d=self.ops.tensor(conv1d.reshape(conv1d.shape[0], conv1d.shape[2])),
            A_log=self.vector(f"{prefix}.A_log"),
            dt_bias=self.vector(f"{prefix}.dt_bias"),
            norm=self.vector(f"{prefix}.norm.weight"),
            out_proj=self.linear(f"{prefix}.out_proj"),
            tiled_value_heads=isinstance(self.checkpoint, GgufCheckpoint) and self.checkpoint.v_head_order == "tiled",
        )

    def attention(self, prefix: str) -> AttentionWeights:
        """A gated attention mixer."""
        prefix = f"{prefix}.self_attn"
        return AttentionWeights(
            q_proj=self.linear(f"{prefix}.q_proj"),
            k_proj=self.linear(f"{prefix}.k_proj"),
            v_proj=self.linear(f"{prefix}.v_proj"),
            o_proj=self.linear(f"{prefix}.o_proj"),
            q_norm=self.vector(f"{prefix}.q_norm.weight"),
            k_norm=self.vector(f"{prefix}.k_norm.weight"),
        )

    def moe(self, prefix: str) -> SparseMoeWeights:
        """A mixture of experts."""
        return SparseMoeWeights(
            gate=self.linear(f"{prefix}.gate"),
            experts=self.ops.pack_experts(
                self.stored(f"{prefix}.experts.gate_up_proj"), self.stored(f"{prefix}.experts.down_proj")
            ),
            shared_gate_proj=self.linear(f"{prefix}.shared_expert.gate_proj"),
            shared_up_proj=self.linear(f"{prefix}.shared_expert.up_proj"),
            shared_down_proj=self.linear(f"{prefix}.shared_expert.down_proj"),
            shared_expert_gate=self.linear(f"{prefix}.shared_expert_gate"),
        )

    def dense_mlp(self, prefix: str) -> DenseMlpWeights:
        """The MLP of a dense model."""
        names = ("gate_proj", "up_proj", "down_proj")
        return DenseMlpWeights(self.ops.pack_mlp(*(self.stored(f"{prefix}.{name}.weight") for name in names)))

    def mtp(self) -> MtpHead:
        """The multi-token prediction head."""
        return MtpHead(
            fc=self.linear("mtp.fc"),
            pre_fc_norm_embedding=self.vector("mtp.pre_fc_norm_embedding.weight"),
            pre_fc_norm_hidden=self.vector("mtp.pre_fc_norm_hidden.weight"),
            layer=self.layer("mtp.layers.0", "full_attention"),
            norm=self.vector("mtp.norm.weight"),
        )
