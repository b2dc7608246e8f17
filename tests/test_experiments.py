"""Every experiment parses, and result files have the shape that readers rely on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from spiketext import experiments, ledger, reproduce, results
from spiketext.processes import side_by_side

FOLDER = Path(__file__).parent.parent / "experiments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
SCALES = {name: (None, *experiments.read(FOLDER, name).get("scales", {})) for name in NAMES}
RESULTS = sorted((FOLDER / "results").glob("*.json"))
CELL = {"row", "column", "metric", "unit", "values", "seeds", "split", "data_hash", "config", "wall_s", "test_reads",
        "status", "paper"}  # fmt: skip


def test_there_are_experiments():
    assert {"sst2", "mr", "subj"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_holds_known_keys_only(name):
    assert experiments.read(FOLDER, name)["name"] == name


@pytest.mark.parametrize(("name", "scale"), [(name, at) for name in NAMES for at in SCALES[name]])
def test_the_rows_that_rows_start_from_exist(name, scale):
    spec = experiments.read(FOLDER, name, scale)
    names = {row["row"] for row in spec["rows"]}
    assert len(names) == len(spec["rows"]) and experiments.against(spec) in {None, *names}
    for row in spec["rows"]:
        for data in experiments.sets_of(spec) if "from" in row else []:
            there, other = experiments.source_of(FOLDER, spec, row, data)
            assert data in experiments.sets_of(there) and other["kind"] not in ("evaluate", "energy", "attack")
            assert all(
                other["at"][key] == value for key, value in row.get("at", {}).items() if key in other.get("at", {})
            )
        assert row["kind"] != "attack" or row["options"]["recipe"].endswith("]")  # says what its words come from
        for data in experiments.sets_of(spec):
            if row["kind"] == "distill":
                assert experiments.teacher_of(FOLDER, spec, row, data)[1]["kind"] == "teacher"
            if student := experiments.of_set(row.get("student"), data):
                assert {"pretrain", "mlm"} & set(experiments.unlabelled_of(FOLDER, student, scale))
            if encoder := experiments.encoder_of(row, data):
                assert "mlm" in experiments.unlabelled_of(FOLDER, encoder[1], scale)
            alone = {"from", "student", "encoder", "vectors"}.isdisjoint(row) and row["kind"] != "distill"
            below = experiments.rests_on(FOLDER, spec, row, data)
            assert below is None or not alone
    if "encoder" in spec and "teacher" not in spec["pretrain"]:
        assert "mlm" in experiments.read(FOLDER, spec["encoder"], scale)


@pytest.mark.parametrize("name", [name for name in NAMES if "12x768" in SCALES[name]])
def test_what_is_trained_at_a_scale_has_its_size(name):
    """A student is as large as its teacher if it asks for no size of its own; a network without one has to ask."""
    for row in experiments.read(FOLDER, name, "12x768")["rows"]:
        asked = row.get("options", {})
        if row["kind"] in ("train", "distill"):
            assert (asked.get("layers", 12), asked.get("width", 768)) == (12, 768)
        if row["kind"] == "train":
            assert {"layers", "width", "tokenizer"} <= set(asked)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_file_says_what_it_must(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"name", "scale", "command"} <= set(result)
    if "network" in result:
        assert {"versions", "machine"} <= set(result) and {"tokens", "epochs", "wall_s"} <= set(result["network"])
        return
    assert all(set(each) == {"versions", "machine"} for each in result["machines"])
    words = iter(result["command"].split())
    options = {word: next(words) for word in words if word.startswith("--")}
    own = experiments.read(FOLDER, result["name"], options.get("--scale"))["seeds"]
    makes = range(int(options["--seeds"])) if "--seeds" in options else own
    assert {seed for cell in result["cells"] for seed in cell["seeds"]} <= set(makes)
    for cell in result["cells"]:
        assert set(cell) >= CELL
        assert len(cell["values"]) == len(cell["seeds"]) == len(cell["wall_s"])
        assert all(0 <= each < len(result["machines"]) for each in cell.get("machines", []))
        assert len(cell.get("machines", [])) == len(cell["seeds"])
        assert (cell["status"] == "empty") == (not cell["values"])
        assert ("cost_s" in cell) == (cell["status"] == "empty")
        assert (FOLDER.parent / cell["config"]).exists()


def test_the_page_is_made_from_the_result_files():
    assert (FOLDER / "RESULTS.md").read_text(encoding="utf-8") == results.results_page(FOLDER)


def test_a_network_made_in_no_time_by_the_clock_has_a_line_without_a_speed(tmp_path):
    (tmp_path / "results").mkdir()
    made = {"tokens": 900, "epochs": 1.0, "steps": 2, "wall_s": 0.0}
    (tmp_path / "results/quick.json").write_text(json.dumps({"command": "spiketext quick", "network": made}))
    assert "| `spiketext quick` | 900 | 1 | 2 |  |  | 0 (CPU) |  |" in results.results_page(tmp_path)


def test_an_unknown_experiment_names_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"known are .*sst2"):
        experiments.read(FOLDER, "sst9")


def test_an_unknown_key_is_named(tmp_path):
    head = 'title="x"\nscale="s"\ndata="demo"\nseeds=[0]\n'
    row = '[[rows]]\nrow="r"\nkind="teacher"\nrun="t"\n[rows.options]\nlearning_rat=1\n'
    (tmp_path / "x.toml").write_text(head + row)
    with pytest.raises(ValueError, match="unknown key 'learning_rat' for teacher"):
        experiments.read(tmp_path, "x")


def test_scales_come_on_top_of_each_other(tmp_path):
    """A row's student of half the width, at a scale of less text, has half the width and reads less text."""
    Path(tmp_path / "s.toml").write_text(
        'title="x"\nscale="full"\ncost_s=1000\n[pretrain]\ntokens=90\nwidth=8\n[scales.narrow]\ncost=0.5\n'
        "[scales.narrow.pretrain]\nwidth=4\n[scales.short]\ncost=0.1\n[scales.short.pretrain]\ntokens=9\n"
    )

    def asked(reference: str, scale: str | None) -> tuple:
        spec = experiments.unlabelled_of(tmp_path, reference, scale)
        return spec["at"], spec["pretrain"]["width"], spec["pretrain"]["tokens"], spec["cost_s"]

    assert asked("s", None) == (None, 8, 90, 1000)
    assert asked("s:narrow", None) == ("narrow", 4, 90, 500)
    assert asked("s", "short") == asked("s:short", "short") == ("short", 8, 9, 100)
    assert asked("s:narrow", "short") == asked("s:narrow+short", None) == ("narrow+short", 4, 9, 50)
    assert asked("s:short+narrow", "short") == ("short+narrow", 4, 9, 50)  # what the row names, it names once
    for reference in ("s:wide", "s:narrow+wide"):
        with pytest.raises(ValueError, match="no scale 'wide'; expected full, narrow, short"):
            asked(reference, "short")


