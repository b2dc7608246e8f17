"""Both stages on tiny networks: they learn, they resume exactly, they refuse what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

import spiketext
from spiketext import checkpoints, distillation, evaluation, fitting, processes, training
from spiketext.cli import main
from spiketext.data import load
from spiketext.options import DistillOptions, PretrainOptions, TeacherOptions, TrainOptions
from spiketext.runs import Run

COMMON = {"quiet": True, "threads": 1, "batch_size": 16, "micro_batch": 8, "max_length": 32}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> str:
    """A user's own CSV with string labels: 240 of the shipped reviews."""
    folder = tmp_path_factory.mktemp("own")
    part = load("demo").splits["train"]
    lines = ["opinion,verdict"]
    for text, label in list(zip(part.texts, part.labels, strict=True))[:240]:
        quoted = text.replace('"', '""')
        lines.append(f'"{quoted}",{("bad", "good")[label]}')
    path = folder / "own.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join(load("demo").splits["train"].texts[:200]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def columns(reviews) -> dict:
    return {"data": reviews, "text_column": "opinion", "label_column": "verdict"}


@pytest.fixture(scope="module")
def stages(tiny_teacher, columns, corpus, tmp_path_factory) -> dict:
    """Teacher, stage 1 and stage 2, each in its folder."""
    root = tmp_path_factory.mktemp("runs")
    teacher, first, second = (str(root / name) for name in ("teacher", "stage1", "stage2"))
    results = {
        "teacher": training.teacher(
            TeacherOptions(model=str(tiny_teacher), out=teacher, epochs=1, **columns, **COMMON)
        ),
        "stage1": distillation.pretrain(
            PretrainOptions(teacher=teacher, corpus=corpus, tokens=3000, epochs=2, out=first, **COMMON)
        ),
        "stage2": distillation.distill(
            DistillOptions(teacher=teacher, student=first, out=second, epochs=2, **columns, **COMMON)
        ),
    }
    return {"folders": {"teacher": teacher, "stage1": first, "stage2": second}, "results": results}


def test_own_csv_goes_through_teacher_distill_evaluate_predict(stages, columns):
    folder = stages["folders"]["stage2"]
    scored = evaluation.evaluate(folder, **columns)
    assert scored["split"] == "validation"
    assert 0 < scored["firing_rate"] < 0.6
    answers = evaluation.predict(folder, ["Not bad.", "", "🙂", "很好 очень", "word " * 20000], top_k=2)
    assert {label for answer in answers for label in answer["labels"]} == {"bad", "good"}
    assert all(abs(sum(answer["probabilities"]) - 1) < 1e-5 for answer in answers)


def test_a_reading_of_test_is_counted_and_stated(stages, columns):
    folder = stages["folders"]["stage2"]
    assert [evaluation.evaluate(folder, split="test", **columns)["test_reads"] for _ in range(2)] == [1, 2]
    assert len((Path(folder) / "test_reads.jsonl").read_text().splitlines()) == 2


def test_the_folder_of_a_model_is_complete(stages):
    folder = Path(stages["folders"]["stage2"])
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "spiketext.json", "run.json", "result.json"} <= names
    assert "checkpoints" not in names
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))
    config = json.loads((folder / "config.json").read_text())
    assert (config["code"], config["time_steps"]) == ("ternary", 1) and config["id2label"] == {"0": "bad", "1": "good"}


def test_every_loss_term_is_logged(stages):
    history = json.loads((Path(stages["folders"]["stage2"]) / "history.json").read_text())
    logged = next(entry for entry in history if "loss" in entry)
    assert {"features", "embedding", "logits", "labels"} <= set(logged)
    weights = {"features": 0.1, "embedding": 0.1, "logits": 1.0, "labels": 0.1}
    assert logged["loss"] == pytest.approx(sum(w * logged[name] for name, w in weights.items()), rel=1e-3)
    assert list((Path(stages["folders"]["stage2"]) / "logs").glob("events*"))


