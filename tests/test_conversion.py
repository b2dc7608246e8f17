"""From a tailored TextCNN to a spiking one: weights, scales, the limit law, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
from test_textcnn import SIZES, batch_of, dense, texts

from spiketext.cli import main
from spiketext.conversion import (
    LAYERS,
    NORMALISATIONS,
    limit_figure,
    limit_law,
    require_convertible,
    scales_of,
    slope,
    spiking_from,
)
from spiketext.evaluation import longest, rows_for
from spiketext.figures import log_curves
from spiketext.models import TAILORED, TextCnnConfig, TextCnnForSequenceClassification
from spiketext.options import TrainOptions
from spiketext.training import keep_reading

STEPS = (10, 20, 50, 100, 200, 500, 1000)


@pytest.fixture(scope="module")
def model() -> TextCnnForSequenceClassification:
    """Activations well above 1 in every layer, so that it matters whether they are normalised."""
    model = dense(**TAILORED | {"neurons_per_class": 4})
    for linear in (*model.textcnn.convolutions, model.classifier):
        linear.weight.data.mul_(8)
    return model


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    return batch_of(texts((12, 9, 7, 5, 3, 1)))


def test_without_normalisation_every_weight_is_the_dense_one(model):
    spiking = spiking_from(model)
    before, after = model.state_dict(), spiking.state_dict()
    assert set(after) - set(before) == {"textcnn.passes"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert spiking.config.pool_gain == 1 and spiking.config.id2label == model.config.id2label
    higher = spiking_from(model, threshold=0.3)
    assert all(torch.equal(before[name], higher.state_dict()[name]) for name in before)
    assert higher.config.pool_gain == 1 and list(higher.config.scales.values()) == pytest.approx([0.3, 0.09, 0.027])


def test_a_converted_network_reads_texts_as_the_dense_one_learned_to(tiny_tokenizer):
    model = dense(**TAILORED)
    keep_reading(model, TrainOptions(max_length=8, truncation="head-tail"))
    for network in (model, spiking_from(model)):
        rows = rows_for(network, tiny_tokenizer, ["word " * 100])
        assert longest(network, tiny_tokenizer) == rows.lengths[0] == 8 and rows.truncation == "head-tail"


def test_nothing_of_a_conversion_is_random(model, batch):
    scales = scales_of(model, "data", [batch])
    torch.manual_seed(1)
    one = spiking_from(model, scales)
    torch.manual_seed(2)
    two = spiking_from(model, scales)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert torch.equal(one(**batch).votes, two(**batch).votes)


def test_the_model_based_scale_is_the_largest_possible_sum(model):
    scales = scales_of(model, "model")
    spiking = spiking_from(model, scales)
    sums = torch.cat([linear.weight.clamp(min=0).sum(1) for linear in spiking.textcnn.convolutions])
    assert sums.max().item() == pytest.approx(1) and spiking.config.pool_gain == 1
    assert spiking.classifier.weight.clamp(min=0).sum(1).max().item() == pytest.approx(1)


def test_the_data_based_scale_is_the_largest_activation(model):
    batches = [batch_of(texts((12, 5), seed=seed)) for seed in range(4)]
    scales = scales_of(model, "data", batches)
    windows, pooled, outputs = [], [], []
    for row in batches:
        convolved, real = model.textcnn.activations(**row)
        windows += [active[mask == 1] for active, mask in zip(convolved, real, strict=True)]
        pooled.append(model.textcnn(**row).last_hidden_state)
        outputs.append(model.classifier(pooled[-1]))
    assert scales == {
        "convolutions": pytest.approx(max(part.max().item() for part in windows)),
        "pooling": pytest.approx(torch.cat(pooled).max().item()),
        "classifier": pytest.approx(torch.cat(outputs).max().item()),
    }
    everything = torch.cat([part.flatten() for part in windows]).detach()
    wanted = torch.quantile(everything[everything > 0], 0.9)
    found = scales_of(model, "percentile", batches, 90)["convolutions"]
    assert found == pytest.approx(float(wanted), rel=0.02) and found < scales["convolutions"]
    assert scales_of(model, "percentile", batches, 100) == pytest.approx(scales)


@pytest.mark.parametrize(("normalize", "threshold"), [("model", 1.0), ("data", 2.0), ("percentile", 0.5)])
@pytest.mark.parametrize(("coding", "power", "start"), [("deterministic", -1, 10), ("poisson", -0.5, 100)])
def test_rates_tend_to_activations_and_accumulators_to_logits(normalize, threshold, coding, power, start, model, batch):
    spiking = spiking_from(model, scales_of(model, normalize, [batch], 100), coding=coding, threshold=threshold)
    rows = limit_law(model, spiking, batch, (*STEPS, 2000, 4000))
    assert [row["time_steps"] for row in rows] == [*STEPS, 2000, 4000]
    assert rows[0]["saturated"] == 0 and spiking.config.time_steps == 50
    law = [row for row in rows if row["time_steps"] >= start]  # below 100 steps rounding outweighs the Poisson noise
    for layer in LAYERS:
        assert rows[-1][layer] < 0.1 * rows[0][layer]
        assert slope(law, layer) == pytest.approx(power, abs=0.15), (layer, rows)


def test_without_normalisation_saturated_neurons_stay_wrong(model, batch):
    rows = limit_law(model, spiking_from(model, coding="deterministic"), batch, STEPS)
    assert rows[-1]["saturated"] > 0.1
    assert rows[-1]["convolutions"] > 0.5 * rows[0]["convolutions"]
    convolved, real = model.textcnn.activations(**batch)
    active = torch.cat([a[mask == 1].flatten() for a, mask in zip(convolved, real, strict=True)])
    assert rows[-1]["convolutions"] == pytest.approx((active - 1).clamp(min=0).mean().item(), rel=0.02)


def test_without_normalisation_a_threshold_is_the_scale(model, batch):
    rows = limit_law(model, spiking_from(model, coding="deterministic", threshold=30.0), batch, STEPS)
    assert rows[0]["saturated"] == 0 and slope(rows, "convolutions") == pytest.approx(-1, abs=0.05)


def test_a_leaky_neuron_does_not_follow_the_law(model, batch):
    leaky = spiking_from(model, scales_of(model, "data", [batch]), coding="deterministic", beta=0.9)
    assert slope(limit_law(model, leaky, batch, STEPS), "convolutions") > -0.3


def test_the_figure_shows_a_curve_and_its_exponent_for_each_run(tmp_path):
    rows = [{"time_steps": t, "classifier": 3 / t} for t in STEPS]
    path = tmp_path / "law.svg"
    limit_figure("limit law", {"deterministic": rows, "poisson": rows}, str(path))
    assert path.read_text().count("T^-1.00") == 2  # matplotlib keeps the texts as comments
    for point in ((0, 1), (1, 0), (1, float("nan"))):
        with pytest.raises(ValueError, match="expected points above 0"):
            log_curves("t", "x", "y", {"a": [point]}, str(path))


def refused(design: dict, change=lambda model: None) -> str:
    model = TextCnnForSequenceClassification(TextCnnConfig(**SIZES | design))
    change(model)
    with pytest.raises(ValueError) as error:
        spiking_from(model)
    return str(error.value)


def test_what_cannot_be_converted_is_refused_by_layer():
    assert refused({}).startswith("layer textcnn.pooling: max pooling")
    assert refused({"pooling": "mean"}).startswith("layer textcnn.convolutions.0: has biases")
    assert refused(TAILORED | {"activation": "sigmoid"}).startswith("layer textcnn.convolutions: sigmoid")

    def negative(model):
        model.textcnn.embedding.weight.data[3, 1] = -0.25

    assert "layer textcnn.embedding: has inputs from -0.25 to" in refused(TAILORED, negative)

    def broken(model):
        model.textcnn.convolutions[1].weight.data[0, 0] = torch.nan

    assert refused(TAILORED, broken).startswith("layer textcnn.convolutions.1.weight: has a weight that is no finite")

    def biased(model):
        model.classifier.bias = torch.nn.Parameter(torch.zeros(model.classifier.out_features))

    assert refused(TAILORED, biased).startswith("layer classifier: has biases")
    assert refused(TAILORED | {"problem_type": "regression", "num_labels": 1}).startswith("layer classifier: answers a")
    with pytest.raises(ValueError, match="a Linear cannot be converted"):
        require_convertible(torch.nn.Linear(1, 1))


def test_the_command_refuses_in_one_line(tiny_tokenizer, model, tmp_path, capsys):
    dense().float().save_pretrained(tmp_path / "original")
    model.save_pretrained(tmp_path / "tailored")
    for name in ("original", "tailored"):
        tiny_tokenizer.save_pretrained(tmp_path / name)

    def line(*flags: str) -> str:
        capsys.readouterr()
        assert main(["convert", "--out", str(tmp_path / "out"), *flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    tailored = ["--model", str(tmp_path / "tailored")]
    assert "layer textcnn.pooling" in line("--model", str(tmp_path / "original"))
    assert "name them with --data" in line(*tailored, "--normalize", "data")
    assert f"expected {', '.join(NORMALISATIONS)}" in line(*tailored, "--normalize", "most")
    assert "time_steps: expected at least 1, got 0" in line(*tailored, "--time-steps", "0")
    assert "percentile: is read by normalize percentile, got 'none'" in line(*tailored, "--percentile", "90")
    assert "nowhere.csv" in line(*tailored, "--data", "nowhere.csv")
    assert "seed: expected a whole number, at least 0, at most 4294967295" in line(*tailored, "--seed", str(2**32))
    assert not (tmp_path / "out").exists()
