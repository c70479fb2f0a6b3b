"""The dataclasses: what a configuration holds once it has been read and checked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RopeParameters:
    """Rotary embedding (spec §3.2, §5); ``factor`` and ``original_max_position_embeddings`` belong to ``yarn``."""

    rope_theta: float
    partial_rotary_factor: float
    mrope_section: tuple[int, int, int]
    rope_type: str = "default"
    factor: float | None = None
    original_max_position_embeddings: int | None = None


@dataclass(frozen=True, slots=True)
class TextConfig:
    """``text_config`` of the checkpoint (spec §1.1), field names as in ``config.json``."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    layer_types: tuple[str, ...]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_conv_kernel_dim: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope_parameters: RopeParameters
    tie_word_embeddings: bool = False
    mtp_num_hidden_layers: int = 0

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of each attention head."""
        return int(self.head_dim * self.rope_parameters.partial_rotary_factor)

    @property
    def conv_dim(self) -> int:
        """Channels of the short convolution: q, k and v of the DeltaNet heads."""
        return (
            2 * self.linear_num_key_heads * self.linear_key_head_dim
            + self.linear_num_value_heads * self.linear_value_head_dim
        )


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """``vision_config`` of the checkpoint (spec §1.1, §4.3)."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    out_hidden_size: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole ``config.json``. ``vision`` is ``None`` for text-only checkpoints."""

    text: TextConfig
    vision: VisionConfig | None
    eos_token_ids: tuple[int, ...]
    image_token_id: int | None = None
    video_token_id: int | None = None
    vision_start_token_id: int | None = None
    vision_end_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine may use. ``None`` means: chosen by the planner."""

    max_model_len: int | None = None
    max_num_seqs: int = 4
    block_size: int = 64
    kv_cache_bytes: int | None = None
    num_state_slots: int | None = None
    snapshot_bytes: int = 1 << 30
    prefill_chunk_tokens: int = 512
    memory_bytes: int | None = None