def test_stage_one_lowers_its_loss(stages, corpus, tmp_path):
    """Of a student that starts on its own: blocks of a teacher with random weights add as little as those at zero."""
    alone = PretrainOptions(teacher=stages["folders"]["teacher"], corpus=corpus, tokens=3000, epochs=2,
                            initialise=False, out=str(tmp_path / "alone"), **COMMON)  # fmt: skip
    distillation.pretrain(alone)
    history = json.loads((tmp_path / "alone" / "history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    assert [tuple(pair) for pair in stages["results"]["stage1"]["layer_map"]] == [(1, 1), (2, 2)]


def test_a_term_of_weight_zero_is_switched_off(stages, columns, tmp_path):
    options = DistillOptions(teacher=stages["folders"]["teacher"], out=str(tmp_path / "x"), epochs=1, feature_weight=0,
                             embedding_weight=0, copies=0, **columns, **COMMON)  # fmt: skip
    distillation.distill(options)
    logged = next(e for e in json.loads((tmp_path / "x" / "history.json").read_text()) if "loss" in e)
    assert "features" not in logged and "logits" in logged


def test_unlabelled_texts_are_learned_from_the_teacher_without_those_of_validation_and_test(stages, columns, tmp_path):
    held_out = load(columns["data"], text_column="opinion", label_column="verdict").splits
    others = load("demo").splits["test"].texts[:20]
    path = tmp_path / "more.txt"
    path.write_text("\n".join((*held_out["validation"].texts, *others, *held_out["test"].texts)), encoding="utf-8")
    asked = {"teacher": stages["folders"]["teacher"], "unlabelled": str(path), "copies": 0, "epochs": 1} | columns
    before = spiketext.distill(**asked | {"unlabelled": ""}, out=str(tmp_path / "without"), **COMMON)
    after = spiketext.distill(**asked, out=str(tmp_path / "with"), **COMMON)
    assert (before["unlabelled_texts"], after["unlabelled_texts"]) == (0, len(others))
    rows = len(held_out["train"].texts)
    assert (before["planned_steps"], after["planned_steps"]) == (-(-rows // 16), -(-(rows + len(others)) // 16))
    history = json.loads((tmp_path / "with/history.json").read_text())
    labels = [entry["labels"] for entry in history if "labels" in entry]
    assert labels and all(0 < label < 2 for label in labels), "a mean over the texts that have a label"
    with pytest.raises(ValueError, match="keeps its head, got 'head-tail'"):
        spiketext.distill(**asked, truncation="head-tail", out=str(tmp_path / "tails"), **COMMON)
    pairs = tmp_path / "pairs.csv"
    texts = load("demo").splits["train"].texts[:60]
    pairs.write_text("text,text_b,label\n" + "".join(f'"{t[:9]}","{i}",{i % 2}\n' for i, t in enumerate(texts)))
    columns = {"data": str(pairs), "text_column": "text", "pair_column": "text_b", "label_column": "label"}
    teacher = str(tmp_path / "teacher")
    spiketext.teacher(model=stages["folders"]["teacher"], out=teacher, epochs=1, **columns, **COMMON)
    with pytest.raises(ValueError, match="expected a set of single texts, pairs has pairs; leave it out"):
        spiketext.distill(**asked | columns | {"teacher": teacher}, out=str(tmp_path / "pairs"), **COMMON)


def test_accumulated_gradients_follow_the_same_curve(tiny_teacher, columns, tmp_path):
    def losses(micro: int) -> list[float]:
        out = tmp_path / f"micro{micro}"
        common = {**COMMON, "micro_batch": micro, "max_grad_norm": 1e9}
        training.teacher(TeacherOptions(model=str(tiny_teacher), out=str(out), epochs=1, **columns, **common))
        history = json.loads((out / "history.json").read_text())
        return [entry["loss"] for entry in history if "loss" in entry]

    whole, quarters = losses(16), losses(4)
    assert len(whole) == len(quarters)
    # other micro-batches hold other rows, so only the scale can be compared: a sum instead of a mean would be 4 times
    assert quarters[0] == pytest.approx(whole[0], rel=0.2)


def test_the_same_command_returns_what_is_there(stages, columns):
    folders = stages["folders"]
    weights = load_file(Path(folders["stage2"]) / "model.safetensors")
    again = distillation.distill(
        DistillOptions(
            teacher=folders["teacher"], student=folders["stage1"], out=folders["stage2"], epochs=2, **columns, **COMMON
        )
    )
    assert again["steps"] == stages["results"]["stage2"]["steps"]
    after = load_file(Path(folders["stage2"]) / "model.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights)


def test_another_configuration_in_the_same_folder_is_refused(stages, columns):
    folders = stages["folders"]
    with pytest.raises(ValueError, match=r"holds a run with seed = 0, asked is 1"):
        distillation.distill(
            DistillOptions(
                teacher=folders["teacher"],
                student=folders["stage1"],
                out=folders["stage2"],
                epochs=2,
                seed=1,
                **columns,
                **COMMON,
            )
        )


def test_a_folder_with_other_files_is_not_touched(tmp_path, columns):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="exists and is not a run"):
        training.train(TrainOptions(out=str(tmp_path), **columns, **COMMON))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_bf16_trains_where_it_is_asked_for_and_validation_is_read_in_float32(stages, columns, tmp_path):
    """Four steps: a processor without bf16 is slow at it."""
    asked = {"teacher": stages["folders"]["teacher"], "copies": 0, "epochs": 0.25, "precision": "bf16"}
    alone = {"feature_weight": 0.0, "embedding_weight": 0.0, "logit_weight": 0.0, "label_weight": 1.0}
    out = str(tmp_path / "b")
    result = distillation.distill(DistillOptions(out=out, **asked, **alone, **columns, **COMMON))
    assert result["precision"] == "bf16"
    part = load(columns["data"], text_column="opinion", label_column="verdict").splits["validation"]
    network, tokenizer = checkpoints.load_classifier(out).eval(), checkpoints.load_tokenizer(out)
    batch = tokenizer(part.texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    losses = []
    for bf16 in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses.append(cross_entropy(network(**batch).logits.float(), torch.tensor(part.labels)).item())
    assert abs(result["validation"]["loss"] - losses[0]) < 0.1 * abs(result["validation"]["loss"] - losses[1])


def test_a_command_that_never_began_is_corrected_in_the_same_folder(tiny_teacher, corpus, tmp_path):
    asked = {"teacher": tiny_teacher, "tokens": 400, "epochs": 1, "out": str(tmp_path / "one"), **COMMON}
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        spiketext.pretrain(corpus=f"{corpus}x", **asked)
    spiketext.pretrain(corpus=corpus, **asked)
    assert json.loads((tmp_path / "one/run.json").read_text())["corpus"] == corpus
    with pytest.raises(ValueError, match="holds a run with corpus"):
        spiketext.pretrain(corpus=f"{corpus}x", **asked)


def test_stage_one_refuses_the_tails_of_sentences(tiny_teacher, corpus, tmp_path):
    with pytest.raises(ValueError, match="a passage of a corpus keeps its head, got 'head-tail'"):
        spiketext.pretrain(teacher=tiny_teacher, corpus=corpus, truncation="head-tail", out=str(tmp_path / "one"))


def test_the_plain_functions_take_keywords(tiny_teacher, columns, tmp_path):
    result = spiketext.teacher(model=str(tiny_teacher), out=str(tmp_path / "t"), epochs=0.25, **columns, **COMMON)
    assert 0 <= result["validation"]["accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "pauses"), [("pretrain", (0.0, 0.1)), ("distill", (0.03, 0.3))])
def test_a_run_killed_several_times_ends_with_the_weights_of_one_never_stopped(
    stage, pauses, stages, columns, corpus, tmp_path
):
    """Killed at a different moment each time: while a checkpoint is being written, right after it, between two."""
    folders = stages["folders"]
    flags = ["--quiet", "--threads", "1", "--batch-size", "16", "--max-length", "32", "--seed", "3"]
    if stage == "pretrain":
        flags += ["--teacher", folders["teacher"], "--corpus", corpus, "--tokens", "3000", "--epochs", "2"]
    else:
        flags += ["--teacher", folders["teacher"], "--student", folders["stage1"], "--data", columns["data"],
                  "--text-column", "opinion", "--label-column", "verdict", "--epochs", "2", "--evals-per-epoch", "4",
                  "--patience", "99"]  # fmt: skip
    command = [sys.executable, "-m", "spiketext", stage, *flags, "--out", str(tmp_path / "killed")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}

    def kept() -> set[Path]:
        return set((tmp_path / "killed" / "checkpoints").glob("checkpoint-*"))

    for pause in pauses:
        before, deadline = kept(), time.monotonic() + 300
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and time.monotonic() < deadline and not kept() - before:
            time.sleep(0.005)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and kept() - before, "killed too early or too late"
    for out in ("killed", "whole"):  # here, and in no process of its own: a start costs more than this training
        assert main([stage, *flags, "--out", str(tmp_path / out)]) == 0
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_a_folder_is_given_back_after_an_error_too(corpus, tmp_path):
    with pytest.raises(ValueError, match="nobody"):
        spiketext.pretrain(teacher="nobody/at/all", corpus=corpus, tokens=400, out=str(tmp_path / "x"), **COMMON)
    found = (tmp_path / "x").stat()
    assert (tmp_path / "x/run.json").exists() and (found.st_dev, found.st_ino) not in processes._TAKEN


def killed_after(checkpoints: int):
    """In place of `fitting.mark_whole`: a kill as soon as so many checkpoints are whole."""
    from spiketext.runs import mark_whole

    def mark(checkpoint, keep):
        nonlocal checkpoints
        mark_whole(checkpoint, keep)
        checkpoints -= 1
        if not checkpoints:
            raise KeyboardInterrupt

    return mark


def test_the_history_of_a_resumed_run_is_that_of_one_never_stopped(tiny_teacher, columns, tmp_path, monkeypatch):
    def run(name: str) -> list[dict]:
        asked = {"epochs": 2.5, "evals_per_epoch": 2, "patience": 99, "seed": 3}
        out = tmp_path / name
        training.teacher(TeacherOptions(model=tiny_teacher, out=str(out), **asked, **columns, **COMMON))
        history = json.loads((out / "history.json").read_text())
        return [{key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key}
                for entry in history if "train_runtime" not in entry]  # fmt: skip

    for checkpoint in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(fitting, "mark_whole", killed_after(checkpoint))
            run("killed")
    whole = run("whole")
    assert [entry["step"] for entry in whole if "loss" in entry and entry["step"] % 10]  # with a checkpoint
    assert run("killed") == whole


def test_a_disk_that_is_full_when_a_run_goes_on_is_no_damage(tiny_teacher, columns, tmp_path, monkeypatch):
    def run() -> dict:
        asked = {"epochs": 1, "evals_per_epoch": 2}
        out = str(tmp_path / "out")
        return training.teacher(TeacherOptions(model=tiny_teacher, out=out, **asked, **columns, **COMMON))

    def full(*args):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "mark_whole", killed_after(1))
        run()
    with monkeypatch.context() as patch, pytest.raises(SafetensorError, match="No space left"):
        patch.setattr(fitting.ObjectiveTrainer, "_save", full)
        run()
    assert run()["steps"] == run()["planned_steps"]


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("damaged", "the best so far: is damaged .*; remove .*checkpoints, "),
        ("gone", "the best so far: is gone; put it back, or remove .*checkpoints"),
    ],
)
def test_the_best_checkpoint_is_named_when_it_is_damaged_or_gone(
    harm, told, tiny_teacher, columns, tmp_path, monkeypatch
):  # fmt: skip
    def run() -> dict:
        asked = {"epochs": 2, "learning_rate": 1e-12, "patience": 1, "evals_per_epoch": 4}
        return training.teacher(TeacherOptions(model=tiny_teacher, out=str(out), **asked, **columns, **COMMON))

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "mark_whole", killed_after(2))
        run()
    best, newest = sorted((out / "checkpoints").glob("checkpoint-*"), key=lambda each: int(each.name[11:]))
    if harm == "gone":
        shutil.rmtree(best)
    else:
        (best / "model.safetensors").write_bytes((best / "model.safetensors").read_bytes()[:99])
    with pytest.raises(ValueError, match=f"{best.name}, {told}"):
        run()
    assert newest.exists()
    shutil.rmtree(out / "checkpoints")
    assert run()["best_step"] == int(best.name[11:])


def test_what_a_kill_left_of_a_file_blocks_no_folder(tmp_path):
    (tmp_path / ".run.json.0123").write_text("{")
    asked = {"model": "somebody/bert", "data": "demo", "out": str(tmp_path)}
    Run("teacher", TeacherOptions(**asked))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / ".data.json.4567").write_text("{")
    Run("teacher", TeacherOptions(seed=1, **asked))  # nothing was learned with the other seed
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 1


def test_a_run_is_not_taken_for_one_from_vectors_that_have_changed(tmp_path):
    vectors, out = tmp_path / "data" / "vectors.txt", tmp_path / "out"
    vectors.parent.mkdir()
    asked = {"model": "textcnn", "data": "demo", "data_dir": str(vectors.parent), "out": str(out)}
    for name in (str(vectors), "vectors.txt"):  # of the data folder
        vectors.write_text("good 1 2 3\n")
        Run("train", TrainOptions(vectors=name, **asked))
        (out / "result.json").write_text("{}")
        vectors.write_text("good 1 2 4\n")
        with pytest.raises(ValueError, match=f"another content of vectors {name}, digest"):
            Run("train", TrainOptions(vectors=name, **asked))
        shutil.rmtree(out)


@pytest.mark.parametrize(("asked", "told"), [
    ({"layers": 9}, "layers: the network in .*stage1 has 2, asked is 9; leave it out"),
    ({"beta": 0.5}, r"beta: .* has 0\.9, asked is 0\.5"),
    ({"time_steps": 7}, "time_steps: .* has 1, asked is 7"),
    ({"attention": "counts"}, "attention: .* has squared, asked is counts"),
    ({"preset": "binary"}, "is not of preset binary"),
    ({"preset": "dense"}, "is not of preset dense"),
    ({"preset": "nosuch"}, "is not of preset nosuch"),
    ({"beta": 0.0}, r"beta: .* has 0\.9, asked is 0\.0"),
])  # fmt: skip
def test_options_that_a_given_student_contradicts_are_refused(asked, told, stages, columns, tmp_path):
    folders = {"teacher": stages["folders"]["teacher"], "student": stages["folders"]["stage1"]}
    with pytest.raises(ValueError, match=told):
        distillation.distill(DistillOptions(out=str(tmp_path / "x"), **folders, **asked, **columns, **COMMON))
    same = DistillOptions(layers=2, width=32, attention="squared", **folders)
    training.require_as_asked(same, checkpoints.load_encoder(folders["student"]), folders["student"])


def test_a_run_older_than_an_option_goes_on(tmp_path):
    @dataclass(frozen=True)
    class Older:
        out: str = str(tmp_path / "run")
        seed: int = 0

    @dataclass(frozen=True)
    class Younger(Older):
        recompute: bool = False

    Run("train", Older())
    assert Run("train", Younger()).result is None
    (tmp_path / "run/logs").touch()  # it has begun
    with pytest.raises(ValueError, match="holds a run with recompute = False, asked is True"):
        Run("train", Younger(recompute=True))


@pytest.mark.parametrize("end", ["of the epochs", "of patience"])
def test_a_run_killed_after_its_end_and_moved_is_only_finished(
    end, tiny_teacher, columns, corpus, tmp_path, monkeypatch
):
    whole, out, told = tmp_path / "whole", tmp_path / "out", []

    def killed(self, save, result):
        whole.mkdir()
        save(str(whole))
        told.append(result)
        raise KeyboardInterrupt

    def run():
        if end == "of patience":
            asked = {"epochs": 2, "learning_rate": 1e-12, "patience": 1, "evals_per_epoch": 4}
            return training.teacher(TeacherOptions(model=tiny_teacher, out=str(out), **asked, **columns, **COMMON))
        asked = {"tokens": 600, "epochs": 1.5, "evals_per_epoch": 1}
        return distillation.pretrain(
            PretrainOptions(teacher=tiny_teacher, corpus=corpus, out=str(out), **asked, **COMMON)
        )

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    out = out.rename(tmp_path / "moved")
    (told,), again = told, run()
    assert (told["steps"] < told["planned_steps"]) == (end == "of patience")
    assert {**told, "wall_s": 0} == {**again, "wall_s": 0}
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, out))
    assert all(torch.equal(one[name], two[name]) for name in one)
    histories = [json.loads((folder / "history.json").read_text()) for folder in (whole, out)]
    assert histories[0][:-1] == histories[1][:-1] and "train_runtime" in histories[0][-1]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"])
