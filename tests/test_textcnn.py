"""The TextCNNs: their definition written out, the laws of padding and batches, snnTorch as an oracle, trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

import spiketext
from spiketext import callbacks, conversion, evaluation, training
from spiketext.checkpoints import load_classifier
from spiketext.cli import main
from spiketext.coding import deterministic, poisson
from spiketext.evaluation import RateCounter
from spiketext.models import (
    TAILORED,
    SpikingTextCnnConfig,
    SpikingTextCnnForSequenceClassification,
    TextCnnConfig,
    TextCnnForSequenceClassification,
    textcnn,
)
from spiketext.models.textcnn import RateLinear
from spiketext.neurons import LIF
from spiketext.options import TrainOptions

SIZES = {"vocab_size": 40, "hidden_size": 6, "num_filters": 5, "max_position_embeddings": 32, "num_labels": 3}
LENGTHS = (12, 7, 5, 4, 3, 2, 1)  # the widest filter sees 5 words


def texts(lengths=LENGTHS, seed=0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 40, (length,), generator=draw) for length in lengths]


def batch_of(rows: list[torch.Tensor], extra: int = 0, filler: int = 0) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows)) + extra
    ids = torch.stack([F.pad(row, (0, longest - len(row)), value=filler) for row in rows])
    mask = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
    return {"input_ids": ids, "attention_mask": mask.long()}


def dense(seed=0, **design) -> TextCnnForSequenceClassification:
    torch.manual_seed(seed)
    return TextCnnForSequenceClassification(TextCnnConfig(**SIZES, **design)).double().eval()


def spiking(seed=0, **settings) -> SpikingTextCnnForSequenceClassification:
    """With weights at which every layer fires."""
    torch.manual_seed(seed)
    settings = {"time_steps": 20, "neurons_per_class": 4, "dropout": 0.0} | settings
    model = SpikingTextCnnForSequenceClassification(SpikingTextCnnConfig(**SIZES, **settings)).double().eval()
    for linear in (*model.textcnn.convolutions, model.classifier):
        linear.weight.data.mul_(3)
    return model


def layers_of(model, batch) -> dict[str, torch.Tensor]:
    """Spikes of every layer of neurons, by name."""
    seen = {}
    handles = [module.register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
               for name, module in model.named_modules() if isinstance(module, LIF)]  # fmt: skip
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return seen


# The dense networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", [{}, {"activation": "sigmoid"}, TAILORED], ids=["original", "sigmoid", "tailored"])
def test_the_network_is_what_its_definition_says(design):
    model = dense(**design)
    weights = dict(model.named_parameters())
    for row in texts():
        x = F.pad(weights["textcnn.embedding.weight"][row].T, (0, max(0, 5 - len(row))))[None]  # [1, D, L]
        features = []
        for i, width in enumerate((3, 4, 5)):
            kernel = weights[f"textcnn.convolutions.{i}.weight"].view(5, width, 6).transpose(1, 2)
            bias = weights.get(f"textcnn.convolutions.{i}.bias")
            active = F.conv1d(x[..., : max(len(row), width)], kernel, bias)
            active = active.sigmoid() if design.get("activation") == "sigmoid" else active.relu()
            features.append(active.mean(-1) if design == TAILORED else active.amax(-1))
        out = torch.cat(features, -1) @ weights["classifier.weight"].T + weights.get("classifier.bias", 0)
        expected = out.view(1, 3, -1).sum(-1)
        torch.testing.assert_close(model(**batch_of([row])).logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("design", [{}, TAILORED], ids=["original", "tailored"])
def test_padding_and_neighbours_change_nothing(design):
    model, rows = dense(**design), texts()
    together = model(**batch_of(rows, extra=4, filler=7)).logits
    for row, logits in zip(rows, together, strict=True):
        torch.testing.assert_close(model(**batch_of([row])).logits[0], logits, rtol=0, atol=1e-12)


def test_the_tailored_network_has_no_biases_and_its_embedding_stays_in_the_unit_range():
    model = dense(**TAILORED)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    weight = model.textcnn.embedding.weight
    weight.data[3, 0], weight.data[4, 0] = 1.5, -0.5
    model.after_step()
    assert weight[3, 0] == 1 and weight[4, 0] == 0
    free = dense()
    free.textcnn.embedding.weight.data[3, 0] = 1.5
    free.after_step()
    assert free.textcnn.embedding.weight[3, 0] == 1.5


def test_a_filter_of_rates_gives_the_same_numbers_and_a_gradient_without_its_mean():
    torch.manual_seed(0)
    ours, plain, x = RateLinear(12, 5, bias=False).double(), torch.nn.Linear(12, 5, bias=False), torch.rand(7, 12)
    x = x.double().requires_grad_()
    plain.weight = torch.nn.Parameter(ours.weight.detach().clone())
    assert torch.equal(ours(x), plain(x))
    of_ours, of_plain = (torch.autograd.grad(layer(x).relu().sum(), (layer.weight, x)) for layer in (ours, plain))
    torch.testing.assert_close(of_ours[0], of_plain[0] - of_plain[0].mean(1, keepdim=True), rtol=0, atol=1e-12)
    assert torch.equal(of_ours[1], of_plain[1])


@pytest.mark.parametrize("filters", [RateLinear, torch.nn.Linear])
def test_rates_that_all_words_share_do_not_keep_the_tailored_network_from_learning(filters, monkeypatch):
    """Rates as of word vectors: mean 0.5, deviation 1/6; a text's class is that of three of its twelve words."""
    monkeypatch.setattr(textcnn, "RateLinear", filters)
    sizes = {"vocab_size": 202, "hidden_size": 100, "num_filters": 30, "num_labels": 2, "dropout": 0.0}
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = TextCnnForSequenceClassification(TextCnnConfig(**sizes, **TAILORED))
    rates = (0.5 + torch.randn(202, 100, generator=draw) / 6).clamp(0, 1)
    model.textcnn.embedding.weight.data.copy_(rates).requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(100):
        labels = torch.randint(2, (32,), generator=draw)
        words = torch.randint(20, 202, (32, 12), generator=draw)
        words[:, ::4] = torch.randint(10, (32, 3), generator=draw) + 10 * labels[:, None]
        loss = model(words, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    learned = sum(losses[-20:]) / 20 < 0.4
    assert learned == (filters is RateLinear), losses[-1]


# Spikes of the input --------------------------------------------------------------------------------------------------


def splitmix(state: int) -> int:
    """The output function of SplitMix64 (Steele et al. 2014), in whole numbers."""
    full = (1 << 64) - 1
    state &= full
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & full
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & full
    return state ^ (state >> 31)


def test_the_draws_are_those_of_the_definition():
    step, ids = 0x9E3779B97F4A7C15, [17, 4, 29]
    rates = torch.full((1, 3, 5), 0.5)
    found = poisson(rates, 4, torch.tensor([ids]), torch.ones(1, 3), seed=3, draw=2)
    text = sum(splitmix((place + 1) * step + word) for place, word in enumerate(ids))
    start = splitmix(splitmix(3) + 2)
    for t in range(4):
        at_step = splitmix(splitmix(start ^ (text & (1 << 64) - 1)) + (t + 1) * step)
        for place in range(3):
            key = splitmix(at_step + (place + 1) * step)
            for feature in range(5):
                bits = splitmix(key + (feature // 4 + 1) * step) >> 16 * (feature % 4) & 0xFFFF
                value = bits - (1 << 16) if bits >= 1 << 15 else bits
                assert bool(found[t, 0, place, feature]) == (value < 0), (t, place, feature)


def test_poisson_spikes_have_their_rates_and_are_independent():
    rates = torch.rand(8, 10, 30, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(80).view(8, 10)
    spikes = poisson(rates, 400, ids, torch.ones_like(ids))
    score = (spikes.mean(0) - rates) / (rates * (1 - rates) / 400).sqrt()
    assert score.mean().abs() < 0.05 and abs(score.std() - 1) < 0.05  # 2,400 trains
    noise = (spikes - rates).flatten(1)
    for other in (noise.roll(1, 0), noise.roll(1, 1), noise.roll(30, 1)):  # the step, the feature, the place before
        assert torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1].abs() < 0.005  # 960,000 pairs


def test_zero_never_fires_and_one_always():
    rates = torch.tensor([0.0, 1.0]).expand(1, 3, 2)
    spikes = poisson(rates, 500, torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3))
    assert (spikes == rates).all()
    assert (deterministic(rates, 500) == rates).all()


@pytest.mark.parametrize("change", ["seed", "draw", "text"])
def test_another_key_is_other_noise(change):
    rates, ids = torch.full((1, 4, 8), 0.5), torch.tensor([[1, 2, 3, 4]])
    keys = {"seed": 0, "draw": 0}
    first = poisson(rates, 20, ids, torch.ones(1, 4), **keys)
    assert (poisson(rates, 20, ids, torch.ones(1, 4), **keys) == first).all()
    other = ids.flip(1) if change == "text" else ids
    keys |= {change: 1} if change != "text" else {}
    assert 0.4 < (poisson(rates, 20, other, torch.ones(1, 4), **keys) != first).float().mean() < 0.6


def test_the_noise_leaves_the_generators_alone():
    before = torch.random.get_rng_state()
    poisson(torch.rand(1, 2, 4, generator=torch.Generator()), 3, torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_deterministic_spikes_are_spread_evenly():
    rates = torch.rand(2, 3, 50, dtype=torch.float64)
    counts = deterministic(rates, 64).cumsum(0)
    steps = torch.arange(1, 65).view(-1, 1, 1, 1)
    assert (counts == (rates * steps).floor()).all()


@pytest.mark.parametrize(("rates", "steps", "expected"), [
    (torch.tensor([[[1.5]]]), 2, "from 0 to 1, got 1.5 to 1.5"),
    (torch.tensor([[[float("nan")]]]), 2, "from 0 to 1"),
    (torch.tensor([[[0.5]]]), 0, "at least 1, got 0"),
])  # fmt: skip
def test_what_is_no_rate_is_refused(rates, steps, expected):
    for code in (
        lambda: poisson(rates, steps, torch.ones(1, 1), torch.ones(1, 1)),
        lambda: deterministic(rates, steps),
    ):
        with pytest.raises(ValueError, match=expected):
            code()


# The spiking network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["poisson", "deterministic"])
def test_a_texts_spikes_do_not_depend_on_its_batch(coding):
    model, rows = spiking(coding=coding), texts()
    together = layers_of(model, batch_of(rows, extra=4, filler=7))
    assert all(spikes.any() for spikes in together.values())
    for number, row in enumerate(rows):
        alone = layers_of(model, batch_of([row]))
        for name, spikes in alone.items():
            inside = together[name][:, number]
            if "window" in name:
                inside = inside[:, : max(len(row) - [3, 4, 5][int(name[-1])] + 1, 1)]
                spikes = spikes[:, :, : inside.shape[1]]
            assert torch.equal(spikes[:, 0], inside), name


def test_float32_changes_few_spikes():
    model, batch = spiking(), batch_of(texts((20,) * 20))
    exact = layers_of(model, batch)
    rounded = layers_of(model.float(), batch)
    flips = sum(int((spikes != exact[name]).sum()) for name, spikes in rounded.items())
    assert flips <= 1e-2 * sum(spikes.numel() for spikes in exact.values())


def test_more_time_steps_go_on_where_fewer_end():
    model, batch = spiking(), batch_of(texts())
    short = model(**batch).votes
    model.config.time_steps = 30
    assert torch.equal(model(**batch).votes[:20], short)


def test_each_branch_has_membranes_of_its_own():
    model, batch = spiking(), batch_of(texts())
    before = layers_of(model, batch)
    model.textcnn.convolutions[0].weight.data.mul_(2)
    after = layers_of(model, batch)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {f"textcnn.{kind}_spikes.{i}" for kind in ("window", "pooled") for i in (1, 2)} <= same
    assert not {"textcnn.window_spikes.0", "textcnn.pooled_spikes.0"} & same


def test_logits_are_summed_votes_and_the_loss_is_that_of_every_step():
    model, batch, labels = spiking(), batch_of(texts()), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    fired = layers_of(model, batch)["votes"]  # [T, B, 3 * 4]
    answer = model(**batch, labels=labels)
    assert torch.equal(answer.votes, fired.view(20, 7, 3, 4).sum(-1))
    assert torch.equal(answer.logits, answer.votes.mean(0))
    expected = torch.stack([F.cross_entropy(step, labels) for step in answer.votes]).mean()
    torch.testing.assert_close(answer.loss, expected)


def test_the_embedding_is_frozen_and_every_pass_of_training_draws_anew():
    model, batch = spiking().train(), batch_of(texts())
    one, two = (model(**batch, labels=torch.zeros(7, dtype=torch.long)) for _ in range(2))
    assert not torch.equal(one.votes, two.votes) and int(model.textcnn.passes) == 2
    two.loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {*(f"textcnn.convolutions.{i}.weight" for i in range(3)), "classifier.weight"}
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in trained)
    model.eval()
    assert torch.equal(model(**batch).votes, model(**batch).votes)
    again = spiking().train()
    again.textcnn.passes.fill_(1)  # as a resumed run does
    assert torch.equal(again(**batch).votes, two.votes)


def test_another_draw_is_other_noise_of_the_same_network():
    model, batch = spiking(), batch_of(texts())
    first = model(**batch).votes
    model.config.draw = 1
    assert not torch.equal(model(**batch).votes, first)


def test_a_saved_network_answers_the_same(tmp_path):
    model, batch = spiking(scales={"convolutions": 2.0}).float(), batch_of(texts())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**batch).votes, model(**batch).votes)
    assert loaded.config.scales == {"convolutions": 2.0}