def test_what_a_scale_says_of_a_row_wins_over_what_it_says_of_its_kind(tmp_path):
    head = 'title="x"\nscale="full"\ndata="demo"\nseeds=[0]\n'
    small = '[scales.small.distill]\nepochs=1\ncopies=3\n[scales.small.rows."plain"]\nepochs=4\ncopies=0\n'
    rows = "".join(f'[[rows]]\nrow="{name}"\nkind="distill"\noptions.epochs=2\n' for name in ("whole", "plain"))
    (tmp_path / "x.toml").write_text(head + small + rows)

    def asked(scale: str | None) -> list[dict]:
        return [row["options"] for row in experiments.read(tmp_path, "x", scale)["rows"]]

    assert asked(None) == [{"epochs": 2}, {"epochs": 2}]
    assert asked("small") == [{"epochs": 1, "copies": 3}, {"epochs": 4, "copies": 0}]
    (tmp_path / "x.toml").write_text(head + small.replace("plain", "plane") + rows)
    with pytest.raises(ValueError, match="unknown key 'plane' for rows of scale small; expected some of plain, whole"):
        experiments.read(tmp_path, "x", "small")


@pytest.fixture
def own(demo, tmp_path) -> Path:
    """A small set of a user: as many reviews as the shipped ones have for validation."""
    part = demo.splits["validation"]
    lines = [f"{text}\t{label}" for text, label in zip(part.texts, part.labels, strict=True)]
    (tmp_path / "own.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "own.tsv"


def test_an_experiment_runs_continues_and_is_told(own, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(["a plain sentence about nothing at all"] * 40), encoding="utf-8")
    small = "epochs = 1\nquiet = true\nmax_length = 16\nthreads = 1\n"
    Path("experiments").mkdir()
    Path("experiments/first.toml").write_text(
        f'title = "stage 1"\nscale = "2x32"\n[pretrain]\nteacher = "{tiny_teacher}"\ncorpus = "{corpus}"\n'
        f"tokens = 300\nbatch_size = 16\n{small}[scales.narrow.pretrain]\nwidth = 16\n"
    )
    teacher_row = '[[rows]]\nrow = "teacher"\nkind = "teacher"\nrun = "teacher"\n[rows.options]\n'
    both = (
        '[[rows]]\nrow = "both"\nkind = "distill"\nrun = "both"\nstudent = "first:narrow"\npaper = 85.39\ncost_s = 9\n'
    )
    rows = "\n".join(
        [
            '[[rows]]\nrow = "TF-IDF"\nkind = "tfidf"\ncost_s = 1',
            f'{teacher_row}model = "{tiny_teacher}"\n{small}',
            f"{both}[rows.options]\ncopies = 0\n{small}",
        ]
    )
    Path("experiments/tiny.toml").write_text(f'title = "t"\nscale = "2x32"\ndata = "{own}"\nseeds = [0]\n{rows}\n')
    folder = Path("experiments")
    assert {(row["name"], row["scale"], row["state"]) for row in experiments.listing(folder)} == {
        ("first", None, "not run"),
        ("first", "narrow", "not run"),
        ("tiny", None, "not run"),
    }
    done = reproduce.reproduce(folder, "tiny")
    saved = json.loads(Path("experiments/results/tiny.json").read_text(encoding="utf-8"))
    assert saved == done["json"]
    cells = {(cell["row"], cell["metric"]): cell for cell in saved["cells"]}
    assert set(cells) == {
        ("TF-IDF", "accuracy"),
        ("teacher", "accuracy"),
        ("both", "accuracy"),
        ("both", "firing_rate"),
    }
    assert all(cell["status"] == "done" and len(cell["values"]) == 1 for cell in cells.values())
    assert cells["both", "accuracy"]["paper"] == 85.39 and 0 < cells["both", "firing_rate"]["values"][0] < 60
    assert cells["both", "accuracy"]["test_reads"] == 1
    assert "| both |" in Path("experiments/RESULTS.md").read_text(encoding="utf-8")
    assert json.loads(Path("runs/tiny/both-0/config.json").read_text())["hidden_size"] == 16
    Path("experiments/look.toml").write_text(
        f'title = "l"\nscale = "1x16"\ndata = "{own}"\nseeds = [0]\nenergy = 4\nmaps = 2\n'
        '[[rows]]\nrow = "teacher"\nkind = "evaluate"\nfrom = "tiny:teacher"\n'
        '[[rows]]\nrow = "both"\nkind = "evaluate"\nfrom = "tiny:both"\n'
    )
    look = reproduce.reproduce(folder, "look")["json"]
    slug = str(own).replace("/", "-")
    names = [slug, *(f"{slug}-{text}-{row}" for row in ("teacher", "both") for text in (1, 2))]
    assert look["pictures"] == [f"figures/look-{name}.png" for name in names]
    assert all((folder / path).stat().st_size for path in look["pictures"])
    found = {(cell["row"], cell["metric"]): cell for cell in look["cells"]}
    for key in cells.keys() & found.keys():  # out of the result file: test is not read again
        assert found[key]["values"] == cells[key]["values"] and found[key].get("correct") == cells[key].get("correct")
    assert found["both", "energy"]["values"][0] > 0 and ("teacher", "firing_rate") not in found
    assert len(Path("runs/tiny/both-0/test_reads.jsonl").read_text().splitlines()) == 1
    Path("experiments/known.toml").write_text(
        f'title = "k"\nscale = "1x16"\ndata = "{own}"\nseeds = [0]\n'
        '[[rows]]\nrow = "both"\nkind = "evaluate"\nfrom = "tiny:both"\n'
    )
    Path("runs").rename("elsewhere")  # what is known needs no model
    for cell in reproduce.reproduce(folder, "known")["json"]["cells"]:
        assert all(cell[name] == cells["both", cell["metric"]][name] for name in ("values", "wall_s", "test_reads"))
    assert not Path("runs").exists()
    Path("elsewhere").rename("runs")
    shutil.rmtree("experiments/results/")
    Path("experiments/look.toml").unlink()
    Path("experiments/known.toml").unlink()
    results.save(folder, saved)
    again = reproduce.reproduce(folder, "tiny")
    assert again["json"]["cells"] == saved["cells"]  # nothing was run or read again
    for cell in saved["cells"]:  # the models are gone and a row is still to be run: its teacher is made again
        if cell["row"] == "both":
            cell |= {"values": [], "seeds": [], "wall_s": [], "test_reads": 0, "status": "empty", "cost_s": 9}
    Path("experiments/results/tiny.json").write_text(json.dumps(saved), encoding="utf-8")
    shutil.rmtree("runs")
    mended = reproduce.reproduce(folder, "tiny")["json"]["cells"]
    assert all(cell["status"] == "done" and cell["test_reads"] <= 1 for cell in mended)
    assert Path("runs/tiny/teacher-0").exists() and not Path("runs/tiny/teacher-0/test_reads.jsonl").exists()
    more = reproduce.reproduce(folder, "tiny", seeds=2)["json"]["cells"]
    assert all(cell["seeds"] == [0, 1] for cell in more)
    again = reproduce.reproduce(folder, "tiny", rows=["teacher"])["json"]
    assert again["command"] == "spiketext reproduce tiny --seeds 2"  # the command that makes what is there
    assert [row["state"] for row in experiments.listing(folder)] == ["not run", "not run", "3/3 cells, 3/3 runs"]


def test_a_row_that_asks_for_something_else_is_run_again(own, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("experiments").mkdir()
    file, folder = Path("experiments/e.toml"), Path("experiments")
    row = (
        f'title = "t"\nscale = "s"\ndata = "{own}"\nseeds = [0]\n[[rows]]\nrow = "direct"\nkind = "train"\n'
        'run = "direct-WIDTH"\n[rows.options]\nwidth = WIDTH\nlayers = 1\nheads = 2\nepochs = 0.1\nquiet = true\n'
        f'tokenizer = "{tiny_teacher}"\n'
    )
    file.write_text(row.replace("WIDTH", "8"))
    first = reproduce.reproduce(folder, "e")["json"]
    assert first["cells"][0]["asked"]["options"]["width"] == 8 and first["cells"][0]["machines"] == [0]
    assert set(first["machines"][0]) == {"machine", "versions"}
    file.write_text(row.replace("WIDTH", "8").replace('"train"', '"train"\npaper = 90.0\ncost_s = 7'))
    assert [cell["state"] for cell in experiments.listing(folder)[0]["cells"]] == ["done"]  # no number hangs on it
    changed = [cell | {"paper": 90.0 if cell["metric"] == "accuracy" else None} for cell in first["cells"]]
    assert reproduce.reproduce(folder, "e")["json"]["cells"] == changed
    file.write_text(row.replace("WIDTH", "16"))
    assert [cell["state"] for cell in experiments.listing(folder)[0]["cells"]] == ["empty"]
    again = reproduce.reproduce(folder, "e")["json"]["cells"]
    assert (
        again[0]["asked"]["options"]["width"] == 16 and again[0]["values"] != [] and Path("runs/e/direct-16-0").exists()
    )


def test_two_processes_that_fill_one_result_lose_nothing(own, tmp_path, monkeypatch):
    """While a row is computed, another process fills the other row; then a metric is lost and only it is open."""
    (tmp_path / "e.toml").write_text(
        f'title = "t"\nscale = "s"\ndata = "{own}"\nseeds = [0, 1]\n[[rows]]\nrow = "slow"\nkind = "train"\n'
        'run = "slow"\n[[rows]]\nrow = "quick"\nkind = "train"\nrun = "quick"\n'
    )
    rows = []

    def computed(folder, spec, data, row, seed, *rest):
        rows.append((row["row"], seed))
        if row["row"] == "slow":
            reproduce.reproduce(tmp_path, "e", rows=["quick"])
        return {"accuracy": 80.0 + seed, "firing_rate": 9.0, "wall_s": float(len(rows))}

    monkeypatch.setattr(reproduce, "_run_row", computed)
    reproduce.reproduce(tmp_path, "e")
    saved = results.load(tmp_path, "e")
    assert [cell["seeds"] for cell in saved["cells"]] == 4 * [[0, 1]]
    assert rows == [("slow", 0), ("quick", 0), ("quick", 1), ("slow", 1)]
    [rate] = [cell for cell in saved["cells"] if (cell["row"], cell["metric"]) == ("quick", "firing_rate")]
    for name in ("seeds", "values", "wall_s", "machines"):
        del rate[name][0]
    results.save(tmp_path, saved)
    assert "9.00 (seeds 1)" in results.table(saved)
    assert [cell["open"] for cell in experiments.listing(tmp_path)[0]["cells"]] == [[], [0]]
    del rows[:]
    again = reproduce.reproduce(tmp_path, "e")["json"]["cells"]
    assert rows == [("quick", 0)] and [sorted(cell["seeds"]) for cell in again] == 4 * [[0, 1]]
    assert again[2]["values"] == [81.0, 80.0] and len(again[2]["machines"]) == 2  # measured again, not twice


def test_a_row_that_several_results_read_has_one_value():
    """Two results that read one row must have read it of one model: a seed's value is the same in both."""
    found: dict[tuple, dict[str, float]] = {}
    for path in RESULTS:
        result = json.loads(path.read_text())
        name = path.stem
        if "cells" not in result:
            continue
        scale = None if result["scale"] == experiments.read(FOLDER, result["name"])["scale"] else result["scale"]
        spec = experiments.read(FOLDER, result["name"], scale)
        rows = {row["row"]: row for row in spec["rows"]}
        for cell in result["cells"]:
            row = rows.get(cell["row"])
            if (
                row is None
                or row["kind"] != "evaluate"
                or row.get("options")
                or cell["metric"] not in ("accuracy", "f1")
            ):
                continue
            there, other = experiments.source_of(FOLDER, spec, row, cell["column"])
            for seed, value in zip(cell["seeds"], cell["values"], strict=True):
                where = (there["name"], there["at"], other["row"], cell["column"], cell["split"], cell["metric"], seed)
                found.setdefault(where, {})[name] = value
    both = {where: values for where, values in found.items() if len(values) > 1}
    assert both and {where: values for where, values in both.items() if len(set(values.values())) > 1} == {}


def test_a_cell_is_open_again_when_what_it_rests_on_asks_for_something_else(tmp_path):
    head, row = 'title = "t"\nscale = "s"\n', '[[rows]]\nrow = "{0}"\nkind = "{0}"\nrun = "{0}"\n'
    sets = 'data = "sst2"\nseeds = [0]\n'
    files = {
        "encoder": head + '[mlm]\nvocab = "v"\ncorpus = "c"\ntokens = 900\n',
        "first": head + 'encoder = "encoder"\n[pretrain]\ncorpus = "c"\n',
        "e": head + sets + row.format("tfidf") + row.format("teacher") + row.format("distill") + 'student = "first"\n',
        "look": head + sets + '[[rows]]\nrow = "read"\nkind = "evaluate"\nfrom = "e:distill"\n',
    }

    def write(name: str, old: str = "", new: str = "") -> None:
        (tmp_path / f"{name}.toml").write_text(files[name].replace(old, new) if old else files[name])

    for name in files:
        write(name)
    for name in ("encoder", "first"):
        made = {"tokens": 900, "wall_s": 1.0, "epochs": 1.0}
        ledger.network(tmp_path, experiments.read(tmp_path, name), made)
    for name in ("e", "look"):
        result = ledger.plan(tmp_path, experiments.read(tmp_path, name), None, {}, None)
        for cell in result["cells"]:
            ledger.fill(result, cell, 0, {"accuracy": 80.0, "firing_rate": 9.0}, 1.0)
        results.save(tmp_path, result)

    def states() -> dict[str, list[str]]:
        every = experiments.listing(tmp_path)
        return {found["name"]: [cell["state"] for cell in found["cells"]] or [found["state"]] for found in every}

    whole = {"encoder": ["made"], "first": ["made"], "e": ["done"] * 3, "look": ["done"]}
    assert states() == whole
    write("first", '"t"', '"another title"')
    assert states() == whole  # no number hangs on it
    write("encoder", "900", "901")
    assert states() == {"encoder": ["not run"], "first": ["not run"], "e": ["done", "done", "empty"], "look": ["empty"]}
    write("encoder")
    write("e", 'kind = "teacher"', 'kind = "teacher"\noptions.epochs = 2')
    assert states() == whole | {"e": ["done", "empty", "empty"], "look": ["empty"]}


def test_models_trained_side_by_side_are_those_trained_one_after_the_other(own, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "epochs = 1\nquiet = true\nmax_length = 16\nthreads = 1\n"
    row = '[[rows]]\nrow = "{0}"\nkind = "{0}"\nrun = "{0}"\n[rows.options]\n{1}\n' + small
    rows = row.format("teacher", f'model = "{tiny_teacher}"') + row.format("distill", "copies = 0")
    folder = Path("experiments")
    folder.mkdir()
    (folder / "tiny.toml").write_text(f'title = "t"\nscale = "s"\ndata = "{own}"\nseeds = [0, 1]\n{rows}\n')
    heard: list[str] = []
    both = reproduce.reproduce(folder, "tiny", say=heard.append, jobs=2)["json"]["cells"]
    assert heard[:5] == [
        "4 to train or to find, 2 at a time",
        *(f"{n} of 4 trained" for n in (1, 2, 3, 4)),
    ]
    told = {path: path.read_bytes() for path in sorted(Path("runs").rglob("model.safetensors"))}
    assert len(told) == 4
    shutil.rmtree("runs")
    shutil.rmtree(folder / "results")
    single = reproduce.reproduce(folder, "tiny")["json"]["cells"]
    assert [cell["values"] for cell in both] == [cell["values"] for cell in single]
    assert all(path.read_bytes() == weights for path, weights in told.items())
    with pytest.raises(ValueError, match="invalid literal"):  # out of another process
        side_by_side(int, [("1",), ("one",)], 2, heard.append)


def test_a_textcnn_is_trained_converted_and_fine_tuned_on_two_sets(own, tiny_vectors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "epochs = 1\nquiet = true\nmax_length = 16\nthreads = 1\n"
    rows = "\n".join([
        '[[rows]]\nrow = "tailored"\nkind = "train"\nrun = "tailored"\ncost_s = { demo = 3 }\n[rows.options]\n'
        f'model = "tailored-textcnn"\nvectors = "{tiny_vectors}"\n{small}',
        '[[rows]]\nrow = "converted"\nkind = "convert"\nfrom = "tailored"\nrun = "converted"\n[rows.options]\n'
        'normalize = "data"\ntime_steps = 4',
        '[[rows]]\nrow = "fine-tuned"\nkind = "train"\nfrom = "converted"\nrun = "tuned"\n'
        f'paper = {{ demo = 75.45 }}\n[rows.options]\nmodel = "spiking-textcnn"\n{small}',
    ])  # fmt: skip
    folder = Path("experiments")
    folder.mkdir()
    (folder / "tiny.toml").write_text(f'title = "t"\nscale = "s"\ndata = ["demo", "{own}"]\nseeds = [0]\n{rows}\n')
    done = reproduce.reproduce(folder, "tiny")
    cells = {(cell["column"], cell["row"], cell["metric"]): cell for cell in done["json"]["cells"]}
    spiking = [(row, metric) for row in ("converted", "fine-tuned") for metric in ("accuracy", "firing_rate")]
    expected = {(data, *cell) for data in ("demo", str(own)) for cell in [("tailored", "accuracy"), *spiking]}
    assert set(cells) == expected
    assert all(cell["status"] == "done" and cell["test_reads"] == 1 for cell in cells.values())
    assert cells["demo", "fine-tuned", "accuracy"]["paper"] == 75.45
    assert cells[str(own), "fine-tuned", "accuracy"]["paper"] is None
    assert done["table"].count("| fine-tuned |") == 2 and "test split of demo" in done["table"]
    assert reproduce.reproduce(folder, "tiny")["json"]["cells"] == done["json"]["cells"]
    row = '[[rows]]\nrow = "tuned"\nkind = "evaluate"\nfrom = "tiny:tuned"\n[rows.grid]\nepoch = [{0}]\n'
    head = 'title = "t"\nscale = "s"\ndata = ["demo"]\nseeds = [0]\nsplit = "validation"\n'
    (folder / "curve.toml").write_text(head + row.format(1))
    [read] = reproduce.reproduce(folder, "curve")["json"]["cells"]
    known = json.loads(Path("runs/tiny/demo/tuned-0/result.json").read_text())["validation"]["accuracy"]
    assert read["values"] == [round(100 * known, 3)] and read["split"] == "validation" and read["test_reads"] == 0
    assert read["texts"] == 140 and Path("experiments/figures/curve-demo.png").stat().st_size
    (folder / "beyond.toml").write_text(head + row.format(2))
    with pytest.raises(ValueError, match=r"tuned-0: no validation scores at the end of epoch 2; training reads"):
        reproduce.reproduce(folder, "beyond")


def test_a_language_without_a_teacher_gets_its_encoder_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    things, words = (
        ("酒店", "房间", "早餐", "服务", "电影", "味道", "价格", "老板"),
        ("好", "大", "快", "差", "慢", "小"),
    )
    texts = [(f"这家的{a}和{b}都很{w}", int(w in words[:3])) for a in things for b in things if a < b for w in words]
    Path("own.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in texts), "utf-8")
    Path("texts.txt").write_text("\n".join(f"{text}。" for text, _ in texts), "utf-8")
    letters = sorted({letter for text, _ in texts for letter in text})
    Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]), "utf-8")
    small = "epochs = 1\nquiet = true\nmax_length = 24\nthreads = 1\n"
    unlabelled = f'corpus = "texts.txt"\ntokens = 900\nbatch_size = 32\nevals_per_epoch = 1\n{small}'
    row = '[[rows]]\nrow = "{0}"\nkind = "{0}"\nrun = "{0}"\n{1}\n[rows.options]\n' + small
    files = {
        "first": f'encoder = "encoder"\n[pretrain]\n{unlabelled}',
        "encoder": f'[mlm]\nvocab = "vocab.txt"\nlayers = 1\nwidth = 32\n{unlabelled}',
        "tiny": 'data = "own.tsv"\nseeds = [0]\n' + row.format("teacher", 'encoder = "encoder"')
        + row.format("train", 'encoder = { "own.tsv" = "encoder" }') + "layers = 1\n"
        + row.format("distill", 'student = "first"'),
    }  # fmt: skip
    Path("experiments").mkdir()
    for name, text in files.items():
        Path(f"experiments/{name}.toml").write_text(f'title = "t"\nscale = "s"\n{text}')
    done = reproduce.reproduce(Path("experiments"), "tiny", str(tmp_path))["json"]
    assert all(cell["status"] == "done" for cell in done["cells"])
    told = {
        name: json.loads(Path(f"runs/{name}/result.json").read_text())
        for name in ("encoder", "first", "tiny/distill-0")
    }
    assert told["first"]["initialised_tensors"] == 5 + 4
    assert told["tiny/distill-0"]["part_of_speech"] and told["tiny/distill-0"]["stage1"] == "runs/first"
    sizes = {json.loads(path.read_text())["vocab_size"] for path in Path("runs").rglob("config.json")}
    assert sizes == {5 + len(letters)}
    made = reproduce.reproduce(Path("experiments"), "first", str(tmp_path))
    assert made["json"]["out"] == "runs/first" and "saved in runs/first" in made["table"]
    assert json.loads(Path("experiments/results/first.json").read_text())["network"]["epochs"] == 1.0
    [line] = [x for x in Path("experiments/RESULTS.md").read_text().splitlines() if "`spiketext reproduce first`" in x]
    assert f"| {told['first']['tokens']} | 1 | {told['first']['steps']} |" in line
    with pytest.raises(ValueError, match="makes one network of unlabelled text; leave --data"):
        reproduce.reproduce(Path("experiments"), "first", seeds=2)
