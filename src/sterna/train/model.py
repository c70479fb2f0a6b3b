"""The trainable model: the text part of ``qwen3_5_moe`` with its MTP head, in float32, under the official tensor names.

Shape letters: B sequence, T token, D hidden, E expert; see `sterna.train.delta_rule` for the DeltaNet letters.
Matrices that read the same input are multiplied as one. Source: specification, section 3.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sterna.train import pointwise
from sterna.train.delta_rule import chunk_gated_delta_rule
from sterna.train.experts import balance_loss, combine, dispatch, grouped_linear, plan_routing
from sterna.train.shape import ModelShape


class Weight(nn.Module):
    """A bare ``weight``, for names such as ``q_proj.weight`` whose product is taken elsewhere."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*size))


class GatedDeltaNet(nn.Module):
    """The linear-attention mixer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        heads, hidden = shape.linear_num_value_heads, shape.hidden_size
        keys = shape.linear_num_key_heads * shape.linear_key_head_dim
        values = heads * shape.linear_value_head_dim
        self.split = (2 * keys + values, values, heads, heads)
        self.in_proj_qkv = Weight(2 * keys + values, hidden)
        self.in_proj_z = Weight(values, hidden)
        self.in_proj_b = Weight(heads, hidden)
        self.in_proj_a = Weight(heads, hidden)
        self.conv1d = Weight(2 * keys + values, 1, shape.linear_conv_kernel_dim)
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.norm = Weight(shape.linear_value_head_dim)
        self.out_proj = Weight(hidden, values)

    def forward(self, u: Tensor) -> Tensor:
        shape = self.shape
        projections = (self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a)
        qkv, z, b, a = F.linear(u, torch.cat([p.weight for p in projections])).split(self.split, dim=-1)
        q, k, v, g, beta = pointwise.delta_inputs(
            qkv, b, a, self.conv1d.weight, self.A_log, self.dt_bias,
            shape.linear_num_key_heads, shape.linear_key_head_dim,
        )  # fmt: skip
        out = chunk_gated_delta_rule(q=q, k=k, v=v, g=g, beta=beta)
        out = pointwise.gated_norm(out, z.unflatten(-1, out.shape[2:]), self.norm.weight)
        return F.linear(out.flatten(-2), self.out_proj.weight)


class GatedAttention(nn.Module):
    """Causal softmax attention with an element-wise output gate."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.split = (2 * queries, keys, keys)
        self.q_proj = Weight(2 * queries, shape.hidden_size)
        self.k_proj = Weight(keys, shape.hidden_size)
        self.v_proj = Weight(keys, shape.hidden_size)
        self.o_proj = Weight(shape.hidden_size, queries)
        self.q_norm = Weight(shape.head_dim)
        self.k_norm = Weight(shape.head_dim)

    def forward(self, u: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        stacked = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        query_gate, key, value = (
            x.unflatten(-1, (heads, -1))
            for x, heads in zip(
                F.linear(u, stacked).split(self.split, dim=-1),
                (self.shape.num_attention_heads, self.shape.num_key_value_heads, self.shape.num_key_value_heads),
                strict=True,
            )
        )
        query, gate = query_gate.chunk(2, dim=-1)
        query, key = pointwise.attention_inputs(query, key, self.q_norm.weight, self.k_norm.weight, cos, sin)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        out = pointwise.gate_attention(out.transpose(1, 2), gate)
        return F.linear(out.flatten(-2), self.o_proj.weight)


class Experts(nn.Module):
    """Routed experts in the fused official layout: gate rows first, then up rows."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        experts, width, hidden = shape.num_experts, shape.moe_intermediate_size, shape.hidden_size
        self.gate_up_proj = nn.Parameter(torch.zeros(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.zeros(experts, hidden, width))


class SharedExpert(nn.Module):
    """The expert that every token visits."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width, hidden = shape.shared_expert_intermediate_size, shape.hidden_size
        self.gate_proj = Weight(width, hidden)
        self.up_proj = Weight(width, hidden)
        self.down_proj = Weight(hidden, width)


class SparseMoe(nn.Module):
    """Router, routed experts and the gated shared expert."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.gate = Weight(shape.num_experts, shape.hidden_size)
        self.experts = Experts(shape)
        self.shared_expert = SharedExpert(shape)
        self.shared_expert_gate = Weight(1, shape.hidden_size)

    def forward(self, u: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """``u [B, T, D]``, ``valid [B * T]`` -> output ``[B, T, D]`` and the balance loss."""
        flat, shared = u.flatten(0, 1), self.shared_expert
        width = shared.down_proj.weight.shape[1]
        readers = (shared.gate_proj, shared.up_proj, self.gate, self.shared_expert_gate)
        gate_up, router, shared_gate = F.linear(flat, torch.cat([r.weight for r in readers])).split(
            (2 * width, self.shape.num_experts, 1), dim=-1
        )
        probabilities = torch.softmax(router, dim=-1)
        top, chosen = probabilities.topk(self.shape.num_experts_per_tok, dim=-1)
        routing = plan_routing(chosen, num_experts=self.shape.num_experts)
        scale = (top / top.sum(-1, keepdim=True)).flatten().index_select(0, routing.rows)
        inner = grouped_linear(dispatch(flat, routing), self.experts.gate_up_proj, routing.counts)
        # The router weight is applied before the linear down projection, where rows are narrower.
        inner = pointwise.scaled_swiglu(inner, scale.unsqueeze(-1))
        routed = combine(grouped_linear(inner, self.experts.down_proj, routing.counts), routing)
        common = pointwise.scaled_swiglu(gate_up, torch.sigmoid(shared_gate))
        out = torch.addmm(routed, common, shared.down_proj.weight.mT)
        return out.view_as(u), balance_loss(probabilities, chosen, valid)


class DecoderLayer(nn.Module):
    """One layer; the residual additions are left to the caller, which fuses them with the next norm."""

    def __init__(self, shape: ModelShape, layer_type: str) -> None:
        super().__init__()
        if layer_type == "linear_attention":
            self.linear_attn = GatedDeltaNet(shape)
        else:
            self.self_attn = GatedAttention(shape)
        self.is_linear = layer_type == "linear_attention"
        self.mlp = SparseMoe(shape)
        self.input_layernorm = Weight(shape.hidden_size)
        self.post_attention_layernorm = Weight(shape.hidden_size)

    def forward(
        self, x: Tensor, u: Tensor, *, cos: Tensor, sin: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` residual stream, ``u`` its input norm -> residual stream, MoE branch not yet added, balance loss."""
        branch = self.linear_attn(u) if self.is_linear else self.self_attn(u, cos, sin)
        x, u = pointwise.add_rms_norm(x, branch, self.post_attention_layernorm.weight)
        branch, balance = self.mlp(u, valid)
        return x, branch, balance


class LanguageModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = Weight(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(shape, kind) for kind in shape.layer_types)
        self.norm = Weight(shape.hidden_size)

    def forward(self, token_ids: Tensor, *, cos: Tensor, sin: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """``token_ids [B, T]`` -> hidden states after the final norm ``[B, T, D]``, mean balance loss of the layers."""
        x = F.embedding(token_ids, self.embed_tokens.weight)
        layers: list[Any] = list(self.layers)
        next_norms = [layer.input_layernorm.weight for layer in layers][1:] + [self.norm.weight]
        u = pointwise.rms_norm(x, layers[0].input_layernorm.weight)
        balances = []
        for layer, next_norm in zip(layers, next_norms, strict=True):
            x, branch, balance = layer(x, u, cos=cos, sin=sin, valid=valid)
            x, u = pointwise.add_rms_norm(x, branch, next_norm)
            balances.append(balance)
        return u, torch.stack(balances).mean()


class Trunk(nn.Module):
    """Only there for the ``model.language_model.`` prefix of the official names."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.language_model = LanguageModel(shape)


class MultiTokenPredictor(nn.Module):
    """The MTP head: slot j joins the hidden state of token j with the embedding of token j + 1 and predicts token j + 2."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.fc = Weight(shape.hidden_size, 2 * shape.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(shape, "full_attention")])
        self.norm = Weight(shape.hidden_size)
        self.pre_fc_norm_embedding = Weight(shape.hidden_size)
        self.pre_fc_norm_hidden = Weight(shape.hidden_size)

    def forward(
        self, hidden: Tensor, next_embedding: Tensor, *, cos: Tensor, sin: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``hidden``, ``next_embedding [B, T, D]`` -> state for the trunk's head ``[B, T, D]``, balance loss."""
        embedded = pointwise.rms_norm(next_embedding, self.pre_fc_norm_embedding.weight)
        hidden = pointwise.rms_norm(hidden, self.pre_fc_norm_hidden.weight)
        x = F.linear(torch.cat((embedded, hidden), dim=-1), self.fc.weight)
        layer: Any = self.layers[0]
        u = pointwise.rms_norm(x, layer.input_layernorm.weight)
        x, branch, balance = layer(x, u, cos=cos, sin=sin, valid=valid)
        return pointwise.add_rms_norm(x, branch, self.norm.weight)[1], balance


class TrainingModel(nn.Module):
    """Trunk, head and MTP head; parameter names are the official tensor names."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        self.lm_head = Weight(shape.vocab_size, shape.hidden_size)
        self.mtp = MultiTokenPredictor(shape)

    def rotary(self, length: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[T, 1, rotary / 2]``; on text all three axes of mRoPE have the same position."""
        half = self.shape.rotary_dim // 2
        exponent = torch.arange(half, dtype=torch.float32, device=device) / half
        inverse_frequency = 1.0 / (self.shape.rope_theta**exponent)
        angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * inverse_frequency
        return angles.cos()[:, None], angles.sin()[:, None]

    def hidden_states(self, token_ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """``token_ids [B, T]``, ``valid [B, T]`` float -> final hidden states ``[B, T, D]`` and balance loss."""
        cos, sin = self.rotary(token_ids.shape[1], device=token_ids.device)
        hidden, balance = self.model.language_model(token_ids, cos=cos, sin=sin, valid=valid.flatten())
        return hidden, balance

    def mtp_states(self, hidden: Tensor, token_ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[B, T - 1, D]`` of the MTP head for slots 0 .. T - 2, and its balance loss."""
        length = token_ids.shape[1] - 1
        cos, sin = self.rotary(length, device=token_ids.device)
        embedded = F.embedding(token_ids[:, 1:], self.model.language_model.embed_tokens.weight)
        states, balance = self.mtp(hidden[:, :length], embedded, cos=cos, sin=sin, valid=valid[:, 1:].flatten())
        return states, balance

    def logits(self, token_ids: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T, V]``, for checks and sampling."""
        hidden, _ = self.hidden_states(token_ids, torch.ones_like(token_ids, dtype=torch.float32))
        return F.linear(hidden, self.lm_head.weight)


def initialise(model: TrainingModel, *, seed: int) -> None:
    """Set all parameters; the order is that of their names, so a seed means the same weights everywhere."""
    generator = torch.Generator().manual_seed(seed)
    residual_branches = 2 * model.shape.num_hidden_layers
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            _initialise_one(name, tensor, generator=generator, residual_branches=residual_branches)


def _initialise_one(name: str, tensor: Tensor, *, generator: torch.Generator, residual_branches: int) -> None:
    uniform = torch.rand(tensor.shape, generator=generator)
    if name.endswith("A_log"):
        tensor.copy_(torch.log(1.0 + 15.0 * uniform))
    elif name.endswith("dt_bias"):
        # Softplus of the bias is then spread over 0.001 .. 0.1, evenly in the logarithm: memory from short to very long.
        step = torch.exp(math.log(0.001) + uniform * math.log(100.0))
        tensor.copy_(step + torch.log(-torch.expm1(-step)))
    elif name.endswith("linear_attn.norm.weight"):
        tensor.fill_(1.0)
    elif name.endswith("conv1d.weight"):
        tensor.copy_((uniform * 2 - 1) * tensor.shape[-1] ** -0.5)
    elif tensor.dim() == 1:
        tensor.zero_()
    elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
        tensor.normal_(std=0.1 if "embed" in name else 0.02, generator=generator)
    else:
        std = tensor.shape[-1] ** -0.5
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj")):
            std *= residual_branches**-0.5
        tensor.normal_(std=std, generator=generator)
