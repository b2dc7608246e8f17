"""Models for other people: the modelling file in a process without spiketext, the card, the way to the Hub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from spiketext import portable
from spiketext.about import describe_model
from spiketext.checkpoints import load_classifier, load_tokenizer, save_model
from spiketext.cli import main
from spiketext.evaluation import evaluate, logits_of, note_test_reading
from spiketext.models import (
    PRESETS,
    SpikeBertConfig,
    SpikeBertForSequenceClassification,
    SpikingTextCnnConfig,
    TextCnnConfig,
)
from spiketext.ops import lif, norm_lif, spike_linear
from spiketext.sharing import export, model_card, push, without_folders
from spiketext.vectors import unit_range
from spiketext.wordmodels import tokenizer_of
from spiketext.words import lexicon

VARIANTS = {
    "default": {},
    "float64": {},
    "signed": PRESETS["signed"],
    "ternary": {"code": "ternary", "reset": "zero"},
    "paper": {"design": "paper", "layer_norm_eps": 1e-5},
    "authors": {**PRESETS["authors-stage2"], "num_attention_heads": 4},
}
WORD_VARIANTS = {
    "textcnn": TextCnnConfig,
    "spiking_textcnn": SpikingTextCnnConfig,
    "spiking_textcnn-float64": SpikingTextCnnConfig,
}

# Runs in a process that cannot find spiketext: logits of every model in the folders given, by the modelling file alone.
STRANGER = """
import importlib.abc, json, sys
class Nowhere(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "spiketext":
            raise ModuleNotFoundError("spiketext is not here")
sys.meta_path.insert(0, Nowhere())
import numpy, torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
torch.set_num_threads(1)
texts, answers = json.loads(sys.argv[1]), {}
for folder in sys.argv[3:]:
    dtype = torch.float64 if "float64" in folder else torch.float32
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, dtype=dtype).eval()
    read = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    batch = read(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        answers[folder] = model(**batch).logits.numpy()
    few = {name: tensor[:2, :16] for name, tensor in batch.items()}
    model.train()(**few, labels=torch.zeros(2, dtype=torch.long)).loss.backward()
    frozen = "spiking_textcnn" in folder
    learning = [p for name, p in model.named_parameters() if not (frozen and "embedding" in name)]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning), "it cannot be trained"
assert not [name for name in sys.modules if name.split(".")[0] == "spiketext"]
numpy.savez(sys.argv[2], **answers)
"""


@pytest.fixture(scope="module")
def texts(demo) -> list[str]:
    return demo.splits["validation"].texts[:24]


def save(folder: Path, tokenizer, **settings) -> str:
    """A model whose weights are as uneven as trained ones."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = SpikeBertConfig(**{**sizes, **settings}, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id,
                             id2label={0: "bad", 1: "so so", 2: "good"})  # fmt: skip
    model = SpikeBertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.1 * torch.randn_like(parameter))
    save_model(model, tokenizer, str(folder), {"command": "train", "parameters": 1})
    return str(folder)


def save_word_network(folder: Path, config: type, texts: list[str]) -> str:
    """A TextCNN on random vectors of the words of some of the texts; the others hold unknown ones."""
    torch.manual_seed(1)
    words, vectors, coverage = lexicon(texts[::2], None, dimension=8)
    settings = {"vocab_size": len(words), "hidden_size": 8, "num_filters": 12, "vectors": coverage, "num_labels": 3}
    model = AutoModelForSequenceClassification.from_config(config(**settings))
    with torch.no_grad():
        model.textcnn.embedding.weight.copy_(torch.from_numpy(unit_range(vectors)))
        for linear in (model.classifier, *model.textcnn.convolutions):
            linear.weight.mul_(4)
    save_model(model, tokenizer_of(words, "english"), str(folder), {"command": "train", "parameters": 1})
    return str(folder)


