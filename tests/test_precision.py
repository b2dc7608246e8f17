"""Saved models in float32, bf16 and int8."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from conftest import classifier

from spiketext import ops
from spiketext.neurons import SpikeLinear
from spiketext.precision import to_precision


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return classifier(tiny_tokenizer, initializer_range=0.1)


@pytest.fixture(scope="module")
def batch(demo, tiny_tokenizer):
    texts = demo.splits["test"].texts[:32]
    return dict(tiny_tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt"))


@pytest.mark.parametrize("kernels", ["1", "0"])
@pytest.mark.parametrize("signed", [False, True])
def test_spikes_are_exact_in_int8(signed, kernels, compiled, monkeypatch):
    monkeypatch.setattr(ops.kernels, "load", ops.kernels.load if kernels == "1" else lambda: None)
    torch.manual_seed(0)
    layer = torch.nn.Sequential(SpikeLinear(200, 70))
    spikes = (torch.rand(30, 200) < 0.2).float()
    if signed:
        spikes *= torch.randn(30, 200).sign()
    exact = layer(spikes)
    got = to_precision(layer, "int8")(spikes)
    rounded = layer[0].scale[:, None] * layer[0].weight
    assert torch.allclose(got, spikes @ rounded.T + layer[0].bias, atol=1e-5)
    assert (rounded.abs().amax(1) / 127).max() < 0.001
    assert 1e-4 < (got - exact).abs().max() < 0.05


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_predictions_agree_mostly(model, batch, precision):
    other = to_precision(copy.deepcopy(model), precision)
    with torch.inference_mode():
        exact, rounded = model(**batch).logits, other(**batch).logits.float()
    assert torch.isfinite(rounded).all() and not torch.equal(exact, rounded)
    agreement = (exact.argmax(-1) == rounded.argmax(-1)).float().mean()
    print(f"\n{precision}: {agreement:.0%} of 32 predictions agree")
    assert agreement >= 0.75
    assert torch.equal(to_precision(copy.deepcopy(model), "float32")(**batch).logits, model(**batch).logits)


def test_int8_leaves_no_float_linear(model, tiny_teacher):
    for network in (
        copy.deepcopy(model),
        transformers.AutoModelForSequenceClassification.from_pretrained(tiny_teacher),
    ):
        assert not [m for m in to_precision(network, "int8").modules() if isinstance(m, torch.nn.Linear)]


def test_another_precision_is_named(model):
    with pytest.raises(ValueError, match="expected one of float32, bf16, int8, got 'fp8'"):
        to_precision(model, "fp8")
