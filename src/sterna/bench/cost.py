"""Bytes and multiply-adds that one token needs, by exact arithmetic over the tensors of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sterna.checkpoint import expected_tensors
from sterna.config import ModelConfig, TextConfig

KV_VALUE_BYTES = 2
FLOAT_BYTES = 4
# Per value of the recurrent state: decay, what the state knows of the key, the update, and what the query reads.
STATE_PRODUCTS = 4


class SizedCheckpoint(Protocol):
    """A checkpoint whose tensors have a size before they are read."""

    def names(self, *groups: str) -> list[str]:
        """Official names of the tensors of the given groups."""

    def storage(self, name: str) -> tuple[tuple[int, ...], int]:
        """(official shape, bytes per value)."""


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What one decoded token reads (and, for the state, writes) in bytes, and the multiply-adds of one token.

    ``products`` are those with weights without the head, which a prefill uses for its last token only; ``head_products`` are
    the head's; ``attention_products`` grow with the depth.
    """

    depth: int
    expert_bytes: int
    head_bytes: int
    other_weight_bytes: int
    kv_bytes: int
    state_bytes: int
    products: int
    head_products: int
    attention_products: int
    state_products: int

    @property
    def bytes(self) -> int:
        """All bytes that a decoded token moves."""
        return self.expert_bytes + self.head_bytes + self.other_weight_bytes + self.kv_bytes + self.state_bytes

    @property
    def prefill_products(self) -> int:
        """All multiply-adds of one token inside a prefill."""
        return self.products + self.attention_products + self.state_products

    def as_json(self) -> dict[str, int]:
        """All figures, with the sums."""
        return {**asdict(self), "bytes": self.bytes, "prefill_products": self.prefill_products}


def token_cost(config: ModelConfig, checkpoint: SizedCheckpoint, depth: int) -> TokenCost:
    """The cost of the token after ``depth`` others, without the prediction head and the vision tower."""
    text = config.text
    shapes = {name: spec.shape for name, spec in expected_tensors(config).items() if spec.group == "text"}
    # The head's matrix is the embedding where both are tied; else the embedding gives one row.
    head = "model.language_model.embed_tokens.weight" if text.tie_word_embeddings else "lm_head.weight"
    experts = [name for name in shapes if ".mlp.experts." in name]
    others = [n for n in shapes if n not in experts and n != head and not n.endswith("embed_tokens.weight")]
    layers = text.layer_types.count("linear_attention")
    state = layers * text.linear_num_value_heads * text.linear_value_head_dim * text.linear_key_head_dim
    conv = layers * text.conv_dim * (text.linear_conv_kernel_dim - 1)
    used = sum(nbytes(checkpoint, name) for name in experts) * text.num_experts_per_tok // text.num_experts
    return TokenCost(
        depth=depth,
        expert_bytes=used,
        head_bytes=nbytes(checkpoint, head),
        other_weight_bytes=sum(nbytes(checkpoint, name) for name in others),
        kv_bytes=depth * _kv_values(text) * KV_VALUE_BYTES,
        state_bytes=2 * FLOAT_BYTES * (state + conv),
        products=_products(shapes[name] for name in others)
        + _products(shapes[name] for name in experts) * text.num_experts_per_tok // text.num_experts,
        head_products=math.prod(shapes[head]),
        attention_products=depth * _kv_values(text) * text.num_attention_heads // text.num_key_value_heads,
        state_products=STATE_PRODUCTS * state,
    )


def prefill_products(config: ModelConfig, checkpoint: SizedCheckpoint, *, start: int, tokens: int) -> int:
    """Multiply-adds of a prefill of so many tokens after ``start`` others, the head for the last of them."""
    first = token_cost(config, checkpoint, start)
    last = token_cost(config, checkpoint, start + tokens - 1)
    return tokens * (first.prefill_products + last.prefill_products) // 2 + first.head_products


def nbytes(checkpoint: Any, name: str) -> int:
    """Bytes of a tensor as the checkpoint gives it."""
    if hasattr(checkpoint, "nbytes"):
        return int(checkpoint.nbytes(name))
    shape, itemsize = checkpoint.storage(name)
    return math.prod(shape) * int(itemsize)


def _kv_values(text: TextConfig) -> int:
    """Values that one cached token has in all attention layers."""
    return text.layer_types.count("full_attention") * 2 * text.num_key_value_heads * text.head_dim


def _products(shapes: Iterable[tuple[int, ...]]) -> int:
    """Weights of matrices: one multiply-add each."""
    return sum(math.prod(shape) for shape in shapes if len(shape) > 1)
