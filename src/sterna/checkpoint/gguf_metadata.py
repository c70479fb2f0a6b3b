"""From GGUF metadata to the model's configuration and tokenizer (spec §2.5). Missing or impossible values are errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sterna.checkpoint.gguf import Value
from sterna.checkpoint.gguf_names import ARCHITECTURE
from sterna.config import ModelConfig, RopeParameters, TextConfig
from sterna.errors import CheckpointError

END_TOKENS = ("<|im_end|>", "<|endoftext|>")
MAX_BLOCKS = 1 << 12
MAX_DIMENSION = 1 << 30


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """The tokenizer as stored: tokens in byte-level form by id, merges "left right" by rank, ``token_types`` ggml numbers by id."""

    model: str
    pre: str
    tokens: list[str]
    merges: list[str]
    token_types: list[int]
    chat_template: str | None
    eos_token_id: int | None
    bos_token_id: int | None
    padding_token_id: int | None


class Metadata:
    """Typed access to metadata; ``prefix`` stands before the architecture's own keys."""

    def __init__(self, values: Mapping[str, Value], where: str) -> None:
        self.values, self.where = values, where
        architecture = values.get("general.architecture")
        if architecture != ARCHITECTURE:
            raise CheckpointError(
                f"{where} has general.architecture {str(architecture)[:50]!r}, allowed is {ARCHITECTURE!r}",
                hint="this program runs Qwen3.5 and Qwen3.6 mixture-of-experts models only",
            )

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_DIMENSION) -> int:
        """An integer of the architecture within bounds."""
        value = self.values.get(f"{ARCHITECTURE}.{key}", default)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self._bad(key, value, f"an integer from {minimum} to {maximum}")
        return value

    def number(self, key: str, *, minimum: float = 0.0, maximum: float = 1e12) -> float:
        """A positive real number of the architecture."""
        value = self.values.get(f"{ARCHITECTURE}.{key}")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not minimum < value <= maximum:
            raise self._bad(key, value, f"a number above {minimum} up to {maximum}")
        return float(value)

    def token_id(self, key: str, vocab_size: int) -> int | None:
        """An optional token id of the tokenizer."""
        value = self.values.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
            raise CheckpointError(f"{self.where}: tokenizer.ggml.{key} is {value}, allowed is 0 to {vocab_size - 1}")
        return value

    def _bad(self, key: str, value: object, allowed: str) -> CheckpointError:
        found = "missing" if value is None else str(value)[:100]
        return CheckpointError(f"{self.where}: {ARCHITECTURE}.{key} is {found}, allowed is {allowed}")


def read_config(
    values: Mapping[str, Value], *, vocab_size: int, tied: bool, where: str, max_blocks: int = MAX_BLOCKS
) -> ModelConfig:
    """The configuration; ``vocab_size`` is the number of embedding rows, ``tied`` says that there is no output matrix."""
    meta = Metadata(values, where)
    blocks = meta.integer("block_count", maximum=min(MAX_BLOCKS, max_blocks))
    mtp = meta.integer("nextn_predict_layers", 0, minimum=0, maximum=min(1, blocks - 1))
    value_heads = meta.integer("ssm.time_step_rank", maximum=1 << 16)
    key_heads = meta.integer("ssm.group_count", maximum=1 << 16)
    inner = meta.integer("ssm.inner_size")
    if value_heads % key_heads or inner % value_heads:
        raise CheckpointError(
            f"{where}: {key_heads} key heads, {value_heads} value heads and ssm.inner_size {inner} do not fit together"
        )
    head_dim = meta.integer("attention.key_length")
    if meta.integer("attention.value_length", head_dim) != head_dim:
        raise CheckpointError(f"{where}: attention.value_length differs from attention.key_length {head_dim}")
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=meta.integer("embedding_length"),
        num_hidden_layers=blocks - mtp,
        layer_types=_layer_types(meta, blocks - mtp),
        num_attention_heads=meta.integer("attention.head_count"),
        num_key_value_heads=_kv_heads(meta),
        head_dim=head_dim,
        linear_conv_kernel_dim=meta.integer("ssm.conv_kernel", minimum=2),
        linear_key_head_dim=meta.integer("ssm.state_size"),
        linear_value_head_dim=inner // value_heads,
        linear_num_key_heads=key_heads,
        linear_num_value_heads=value_heads,
        num_experts=meta.integer("expert_count"),
        num_experts_per_tok=meta.integer("expert_used_count"),
        moe_intermediate_size=meta.integer("expert_feed_forward_length"),
        shared_expert_intermediate_size=meta.integer("expert_shared_feed_forward_length"),
        rms_norm_eps=meta.number("attention.layer_norm_rms_epsilon", maximum=1.0),
        max_position_embeddings=meta.integer("context_length"),
        rope_parameters=_rope(meta, head_dim),
        tie_word_embeddings=tied,
        mtp_num_hidden_layers=mtp,
    )
    if text.num_experts_per_tok > text.num_experts:
        raise CheckpointError(f"{where}: {text.num_experts_per_tok} experts per token of {text.num_experts} experts")
    return ModelConfig(text=text, vision=None, eos_token_ids=_end_tokens(meta, vocab_size))


