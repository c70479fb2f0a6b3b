"""Which tensors a checkpoint of a configuration holds: official names and shapes (spec §2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.config import ModelConfig, TextConfig, VisionConfig

GROUPS = ("text", "mtp", "vision")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Expected shape, and the group that is present or absent as a whole: ``text`` (required), ``mtp``, ``vision``."""

    shape: tuple[int, ...]
    group: str


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor by official name, in the order of the forward pass."""
    groups = {
        "text": text_tensors(config.text),
        "mtp": mtp_tensors(config.text) if config.text.mtp_num_hidden_layers else {},
        "vision": vision_tensors(config.vision) if config.vision else {},
    }
    return {name: TensorSpec(shape, group) for group, shapes in groups.items() for name, shape in shapes.items()}


def text_tensors(config: TextConfig) -> Shapes:
    """The language model with embedding and, unless tied, output head."""
    prefix = "model.language_model"
    tensors: Shapes = {f"{prefix}.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    for i, layer_type in enumerate(config.layer_types):
        tensors |= layer_tensors(f"{prefix}.layers.{i}", layer_type, config)
    tensors[f"{prefix}.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return tensors


def mtp_tensors(config: TextConfig) -> Shapes:
    """The multi-token prediction head: one attention layer between its own norms."""
    hidden = config.hidden_size
    norms = {f"mtp.{name}.weight": (hidden,) for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")}
    return {"mtp.fc.weight": (hidden, 2 * hidden), **norms, **layer_tensors("mtp.layers.0", "full_attention", config)}


def layer_tensors(prefix: str, layer_type: str, config: TextConfig) -> Shapes:
    """One decoder layer."""
    mixer = attention_tensors if layer_type == "full_attention" else delta_net_tensors
    return {
        f"{prefix}.input_layernorm.weight": (config.hidden_size,),
        **mixer(prefix, config),
        f"{prefix}.post_attention_layernorm.weight": (config.hidden_size,),
        **mlp_tensors(f"{prefix}.mlp", config),
    }


def delta_net_tensors(prefix: str, config: TextConfig) -> Shapes:
    """The Gated DeltaNet mixer."""
    hidden, heads = config.hidden_size, config.linear_num_value_heads
    inner = heads * config.linear_value_head_dim
    return {
        f"{prefix}.linear_attn.in_proj_qkv.weight": (config.conv_dim, hidden),
        f"{prefix}.linear_attn.in_proj_z.weight": (inner, hidden),
        f"{prefix}.linear_attn.in_proj_b.weight": (heads, hidden),
        f"{prefix}.linear_attn.in_proj_a.weight": (heads, hidden),
        f"{prefix}.linear_attn.conv1d.weight": (config.conv_dim, 1, config.linear_conv_kernel_dim),
        f"{prefix}.linear_attn.A_log": (heads,),
        f"{prefix}.linear_attn.dt_bias": (heads,),
        f"{prefix}.linear_attn.norm.weight": (config.linear_value_head_dim,),
        f"{prefix}.linear_attn.out_proj.weight": (hidden, inner),
    }


def attention_tensors(prefix: str, config: TextConfig) -> Shapes:
    """The gated attention mixer; ``q_proj`` holds query and gate."""
    hidden, dim = config.hidden_size, config.head_dim
    query, key = config.num_attention_heads * dim, config.num_key_value_heads * dim
    return {
        f"{prefix}.self_attn.q_proj.weight": (2 * query, hidden),
        f"{prefix}.self_attn.k_proj.weight": (key, hidden),
        f"{prefix}.self_attn.v_proj.weight": (key, hidden),
        f"{prefix}.self_attn.o_proj.weight": (hidden, query),
        f"{prefix}.self_attn.q_norm.weight": (dim,),
        f"{prefix}.self_attn.k_norm.weight": (dim,),
    }


def mlp_tensors(prefix: str, config: TextConfig) -> Shapes:
    """What stands behind the mixer: the mixture of experts, or the one MLP of a dense model."""
    return dense_mlp_tensors(prefix, config) if config.is_dense else moe_tensors(prefix, config)


def dense_mlp_tensors(prefix: str, config: TextConfig) -> Shapes:
    """The MLP of a dense model."""
    hidden, width = config.hidden_size, config.intermediate_size
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


def moe_tensors(prefix: str, config: TextConfig) -> Shapes:
    """The mixture of experts, routed experts fused."""
    hidden, experts = config.hidden_size, config.num_experts
    width, shared = config.moe_intermediate_size, config.shared_expert_intermediate_size
    return {
        f"{prefix}.gate.weight": (experts, hidden),
        f"{prefix}.experts.gate_up_proj": (experts, 2 * width, hidden),
        f"{prefix}.experts.down_proj": (experts, hidden, width),
        f"{prefix}.shared_expert.gate_proj.weight": (shared, hidden),
        f"{prefix}.shared_expert.up_proj.weight": (shared, hidden),
        f"{prefix}.shared_expert.down_proj.weight": (hidden, shared),
        f"{prefix}.shared_expert_gate.weight": (1, hidden),
    }


def vision_tensors(config: VisionConfig) -> Shapes:
    """The vision tower and its merger."""
    hidden, prefix = config.hidden_size, "model.visual"
    merged = hidden * config.spatial_merge_size**2
    patch = (hidden, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    tensors: Shapes = {
        f"{prefix}.patch_embed.proj.weight": patch,
        f"{prefix}.patch_embed.proj.bias": (hidden,),
        f"{prefix}.pos_embed.weight": (config.num_position_embeddings, hidden),
    }
    for i in range(config.depth):
        block = f"{prefix}.blocks.{i}"
        tensors |= _affine(f"{block}.norm1", hidden) | _affine(f"{block}.norm2", hidden)
        tensors |= _affine(f"{block}.attn.qkv", 3 * hidden, hidden) | _affine(f"{block}.attn.proj", hidden, hidden)
        tensors |= _affine(f"{block}.mlp.linear_fc1", config.intermediate_size, hidden)
        tensors |= _affine(f"{block}.mlp.linear_fc2", hidden, config.intermediate_size)
    tensors |= _affine(f"{prefix}.merger.norm", hidden)
    tensors |= _affine(f"{prefix}.merger.linear_fc1", merged, merged)
    return tensors | _affine(f"{prefix}.merger.linear_fc2", config.out_hidden_size, merged)


def _affine(prefix: str, *shape: int) -> Shapes:
    return {f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]}
