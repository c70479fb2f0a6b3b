"""Strict reader of ``config.json`` (spec §1.1): what it does not understand is an error, not a default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sterna.config.fields import Fields, load_json
from sterna.config.rope import read_rope
from sterna.config.types import ModelConfig, TextConfig, VisionConfig
from sterna.errors import ConfigError

LAYER_TYPES = ("linear_attention", "full_attention")
MODEL_TYPES = ("qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_text")
DENSE_MODEL_TYPES = ("qwen3_5", "qwen3_5_text")
# Packs that `sterna.checkpoint.packed_formats` reads; their other settings are checked there.
QUANTIZATION_METHODS = ("fp8", "gptq", "auto-round", "awq", "compressed-tensors", "modelopt", "quark")
VISION_MODEL_TYPES = ("qwen3_5_moe", "qwen3_5_moe_vision", "qwen3_5", "qwen3_5_vision")

# Keys that `transformers` writes and that do not change the forward pass of inference.
INERT = frozenset(
    [
        "transformers_version",
        "architectures",
        "_name_or_path",
        "dtype",
        "torch_dtype",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "id2label",
        "label2id",
        "problem_type",
        "initializer_range",
        "use_cache",
        "bos_token_id",
        "pad_token_id",
        "attention_dropout",
        "router_aux_loss_coef",
        "output_router_logits",
        "language_model_only",
        "intermediate_size",
        "_attn_implementation",
    ]
)
# A vision tower has no rope of the text kind: it is always axial with base 10,000 (spec §4.3).
VISION_INERT = INERT - {"intermediate_size"}


def read_model_config(directory: Path | str) -> ModelConfig:
    """Read ``config.json`` and, where present, ``generation_config.json`` of a checkpoint directory.

    Raises `ConfigError` for a missing file, an unknown key, a value that is not implemented, or a contradiction.
    """
    directory = Path(directory)
    path = directory / "config.json"
    try:
        config = load_json(path.read_bytes(), where=str(path))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path} ({error.strerror})", hint="give a directory that holds a checkpoint"
        ) from error
    generation_path = directory / "generation_config.json"
    generation = None
    if generation_path.exists():
        generation = load_json(generation_path.read_bytes(), where=str(generation_path))
    return parse_model_config(config, generation)


def parse_model_config(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Check the content of a ``config.json`` and turn it into a `ModelConfig`; text fields are nested or at top level.

    ``generation`` is the content of ``generation_config.json``: its end-of-text ids come first.
    """
    top = Fields(config, "config")
    top.require("model_type", *MODEL_TYPES)
    quantization = top.section("quantization_config")
    if quantization is not None and quantization.get("quant_method") not in QUANTIZATION_METHODS:
        raise ConfigError(
            f"quantization_config names the method {quantization.get('quant_method')!r}, "
            f"allowed is {', '.join(QUANTIZATION_METHODS)}"
        )
    nested = top.section("text_config")
    text_fields = top if nested is None else Fields(nested, "text_config")
    dense = config["model_type"] in DENSE_MODEL_TYPES
    text = _read_text(text_fields, dense=dense)
    if nested is not None:
        top.require("tie_word_embeddings", text.tie_word_embeddings)
    vision_values = top.section("vision_config")
    vision = None if vision_values is None else _read_vision(Fields(vision_values, "vision_config"), text)
    eos = _eos_token_ids(generation, top, text_fields)
    token_ids = {
        key: top.optional_integer(key)
        for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    }
    for key, value in [*token_ids.items(), *(("eos_token_id", each) for each in eos)]:
        if value is not None and value >= text.vocab_size:
            raise ConfigError(f"{key} is {value}, allowed is below the vocab_size {text.vocab_size}")
    if text_fields is not top:
        text_fields.finish(INERT)
    top.finish(INERT)
    return ModelConfig(text=text, vision=vision, eos_token_ids=eos, **token_ids)


