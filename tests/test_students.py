"""Students of other shapes than the teacher's, spiking and dense: they start, learn, and are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel, RobertaConfig, RobertaModel

from spiketext import checkpoints, distillation
from spiketext.audit import audit
from spiketext.batching import TextRows
from spiketext.distillation import Alignment, Distillation
from spiketext.models import SpikeBertForSequenceClassification, initialise_from_teacher
from spiketext.options import DistillOptions, PretrainOptions, TrainOptions
from spiketext.runs import Run
from spiketext.training import new_student

COMMON = {"quiet": True, "threads": 1, "batch_size": 16, "max_length": 16, "epochs": 1}
SMALL = {"layers": 1, "width": 16, "heads": 2}


@pytest.fixture(scope="module")
def teacher(tiny_teacher):
    return checkpoints.teacher_of_task(tiny_teacher)


@pytest.fixture(scope="module")
def batch(demo, tiny_tokenizer) -> dict[str, torch.Tensor]:
    rows = TextRows(demo.splits["train"].texts[:6], tiny_tokenizer, 24, None, demo.splits["train"].labels[:6])
    return rows.collate([rows[number, 0] for number in range(6)])


def loss_of(model, teacher, tokenizer, batch, **options) -> tuple[torch.Tensor, Distillation]:
    asked = DistillOptions(out="x", **options)
    pairs = distillation.pairs_of(asked, model.config.num_hidden_layers, 2)
    alignment = Alignment(pairs, model.config.hidden_size, teacher, asked.feature_transform)
    objective = Distillation(model, teacher, tokenizer, alignment, asked)
    terms, _ = objective(batch)
    return torch.stack([objective.weights[name] * term for name, term in terms.items()]).sum(), objective


@pytest.mark.parametrize("preset", ["dense", "ternary", "binary"])
@pytest.mark.parametrize("transform", ["sum-linear-norm", "mean-norm-mlp", "sum-linear"])
def test_the_loss_of_a_narrower_student_reaches_every_weight(preset, transform, teacher, tiny_tokenizer, batch):
    torch.manual_seed(0)
    config = new_student(DistillOptions(preset=preset, **SMALL), tiny_tokenizer, teacher.config)
    model = (BertForSequenceClassification if preset == "dense" else SpikeBertForSequenceClassification)(config)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (16, 2, 32)
    loss, objective = loss_of(model, teacher, tiny_tokenizer, batch, feature_transform=transform)
    loss.backward()
    for name, parameter in objective.named_parameters():
        silent = name.endswith("key.bias")  # a softmax does not see what is added to every score
        assert parameter.grad is not None and (silent or parameter.grad.abs().sum() > 0), name


def test_a_dense_student_of_the_teachers_shape_starts_as_the_teacher(teacher, tiny_tokenizer, batch):
    config = new_student(DistillOptions(preset="dense"), tiny_tokenizer, teacher.config)
    student = BertModel(config).eval()
    names = dict(student.named_parameters())
    assert initialise_from_teacher(student, teacher.base_model, [(1, 1), (2, 2)]) == len(names)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(student(**inputs)[0], teacher.base_model(**inputs)[0])
    lower = BertModel(new_student(DistillOptions(preset="dense", layers=1), tiny_tokenizer, teacher.config))
    initialise_from_teacher(lower, teacher.base_model, [(1, 2)])
    assert torch.equal(
        lower.encoder.layer[0].output.dense.weight, teacher.base_model.encoder.layer[1].output.dense.weight
    )


def test_positions_of_a_roberta_begin_behind_that_of_padding(tiny_tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"vocab_size": len(tiny_tokenizer), "max_position_embeddings": 34}
    roberta = RobertaModel(RobertaConfig(pad_token_id=1, layer_norm_eps=1e-12, type_vocab_size=2, **sizes)).eval()
    student = BertModel(BertConfig(**sizes)).eval()
    initialise_from_teacher(student, roberta, [(1, 1), (2, 2)])
    ids = torch.arange(5, 37)[None]
    torch.testing.assert_close(student(ids)[0], roberta(ids)[0])


def test_a_student_as_wide_as_the_teacher_is_held_against_its_sum_or_mean_over_time(teacher):
    features, mask = torch.randn(3, 2, 5, 32), torch.ones(2, 5)
    embedding = torch.randn(2, 5, 32)
    target = (embedding, features.mean(0))
    for transform, steps in (("mean-linear", features), ("sum-linear", features / 3), ("sum-linear", features.mean(0))):
        alignment = Alignment([(1, 1)], 32, teacher, transform)  # starts as no map
        asked = ((embedding, steps), target, mask, "mse")
        losses = alignment.layer_loss(*asked), alignment.embedding_loss(*asked)
        assert all(float(loss.detach()) < 1e-10 for loss in losses), transform
    with pytest.raises(ValueError, match=r"feature transform: expected one of sum-linear-norm, .*; got 'linear'"):
        Alignment([(1, 1)], 32, teacher, "linear")


def test_the_norm_of_the_features_stands_where_it_is_asked_for(teacher):
    features = torch.randn(3, 2, 5, 16)
    last = Alignment([(1, 1)], 16, teacher, "sum-linear-norm")
    first = Alignment([(1, 1)], 16, teacher, "sum-norm-linear")
    linear, norm = last.features[0], last.norms[0]
    torch.testing.assert_close(last._transformed(features, 0), norm(linear(features.sum(0))))
    linear, norm = first.features[0], first.norms[0]
    torch.testing.assert_close(first._transformed(features, 0), linear(norm(features.sum(0))))
    assert not Alignment([(1, 1)], 16, teacher, "sum-linear").norms


def test_a_width_keeps_the_heads_of_the_teacher_and_constants_reach_every_neuron(teacher, tiny_tokenizer):
    config = new_student(DistillOptions(width=16), tiny_tokenizer, teacher.config)
    assert (config.num_attention_heads, config.intermediate_size, config.num_hidden_layers) == (2, 32, 2)
    asked = {"beta": 0.0, "threshold": 0.5, "attention_threshold": 0.125, "alpha": 3.0, "attention": "counts"}
    config = new_student(DistillOptions(**asked), tiny_tokenizer, teacher.config)
    assert {name: getattr(config, name) for name in asked} == asked
    alone = new_student(TrainOptions(preset="dense", width=128), tiny_tokenizer)
    assert isinstance(alone, BertConfig) and (alone.num_hidden_layers, alone.num_attention_heads) == (6, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "dence"}, "preset: expected one of ternary, .*, dense, got 'dence'"),
        ({"preset": "dense", "beta": 0.5, "time_steps": 2}, "--beta, --time-steps: a student of preset dense has no"),
        ({"preset": "signed", "beta": 0.5}, "--beta: a student of preset signed has no such thing"),
        ({"width": 30, "heads": 4}, "must be a multiple of num_attention_heads"),
        ({"preset": "dense", "width": 30, "heads": 4}, "must be a multiple of num_attention_heads"),
        ({"beta": 1.5}, "neuron beta: expected a share between 0 and 1, got 1.5"),
        ({"attention": "softmax"}, "attention: expected counts, or squared in the default design; got 'softmax'"),
        ({"preset": "paper", "attention": "squared"}, "attention: expected counts, or squared"),
        ({"preset": "dense", "attention": "squared"}, "--attention: a student of preset dense has no such thing"),
        ({"alpha": 0.0}, "neuron alpha: expected a number above 0"),
    ],
)
def test_a_student_that_cannot_be_is_refused_with_what_is_wrong(wrong, message, teacher, tiny_tokenizer):
    with pytest.raises(ValueError, match=message):
        new_student(DistillOptions(**wrong), tiny_tokenizer, teacher.config)


def test_a_dense_student_goes_through_both_stages_and_is_called_dense(tiny_teacher, demo, tmp_path):
    part = demo.splits["train"]
    corpus, own = tmp_path / "texts.txt", tmp_path / "own.tsv"
    corpus.write_text("\n".join(part.texts[:40]), encoding="utf-8")
    lines = [f"{text}\t{('negative', 'positive')[label]}" for text, label in zip(part.texts, part.labels, strict=True)]
    own.write_text("\n".join(["text\tlabel", *lines[:60]]) + "\n", encoding="utf-8")
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    shape = {"preset": "dense", "feature_transform": "mean-linear-norm", **SMALL}
    distillation.pretrain(
        PretrainOptions(
            teacher=tiny_teacher, corpus=str(corpus), tokens=600, evals_per_epoch=1, out=first, **shape, **COMMON
        )
    )
    assert not any("pooler" in name for name in load_file(Path(first) / "model.safetensors"))
    asked = {"teacher": tiny_teacher, "data": str(own), "student": first, "copies": 0, "out": second}
    distillation.distill(DistillOptions(**asked, **COMMON))
    found = audit(second, str(own), limit=4)
    assert not found["spiking"] and found["declared"] == "dense" and not found["neurons"]
    with pytest.raises(ValueError, match="is dense: it has no layer of spiking neurons"):
        audit(second, str(own), limit=4, strict=True)


@pytest.mark.parametrize(
    ("about", "mine", "taken"),
    [
        ({"transform": "mean-linear-norm"}, "mean-linear-norm", True),
        ({"transform": "mean-linear-norm"}, "sum-linear-norm", False),
        (None, "sum-linear-norm", True),  # saved before there were others
    ],
)
def test_the_maps_of_stage_one_are_taken_by_the_same_transform_only(about, mine, taken, teacher, tmp_path):
    theirs, alignment = Alignment([(1, 1)], 16, teacher), Alignment([(1, 1)], 16, teacher, mine)
    save_file(theirs.state_dict(), tmp_path / "alignment.safetensors", about)
    distillation._go_on(alignment, tmp_path / "alignment.safetensors")
    assert torch.equal(alignment.features[0].weight, theirs.features[0].weight) == taken


@pytest.mark.parametrize(("pairs", "taken"), [([(1, 1)], True), ([(1, 2)], False)])
def test_the_maps_of_stage_one_are_taken_for_the_same_layers_only(pairs, taken, teacher, tmp_path):
    theirs, alignment = Alignment([(1, 1)], 16, teacher), Alignment(pairs, 16, teacher)
    save_file(theirs.state_dict(), tmp_path / "alignment.safetensors", distillation._about(theirs))
    distillation._go_on(alignment, tmp_path / "alignment.safetensors")
    assert torch.equal(alignment.features[0].weight, theirs.features[0].weight) == taken


def test_a_term_of_weight_zero_is_not_computed(teacher, tiny_tokenizer, batch, monkeypatch):
    config = new_student(DistillOptions(**SMALL), tiny_tokenizer, teacher.config)
    model = SpikeBertForSequenceClassification(config)

    def never(*rest):
        pytest.fail("its weight is 0")

    monkeypatch.setattr(distillation, "logit_loss", never)
    monkeypatch.setattr(Alignment, "layer_loss", never)
    assert loss_of(model, teacher, tiny_tokenizer, batch, feature_weight=0, logit_weight=0)[0].isfinite()
    monkeypatch.setattr(Alignment, "embedding_loss", never)
    monkeypatch.setattr(distillation.Teacher, "__call__", never)
    off = {"feature_weight": 0, "embedding_weight": 0, "logit_weight": 0}
    assert loss_of(model, teacher, tiny_tokenizer, batch, **off)[0].isfinite()


@pytest.mark.parametrize(("command", "options"), [("distill", DistillOptions), ("train", TrainOptions)])
def test_a_run_from_before_widths_constants_and_transforms_goes_on(command, options, tmp_path):
    out = str(tmp_path / "run")
    Run(command, options(out=out))
    path = Path(out) / "run.json"
    older = json.loads(path.read_text())
    for name in ("width", "heads", "alpha", "beta", "threshold", "attention_threshold", "feature_transform"):
        older.pop(name, None)
    path.write_text(json.dumps(older))
    assert Run(command, options(out=out)).result is None
    (Path(out) / "logs").touch()  # it has begun
    with pytest.raises(ValueError, match=r"holds a run with beta = None, asked is 0\.5"):
        Run(command, options(out=out, beta=0.5))
