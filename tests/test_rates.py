"""A budget of spikes: it counts additions, its slope is right, and a training that has one fires less."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import classifier

from spiketext.evaluation import evaluate
from spiketext.losses import rate_loss
from spiketext.models import SpikeBertForSequenceClassification
from spiketext.neurons import LIF
from spiketext.options import TrainOptions
from spiketext.rates import RateBudget, SlopedRate
from spiketext.training import train

TINY = {"data": "demo", "epochs": 0.5, "max_length": 12, "batch_size": 16, "micro_batch": 16, "learning_rate": 4e-3,
        "quiet": True, "threads": 1, "precision": "float32", "layers": 1}  # fmt: skip


@pytest.fixture
def student(tiny_student_config):
    torch.manual_seed(0)
    return SpikeBertForSequenceClassification(tiny_student_config).double()


def batch_of(padding: int) -> dict[str, torch.Tensor]:
    ids = torch.nn.functional.pad(torch.arange(5, 15).view(2, 5), (0, padding))
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def test_the_slope_of_the_loss_is_that_of_finite_differences():
    for value in (0.05, 0.13, 0.31):
        rate = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda r: rate_loss(r, 0.1), rate)
    assert rate_loss(torch.tensor(0.2), 0.1) == pytest.approx(1.0) and rate_loss(torch.tensor(0.1), 0.1) == 0


def test_the_rate_with_a_slope_is_that_of_additions_and_padding_changes_neither_it_nor_its_gradient(student):
    found = []
    for padding in (0, 3):
        student.zero_grad()
        batch = batch_of(padding)
        sloped = SlopedRate()
        sloped.mask = batch["attention_mask"]
        with sloped.counting(student), additions(student, batch["attention_mask"]) as counted:
            student(**batch)
        rate_loss(sloped.rate, 0.01).backward()
        assert float(sloped.rate.detach()) == pytest.approx(counted["done"] / counted["possible"], abs=1e-7)
        found.append(student.spikebert.layers[0].feed_forward.expand.weight.grad.clone())
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("code", ["binary", "integer", "ternary"])
def test_the_price_has_the_slope_of_the_spikes_through_silent_neurons_too(code):
    """Unsigned spikes: that of the surrogate. Signed ones: its size where a neuron fires, else none."""
    layer = LIF(code=code)
    current = torch.tensor([[[[0.3, 0.9, 1.4, -1.2]]]], dtype=torch.float64, requires_grad=True)  # [T, B, L, D]
    sloped = SlopedRate()
    sloped.mask = torch.ones(1, 1)
    with sloped.counting(layer):
        spikes = layer(current)
    [mine] = torch.autograd.grad(sloped.rate, current, retain_graph=True)
    [plain] = torch.autograd.grad(spikes.mean(), current)
    expected = plain * spikes.sign() if code == "ternary" else plain
    torch.testing.assert_close(mine, expected, check_dtype=False)
    assert float(sloped.rate.detach()) == pytest.approx(float(spikes.detach().abs().mean()))
    assert (mine != 0).sum() >= (2 if code == "ternary" else 3)


@contextmanager
def additions(model, mask):
    """Additions of the Linears in the blocks, and one for each spike of q, k, v and the head, of real tokens."""
    counted = {"done": 0.0, "possible": 0.0}

    def add(spikes, each):
        counted["done"] += each * float(spikes.detach()[:, mask.bool()].abs().sum())
        counted["possible"] += each * spikes[:, mask.bool()].numel()

    handles = [model.head_spikes.register_forward_hook(lambda module, inputs, out: add(out, 1))]
    for layer in model.spikebert.layers:
        handles.append(layer.attention.qkv_spikes.register_forward_hook(lambda module, inputs, out: add(out, 1)))
        handles += [linear.register_forward_pre_hook(lambda module, inputs: add(inputs[0], module.out_features))
                    for linear in layer.modules() if isinstance(linear, torch.nn.Linear)]  # fmt: skip
    yield counted
    for handle in handles:
        handle.remove()


def test_one_step_against_the_gradient_lowers_the_rate(student):
    batch, rates = batch_of(0), []
    budget = RateBudget(student, TrainOptions(rate_weight=1.0, rate_budget=0.01))
    optimiser = torch.optim.SGD(student.parameters(), lr=0.01)
    for _ in range(5):
        with budget.watching(student, batch) as term:
            student(**batch)
        loss = term()["over_budget"]
        rates.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert rates[-1] < 0.9 * rates[0]


def test_a_training_with_a_budget_fires_less_and_logs_the_term(saved, tiny_teacher, tmp_path):
    start = saved(num_hidden_layers=1, layer_norm_eps=1e-5)  # tokens without a spike are common in a net so small
    rates = {}
    for weight in (0.0, 10.0):
        out = str(tmp_path / str(weight))
        options = {**TINY, "tokenizer": tiny_teacher, "rate_weight": weight, "rate_budget": 0.05}
        train(TrainOptions(out=out, start=start, **options))
        rates[weight] = evaluate(out, "demo")["firing_rate"]
        logged = json.loads((Path(out) / "history.json").read_text())
        assert any("over_budget" in row for row in logged) == bool(weight)
    assert rates[10.0] < 0.8 * rates[0.0]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"rate_weight": -1.0}, "weight from 0"),
        ({"rate_weight": 1.0, "rate_budget": 0.0}, "budget above 0"),
        ({"rate_weight": 1.0, "recompute": True}, "--recompute"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(student, tiny_tokenizer, asked, line):
    with pytest.raises(ValueError, match=line):
        RateBudget(student, TrainOptions(**asked))
    for preset in ("paper", "authors-stage2"):
        with pytest.raises(ValueError, match="all later blocks read a spike"):
            RateBudget(classifier(tiny_tokenizer, preset), TrainOptions(rate_weight=1.0))
    with pytest.raises(ValueError, match="no spiking neurons"):
        RateBudget(torch.nn.Linear(2, 2), TrainOptions(rate_weight=1.0))