def _read_text(fields: Fields, *, dense: bool) -> TextConfig:
    fields.require("model_type", *(("qwen3_5_text", "qwen3_5") if dense else ("qwen3_5_moe_text", "qwen3_5_moe")))
    fields.require("attention_bias", False)
    fields.require("attn_output_gate", True)
    fields.require("hidden_act", "silu")
    fields.require("mamba_ssm_dtype", "float32")
    fields.require("mtp_use_dedicated_embeddings", False)
    fields.require("norm_topk_prob", True)
    fields.require("mlp_only_layers", [])
    fields.require("decoder_sparse_step", 1)
    # Names the activation of the DeltaNet z-gate, and "swish" is SiLU; the attention gate is always a sigmoid.
    fields.require("output_gate_type", "swish", "silu")
    layers = fields.integer("num_hidden_layers")
    head_dim = fields.integer("head_dim")
    text = TextConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        num_hidden_layers=layers,
        layer_types=_layer_types(fields, layers),
        num_attention_heads=fields.integer("num_attention_heads"),
        num_key_value_heads=fields.integer("num_key_value_heads"),
        head_dim=head_dim,
        linear_conv_kernel_dim=fields.integer("linear_conv_kernel_dim", minimum=2),
        linear_key_head_dim=fields.integer("linear_key_head_dim"),
        linear_value_head_dim=fields.integer("linear_value_head_dim"),
        linear_num_key_heads=fields.integer("linear_num_key_heads"),
        linear_num_value_heads=fields.integer("linear_num_value_heads"),
        **_mlp_sizes(fields, dense=dense),
        rms_norm_eps=fields.number("rms_norm_eps", maximum=1.0),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        rope_parameters=read_rope(fields, head_dim),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
        mtp_num_hidden_layers=fields.integer("mtp_num_hidden_layers", 0, minimum=0, maximum=1),
    )
    _check_divides("num_key_value_heads", text.num_key_value_heads, "num_attention_heads", text.num_attention_heads)
    _check_divides(
        "linear_num_key_heads", text.linear_num_key_heads, "linear_num_value_heads", text.linear_num_value_heads
    )
    if text.num_experts_per_tok > text.num_experts:
        raise fields.fail("num_experts_per_tok", f"1 to num_experts {text.num_experts}")
    return text


def _mlp_sizes(fields: Fields, *, dense: bool) -> dict[str, int]:
    """The sizes of the mixture of experts, or of the one MLP that a dense model has in its place."""
    experts = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size")
    if dense:
        return {**dict.fromkeys(experts, 0), "intermediate_size": fields.integer("intermediate_size")}
    return {name: fields.integer(name) for name in experts}


def _layer_types(fields: Fields, layers: int) -> tuple[str, ...]:
    interval = fields.integer("full_attention_interval", None)
    by_interval = None
    if interval is not None:
        by_interval = tuple(LAYER_TYPES[(i + 1) % interval == 0] for i in range(layers))
    given = fields.get("layer_types", by_interval)
    if given is None:
        raise ConfigError(f"{fields.where} lacks the key 'layer_types'", hint="or give full_attention_interval")
    if not isinstance(given, list | tuple) or not all(each in LAYER_TYPES for each in given):
        raise fields.fail("layer_types", f"a list of {' or '.join(LAYER_TYPES)}")
    if len(given) != layers:
        raise ConfigError(
            f"{fields.where}.layer_types has {len(given)} entries, allowed is num_hidden_layers, that is {layers}"
        )
    if by_interval is not None and tuple(given) != by_interval:
        raise ConfigError(f"{fields.where}.layer_types contradicts full_attention_interval {interval}")
    return tuple(given)


def _check_divides(part: str, value: int, whole: str, total: int) -> None:
    if total % value:
        raise ConfigError(f"{part} is {value}, allowed is a divisor of {whole}, that is of {total}")


def _read_vision(fields: Fields, text: TextConfig) -> VisionConfig:
    fields.require("model_type", *VISION_MODEL_TYPES)
    fields.require("hidden_act", "gelu_pytorch_tanh")
    fields.require("deepstack_visual_indexes", [])
    rope = fields.section("rope_parameters")
    if rope is not None:
        axial = Fields(rope, "vision_config.rope_parameters")
        axial.require("rope_type", "axial", "default")
        axial.require("rope_theta", 10000.0, 10000)
        axial.finish(frozenset())
    names = [
        "depth",
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "in_channels",
        "patch_size",
        "temporal_patch_size",
        "spatial_merge_size",
        "num_position_embeddings",
        "out_hidden_size",
    ]
    vision = VisionConfig(**{name: fields.integer(name) for name in names})
    fields.finish(VISION_INERT)
    _check_divides("vision_config.num_heads", vision.num_heads, "hidden_size", vision.hidden_size)
    if vision.out_hidden_size != text.hidden_size:
        raise fields.fail("out_hidden_size", f"the hidden_size of the text model, {text.hidden_size}")
    if int(vision.num_position_embeddings**0.5) ** 2 != vision.num_position_embeddings:
        raise fields.fail("num_position_embeddings", "a square number")
    return vision


def _eos_token_ids(generation: Mapping[str, Any] | None, *fields: Fields) -> tuple[int, ...]:
    """All ids that end a text, without repeats, those of ``generation_config.json`` first (spec §1.2)."""
    sources = [] if generation is None else [Fields(generation, "generation_config")]
    found: list[int] = []
    for source in [*sources, *fields]:
        value = source.get("eos_token_id", None)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in ids):
            raise source.fail("eos_token_id", "a token id, a list of token ids, or null")
        found += [each for each in ids if each not in found]
    return tuple(found)