def test_a_stranger_gets_our_logits(texts, tiny_tokenizer, tmp_path):
    """A fresh process without spiketext: float64 to 1e-10; float32 to 1e-5, but for texts in which a spike flipped."""
    folders = {}
    for name, settings in VARIANTS.items():
        folders[name] = str(tmp_path / f"for-others-{name}")
        export(save(tmp_path / name, tiny_tokenizer, **settings), folders[name])
    for name, config in WORD_VARIANTS.items():
        folders[name] = str(tmp_path / f"for-others-{name}")
        export(save_word_network(tmp_path / name, config, texts), folders[name])
    command = [sys.executable, "-I", "-c", STRANGER, json.dumps(texts), str(tmp_path / "answers.npz"),
               *folders.values()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={"HF_HOME": str(tmp_path), "PATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    answers = np.load(tmp_path / "answers.npz")
    for name, folder in folders.items():
        dtype = torch.float64 if "float64" in name else torch.float32
        model = load_classifier(folder).to(dtype).eval()
        batch = load_tokenizer(folder)(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            expected = model(**batch).logits.numpy()
        differences = np.abs(expected - answers[folder]).max(1)
        assert expected.std(0).min() > 1e-4, name  # texts differ: equal logits say something
        bound = 1e-10 if dtype == torch.float64 else 1e-5
        print(name, "texts", len(texts), "with a flipped spike", int((differences > bound).sum()))
        assert (differences > bound).mean() <= (0 if dtype == torch.float64 else 0.05), (name, differences.max())


def test_the_definitions_in_the_file_are_those_of_the_kernels():
    x = torch.randn(4, 3, 5, 8, dtype=torch.float64)
    weight, bias = torch.rand(8, dtype=torch.float64) + 0.5, torch.randn(8, dtype=torch.float64)
    for neuron in ({}, {"reset": "zero", "beta": 0.5}, {"code": "ternary"}):
        (spikes, last), (fused, left) = portable.lif(x, **neuron), lif(x, **neuron)
        assert torch.equal(spikes, fused) and torch.allclose(last, left, atol=1e-12)
        assert torch.equal(
            portable.norm_lif(x, weight, bias, 1e-6, **neuron), norm_lif(x, weight, bias, 1e-6, **neuron)
        )
    linear = torch.randn(7, 8, dtype=torch.float64)
    assert torch.allclose(portable.spike_linear(x, linear), spike_linear(x, linear), atol=1e-12)


@pytest.mark.parametrize("model_type", portable.NETWORKS)
def test_the_file_is_whole_and_readable(model_type, tmp_path):
    """No undefined or unused name, no line too long, no import of ours; and it is the source that is there now."""
    text = portable.source(model_type)
    path = tmp_path / portable.file_of(model_type)
    path.write_text(text, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I", "--line-length", "120", str(path)]
    found = subprocess.run(ruff, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "import spiketext" not in text and "from spiketext" not in text and len(text.splitlines()) < 700
    room, name = portable.NETWORKS[model_type]
    ours = Path(sys.modules[room].__file__).read_text(encoding="utf-8")
    assert ours[ours.index(f"class {name}ForSequenceClassification") :].strip() in text


def test_a_name_that_two_rooms_define_is_refused():
    file = portable._File()
    file.add("spiketext.sharing", "_USE")
    file.homes["_table"] = "spiketext.results"
    with pytest.raises(AssertionError, match=r"_table is defined in spiketext\.results and in spiketext\.sharing"):
        file.add("spiketext.sharing", "_scores")


# The card, and the Hub ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_model(tiny_teacher, tiny_tokenizer, tmp_path_factory) -> str:
    """A spiking classifier trained by a command, its test read twice, its energy and audit kept."""
    root = tmp_path_factory.mktemp("shared")
    small = ["--quiet", "--threads", "1", "--epochs", "0.2", "--max-length", "32", "--batch-size", "16"]
    folder = str(root / "spiking")
    assert main(["distill", "--data", "demo", "--teacher", tiny_teacher, "--out", folder, *small, "--copies", "0"]) == 0
    for _ in range(2):
        evaluate(folder, "demo", "test")
    for command in ("energy", "audit"):
        assert main([command, "--model", folder, "--data", "demo", "--limit", "8", "--save", "--json"]) == 0
    return folder


def test_the_card_says_what_is_known(shared_model, demo):
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(shared_model, "somebody/reviews"), ignore_metadata_errors=False)
    result = json.loads(Path(shared_model, "result.json").read_text())
    scores = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert scores["validation", "accuracy"] == result["validation"]["accuracy"]
    assert scores["test", "accuracy"] == evaluate(shared_model, "demo", "test")["accuracy"]
    assert card.data.model_name == "somebody/reviews" and "spiking-neural-network" in card.data.tags
    energy = json.loads(Path(shared_model, "energy.json").read_text())
    assert f"{energy['papers'][0]['mJ']:.4g}" in card.text
    for piece in (demo.hash, "read 2 x", "chosen on it", "`negative`, `positive`", "time_steps 1",
                  "layers read binary or ternary", "trust_remote_code=True", "spiketext distill",
                  "seed = 0"):  # fmt: skip
        assert piece in card.text, piece
    assert str(Path(shared_model).parent) not in card.content  # no folder of this machine
    assert "tokens each, at T = 1, priced" in card.text


def test_the_card_says_of_which_time_steps_and_length_an_energy_is(shared_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shared_model, folder)
    energy = json.loads((folder / "energy.json").read_text()) | {"time_steps": 2, "length": 16, "tokens": 16.0}
    (folder / "energy.json").write_text(json.dumps(energy))
    assert "16.0 tokens each, padded or cut to 16, at T = 2, priced" in model_card(str(folder), "m")


def test_a_card_without_scores_says_so(tiny_teacher, tmp_path):
    card = model_card(tiny_teacher, "a teacher")
    assert "None is known." in card and "dense (not spiking)" in card and "Energy" not in card and "Purity" not in card
    with pytest.raises(ValueError, match=r"no config\.json"):
        model_card(str(tmp_path), "nothing")


def test_readings_in_other_numbers_stay_apart_and_a_torn_line_costs_nothing(tiny_teacher, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_teacher, folder, ignore=shutil.ignore_patterns("test_reads.jsonl"))  # of other tests
    read = {"data": "d", "data_hash": "h", "time_steps": 1}
    assert note_test_reading(folder, read | {"accuracy": 0.875}) == 1
    with (folder / "test_reads.jsonl").open("a") as log:
        log.write('{"data": "d", "da')
    assert note_test_reading(folder, read | {"accuracy": 0.75, "precision": "int8"}) == 2
    assert note_test_reading(folder, read | {"accuracy": 0.5, "confidence": 0.9}) == 3
    assert describe_model(str(folder))["test_reads"] == 3
    card = model_card(str(folder), "m")
    for row in (
        "| at T = 1 | 0.8750 |",
        "| at T = 1 in int8 | 0.7500 |",
        "| at T = 1 stopped at confidence 0.9 | 0.5000 |",
    ):
        assert row in card
    assert note_test_reading(tmp_path / "of the hub", read) is None


@pytest.mark.parametrize(("value", "shown"), [
    ("hfl/chinese-bert-wwm", "hfl/chinese-bert-wwm"), ("mr,glue/sst2", "mr,glue/sst2"), ("/home/me/teacher", "teacher"),
    ("mr,/home/me/own.csv", "mr,own.csv"), ("../runs/a", "a"), ("head", "head"),
    ("./runs/a/", "a"), ("and/or " * 99, "and/or " * 99),
])  # fmt: skip
def test_only_folders_of_this_machine_are_left_out(value, shown):
    assert without_folders({"a": [value, 1]}) == {"a": [shown, 1]}


def test_an_export_holds_what_others_need_and_no_more(shared_model, tmp_path, demo):
    folder = tmp_path / "for-others"
    assert main(["export", "--model", shared_model, "--out", str(folder)]) == 0
    names = {path.name for path in folder.iterdir()}
    assert names >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", portable.file_of("spikebert")}
    assert not names & {"run.json", "result.json", "history.json", "test_reads.jsonl", "alignment.safetensors"}
    texts = demo.splits["test"].texts[:20]
    mine, theirs = (logits_of(load_classifier(str(f)), load_tokenizer(str(f)), texts) for f in (shared_model, folder))
    assert np.array_equal(mine, theirs)


@pytest.mark.parametrize(("argv", "expected"), [
    (("export", "--model", "{model}", "--out", "{model}"), "not empty"),
    (("export", "--model", "{tmp}/nowhere", "--out", "{tmp}/x"), "nowhere"),
    (("push", "--model", "{model}", "--repo", "nobody"), "expected owner/name"),
    (("push", "--model", "{model}", "--repo", "some body/na me"), "some body/na me"),
])  # fmt: skip
def test_what_cannot_be_shared_is_one_line(argv, expected, shared_model, tmp_path, capsys):
    capsys.readouterr()
    assert main([part.format(model=shared_model, tmp=tmp_path) for part in argv]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


class FakeHub:
    """HfApi at its boundary: what was asked of it."""

    asked: list[tuple] = []
    error: Exception | None = None

    def __init__(self, **kwargs):
        pass

    def create_repo(self, repo: str, **kwargs) -> str:
        if self.error:
            raise self.error
        self.asked.append((repo, kwargs))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.asked.append((repo_id, {path.name for path in Path(folder_path).iterdir()}))


def test_push_makes_the_repository_and_uploads_the_export(shared_model, monkeypatch):
    monkeypatch.setattr("spiketext.sharing.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "asked", [])
    assert push(shared_model, "somebody/reviews", dry_run=True)["url"] is None
    assert FakeHub.asked == []
    found = push(shared_model, "somebody/reviews", private=True)
    assert found["url"] == "https://huggingface.co/somebody/reviews"
    made, uploaded = FakeHub.asked
    assert made == ("somebody/reviews", {"private": True, "exist_ok": True})
    assert (
        uploaded[0] == "somebody/reviews"
        and {portable.file_of("spikebert"), "README.md", "model.safetensors"} <= uploaded[1]
    )


def test_what_the_hub_refuses_is_one_line(shared_model, monkeypatch):
    monkeypatch.setattr("spiketext.sharing.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "error", OSError("401 Client Error.\n\nInvalid username or password."))
    with pytest.raises(ValueError, match=r"push to a/b: 401 Client Error\. Invalid username.*hf auth login") as caught:
        push(shared_model, "a/b")
    assert "\n" not in str(caught.value)


def test_a_dense_teacher_is_shared_without_a_modelling_file(tiny_teacher, tmp_path):
    assert not [name for name in export(tiny_teacher, str(tmp_path / "dense"))["files"] if name.endswith(".py")]
