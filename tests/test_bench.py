"""The benchmarks run at a tiny size and write what they promise; nothing here asserts a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from spiketext import bench
from spiketext.cli import build_parser, main
from spiketext.ops import presets
from spiketext.options import BenchOptions

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
NAMES = [entry["name"] for entry in bench.listing(FOLDER)]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """The scripts are a folder beside the package."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def tiny_model(saved) -> str:
    """The folder of a spiking classifier of the tiny teacher's sizes."""
    return saved()


def test_the_names_are_those_of_the_contract():
    assert set(NAMES) == {
        *("linear", "neuron", "step", "step-spikingjelly", "inference", "scale", "roofline", "textcnn-epoch", "codes")
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_writes_whole_rows(name, tiny_model, tiny_teacher, tmp_path, request):
    if name == "linear":
        request.getfixturevalue("compiled")
    options = BenchOptions(scale="tiny", data="demo", model=tiny_model, teacher=tiny_teacher)
    if name == "step":
        options = BenchOptions(scale="tiny")  # the texts and models of a step are random there
    result = bench.bench(FOLDER, name, options, tmp_path)
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert written == json.loads(json.dumps(result["json"]))
    assert {"name", "command", "machine", "versions", "load_before", "rows"} <= set(written)
    assert written["command"].startswith(f"spiketext bench {name} --scale tiny")
    assert {"spikingjelly", "snntorch", "torch"} <= set(written["versions"])
    compared = [row for row in written["rows"] if "against" in row]
    assert all(row["ratio"] >= 0 for row in compared) and any(row["ratio"] > 0 for row in compared)
    assert any("ratio" in row and row.get("seconds") for row in written["rows"])
    for row in written["rows"]:
        assert row.get("seconds") is not None or row.get("note") or row.get("against") or "density" in row
    assert name in result["table"] and "torch" in result["table"]


@pytest.mark.parametrize("settings", [{"preset": "integer"}, {"preset": "signed"}, {"preset": "paper"}])
def test_inference_measures_students_that_cannot_stop_early(settings, saved, tiny_teacher, tmp_path):
    options = BenchOptions(scale="tiny", data="demo", model=saved(**settings), teacher=tiny_teacher, limit=3)
    rows = bench.bench(FOLDER, "inference", options, tmp_path)["json"]["rows"]
    assert any(row.get("network") == "ours, float32" and row["seconds"] for row in rows)
    assert not any("stops at" in str(row.get("network")) for row in rows)


def test_a_benchmark_reads_a_split_and_models_that_are_there(tiny_model, tiny_teacher, tmp_path):
    for settings, said in (({"split": "dev"}, "split: expected one of train, validation, test, got 'dev'"),
                           ({"model": tiny_teacher}, "model: expected the folder of a spikebert, got")):  # fmt: skip
        asked = {"scale": "tiny", "data": "demo", "model": tiny_model, "teacher": tiny_teacher} | settings
        with pytest.raises(ValueError, match=said):
            bench.bench(FOLDER, "inference", BenchOptions(**asked), tmp_path)


def test_an_epoch_has_a_ratio_of_its_own(tmp_path, snntorch):
    rows = bench.bench(FOLDER, "textcnn-epoch", BenchOptions(scale="tiny", data="demo"), tmp_path)["json"]["rows"]
    theirs, ours = (row for row in rows if "epoch_s" in row)
    assert ours["epoch_ratio"] == pytest.approx(ours["epoch_s"] / theirs["epoch_s"], rel=1e-2)


def test_a_run_that_measured_nothing_or_little_replaces_no_result(tmp_path, capsys):
    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    (folder / "nothing.py").write_text('"""Nothing."""\ndef run(options, say):\n    return [dict(seconds=None)]\n')
    kept = folder / "results" / "nothing.json"
    for seconds, scale, out, replaced, said in (
        (1.0, "short", None, False, "nothing was measured"),
        (None, "short", None, True, ""),
        (1.0, "tiny", None, False, "--out FOLDER keeps it"),
        (1.0, "tiny", kept.parent, False, "nothing was measured"),
    ):
        kept.write_text(json.dumps({"rows": [{"seconds": seconds}]}))
        before, told = kept.read_text(), []
        bench.bench(folder, "nothing", BenchOptions(scale=scale), out, told.append)
        assert (kept.read_text() != before) == replaced
        assert len(told) == bool(said) and said in "".join(told)


def test_bf16_has_its_rows_where_there_is_bf16_and_a_reading_of_test_is_logged(
    tiny_model, tiny_teacher, tmp_path, monkeypatch, spikingjelly
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    options = BenchOptions(scale="tiny", data="demo", model=tiny_model, teacher=tiny_teacher, split="test")
    for name in ("step-spikingjelly", "inference"):
        rows = bench.bench(FOLDER, name, options, tmp_path)["json"]["rows"]
        assert any("bf16" in str(row.get("network")) and row["seconds"] for row in rows)
        assert not any(row.get("note") for row in rows)
    assert all((Path(folder) / "test_reads.jsonl").exists() for folder in (tiny_model, tiny_teacher))


@pytest.mark.parametrize("neuron", [presets("spikingjelly", tau=2.0), {}], ids=["binary", "ternary"])
def test_the_spikingjelly_network_is_ours_in_float64(neuron, spikingjelly):
    from benchmarks.networks import batch_of, inputs_of, student
    from benchmarks.plain import PlainSpikeBert, agreement, check

    model = student(2, 32, **neuron)
    batch = batch_of(3, 9)
    batch["attention_mask"][1, 5:] = 0
    found = check(model, inputs_of(batch))
    assert found["spikes_differ"] == 0 and found["logits_differ"] <= 1e-10
    exact = model.double()
    plain = PlainSpikeBert(exact)
    with torch.no_grad():
        plain.blocks[1].q.weight.add_(0.5 * torch.randn(32, 32))
    assert agreement(exact, plain, inputs_of(batch))["spikes_differ"] > 0  # a difference is seen


def test_a_step_changes_and_counts_what_it_says():
    from benchmarks.networks import RATE, Labels, Step, batch_of, rate_of, student

    model = student(1, 32, time_steps=4)
    assert abs(rate_of(model, batch_of(2, 32)) - RATE) < 0.02
    step = Step(Labels(model))
    batch = batch_of(2, 8)
    residual = 4 * 2 * 8 * 32 * 4  # T B L D float32
    assert step.saved_bytes(batch) > 2 * residual
    before = model.classifier.weight.clone()
    step(batch)
    assert not torch.equal(before, model.classifier.weight)
    assert all(parameter.grad is None for parameter in model.parameters())


# --- the method -------------------------------------------------------------------------------------------------------


def test_candidates_take_turns_and_first_calls_do_not_count():
    calls: list[str] = []
    samples = bench.measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warm=2)
    assert "".join(calls) == "ab" * 6
    assert {name: len(seconds) for name, seconds in samples.seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_taken_turn_by_turn():
    samples = bench.Samples({"a": 9.0, "b": 9.0}, {"a": [1.0, 2.0, 30.0], "b": [2.0, 4.0, 10.0]})
    row = samples.row("a", "b", size="x")
    assert row == {"size": "x", "seconds": 2.0, "low": 1.0, "high": 30.0, "first_s": 9.0, "against": "b", "ratio": 0.5,
                   "ratio_low": 0.5, "ratio_high": 3.0}  # fmt: skip


def test_operators_go_to_the_part_they_run_in():
    from types import SimpleNamespace as Event

    from benchmarks.step import part_of

    teacher = Event(name="teacher", cpu_parent=None)
    backward = Event(name="_SpikeLinearBackward", cpu_parent=None)
    neuron = Event(name="_FusedLIFBackward", cpu_parent=None)
    assert part_of(Event(name="aten::mm", cpu_parent=teacher)) == "teacher"
    assert part_of(Event(name="aten::mm", cpu_parent=backward)) == "matrix products"
    assert part_of(Event(name="spiketext::spike_linear_weight_grad", cpu_parent=backward)) == "spike sums"
    assert part_of(Event(name="aten::mul", cpu_parent=neuron)) == "neurons and norms"
    assert part_of(Event(name="aten::copy_", cpu_parent=None)) == "rest"


def test_a_worker_answers_from_its_own_environment_and_says_when_it_died(tmp_path, monkeypatch):
    (tmp_path / "answering.py").write_text(
        "import os\nfrom spiketext.bench import serve\n"
        "def build(settings):\n    print('more noise')\n"
        "    return lambda question: [settings, question, os.environ.get('ONE'), os.environ.get('TWO')]\n"
        "if __name__ == '__main__':\n    serve(build)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TWO", "taken away")
    with bench.Worker("answering", {"a": 1}, {"ONE": "1", "TWO": None}) as worker:
        assert worker.ask("q") == [{"a": 1}, "q", "1", None]
        worker.process.kill()
        with pytest.raises(RuntimeError, match="answering ended"):
            worker.ask("q")


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_list_names_every_benchmark(capsys):
    assert main(["bench", "list", "--folder", str(FOLDER)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)


def test_an_unknown_name_folder_or_scale_is_one_line(capsys, tmp_path, monkeypatch):
    assert main(["bench", "similarity", "--folder", str(tmp_path)]) == 2
    assert main(["bench", "list", "--folder", str(tmp_path)]) == 2
    assert main(["bench", "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("holds no benchmark, expected the repository's benchmarks") == 3
    monkeypatch.setattr(bench, "bench", lambda *_, **__: pytest.fail("the names are checked first"))
    assert main(["bench", "linear", "nothing", "--folder", str(FOLDER)]) == 2
    assert "known are codes, inference, linear" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["bench", "linear", "--folder", str(FOLDER), "--scale", "huge"]) == 2
    assert "expected one of tiny, short, full" in capsys.readouterr().err


def test_every_command_of_the_page_of_benchmarks_parses():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    commands = [line for line in page.splitlines() if line.startswith("spiketext bench")]
    assert len(commands) >= len(NAMES)
    for command in commands:
        assert build_parser().parse_args(command.split()[1:]).command == "bench"


def test_no_benchmark_is_imported_by_the_package():
    assert not any(
        "benchmarks" in line
        for path in (ROOT / "spiketext").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.lstrip().startswith(("import ", "from "))
    )
