"""The command line: quick help, JSON for programs, and one clear line with exit code 2 for what a user can mend."""

from __future__ import annotations

import argparse
import gzip
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import spiketext
from spiketext import commands
from spiketext.baseline import tfidf
from spiketext.cli import STAGES, _config_first, build_parser, main
from spiketext.commands import _show_each, options_from
from spiketext.data import load
from spiketext.evaluation import evaluate
from spiketext.sharing import model_card

TINY = ["--quiet", "--threads", "1", "--epochs", "1", "--max-length", "32", "--batch-size", "16"]


@pytest.fixture(scope="module")
def own(demo, tmp_path_factory) -> Path:
    """A user's CSV with string labels."""
    path = tmp_path_factory.mktemp("own") / "own.csv"
    part = demo.splits["train"]
    rows = [json.dumps(text) for text in (t.replace('"', "'") for t in part.texts[:120])]
    lines = [f"{text},{('bad', 'good')[label]}" for text, label in zip(rows, part.labels, strict=False)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(own, tiny_teacher, tmp_path_factory) -> dict[str, str]:
    """A teacher and a spiking classifier, made by commands."""
    root = tmp_path_factory.mktemp("cli")
    teacher, spiking = str(root / "teacher"), str(root / "spiking")
    assert main(["teacher", "--data", str(own), "--model", tiny_teacher, "--out", teacher, *TINY]) == 0
    assert main(["distill", "--data", str(own), "--teacher", teacher, "--out", spiking, *TINY]) == 0
    return {"teacher": teacher, "spiking": spiking}


def test_a_training_says_what_others_answer_on_its_validation_texts(trained, own, capsys):
    result = json.loads(Path(trained["spiking"], "result.json").read_text())
    teacher, texts = evaluate(trained["teacher"], str(own)), tfidf(load(str(own)), "validation")
    for name, known in (("teacher", teacher), ("TF-IDF + logistic regression", texts)):
        assert result["beside"][name] == {metric: known[metric] for metric in ("accuracy", "f1", "matthews")}
    assert list(json.loads(Path(trained["teacher"], "result.json").read_text())["beside"]) == [
        "TF-IDF + logistic regression"
    ]
    assert (
        main(["distill", "--data", str(own), "--teacher", trained["teacher"], "--out", trained["spiking"], *TINY]) == 0
    )
    assert (
        f"validation of teacher                       accuracy {teacher['accuracy']:.4f}, f1" in capsys.readouterr().out
    )
    assert f"- teacher: accuracy {teacher['accuracy']:.4f}, f1" in model_card(trained["spiking"], "x")


def test_only_a_command_that_goes_on_says_so_when_it_is_interrupted(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    for name, argv in (("info", ["info"]), ("stage", ["teacher", "--data", "demo", "--model", "m", "--out", "o"])):
        monkeypatch.setattr(commands, name, interrupted)
        assert main(argv) == 130
        assert ("the same command again resumes" in capsys.readouterr().err) == (name == "stage")


def refused(capsys, *argv: str) -> str:
    """Run a command that must fail; its one line."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"spiketext {argv[0]}: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


def test_help_takes_less_than_half_a_second():
    command = [sys.executable, "-m", "spiketext", "--help"]

    def seconds() -> float:
        start = os.times().children_user
        subprocess.run(command, check=True, capture_output=True)
        return os.times().children_user - start

    assert any(seconds() < 0.5 for _ in range(5))
    imported = "import sys, spiketext.cli; spiketext.cli.build_parser(); print(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True).stdout == "0\n"


@pytest.mark.parametrize("command", ["demo", "data", "info", "evaluate", "predict", "report", "reproduce",
                                     "export", "push", *STAGES])  # fmt: skip
def test_every_command_of_the_contract_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    assert "usage: spiketext " + command in capsys.readouterr().out


def parsed(*argv):
    return build_parser().parse_args(_config_first(argv))


def test_flags_win_over_the_config_file(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('epochs = 7\nlearning-rate = 1e-4\nfrom = "there"\n')
    args = parsed("train", "--epochs", "2", "--config", str(config))
    options = options_from(STAGES["train"][1], args)
    assert (options.epochs, options.learning_rate, options.start) == (2.0, 1e-4, "there")


def test_a_folder_predicts_from_arguments_files_and_standard_input(trained, tmp_path, capsys, monkeypatch):
    texts = tmp_path / "texts.txt"
    texts.write_text("fine\n\nnot fine 🙂\n" + "很长 " * 5000 + "\n", encoding="utf-8")
    assert main(["predict", "--model", trained["spiking"], "--top-k", "2", "--json", "one", "--file", str(texts)]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["text"][:8] for answer in answers][:4] == ["one", "fine", "", "not fine"]
    assert all(set(answer["labels"]) == {"bad", "good"} for answer in answers)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfgood\nbad\n")))
    assert main(["predict", "--model", trained["spiking"], "--file", "-"]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == ["good", "bad"]


def test_evaluate_prints_scores_and_json(trained, own, capsys):
    capsys.readouterr()
    assert main(["evaluate", "--model", trained["spiking"], "--data", str(own), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["split"] == "validation" and 0 < found["firing_rate"] < 1
    assert found["sends"] == "ternary, T = 1, default design"
    assert main(["evaluate", "--model", trained["spiking"], "--data", str(own), "--time-steps", "2"]) == 0
    assert "time_steps" in capsys.readouterr().out


def test_info_tells_machine_and_model(trained, capsys):
    capsys.readouterr()
    assert main(["info"]) == 0
    assert json.loads(capsys.readouterr().out)["neurons"]["available"]
    assert main(["info", "--model", trained["spiking"]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == ["bad", "good"] and found["spiking"]["code"] == "ternary"
    assert found["made_by"]["command"] == "distill"


def test_data_check_proves_that_a_corpus_is_clean(own, tmp_path, capsys):
    clean, dirty = tmp_path / "clean.txt", tmp_path / "dirty.txt.gz"
    clean.write_text("Nothing of that set stands here at all.\n")
    assert main(["data", "check", "--data", str(own), "--corpus", str(clean)]) == 0
    from spiketext.data import load

    text = load(str(own)).splits["test"].texts[0]
    with gzip.open(dirty, "wt", encoding="utf-8") as stream:
        stream.write(f"Somebody wrote: {text.upper()} And more.\n")
    assert "holds 1 test texts" in refused(capsys, "data", "check", "--data", str(own), "--corpus", str(dirty))


def test_unknown_set_suggests_the_nearest(trained, capsys):
    assert "sst2" in refused(capsys, "evaluate", "--model", trained["spiking"], "--data", "sst3")


def test_missing_column_names_the_flag(trained, own, capsys):
    line = refused(capsys, "evaluate", "--model", trained["spiking"], "--data", str(own), "--text-column", "words")
    assert "words" in line and "--text-column" in line


@pytest.mark.parametrize(("content", "expected"), [
    ("", "empty"),
    ("text,label\n,good\nfine,bad\n", "row 1"),
    ("text,label\nfine,\nbad,bad\n", "row 1"),
])  # fmt: skip
def test_a_broken_file_is_refused_with_its_place(content, expected, trained, tmp_path, capsys):
    path = tmp_path / "broken.csv"
    path.write_text(content)
    out = tmp_path / "out"
    line = refused(capsys, "train", "--data", str(path), "--out", str(out), "--tokenizer", trained["teacher"], *TINY)
    assert str(path) in line and expected in line


def test_labels_the_model_does_not_know_are_named(trained, own, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text(own.read_text(encoding="utf-8").replace(",good\n", ",great\n"), encoding="utf-8")
    line = refused(capsys, "evaluate", "--model", trained["spiking"], "--data", str(other))
    assert "bad, good" in line and "bad, great" in line


@pytest.mark.parametrize("damage", ["truncated", "foreign", "no config", "empty"])
def test_a_damaged_checkpoint_is_refused(damage, trained, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    if damage != "empty":
        for path in Path(trained["spiking"]).glob("*.*"):
            (folder / path.name).write_bytes(path.read_bytes())
    if damage == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    if damage == "foreign":
        (folder / "config.json").write_text('{"model_type": "weather"}')
    if damage == "no config":
        (folder / "config.json").unlink()
    assert str(folder) in refused(capsys, "predict", "--model", str(folder), "text")


def test_a_model_that_is_not_there_is_refused(tmp_path, capsys):
    assert "nowhere" in refused(capsys, "predict", "--model", str(tmp_path / "nowhere"), "text")


def test_teacher_and_student_with_different_tokenizers_are_refused(trained, own, tmp_path, capsys):
    import shutil

    student = tmp_path / "student"
    shutil.copytree(trained["spiking"], student)
    vocabulary = json.loads((student / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = vocabulary["model"]["vocab"]
    first, second = list(pieces)[10:12]
    pieces[first], pieces[second] = pieces[second], pieces[first]
    (student / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    line = refused(capsys, "distill", "--data", str(own), "--teacher", trained["teacher"], "--student", str(student),
                   "--out", str(tmp_path / "out"), *TINY)  # fmt: skip
    assert "different tokenizers" in line


def test_a_teacher_without_layers_in_float_is_refused(trained, own, tmp_path, capsys):
    asked = ["--teacher", trained["spiking"], "--out", str(tmp_path / "out"), *TINY]
    for command, texts in (("distill", ["--data", str(own)]), ("pretrain", ["--corpus", str(own), "--tokens", "500"])):
        line = refused(capsys, command, *texts, *asked)
        assert "is a SpikeBert" in line and "expected a dense encoder with layers" in line


def test_a_folder_in_which_another_program_is_at_work_is_refused(own, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(flush=True); input()"
    command = ["train", "--data", str(own), "--layers", "1", "--width", "8", "--heads", "2", "--out", str(out), *TINY]
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdout.readline()
        assert "another program is at work in it" in refused(capsys, *command)
        assert not list(out.iterdir())
        other.communicate(b"\n")
    assert main(command) == 0 and (out / "result.json").exists()


def test_an_option_of_another_network_is_refused(own, tmp_path, capsys):
    asked = ["train", "--data", str(own), "--out", str(tmp_path / "out"), *TINY]
    line = refused(capsys, *asked, "--vectors", "nope.txt", "--neurons-per-class", "5", "--dropout", "0.1")
    assert "--vectors, --neurons-per-class, --dropout: a spikebert has no such thing" in line
    line = refused(capsys, *asked, "--model", "textcnn", "--preset", "binary", "--layers", "7", "--alpha", "3")
    assert "--preset, --layers, --alpha: a textcnn has no such thing" in line


def test_what_cannot_be_written_or_read_is_named(trained, own, tmp_path, capsys):
    afile, out = tmp_path / "afile", tmp_path / "out"
    afile.write_text("mine")
    line = refused(capsys, "export", "--model", trained["spiking"], "--out", str(afile / "x"))
    assert "afile" in line and "choose another path" in line and "free space" not in line
    out.mkdir()
    (out / "run.json").write_text("")
    line = refused(capsys, "train", "--data", str(own), "--out", str(out), *TINY)
    assert str(out / "run.json") in line and "is damaged" in line
    (tmp_path / "unlabelled.txt").write_text("my own texts")
    assert "not the demo's" in refused_demo(tmp_path) and (tmp_path / "unlabelled.txt").read_text() == "my own texts"


def refused_demo(folder: Path) -> str:
    from spiketext.demo import _unlabelled

    with pytest.raises(ValueError) as caught:
        _unlabelled(folder)
    return str(caught.value)


def test_a_file_that_grew_is_told_where_its_model_is_scored(trained, own, tmp_path, capsys):
    score = ["evaluate", "--model", trained["spiking"], "--split", "validation", "--json", "--data"]
    assert main([*score, str(own)]) == 0 and "note" not in json.loads(capsys.readouterr().out)
    grown = tmp_path / f"grown{own.suffix}"
    head, *rows = own.read_text(encoding="utf-8").splitlines()
    grown.write_text("\n".join([head, *reversed(rows)]) + "\n", encoding="utf-8")
    assert main([*score, str(grown)]) == 0
    assert "texts that are validation now may be among them" in json.loads(capsys.readouterr().out)["note"]


def test_half_a_character_is_refused(trained, capsys):
    assert "half a character" in refused(capsys, "predict", "--model", trained["spiking"], "a \ud83d b")


@pytest.mark.parametrize(("pairs", "expected"), [("1:9", "out of range"), ("1-2", "expected last, first or pairs")])
def test_a_layer_map_out_of_range_is_refused(pairs, expected, trained, own, tmp_path, capsys):
    line = refused(capsys, "distill", "--data", str(own), "--teacher", trained["teacher"], "--layer-map", pairs,
                   "--out", str(tmp_path / "out"), *TINY)  # fmt: skip
    assert expected in line


def test_another_configuration_damages_nothing(trained, own, capsys):
    before = {path.name: path.read_bytes() for path in Path(trained["spiking"]).iterdir() if path.is_file()}
    line = refused(capsys, "distill", "--data", str(own), "--teacher", trained["teacher"], "--out", trained["spiking"],
                   *TINY, "--learning-rate", "1")  # fmt: skip
    assert "learning_rate" in line
    assert before == {path.name: path.read_bytes() for path in Path(trained["spiking"]).iterdir() if path.is_file()}


@pytest.fixture
def full_disk():
    """A real one: a file-size limit makes every larger write fail, as a full disk does."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60000, most))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line(trained, own, tmp_path, capsys, full_disk):
    refused(capsys, "distill", "--data", str(own), "--teacher", trained["teacher"], "--out", str(tmp_path / "full"),
            *TINY)  # fmt: skip
    assert not (tmp_path / "full" / "model.safetensors").exists()


@pytest.mark.parametrize("argv", [
    ("train", "--data", "demo", "--model", "transformer", "--out", "{out}"),
    ("train", "--data", "demo", "--preset", "best", "--out", "{out}"),
    ("pretrain", "--teacher", "minilm-of-nobody/x/y", "--corpus", "x.txt", "--out", "{out}"),
    ("teacher", "--data", "demo"),
    ("predict", "--model", "{out}", "--file", "{out}/none.txt"),
    ("reproduce", "table-9"),
    ("evaluate", "--model", "{out}", "--data", "demo", "--split", "dev"),
])  # fmt: skip
def test_other_mistakes_are_one_line(argv, tmp_path, capsys):
    refused(capsys, *(part.format(out=tmp_path / "out") for part in argv))


def test_a_config_with_an_unknown_key_is_refused(tmp_path, capsys):
    (tmp_path / "c.toml").write_text("epoch = 3\n")
    assert "unknown key 'epoch'" in refused(capsys, "teacher", "--config", str(tmp_path / "c.toml"))
    (tmp_path / "d.toml").write_text("epochs = = 3\n")
    assert "not TOML" in refused(capsys, "teacher", "--config", str(tmp_path / "d.toml"))
    (tmp_path / "e.toml").write_bytes(b"\x00\xff\xfe")
    assert "e.toml: byte 1 is not UTF-8" in refused(capsys, "teacher", "--config", str(tmp_path / "e.toml"))
    (tmp_path / "f.toml").write_text('epochs = "three"\n')
    assert "epochs = 'three', expected float" in refused(capsys, "teacher", "--config", str(tmp_path / "f.toml"))


def test_every_command_takes_its_flags_from_a_file(tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text(f'model = "{tmp_path}/nobody"\ndata = "demo"\nbatch-size = 7\nconfidence = 1\njson = true\n')
    asked = parsed("evaluate", "--batch-size", "64", "--config", str(config))
    assert (asked.model, asked.data, asked.batch_size) == (f"{tmp_path}/nobody", "demo", 64)  # the default, but asked
    assert (asked.confidence, asked.json, asked.split) == (1.0, True, "validation")
    assert "nobody" in refused(capsys, "evaluate", "--config", str(config))
    config.write_text('rows = ["a", "b"]\njobs = 2\n')
    asked = parsed("reproduce", "sst2", f"--config={config}")
    assert (asked.names, asked.rows, asked.jobs) == (["sst2"], ["a", "b"], 2)
    for line in ("batch-size = 1.5", 'batch-size = "7"', "json = 1", "model = 3", "config = 'x'"):
        config.write_text(line)
        assert "c.toml" in refused(capsys, "evaluate", "--config", str(config))
    assert "none.toml" in refused(capsys, "info", "--config", str(tmp_path / "none.toml"))


WEIGHTS = ("--feature-weight", "0", "--embedding-weight", "0", "--logit-weight", "0", "--label-weight", "0")


@pytest.mark.parametrize(("argv", "expected"), [
    (("distill", *WEIGHTS), "label_weight: expected one above 0"),
    (("pretrain", *WEIGHTS[:4]), "feature_weight, embedding_weight: expected one above 0"),
    (("distill", "--label-weight", "nan"), "label_weight: expected a number, at least 0; got nan"),
    (("distill", "--feature-norm", "l1"), "feature_norm: expected text, one of euclidean, mse; got 'l1'"),
    (("distill", "--feature-weight", "-1"), "feature_weight"),
    (("distill", "--temperature", "0"), "temperature"),
    (("distill", "--teacher-cache", "-5"), "teacher_cache"),
    (("train", "--epochs", "-1"), "epochs"),
    (("train", "--evals-per-epoch", "0"), "evals_per_epoch"),
    (("train", "--threads", "-3"), "threads"),
    (("train", "--patience", "-1"), "patience"),
    (("train", "--batch-size", "0"), "batch_size"),
    (("train", "--max-grad-norm", "-1"), "max_grad_norm"),
    (("train", "--warmup", "1.5"), "warmup: expected a number, at least 0, below 1; got 1.5"),
    (("train", "--max-length", "0"), "max_length"),
    (("teacher", "--max-length", "1000"), "max_length: expected a whole number, at least 2, at most 512; got 1000"),
])  # fmt: skip
def test_a_value_out_of_range_is_one_line(argv, expected, capsys):
    assert expected in refused(capsys, *argv)


def test_predictions_of_a_model_that_diverged_are_refused(saved, capsys):
    folder = saved(change=lambda model: model.classifier.weight.fill_(float("nan")))
    assert "answers NaN or infinity; it diverged" in refused(capsys, "predict", "--model", folder, "--json", "good")


def test_pairs_and_single_texts_are_not_mixed_and_nothing_is_no_text(tmp_path, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("a\tb\nc\nd\te\n")
    assert "text 2 of 3 has no tab" in refused(capsys, "predict", "--model", "x", "--file", str(path))
    path.write_text("")
    assert "no texts" in refused(capsys, "predict", "--model", "x", "--file", str(path))


def test_several_results_are_one_json_document(capsys):
    results = [{"json": {"name": name}, "table": name} for name in "ab"]
    for count, expected in ((1, {"name": "a"}), (2, [{"name": "a"}, {"name": "b"}])):
        _show_each(results[:count], argparse.Namespace(json=True), count)
        assert json.loads(capsys.readouterr().out) == expected
    _show_each(results, argparse.Namespace(json=False), 2)
    assert capsys.readouterr().out == "a\nb\n"


@pytest.mark.parametrize("name", ["energy", "audit", "report", "bench", "reproduce"])
def test_a_room_is_called_as_its_function(name, monkeypatch):
    room = importlib.import_module(f"spiketext.{name}")
    monkeypatch.setattr(room, name, lambda *args, **asked: (args, asked))
    for _ in range(2):
        assert getattr(spiketext, name)(1, two=2) == ((1,), {"two": 2})


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "spiketext", "data", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)
    process.stderr.close()


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_predictions(tmp_path):
    command = [sys.executable, "-m", "spiketext", "demo", "--out", str(tmp_path / "demo"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    accuracy = {row["model"]: row["accuracy"] for row in result["rows"]}
    assert accuracy["teacher (MiniLM)"] > accuracy["TF-IDF + logistic regression"] + 0.05
    assert accuracy["SpikeBERT"] > 0.5
    assert len(result["predictions"]) == 4
    print(json.dumps(result["rows"]), result["seconds"])
