"""Masked-language-model training: what is hidden, what it costs, where it goes on, and what can be done with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import spiketext
from spiketext import checkpoints, fitting, maskedlm
from spiketext.batching import LengthBuckets
from spiketext.maskedlm import IGNORED, MaskedObjective, MaskedRows, logits_at
from spiketext.models import SpikeBertConfig, SpikeBertForMaskedLM, SpikeBertForSequenceClassification
from spiketext.passages import TokenFile, TokenRows

SMALL = {"quiet": True, "threads": 1, "batch_size": 16, "micro_batch": 8, "max_length": 32, "tokens": 3000,
         "layers": 1, "width": 32, "evals_per_epoch": 3, "learning_rate": 3e-3}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer, tmp_path_factory) -> str:
    """The pieces of the tiny tokenizer as a vocabulary file."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    pieces = sorted(tiny_tokenizer.get_vocab().items(), key=lambda item: item[1])
    path.write_text("\n".join(piece for piece, _ in pieces) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def corpus(demo, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join(demo.splits["train"].texts[:200]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def rows(tiny_tokenizer, tmp_path_factory) -> TokenRows:
    """400 passages of 3 to 40 pieces, some unknown."""
    draw = np.random.default_rng(1)
    mark = tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    passages = [[mark[0], *draw.integers(1, len(tiny_tokenizer), draw.integers(3, 40)), mark[1]] for _ in range(400)]
    file = TokenFile.write(tmp_path_factory.mktemp("rows") / "corpus", iter(passages))
    return TokenRows(file, np.arange(100, 400), tiny_tokenizer.pad_token_id, mark[1])


@pytest.fixture(scope="module")
def dense(vocabulary, corpus, tmp_path_factory) -> dict:
    out = str(tmp_path_factory.mktemp("dense") / "run")
    return {"out": out, "result": spiketext.mlm(corpus=corpus, vocab=vocabulary, epochs=4, out=out, **SMALL)}


# What is hidden -------------------------------------------------------------------------------------------------------


def test_the_stated_share_is_hidden_and_four_fifths_of_it_are_masked(rows, tiny_tokenizer):
    given = MaskedRows(rows, tiny_tokenizer, 0.15, seed=0)
    special = set(tiny_tokenizer.all_special_ids)
    hidden = masked = stayed = 0
    for row in range(len(rows)):
        before, after = rows[0, row]["input_ids"], given[0, row]
        free = [token for token in before if token not in special]
        chosen = [i for i, target in enumerate(after["targets"]) if target != IGNORED]
        assert len(chosen) == (max(1, round(0.15 * len(free))) if free else 0)
        for i, token in enumerate(before):
            if i in chosen:
                assert after["targets"][i] == token and token not in special
            else:
                assert after["input_ids"][i] == token
        hidden += len(chosen)
        masked += sum(after["input_ids"][i] == tiny_tokenizer.mask_token_id for i in chosen)
        stayed += sum(after["input_ids"][i] == before[i] for i in chosen)
    assert abs(masked - 0.8 * hidden) < 4.5 * (0.16 * hidden) ** 0.5
    assert abs(stayed - 0.1 * hidden) < 4.5 * (0.09 * hidden) ** 0.5


def test_a_draw_depends_on_seed_epoch_and_row_and_on_nothing_else(rows, tiny_tokenizer):
    given = [MaskedRows(rows, tiny_tokenizer, 0.15, seed=0) for _ in range(2)]
    order = list(range(50))
    first = [given[0][2, row] for row in order]
    assert [given[1][2, row] for row in reversed(order)] == first[::-1], "no draw depends on those before it"
    part = TokenRows(rows.file, rows.chosen[20:50], rows.pad, rows.sep)
    assert MaskedRows(part, tiny_tokenizer, 0.15, seed=0)[2, 0] == first[20], "the row of the file, not its place"
    for other in (given[0], MaskedRows(rows, tiny_tokenizer, 0.15, seed=1)):
        epoch = 3 if other is given[0] else 2
        assert sum(other[epoch, row] == first[row] for row in order) < 10


def test_a_batch_holds_the_targets_of_its_rows(rows, tiny_tokenizer):
    given = MaskedRows(rows, tiny_tokenizer, 0.15, seed=0)
    batch = given.collate([given[0, row] for row in (5, 6, 7)])
    assert batch["targets"].shape == batch["input_ids"].shape
    assert ((batch["targets"] != IGNORED) <= (batch["attention_mask"] == 1)).all()
    assert batch["targets"][1][: len(given[0, 6]["targets"])].tolist() == given[0, 6]["targets"]


# The loss against Hugging Face's own ----------------------------------------------------------------------------------


def _networks(tokenizer) -> list:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
             "vocab_size": len(tokenizer)}  # fmt: skip
    roberta = transformers.RobertaConfig(**sizes, pad_token_id=0)
    distil = transformers.DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_layers=2, n_heads=4)
    return [
        transformers.BertForMaskedLM(transformers.BertConfig(**sizes)),
        transformers.RobertaForMaskedLM(roberta),
        transformers.DistilBertForMaskedLM(distil),
        SpikeBertForMaskedLM(SpikeBertConfig(**sizes)),
        SpikeBertForMaskedLM(SpikeBertConfig(**sizes, design="paper")),
    ]


@pytest.mark.parametrize("number", range(5), ids=["bert", "roberta", "distilbert", "spikebert", "paper"])
def test_loss_and_gradient_are_those_of_the_whole_network_on_the_same_ids(number, rows, tiny_tokenizer):
    model = _networks(tiny_tokenizer)[number].eval()
    given = MaskedRows(rows, tiny_tokenizer, 0.15, seed=0)
    batch = given.collate([given[0, row] for row in range(6)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    objective = MaskedObjective(model, tiny_tokenizer)
    objective.tokenizer = type("Names", (), {"model_input_names": list(inputs)})
    terms, answers = objective(batch)
    terms["masked"].backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    whole = model(**inputs, labels=batch["targets"])
    whole.loss.backward()
    torch.testing.assert_close(terms["masked"], whole.loss, rtol=1e-5, atol=1e-6)
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-6)
    found = maskedlm.loss_and_accuracy(answers.numpy(), np.zeros(6))
    places = batch["targets"] != IGNORED
    right = (whole.logits.argmax(-1) == batch["targets"])[places].float().mean()
    assert found["loss"] == pytest.approx(float(whole.loss.detach()), rel=1e-5) and found["accuracy"] == pytest.approx(
        float(right)
    )
    assert objective.counts(batch)["masked"] == places.sum()


def test_the_projection_to_the_vocabulary_reads_hidden_tokens_only(rows, tiny_tokenizer):
    model = _networks(tiny_tokenizer)[0].eval()
    read = []
    model.cls.register_forward_pre_hook(lambda module, args: read.append(args[0].shape))
    ids = torch.tensor([[2, 7, 8, 9, 3]])
    places = torch.tensor([[False, True, False, True, False]])
    picked = logits_at(model, {"input_ids": ids}, places)
    assert read == [(1, 2, 32)]
    torch.testing.assert_close(picked, model(input_ids=ids).logits[places], rtol=1e-5, atol=1e-6)


# A run ----------------------------------------------------------------------------------------------------------------


def test_the_validation_loss_falls_and_is_the_mean_over_hidden_tokens(dense):
    history = json.loads((Path(dense["out"]) / "history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[-1] < losses[0] - 0.1 and dense["result"]["validation"]["loss"] == losses[-1]
    assert 0 < dense["result"]["validation"]["accuracy"] < 1
    assert dense["result"]["lower_case"] is True and dense["result"]["new_head"] is True


def test_a_stopped_run_ends_with_the_weights_of_one_never_stopped(dense, vocabulary, corpus, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    saves = []

    def stop_after_the_third(checkpoint, keep):
        fitting_mark(checkpoint, keep)
        saves.append(checkpoint)
        if len(saves) == 3:
            raise Stopped

    fitting_mark = fitting.mark_whole
    asked = {"corpus": corpus, "vocab": vocabulary, "epochs": 4, "out": str(tmp_path / "run"), **SMALL}
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "mark_whole", stop_after_the_third)
        with pytest.raises(Stopped):
            spiketext.mlm(**asked)
    resumed = []
    with monkeypatch.context() as patch:
        each = LengthBuckets.set_epoch
        patch.setattr(LengthBuckets, "set_epoch", lambda self, epoch: (resumed.append(epoch), each(self, epoch)))
        spiketext.mlm(**asked)
    assert min(resumed) >= 1, "it went on and did not begin again"
    whole, stopped = (load_file(Path(out) / "model.safetensors") for out in (dense["out"], asked["out"]))
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_the_folder_is_an_encoder_a_teacher_and_a_masked_language_model(dense):
    assert checkpoints.load_masked_lm(dense["out"]).config.num_attention_heads == 1
    assert checkpoints.load_encoder(dense["out"]).config.model_type == "bert"
    classifier = checkpoints.load_for_training(dense["out"], num_labels=3)
    trained = load_file(Path(dense["out"]) / "model.safetensors")["bert.encoder.layer.0.output.dense.weight"]
    assert torch.equal(classifier.bert.encoder.layer[0].output.dense.weight, trained)
    text = "A good film."
    assert checkpoints.load_tokenizer(dense["out"]).tokenize(text) == checkpoints.load_tokenizer(dense["out"]).tokenize(
        text.upper()
    )


def test_a_spiking_network_starts_from_a_dense_one_goes_on_and_becomes_a_student(dense, corpus, tmp_path):
    small = {**SMALL, "layers": 0, "epochs": 1, "evals_per_epoch": 1}
    first = spiketext.mlm(corpus=corpus, model=dense["out"], spiking=True, out=str(tmp_path / "a"), **small)
    assert first["new_head"] is True and first["initialised_tensors"] == 5 + 4
    small["width"] = 0
    again = spiketext.mlm(corpus=corpus, model=str(tmp_path / "a"), out=str(tmp_path / "b"), **small)
    assert again["new_head"] is False and again["validation"]["loss"] < first["validation"]["loss"]
    student = checkpoints.load_for_training(str(tmp_path / "b"), num_labels=2)
    assert isinstance(student, SpikeBertForSequenceClassification) and student.config.code == "ternary"
    saved = load_file(tmp_path / "b" / "model.safetensors")
    assert torch.equal(
        student.spikebert.layers[0].attention.qkv.weight, saved["spikebert.layers.0.attention.qkv.weight"]
    )


def test_another_language_starts_from_the_layers_of_a_dense_encoder(dense, vocabulary, corpus, tmp_path):
    pieces = Path(vocabulary).read_text(encoding="utf-8").split("\n")[:-1]
    moved = tmp_path / "moved.txt"  # the same pieces elsewhere, and one that the encoder doesn't know
    moved.write_text("\n".join([*pieces[:5], "新", *reversed(pieces[5:])]) + "\n", encoding="utf-8")
    small = {**SMALL, "layers": 0, "width": 0, "epochs": 1, "evals_per_epoch": 1, "learning_rate": 1e-12}
    kept = load_file(Path(dense["out"]) / "model.safetensors")
    for spiking in (False, True):
        out = tmp_path / f"run-{spiking}"
        told = spiketext.mlm(
            corpus=corpus, model=dense["out"], vocab=str(moved), spiking=spiking, out=str(out), **small
        )
        assert told["known_pieces"] == len(pieces) and told["new_head"] is True
        tokenizer, encoder = checkpoints.load_tokenizer(str(out)), checkpoints.load_encoder(str(out))
        words = encoder.get_input_embeddings().weight
        assert len(words) == len(tokenizer) == len(pieces) + 1
        theirs = kept["bert.embeddings.word_embeddings.weight"]
        for number in (0, 5, 9, len(pieces) - 1):
            torch.testing.assert_close(words[tokenizer.convert_tokens_to_ids(pieces[number])], theirs[number])
    dense_again = load_file(tmp_path / "run-False" / "model.safetensors")
    for name in ("encoder.layer.0.output.dense.weight", "embeddings.position_embeddings.weight"):
        torch.testing.assert_close(dense_again[f"bert.{name}"], kept[f"bert.{name}"])


def test_a_dense_encoder_without_a_head_gets_one_and_that_is_said(tiny_teacher, corpus, tmp_path):
    small = {**SMALL, "layers": 0, "width": 0, "epochs": 1, "evals_per_epoch": 1, "tokens": 600}
    result = spiketext.mlm(corpus=corpus, model=tiny_teacher, out=str(tmp_path / "run"), **small)
    assert result["new_head"] is True


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "expected --model NAME to start from, or --vocab FILE"),
        ({"vocab": "{vocab}", "max_length": 513}, "max_length: expected at most 512, .* got 513"),
        ({"vocab": "{vocab}", "hidden": 1.0}, "hidden: expected a share between 0 and 1, got 1.0"),
        ({"vocab": "{vocab}", "width": 100}, r"hidden_size \(100\) must be a multiple of num_attention_heads \(3\)"),
        ({"vocab": "{vocab}", "time_steps": 2}, "are of a spiking network; add --spiking"),
        (
            {"vocab": "{vocab}", "model": "{spiking}"},
            "expected a dense encoder whose layers are taken over, .* is spiking",
        ),
        ({"vocab": "{vocab}", "corpus": "{empty}"}, "no sentence of 4 words or more"),
        ({"vocab": "{vocab}", "truncation": "head-tail"}, "keeps its head"),
        ({"model": "./nowhere"}, "model ./nowhere"),
        ({"vocab": "{vocab}", "max_length": 2}, "max_length: expected a whole number, at least 3"),
        ({"vocab": "{vocab}", "corpus": "{unknown}"}, "expected words that .*vocab.txt knows, got unknown ones only"),
        ({"model": "{teacher}", "beta": 0.5}, "beta, layers, width: the network is given by model .*; leave it out"),
        ({"model": "{spiking}", "layers": 0}, "width: the network is given by model .*; leave it out"),
    ],
)
def test_a_mistake_is_one_line(
    changes, expected, vocabulary, corpus, tiny_student_config, tiny_tokenizer, tiny_teacher, tmp_path
):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "unknown.txt").write_text("мы были дома вчера\n" * 40, encoding="utf-8")
    names = {"{vocab}": vocabulary, "{empty}": str(tmp_path / "empty.txt"), "{spiking}": str(tmp_path / "spiking"),
             "{unknown}": str(tmp_path / "unknown.txt"), "{teacher}": tiny_teacher}  # fmt: skip
    SpikeBertForMaskedLM(tiny_student_config).save_pretrained(names["{spiking}"])
    tiny_tokenizer.save_pretrained(names["{spiking}"])
    asked = {"corpus": corpus, **SMALL, **{key: names.get(str(value), value) for key, value in changes.items()}}
    with pytest.raises(ValueError, match=expected):
        spiketext.mlm(out=str(tmp_path / "run"), **asked)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"no \[MASK\] among its 5 lines"),
        (b"", r"no \[PAD\], \[UNK\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "'a' stands in two lines"),
        (b"[PAD]\n\xff\n", "byte 6 is not UTF-8"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(content, expected, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        checkpoints.new_tokenizer(str(path))
    with pytest.raises(FileNotFoundError, match="no such file"):
        checkpoints.new_tokenizer(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(("extra", "lower"), [("b", True), ("B", False)])
def test_chinese_characters_stand_alone_and_case_follows_the_pieces(extra, lower, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text(f"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\n很\r\n好\r\n{extra}\r\n", encoding="utf-8")
    tokenizer = checkpoints.new_tokenizer(str(path))
    assert tokenizer("很好")["input_ids"] == [2, 5, 6, 3] and tokenizer.do_lower_case is lower
    assert tokenizer("B很[MASK]")["input_ids"] == [2, 7, 5, 4, 3]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert checkpoints.load_tokenizer(str(tmp_path / "saved"))("B很")["input_ids"] == [2, 7, 5, 3]