def read_tokenizer(values: Mapping[str, Value], *, where: str) -> GgufTokenizer | None:
    """The tokenizer, or ``None`` if the file holds none. Raises `CheckpointError` for lists that do not fit together."""
    if "tokenizer.ggml.model" not in values:
        return None
    meta = Metadata(values, where)
    tokens = _strings(meta, "tokenizer.ggml.tokens")
    merges = _strings(meta, "tokenizer.ggml.merges")
    types = values.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError(
            f"{where}: tokenizer.ggml.token_type does not hold one number for each of {len(tokens)} tokens"
        )
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in types):
        raise CheckpointError(f"{where}: tokenizer.ggml.token_type holds something else than integers")
    for merge in merges:
        if merge.count(" ") != 1:
            raise CheckpointError(f"{where}: merge {merge[:100]!r} is not two parts with one space between")
    template = values.get("tokenizer.chat_template")
    return GgufTokenizer(
        model=_string(meta, "tokenizer.ggml.model"),
        pre=_string(meta, "tokenizer.ggml.pre"),
        tokens=tokens,
        merges=merges,
        token_types=[int(each) for each in types if isinstance(each, int)],
        chat_template=template if template is None else _string(meta, "tokenizer.chat_template"),
        eos_token_id=meta.token_id("eos_token_id", len(tokens)),
        bos_token_id=meta.token_id("bos_token_id", len(tokens)),
        padding_token_id=meta.token_id("padding_token_id", len(tokens)),
    )


def _layer_types(meta: Metadata, layers: int) -> tuple[str, ...]:
    recurrent = meta.values.get(f"{ARCHITECTURE}.attention.recurrent_layers")
    if recurrent is None:
        interval = meta.integer("full_attention_interval", 4)
        recurrent = [(i + 1) % interval != 0 for i in range(layers)]
    if not isinstance(recurrent, list) or len(recurrent) < layers or not all(each in (0, 1) for each in recurrent):
        raise CheckpointError(f"{meta.where}: attention.recurrent_layers must hold a flag for each of {layers} layers")
    return tuple("linear_attention" if each else "full_attention" for each in recurrent[:layers])


def _kv_heads(meta: Metadata) -> int:
    value = meta.values.get(f"{ARCHITECTURE}.attention.head_count_kv")
    if not isinstance(value, list):
        return meta.integer("attention.head_count_kv")
    # Some converters write one number per layer, 0 for the recurrent ones.
    found = {each for each in value if isinstance(each, int) and each}
    if len(found) != 1 or not all(isinstance(each, int) for each in value):
        raise CheckpointError(f"{meta.where}: attention.head_count_kv is {str(value)[:100]}, allowed is one number")
    return found.pop()


def _rope(meta: Metadata, head_dim: int) -> RopeParameters:
    rotary = meta.integer("rope.dimension_count", maximum=head_dim)
    sections = meta.values.get(f"{ARCHITECTURE}.rope.dimension_sections")
    if not isinstance(sections, list) or len(sections) not in (3, 4):
        raise CheckpointError(
            f"{meta.where}: rope.dimension_sections is {str(sections)[:100]}, allowed are 3 or 4 numbers"
        )
    numbers = [each for each in sections if isinstance(each, int) and each >= 0]
    if len(numbers) != len(sections) or 2 * sum(numbers[:3]) != rotary or any(numbers[3:]):
        raise CheckpointError(
            f"{meta.where}: rope.dimension_sections {sections} do not add up to half of rope.dimension_count {rotary}"
        )
    scaling = meta.values.get(f"{ARCHITECTURE}.rope.scaling.type", "none")
    if scaling not in ("none", "yarn"):
        raise CheckpointError(f"{meta.where}: rope.scaling.type is {str(scaling)[:50]!r}, allowed is 'none' or 'yarn'")
    yarn = scaling == "yarn"
    return RopeParameters(
        rope_theta=meta.number("rope.freq_base"),
        partial_rotary_factor=rotary / head_dim,
        mrope_section=(numbers[0], numbers[1], numbers[2]),
        rope_type="yarn" if yarn else "default",
        factor=meta.number("rope.scaling.factor") if yarn else None,
        original_max_position_embeddings=meta.integer("rope.scaling.original_context_length") if yarn else None,
    )


def _end_tokens(meta: Metadata, vocab_size: int) -> tuple[int, ...]:
    """The stated end token, then the family's two by name: files state one of them, generation must stop at both."""
    stated = meta.token_id("eos_token_id", vocab_size)
    tokens = meta.values.get("tokenizer.ggml.tokens", [])
    ids = [] if stated is None else [stated]
    if isinstance(tokens, list):
        ids += [tokens.index(each) for each in END_TOKENS if each in tokens]
    if any(each >= vocab_size for each in ids):
        raise CheckpointError(f"{meta.where}: an end token of {ids} is outside the {vocab_size} rows of the embedding")
    return tuple(dict.fromkeys(ids))


def _string(meta: Metadata, key: str) -> str:
    value = meta.values.get(key)
    if not isinstance(value, str):
        raise CheckpointError(f"{meta.where}: {key} is {'missing' if value is None else 'not a text'}")
    return value


def _strings(meta: Metadata, key: str) -> list[str]:
    value = meta.values.get(key)
    if not isinstance(value, list):
        raise CheckpointError(f"{meta.where}: {key} is {'missing' if value is None else 'not a list'}")
    texts = [each for each in value if isinstance(each, str)]
    if len(texts) != len(value):
        raise CheckpointError(f"{meta.where}: {key} holds something else than texts")
    return texts
