"""What one token costs, against the arithmetic of the specification and against small cases by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.accounting import count_parameters
from sterna.bench.cost import prefill_products, token_cost
from sterna.checkpoint.quantizing import QuantizingCheckpoint
from sterna.checkpoint.random import RandomCheckpoint
from sterna.checkpoint.random_quantized import RandomQuantizedCheckpoint
from sterna.cli.bench import cut
from sterna.config import ModelConfig, preset
from sterna.errors import UsageError
from support.random_checkpoint import SMALL

OFFICIAL = cut(preset("qwen3.6-35b-a3b"), None)
# ../shared/spec: 20 KiB of cache per token; 30 layers of 32 states of 128 x 128, read and written; convolution rows.
KV_BYTES, STATE_BYTES = 20_480, 2 * 4 * 30 * (32 * 128 * 128 + 8192 * 3)


def test_official_shape_in_bf16() -> None:
    cost = token_cost(OFFICIAL, RandomCheckpoint(OFFICIAL), 1000)
    counts = count_parameters(preset("qwen3.6-35b-a3b"))
    assert cost.expert_bytes + cost.head_bytes + cost.other_weight_bytes == 2 * counts.active
    assert (cost.kv_bytes, cost.state_bytes) == (1000 * KV_BYTES, STATE_BYTES)
    # Everything but norms, decay and convolution multiplies: 2.44 G with the head left out.
    assert cost.products == pytest.approx(2.44e9, rel=0.01)
    assert cost.head_products == counts.lm_head
    # Ten attention layers, 16 heads of 256: scores and sums.
    assert cost.attention_products == 1000 * 10 * 2 * 16 * 256


@pytest.mark.parametrize(("name", "gigabytes"), [("q4", 1.95), ("q8", 3.07), ("q4-small", 1.93)])
def test_official_weights_per_token_by_recipe(name: str, gigabytes: float) -> None:
    cost = token_cost(OFFICIAL, RandomQuantizedCheckpoint(OFFICIAL, name), 0)
    assert cost.bytes - cost.state_bytes == pytest.approx(gigabytes * 1e9, rel=0.01)


def test_prefill_is_the_sum_over_its_tokens() -> None:
    config = ModelConfig(replace(SMALL, mtp_num_hidden_layers=0), None, (1,))
    checkpoint = RandomCheckpoint(config)
    tokens = [token_cost(config, checkpoint, 100 + i) for i in range(7)]
    expected = sum(each.prefill_products for each in tokens) + tokens[0].head_products
    assert prefill_products(config, checkpoint, start=100, tokens=7) == expected


def test_a_tied_head_is_read_and_an_untied_embedding_is_not() -> None:
    untied = ModelConfig(SMALL, None, (1,))
    tied = ModelConfig(replace(SMALL, tie_word_embeddings=True), None, (1,))
    costs = [token_cost(config, RandomCheckpoint(config), 0) for config in (untied, tied)]
    assert costs[0].bytes == costs[1].bytes and costs[0].head_bytes == 2 * 96 * 64


def test_quantised_bytes_are_those_of_the_recipe() -> None:
    config = ModelConfig(SMALL, None, (1,))
    cost = token_cost(config, QuantizingCheckpoint(RandomCheckpoint(config), "q8"), 0)
    # Four layers, 2 of 4 experts, 3 x 32 x 64 weights each: 33 bytes per 32, and 4 per row.
    assert cost.expert_bytes == 4 * 2 * (64 * (66 + 4) + 64 * (33 + 4))


def test_layers_beyond_the_model_are_refused() -> None:
    with pytest.raises(UsageError, match="--layers is 41, allowed is 1 to 40"):
        cut(preset("qwen3.6-35b-a3b"), 41)
    assert cut(preset("qwen3.6-35b-a3b"), 5).text.layer_types == OFFICIAL.text.layer_types[:5]
