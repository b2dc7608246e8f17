"""The laws of SPEC section 2 on real texts: MR, SST-2 and Subj, on a student at birth and on trained ones.

Run by `make test-data`. SPIKETEXT_DATA is the folder of the sets; SPIKETEXT_MODELS, folders of trained models separated
by commas, adds those. What was measured is printed.
"""

from __future__ import annotations

import os

import pytest
import torch
from laws import check_neighbours_exactly, check_neighbours_in_float32, check_rates, spread, swap_share

from spiketext.checkpoints import load_classifier, load_tokenizer
from spiketext.data import load
from spiketext.models import PRESETS, SpikeBertConfig, SpikeBertForSequenceClassification
from spiketext.options import DistillOptions

pytestmark = pytest.mark.data

SETS = ["mr", "sst2", "subj"]
TRAINED = [folder.strip() for folder in os.environ.get("SPIKETEXT_MODELS", "").split(",") if folder.strip()]
AT_BIRTH = "6x384 at birth"


@pytest.fixture(scope="module", params=[AT_BIRTH, *TRAINED])
def subject(request):
    """A model and its tokenizer."""
    if request.param != AT_BIRTH:
        return load_classifier(request.param).eval(), load_tokenizer(request.param)
    torch.manual_seed(0)
    config = SpikeBertConfig(**PRESETS[DistillOptions.preset])
    return SpikeBertForSequenceClassification(config).eval(), load_tokenizer("minilm")


@pytest.fixture(scope="module", params=SETS)
def real_texts(request):
    """The test texts of a set."""
    if not os.environ.get("SPIKETEXT_DATA"):
        pytest.fail("SPIKETEXT_DATA is not set: name the folder of the real sets", pytrace=False)
    return load(request.param).splits["test"].texts


def test_padding_batch_and_neighbours_change_little_in_float32(subject, real_texts):
    model, tokenizer = subject
    texts = spread(tokenizer, real_texts, 200)
    lengths = {len(text["input_ids"]) for text in texts}
    assert (min(lengths), max(lengths)) == (4, 256)
    print(f"\nfloat32: {check_neighbours_in_float32(model, texts)}")


def test_padding_batch_neighbours_and_order_change_no_spike_in_float64(subject, real_texts):
    model, tokenizer = subject
    print(f"\nfloat64: {check_neighbours_exactly(model, spread(tokenizer, real_texts, 200))}")


def test_no_layer_is_silent_or_saturated(subject, real_texts):
    model, tokenizer = subject
    rates = check_rates(model, tokenizer, real_texts)
    print(f"\nfiring rates: {rates.extent}\n{rates}")


@pytest.mark.parametrize("folder", TRAINED or [None])
def test_order_matters_after_training(folder, real_texts):
    if folder is None:
        pytest.skip("SPIKETEXT_MODELS names no trained model, so only one at birth was held to the laws")
    share = swap_share(load_classifier(folder).eval(), load_tokenizer(folder), real_texts)
    print(f"\n{folder}: {share:.0%} of 100 swaps of two words change the logits by more than 1e-3")
    assert share >= 0.95
