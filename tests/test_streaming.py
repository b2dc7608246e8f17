"""Anytime inference: step by step is the whole run, and a text that is sure leaves early."""

from __future__ import annotations

import pytest
import torch
from conftest import classifier

from spiketext.evaluation import anytime_logits, evaluate, logits_of
from spiketext.models import SpikeBertForSequenceClassification
from spiketext.models.streaming import Stepper


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return classifier(tiny_tokenizer, initializer_range=0.1, num_labels=3).double()


@pytest.fixture(scope="module")
def batch(demo, tiny_tokenizer):
    texts = demo.splits["test"].texts[:24]
    return dict(tiny_tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt"))


def test_all_steps_are_the_whole_run(model, batch):
    with torch.inference_mode():
        whole = model(**batch).logits
    logits, used = Stepper(model)(batch, confidence=1.0)
    assert used.tolist() == [model.config.time_steps] * 24
    assert torch.allclose(logits, whole, atol=1e-10)


def test_a_text_that_left_has_the_logits_of_fewer_steps(model, batch):
    stepper = Stepper(model)
    shorter = {}
    for steps in range(1, model.config.time_steps + 1):
        model.config.time_steps, before = steps, model.config.time_steps
        with torch.inference_mode():
            shorter[steps] = model(**batch).logits
        model.config.time_steps = before
    sure = shorter[1].softmax(-1).amax(-1).sort().values
    logits, used = stepper(batch, confidence=float(sure[len(sure) // 2]))  # half of the texts leave at once
    assert 1 in used and len(used.unique()) > 1
    for row, steps in enumerate(used.tolist()):
        assert torch.allclose(logits[row], shorter[steps][row], atol=1e-10)


def test_a_second_call_starts_at_rest(model, batch):
    stepper = Stepper(model)
    first, _ = stepper(batch, 1.0)
    assert torch.equal(first, stepper(batch, 1.0)[0])
    assert model.config.time_steps == 4 and type(model.head_spikes).__name__ == "NormLIF"


def test_logits_come_in_the_order_of_the_texts(model, tiny_tokenizer, demo):
    texts = demo.splits["test"].texts[:10]
    answers, steps = anytime_logits(Stepper(model), tiny_tokenizer, texts, batch_size=3, confidence=1.0)
    assert steps.tolist() == [4] * 10
    assert abs(answers - logits_of(model, tiny_tokenizer, texts)).max() < 1e-5


def test_evaluate_states_the_mean_steps(model, tiny_tokenizer, demo, tmp_path):
    from spiketext.checkpoints import save_model

    names = dict(enumerate(demo.labels))
    two = classifier(tiny_tokenizer, id2label=names, label2id={name: i for i, name in names.items()})
    save_model(two, tiny_tokenizer, str(tmp_path), {})
    low, high = (evaluate(str(tmp_path), demo, confidence=confidence) for confidence in (0.0, 1.0))
    assert low["mean_steps"] == 1.0 and high["mean_steps"] == 4.0
    assert high["accuracy"] == evaluate(str(tmp_path), demo)["accuracy"]
    with pytest.raises(ValueError, match=r"expected a probability, got 1\.5"):
        evaluate(str(tmp_path), demo, confidence=1.5)


@pytest.mark.parametrize("strange", [{"design": "paper"}, {"code": "integer", "time_steps": 1}])
def test_models_without_steps_are_refused(strange, tiny_student_config):
    tiny_student_config.update(strange)
    with pytest.raises(ValueError, match="confidence: expected a spikebert of the default design"):
        Stepper(SpikeBertForSequenceClassification(tiny_student_config))


def test_a_model_of_scores_is_refused(tiny_student_config):
    tiny_student_config.update({"num_labels": 1, "problem_type": "regression"})
    with pytest.raises(ValueError, match="expected a model of classes, got one of scores"):
        Stepper(SpikeBertForSequenceClassification(tiny_student_config))
