"""SpikeBERT: what it is made of, what it reads and answers, and the laws of SPEC section 2 on the texts we ship."""

from __future__ import annotations

import copy
import itertools
import re

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from laws import (
    answers,
    batch_of,
    check_neighbours_exactly,
    check_neighbours_in_float32,
    check_rates,
    encode,
    firing_rates,
    recording,
    spread,
    swap_share,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spiketext.batching import LengthBuckets, TextRows
from spiketext.checkpoints import load_classifier, load_encoder, load_tokenizer, save_model
from spiketext.evaluation import evaluate, model_inputs, predict
from spiketext.losses import label_loss
from spiketext.models import (
    PRESETS,
    SpikeBertConfig,
    SpikeBertForSequenceClassification,
    SpikeBertModel,
    initialise_from_teacher,
)

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LABELS = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
OLD_DESIGNS = ["paper", "authors-stage1", "authors-stage2"]


def student_config(tokenizer, **changes) -> SpikeBertConfig:
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **SIZES, **LABELS}
    return SpikeBertConfig(**{**sizes, **changes})


def classifier(tokenizer, seed=0, **changes) -> SpikeBertForSequenceClassification:
    torch.manual_seed(seed)
    return SpikeBertForSequenceClassification(student_config(tokenizer, **changes)).eval()


def preset(tokenizer, name, **changes) -> SpikeBertForSequenceClassification:
    return classifier(tokenizer, **{**PRESETS[name], **SIZES, **changes})


def fit_labels(model, tokenizer, rows: TextRows, epochs: int, learning_rate: float):
    """A training in miniature: AdamW with a falling rate."""
    torch.manual_seed(0)
    buckets = LengthBuckets(rows.lengths, 32, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, epochs * len(buckets))
    model.train()
    for epoch in range(epochs):
        buckets.set_epoch(epoch)
        for indices in buckets:
            batch = rows.collate([rows[index] for index in indices])
            loss = label_loss(model(**model_inputs(tokenizer, batch)).logits, batch["labels"], batch["gold"])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            falling.step()
    return model.eval()


@pytest.fixture(scope="module")
def fresh(tiny_tokenizer):
    """The student of the laws, as it is born."""
    return classifier(tiny_tokenizer, hidden_size=48, intermediate_size=192)


@pytest.fixture(scope="module")
def trained(fresh, demo, tiny_tokenizer):
    """The same student after 75 steps on the shipped reviews."""
    part = demo.splits["train"]
    rows = TextRows(part.texts, tiny_tokenizer, 64, labels=part.labels)
    return fit_labels(copy.deepcopy(fresh), tiny_tokenizer, rows, epochs=3, learning_rate=3e-3)


@pytest.fixture(scope="module")
def reviews(demo):
    return [text for split in demo.splits.values() for text in split.texts]


@pytest.fixture(scope="module")
def texts_of_all_lengths(tiny_tokenizer, reviews):
    return spread(tiny_tokenizer, reviews, 200)


@pytest.fixture
def batch(tiny_tokenizer, reviews):
    """Four reviews of different lengths."""
    return batch_of([encode(tiny_tokenizer, text) for text in reviews[:4]])


# The laws -------------------------------------------------------------------------------------------------------------


def test_the_texts_of_the_laws_go_from_4_to_256_tokens(texts_of_all_lengths):
    lengths = [len(text["input_ids"]) for text in texts_of_all_lengths]
    assert len(lengths) >= 200 and min(lengths) == 4 and max(lengths) == 256
    assert sum(length > 100 for length in lengths) >= 30


@pytest.mark.parametrize("state", ["fresh", "trained"])
def test_padding_batch_neighbours_and_order_change_no_spike_in_float64(state, request, texts_of_all_lengths):
    result = check_neighbours_exactly(request.getfixturevalue(state), texts_of_all_lengths)
    assert result.texts == 200
    print(f"\nfloat64, {state}: {result}")


def test_padding_batch_and_neighbours_change_little_in_float32(trained, texts_of_all_lengths):
    print(f"\nfloat32, trained: {check_neighbours_in_float32(trained, texts_of_all_lengths)}")


@pytest.mark.parametrize("state", ["fresh", "trained"])
def test_no_layer_is_silent_or_saturated(state, request, tiny_tokenizer, reviews):
    rates = check_rates(request.getfixturevalue(state), tiny_tokenizer, reviews)
    print(f"\nfiring rates, {state}: {rates.extent}\n{rates}")


def test_order_matters_after_training(trained, tiny_tokenizer, reviews):
    share = swap_share(trained, tiny_tokenizer, reviews)
    print(f"\n{share:.0%} of 100 swaps of two words change the logits by more than 1e-3")
    assert share >= 0.95