def test_firing_rates_count_neurons_of_real_windows_only():
    model, rows = spiking(), texts()
    batch, counter = batch_of(rows, extra=3, filler=7), RateCounter()
    layers = layers_of(model, batch)
    with counter.counting(model), torch.no_grad():
        counter.mask = batch["attention_mask"]
        model(**batch)
    for name, spikes in layers.items():
        if "window" in name:
            width = [3, 4, 5][int(name[-1])]
            real = [spikes[:, b, : max(len(row) - width + 1, 1)] for b, row in enumerate(rows)]
            expected = sum(float(part.sum()) for part in real) / sum(part.numel() for part in real)
        else:
            expected = float(spikes.mean())
        assert counter.rates[name] == pytest.approx(expected), name


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_same_network_stepped_with_snntorch_fires_the_same(snntorch):
    # Means of spikes meet the threshold exactly, where Leaky does not fire: so does ours with fire=">".
    model, rows = spiking(coding="deterministic", time_steps=25, fire=">"), texts((12, 9, 9, 7))
    config, network = model.config, model.textcnn
    layers = layers_of(model, batch_of(rows))

    def leaky():
        slope = snntorch.surrogate.fast_sigmoid(slope=25)
        neuron = snntorch.Leaky(beta=1.0, threshold=1.0, spike_grad=slope)
        return neuron, neuron.init_leaky()

    for number, row in enumerate(rows):  # one text at a time: nothing is padded
        spikes = deterministic(network.embedding(row)[None], config.time_steps)[:, 0]
        neurons = {name: list(leaky()) for name in layers}
        for t, step in enumerate(spikes):
            pooled = []
            for i, width in enumerate(config.filter_widths):
                kernel = network.convolutions[i].weight.view(config.num_filters, width, -1)
                current = torch.stack([(step[p : p + width] * kernel).sum((1, 2)) for p in range(len(row) - width + 1)])
                fired = fire(neurons, f"textcnn.window_spikes.{i}", current)
                assert torch.equal(fired, layers[f"textcnn.window_spikes.{i}"][t, number, : len(current)])
                mean = fired.sum(0) / len(fired)
                pooled.append(fire(neurons, f"textcnn.pooled_spikes.{i}", mean))
            out = fire(neurons, "votes", model.classifier.weight @ torch.cat(pooled))
            assert torch.equal(out, layers["votes"][t, number])