@pytest.mark.parametrize("left", [0, 9])
def test_a_checkpoint_that_was_damaged_is_named_and_removing_it_helps(
    file, left, tiny_teacher, columns, tmp_path, monkeypatch
):
    def run():
        asked = {"epochs": 0.5, "evals_per_epoch": 2}
        return training.teacher(
            TeacherOptions(model=tiny_teacher, out=str(tmp_path / "out"), **asked, **columns, **COMMON)
        )

    def killed(self, save, result):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    checkpoint = max((tmp_path / "out/checkpoints").glob("checkpoint-*"), key=lambda each: int(each.name[11:]))
    damaged = checkpoint / file
    damaged.write_bytes(damaged.read_bytes()[:left])
    with pytest.raises(ValueError, match=rf"checkpoint .*{checkpoint.name}: is damaged .*remove it"):
        run()
    shutil.rmtree(checkpoint)
    assert run()["steps"] > 0


def test_a_process_takes_one_gpu(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments._n_gpu = 2
    fitting._take_one_gpu(arguments)
    assert arguments.n_gpu == 1


@pytest.mark.parametrize(("micro_batch", "texts"), [(8, 16), (16, 32)])
def test_validation_reads_two_micro_batches_at_once(micro_batch, texts, tiny_teacher, columns, tmp_path, monkeypatch):
    class Began(Exception):
        pass

    def begin(rows, validation, args, **kwargs):
        assert args.eval_batch_size == texts
        raise Began

    monkeypatch.setattr(fitting, "ObjectiveTrainer", begin)
    asked = {**COMMON, "micro_batch": micro_batch}
    with pytest.raises(Began):
        training.teacher(TeacherOptions(model=tiny_teacher, out=str(tmp_path / "t"), **columns, **asked))


def test_a_model_is_evaluated_on_texts_cut_as_in_training(stages):
    for folder in (stages["folders"]["teacher"], stages["folders"]["stage2"]):
        model, tokenizer = evaluation.load_classifier(folder), evaluation.load_tokenizer(folder)
        assert evaluation.longest(model, tokenizer) == 32 < model.config.max_position_embeddings


def test_what_a_kill_left_of_a_complete_run_goes_and_files_have_the_mode_of_others(tmp_path):
    out = tmp_path / "run"
    run = Run("train", TrainOptions(out=str(out)))
    (tmp_path / "plain").touch()
    assert (out / "run.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
    run.finish(lambda folder: None, {"steps": 1})
    for left in ("checkpoints/checkpoint-1/complete", ".saving-x/model.safetensors"):
        (out / left).parent.mkdir(parents=True)
        (out / left).touch()
    assert Run("train", TrainOptions(out=str(out))).result == {"steps": 1}
    assert sorted(path.name for path in out.iterdir()) == ["result.json", "run.json"]


def test_what_was_only_prepared_blocks_no_other_command_and_is_not_read_by_it(tmp_path):
    out = tmp_path / "run"
    prepared = [out / "checkpoints/corpus/ids.bin", out / "checkpoints/teacher-0.answers", out / "data.json"]

    def claim(seed: int) -> None:
        Run("pretrain", PretrainOptions(out=str(out), seed=seed))

    claim(0)
    for path in prepared:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    claim(0)
    assert prepared[0].exists() and prepared[1].exists()
    claim(1)
    assert not (out / "checkpoints").exists() and json.loads((out / "run.json").read_text())["seed"] == 1
    (out / "checkpoints/checkpoint-3").mkdir(parents=True)
    (out / "checkpoints/checkpoint-3/complete").touch()
    with pytest.raises(ValueError, match="holds a run with seed = 1, asked is 0"):
        claim(0)


def test_a_run_is_not_taken_for_one_on_texts_that_have_changed(stages, columns, tmp_path):
    changed = tmp_path / "own.csv"
    lines = Path(columns["data"]).read_text(encoding="utf-8").splitlines(keepends=True)
    changed.write_text("".join(lines), encoding="utf-8")
    asked = {**columns, "data": str(changed)}

    def train() -> dict:
        model = stages["folders"]["teacher"]
        return training.teacher(TeacherOptions(model=model, out=str(tmp_path / "t"), epochs=0.25, **asked, **COMMON))

    first = train()
    assert train() == first and json.loads((tmp_path / "t/data.json").read_text())["data_hash"] == first["data_hash"]
    changed.write_text("".join(lines[:-20]), encoding="utf-8")
    with pytest.raises(ValueError, match=f"holds a run on texts of own with the hash {first['data_hash']}"):
        train()
    (tmp_path / "t/result.json").unlink()  # half done
    with pytest.raises(ValueError, match="holds a run on texts of own"):
        train()
    (tmp_path / "t/data.json").unlink()  # as an older version left it
    Run("teacher", TeacherOptions(model=stages["folders"]["teacher"], out=str(tmp_path / "t"), epochs=0.25, **asked,
                                  **COMMON)).reads("own", "another")  # fmt: skip


def test_a_run_is_not_taken_for_one_from_weights_that_have_changed(tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"first")

    def claim() -> None:
        Run("teacher", TeacherOptions(model=str(model), data="demo", out=str(out)))

    claim()
    (model / "model.safetensors").write_bytes(b"second")
    claim()  # it had not begun
    (out / "result.json").write_text("{}")
    claim()
    (model / "model.safetensors").write_bytes(b"third")
    with pytest.raises(ValueError, match=f"out: holds a run that began with another content of model {model}, digest "):
        claim()
    (out / "result.json").unlink()  # half done
    (out / "checkpoints/checkpoint-3").mkdir(parents=True)
    (out / "checkpoints/checkpoint-3/complete").touch()
    with pytest.raises(ValueError, match="choose another folder, or remove this one"):
        claim()
    (model / "model.safetensors").write_bytes(b"second")
    claim()
    (model / "model.safetensors").unlink()  # what it began with is gone
    claim()
    assert json.loads((out / "run.json").read_text())["weights"].keys() == {"model"}


def test_a_model_that_saw_mr_learns_no_sst_and_the_reverse(stages, demo, tmp_path):
    seen = json.loads((Path(stages["folders"]["stage2"]) / "spiketext.json").read_text())["data_seen"]
    assert seen == ["own"]
    older, newer = tmp_path / "older", tmp_path / "newer"
    for folder, about in ((older, {"command": "teacher", "data": "mr"}), (newer, {"data_seen": ["demo", "sst5"]})):
        folder.mkdir()
        (folder / "spiketext.json").write_text(json.dumps(about))
    student = tmp_path / "student"
    student.mkdir()
    (student / "spiketext.json").write_text(json.dumps({"command": "pretrain"}))
    (student / "run.json").write_text(json.dumps({"command": "pretrain", "teacher": str(older)}))
    for data, origin, allowed in (("sst2", older, False), ("glue/sst2", student, False), ("mr", newer, False),
                                  ("sst2", newer, True), ("mr", older, True), ("subj", older, True)):  # fmt: skip
        run = Run("distill", DistillOptions(teacher="minilm", student=str(origin), out=str(tmp_path / "out")))
        texts = replace(demo, name=data)
        if allowed:
            training.require_unseen(run, texts)
            continue
        with pytest.raises(ValueError, match=f"data {data}: {origin} has learned from (mr|sst5), which has many"):
            training.require_unseen(run, texts)
