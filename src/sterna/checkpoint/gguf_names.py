"""GGUF tensor names of architecture ``qwen35moe`` and the official names behind them (spec §2.5). Data only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sterna.config import TextConfig

ARCHITECTURE = "qwen35moe"


class Rule(Enum):
    """How the stored values become the official ones."""

    PLAIN = "plain"
    NORM = "norm"  # stored 1 + w
    V_HEADS = "v_heads"  # rows in tiled order of the value heads, a head of Dv rows
    V_SCALARS = "v_scalars"  # one row (or value) per value head, in tiled order
    QKV = "qkv"  # rows q, k, v of the DeltaNet mixer; v in tiled order
    CONV = "conv"  # as QKV, stored [C, kernel] for [C, 1, kernel]
    A_LOG = "a_log"  # as V_SCALARS, stored -exp(A_log)
    V_COLUMNS = "v_columns"  # columns in tiled order, a head of Dv columns
    ROW = "row"  # stored [D] for [1, D]


@dataclass(frozen=True, slots=True)
class Source:
    """Stored tensors, concatenated along their rows, that make one official tensor."""

    names: tuple[str, ...]
    rule: Rule = Rule.PLAIN


MODEL = {
    "model.language_model.embed_tokens.weight": ("token_embd.weight", Rule.PLAIN),
    "model.language_model.norm.weight": ("output_norm.weight", Rule.NORM),
    "lm_head.weight": ("output.weight", Rule.PLAIN),
}

LAYER = {
    "input_layernorm.weight": ("attn_norm.weight", Rule.NORM),
    "post_attention_layernorm.weight": ("post_attention_norm.weight", Rule.NORM),
    "mlp.gate.weight": ("ffn_gate_inp.weight", Rule.PLAIN),
    "mlp.experts.down_proj": ("ffn_down_exps.weight", Rule.PLAIN),
    "mlp.shared_expert_gate.weight": ("ffn_gate_inp_shexp.weight", Rule.ROW),
    "mlp.shared_expert.gate_proj.weight": ("ffn_gate_shexp.weight", Rule.PLAIN),
    "mlp.shared_expert.up_proj.weight": ("ffn_up_shexp.weight", Rule.PLAIN),
    "mlp.shared_expert.down_proj.weight": ("ffn_down_shexp.weight", Rule.PLAIN),
}

DELTA_NET = {
    "linear_attn.in_proj_qkv.weight": ("attn_qkv.weight", Rule.QKV),
    "linear_attn.in_proj_z.weight": ("attn_gate.weight", Rule.V_HEADS),
    "linear_attn.in_proj_a.weight": ("ssm_alpha.weight", Rule.V_SCALARS),
    "linear_attn.in_proj_b.weight": ("ssm_beta.weight", Rule.V_SCALARS),
    "linear_attn.A_log": ("ssm_a", Rule.A_LOG),
    "linear_attn.dt_bias": ("ssm_dt.bias", Rule.V_SCALARS),
    "linear_attn.conv1d.weight": ("ssm_conv1d.weight", Rule.CONV),
    "linear_attn.norm.weight": ("ssm_norm.weight", Rule.PLAIN),
    "linear_attn.out_proj.weight": ("ssm_out.weight", Rule.V_COLUMNS),
}

ATTENTION = {
    "self_attn.q_proj.weight": ("attn_q.weight", Rule.PLAIN),
    "self_attn.k_proj.weight": ("attn_k.weight", Rule.PLAIN),
    "self_attn.v_proj.weight": ("attn_v.weight", Rule.PLAIN),
    "self_attn.o_proj.weight": ("attn_output.weight", Rule.PLAIN),
    "self_attn.q_norm.weight": ("attn_q_norm.weight", Rule.NORM),
    "self_attn.k_norm.weight": ("attn_k_norm.weight", Rule.NORM),
}

MTP = {
    "mtp.fc.weight": ("nextn.eh_proj.weight", Rule.PLAIN),
    "mtp.pre_fc_norm_embedding.weight": ("nextn.enorm.weight", Rule.NORM),
    "mtp.pre_fc_norm_hidden.weight": ("nextn.hnorm.weight", Rule.NORM),
    "mtp.norm.weight": ("nextn.shared_head_norm.weight", Rule.NORM),
}

GATE_UP = "mlp.experts.gate_up_proj"
GATE_UP_SPLIT = ("ffn_gate_exps.weight", "ffn_up_exps.weight")
GATE_UP_FUSED = "ffn_gate_up_exps.weight"
ATTENTION_FUSED = "attn_qkv.weight"
MTP_OWN_EMBEDDINGS = ("nextn.embed_tokens.weight", "nextn.shared_head_head.weight")


def sources(config: TextConfig) -> dict[str, Source]:
    """Official name to stored tensors, in the form that converters write: gate and up apart, q, k and v apart."""
    table = {official: Source((name,), rule) for official, (name, rule) in MODEL.items()}
    if config.tie_word_embeddings:
        del table["lm_head.weight"]
    for i, layer_type in enumerate(config.layer_types):
        table |= _layer(f"model.language_model.layers.{i}", i, layer_type)
    if config.mtp_num_hidden_layers:
        block = len(config.layer_types)
        table |= {official: Source((f"blk.{block}.{name}",), rule) for official, (name, rule) in MTP.items()}
        table |= _layer("mtp.layers.0", block, "full_attention")
    return table


def _layer(prefix: str, block: int, layer_type: str) -> dict[str, Source]:
    mixer = ATTENTION if layer_type == "full_attention" else DELTA_NET
    table = {
        f"{prefix}.{official}": Source((f"blk.{block}.{name}",), rule)
        for official, (name, rule) in {**LAYER, **mixer}.items()
    }
    table[f"{prefix}.{GATE_UP}"] = Source(tuple(f"blk.{block}.{name}" for name in GATE_UP_SPLIT))
    return table


def tiled_to_grouped(config: TextConfig) -> list[int]:
    """For each official value head h its place in tiled order, ``(h % r) * Hk + h // r`` with r value heads per key head."""
    keys = config.linear_num_key_heads
    ratio = config.linear_num_value_heads // keys
    return [(h % ratio) * keys + h // ratio for h in range(config.linear_num_value_heads)]


def grouped_to_tiled(config: TextConfig) -> list[int]:
    """Inverse of `tiled_to_grouped`: for each place n in tiled order, the official head ``(n % Hk) * r + n // Hk``."""
    keys = config.linear_num_key_heads
    ratio = config.linear_num_value_heads // keys
    return [(n % keys) * ratio + n // keys for n in range(config.linear_num_value_heads)]