def fire(neurons: dict, name: str, current: torch.Tensor) -> torch.Tensor:
    """One step of snnTorch's neuron, which fires in float32."""
    neuron, membrane = neurons[name]
    fired, neurons[name][1] = neuron(current.detach(), membrane)
    return fired.double()


@pytest.mark.parametrize(("settings", "expected"), [
    ({"time_steps": 0}, "time_steps: expected at least 1, got 0"),
    ({"coding": "morse"}, "expected poisson or deterministic, got 'morse'"),
    ({"beta": 1.5}, "neuron beta"),
    ({"max_position_embeddings": 4}, "shorter than the widest filter, 5 words"),
    ({"neurons_per_class": 0}, "neurons_per_class: expected at least 1"),
    ({"problem_type": "regression"}, "expected single-label classification, got regression"),
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(settings, expected):
    with pytest.raises(Exception, match=expected):
        SpikingTextCnnConfig(**SIZES | settings)


def test_the_networks_run_in_bf16_and_a_rate_of_one_fires_always():
    ids = texts((9, 5))
    for model in (dense(), dense(**TAILORED), spiking()):
        answer = model.bfloat16()(**batch_of(ids), labels=torch.tensor([0, 2]))
        assert answer.logits.isfinite().all() and answer.loss.isfinite()
    tokens = torch.arange(6)[None]
    for dtype in (torch.bfloat16, torch.float16):
        spikes = poisson(torch.ones(1, 6, 4000, dtype=dtype), 4, tokens, torch.ones_like(tokens))
        assert spikes.dtype == dtype and bool((spikes == 1).all())


def test_the_networks_keep_the_conventions_of_hugging_face():
    batch = batch_of(texts((9, 5)))
    for model in (dense(), spiking()):
        assert isinstance(model(**batch, return_dict=False), tuple) and not model.accepts_loss_kwargs
        model.config.return_dict = False
        assert isinstance(model(**batch), tuple) and torch.equal(model(**batch)[0], model(**batch, return_dict=True)[0])
        model.resize_token_embeddings(50)
        assert model.textcnn.embedding.num_embeddings == model.config.vocab_size == 50


def test_a_folder_is_loaded_as_what_it_is_with_settings_that_can_be(tmp_path):
    dense().float().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a textcnn, expected a spiking-textcnn"):
        SpikingTextCnnForSequenceClassification.from_pretrained(tmp_path)
    for wrong in ({"activation": "gelu"}, {"dropout": 1.0}, {"neurons_per_class": 0}, {"max_position_embeddings": 3}):
        with pytest.raises(Exception, match=f"{next(iter(wrong))}: expected|texts cut to 3 words"):
            TextCnnForSequenceClassification.from_pretrained(tmp_path, **wrong)
        with pytest.raises(ValueError, match=f"^model {tmp_path}: [^\n]*(?<!or a Hugging Face name)$"):
            load_classifier(str(tmp_path), **wrong)


def test_padding_before_the_words_is_refused():
    batch = batch_of(texts((9, 5)))
    batch["attention_mask"][1] = batch["attention_mask"][1].flip(0)
    for model in (dense(), spiking()):
        with pytest.raises(ValueError, match="attention_mask: expected real words first"):
            model(**batch)


def test_fewer_texts_go_together_where_their_windows_are_wide(tiny_tokenizer):
    model = spiking(time_steps=50)
    rows = evaluation.rows_for(model, tiny_tokenizer, ["word " * 100] * 2)
    assert rows.lengths[0] == 32 and evaluation.texts_at_once(rows, model, 1000) == 2**19 // (32 * 50 * 5)


def test_votes_are_for_one_of_several_classes():
    batch = batch_of(texts((9, 5)))
    with pytest.raises(ValueError, match=r"votes for one of two classes or more.*torch.float64 \[2, 3\]"):
        spiking()(**batch, labels=torch.ones(2, 3).double())
    with pytest.raises(Exception, match="expected single-label classification, got multi_label"):
        SpikingTextCnnConfig(**SIZES, problem_type="multi_label_classification")


# Trained on texts -----------------------------------------------------------------------------------------------------

TINY = {"data": "demo", "quiet": True, "threads": 1, "max_length": 24, "epochs": 2, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def trained(tiny_vectors, tmp_path_factory) -> dict[str, str]:
    """Every kind of TextCNN, the spiking one by conversion and fine-tuning."""
    root = tmp_path_factory.mktemp("textcnn")
    folders = {name: str(root / name) for name in ("textcnn", "tailored-textcnn", "converted", "spiking-textcnn")}
    for name in ("textcnn", "tailored-textcnn"):
        options = TINY | {"epochs": 4, "vectors": tiny_vectors, "learning_rate": 2e-2}
        training.train(TrainOptions(**options, model=name, out=folders[name]))
    spiketext.convert(model=folders["tailored-textcnn"], normalize="data", data="demo", time_steps=8,
                      out=folders["converted"])  # fmt: skip
    training.train(TrainOptions(**TINY, model="spiking-textcnn", start=folders["converted"], learning_rate=1e-3,
                                out=folders["spiking-textcnn"]))  # fmt: skip
    return folders


def test_every_kind_learns_evaluates_and_predicts(trained):
    for name, folder in trained.items():
        found = evaluation.evaluate(folder, "demo", "train")
        assert found["accuracy"] > 0.55, name
        assert (found["firing_rate"] is None) == ("textcnn" in name and "spiking" not in name)
        assert found["time_steps"] == (8 if name in ("converted", "spiking-textcnn") else None)
        answers = evaluation.predict(folder, ["Not bad.", "", "🙂", "很好", "word " * 3000], top_k=2)
        with pytest.raises(ValueError, match="reads single texts"):
            evaluation.predict(folder, ["Not bad."], ["Good."])
        assert all(abs(sum(answer["probabilities"]) - 1) < 1e-5 for answer in answers)


def test_convert_draws_how_close_it_comes_to_the_dense_network(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "LIMIT_TEXTS", 2)
    asked = {"model": trained["tailored-textcnn"], "normalize": "data", "out": str(tmp_path / "out")}
    picture = tmp_path / "law.svg"
    with pytest.raises(ValueError, match="limit-law: reads texts; name them"):
        spiketext.convert(**asked | {"normalize": "none"}, limit_law=str(picture))
    assert not picture.exists() and not (tmp_path / "out").exists()
    found = spiketext.convert(**asked, data="demo", limit_law=str(picture))["limit_law"]
    assert picture.read_text().count("T^") == len(found) == 4
    law = found["normalised (data), deterministic"]
    assert law["exponents"]["convolutions"] == pytest.approx(-1, abs=0.2) and law["rows"][0]["saturated"] < 0.05
    assert found["not normalised, poisson"]["exponents"].keys() == {"convolutions", "pooling", "classifier"}


def test_training_changes_what_it_may_and_nothing_else(trained):
    tailored, before, after = (
        load_file(Path(trained[name]) / "model.safetensors")
        for name in ("tailored-textcnn", "converted", "spiking-textcnn")
    )
    assert before.keys() == after.keys() == {*tailored, "textcnn.passes"}
    embedding = "textcnn.embedding.weight"
    assert tailored[embedding].min() >= 0 and tailored[embedding].max() <= 1
    assert torch.equal(tailored[embedding], before[embedding]) and torch.equal(before[embedding], after[embedding])
    assert not before[embedding][0].any()  # padding is silent
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(before) - {embedding}


def test_a_finished_conversion_computes_no_scales_again(trained, monkeypatch):
    monkeypatch.setattr(conversion, "scales_of", lambda *rest: pytest.fail("it is known"))
    asked = {"model": trained["tailored-textcnn"], "normalize": "data", "time_steps": 8, "out": trained["converted"]}
    assert spiketext.convert(**asked, data="demo")["scales"].keys() == set(conversion.LAYERS)


def test_batch_size_and_time_steps_at_evaluation(trained):
    folder = trained["spiking-textcnn"]
    texts = spiketext.load("demo").splits["validation"].texts
    network, tokenizer = load_classifier(folder), evaluation.load_tokenizer(folder)
    one, many = (evaluation.logits_of(network, tokenizer, texts, batch_size=size) for size in (3, 64))
    assert (abs(one - many) > 1e-6).any(1).mean() < 0.02  # float32: texts in which a spike flipped
    assert evaluation.evaluate(folder, "demo", time_steps=3)["time_steps"] == 3
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        evaluation.evaluate(folder, "demo", time_steps=0)


def test_a_result_says_what_its_words_are(trained, tiny_vectors):
    vectors = json.loads((Path(trained["spiking-textcnn"]) / "config.json").read_text())["vectors"]
    assert vectors["vectors"] == tiny_vectors and vectors["language"] == "english"
    assert 0.7 < vectors["covered_words"] < 1


def test_an_interrupted_fine_tuning_ends_with_the_weights_of_one_never_stopped(trained, tmp_path, monkeypatch):
    def run(out: str):
        options = TINY | {"max_length": 8, "start": trained["converted"], "out": str(tmp_path / out)}
        training.train(TrainOptions(**options, model="spiking-textcnn"))

    run("whole")
    with monkeypatch.context() as patch:

        def stop(self, args, state, control, **kwargs):
            if state.epoch > 1.2:
                raise KeyboardInterrupt

        patch.setattr(callbacks.AfterStep, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    assert not (tmp_path / "stopped" / "result.json").exists()
    run("stopped")
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.parametrize(("flags", "expected"), [
    (["--model", "textcnn", "--max-length", "4"], "shorter than the widest filter"),
    (["--model", "textcnn", "--coding", "poisson"], "--coding: a textcnn has no such thing"),
    (["--model", "tailored-textcnn", "--time-steps", "5"], "--time-steps: a tailored-textcnn has no such thing"),
    (["--model", "spiking-textcnn", "--time-steps", "-1"], "time_steps: expected at least 1"),
    (["--model", "spiking-textcnn", "--from", "{tailored-textcnn}"], "is a tailored-textcnn, expected a spiking"),
    (["--model", "textcnn", "--from", "{tailored-textcnn}"], "is a tailored-textcnn, expected a textcnn"),
    (["--model", "textcnn", "--language", "klingon"], "expected english or chinese"),
    (["--model", "tailored-textcnn", "--activation", "sigmoid"], "--activation: a tailored-textcnn has no such thing"),
    (["--model", "textcnn", "--tokenizer", "there"], "--tokenizer: a textcnn has no such thing"),
    (["--model", "textcnn", "--from", "{textcnn}", "--vectors", "random"], "--vectors: a network of --from keeps"),
    (["--model", "textcnn", "--from", "{textcnn}", "--language", "english"], "--language: a network of --from keeps"),
    (["--model", "spiking-textcnn", "--from", "{converted}", "--coding", "morse"], "converted: coding: expected"),
    (["--model", "spiking-textcnn", "--from", "{converted}", "--beta", "1.5"], "converted: neuron beta: expected a"),
    (["--model", "textcnn", "--data", "{pairs}"], "reads single texts"),
])  # fmt: skip
def test_what_cannot_be_trained_is_one_line(flags, expected, trained, tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("text,text_pair,label\n" + "\n".join(f"one {i},two,{'ab'[i % 2]}" for i in range(20)))
    flags = [flag.format(pairs=pairs, **trained) for flag in flags]
    assert main(["train", "--data", "demo", "--quiet", "--out", str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
