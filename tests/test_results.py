"""Rows are compared text by text, scales stay apart, and energy tables are made from the models of other tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spiketext import experiments, published, reproduce, results
from spiketext.cli import main
from spiketext.energy import reference
from spiketext.significance import packed, packed_values, paired


def cell(row: str, correct: list[np.ndarray], **changes) -> dict:
    values = [100 * float(one.mean()) for one in correct]
    return {"row": row, "column": "d", "metric": "accuracy", "unit": "%", "values": values, "split": "test",
            "seeds": list(range(len(correct))), "data_hash": "h", "status": "done", "paper": None, "wall_s": values,
            "correct": [packed(one) for one in correct], "texts": len(correct[0])} | changes  # fmt: skip


@pytest.fixture
def answers() -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [draw.random(501) < share for share in (0.85, 0.84, 0.80, 0.78)]


def test_rows_are_compared_on_the_command_line(answers, tmp_path, capsys):
    rows = [cell("SpikeBERT (both)", answers[:1]), cell("teacher", answers[2:3])]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "t.json").write_text(json.dumps({"name": "t", "cells": rows}))
    call = ["reproduce", "--folder", str(tmp_path), "compare"]
    assert main([*call, "t:SpikeBERT", "t:teacher", "--json"]) == 0
    [line] = json.loads(capsys.readouterr().out)
    assert line["difference"] == pytest.approx(line["first %"] - line["second %"])
    for wrong, message in (
        ("t:nobody", "SpikeBERT (both); teacher"),
        ("u:x", "run spiketext reproduce u"),
        ("t", "RESULT:ROW"),
    ):
        assert main([*call, "t:teacher", wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_rows_of_accuracies_and_of_f1_stand_in_one_comparison(answers, tmp_path, capsys):
    gold, rows = answers[0].astype(float), []
    for name, right in (("student", answers[1]), ("teacher", answers[2])):
        held = {"answers": [packed_values(right)], "gold": packed_values(gold)}
        rows += [cell(name, [right]), cell(name, [right], metric="f1", column="pairs", **held)]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "t.json").write_text(json.dumps({"name": "t", "cells": rows}))
    assert main(["reproduce", "--folder", str(tmp_path), "compare", "t:student", "t:teacher"]) == 0
    head, accuracy, f1, _ = capsys.readouterr().out.strip().splitlines()
    place = head.split().index("first_right") - len(head.split())
    assert accuracy.split()[place].isdigit() and f1.split()[place] == "-" and "pairs" in f1


def test_the_table_shows_the_gap_to_the_teacher(answers):
    rows = [cell("teacher", answers[:1]), cell("student", answers[2:3])]
    shown = results.table({"name": "t", "scale": "s", "against": "teacher", "cells": rows})
    found = paired(rows[1], rows[0])
    assert (
        "gap, points" in shown and f"{found['difference']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})" in shown
    )


def test_the_seconds_of_a_training_say_what_it_ran_on(answers):
    ran = [{"gpu": "H100", "precision": "float32"}, {"gpu": None, "precision": "bf16"}, {"gpu": None}]
    row = cell("student", answers[:3], wall_s=[1, 2, 3], gpus=[results.computed_by(one) for one in ran])
    assert "2 (CPU, CPU in bf16, H100)" in results.table({"name": "t", "scale": "s", "cells": [row]})


def test_published_energies_are_recounted_on_the_macs_of_bert_base():
    assert sum(part[2] for part in published.macs(**published.SIZE)) == reference("bert-base", 256)["MACs"]
    for gsop, _ in published.TABLE2.values():
        found = published.recount(gsop, **published.SIZE)
        assert gsop < found["additions"] and found["counted"] < found["multiplied"]
        steps, rate = published.SIZE["steps"], found["rate"]
        shares = sum(macs * (1 - (1 - rate) ** n) for _, n, macs in published.macs(**published.SIZE))
        assert steps * 1e-9 * shares == pytest.approx(gsop, rel=1e-6)
    with pytest.raises(ValueError, match="of full rate"):
        published.recount(1e6, **published.SIZE)


HEAD = 'title = "t"\nscale = "s"\ndata = "demo"\nseeds = [0]\n'
ROW = '[[rows]]\nrow = "r"\nkind = "train"\nrun = "r"\ncost_s = [1, 2]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 1 2", "not TOML"),
        (HEAD.replace("title", "titel"), "unknown key 'titel'"),
        (HEAD.replace('data = "demo"\n', "") + ROW, "no data"),
        (HEAD + ROW.replace("cost_s", "cost"), "unknown key 'cost'"),
        (HEAD + ROW + "[rows.grid]\ntime_step = [1, 2]\n", "unknown key 'time_step'"),
        (HEAD + ROW.replace("train", "dance"), "expected tfidf"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(text, message, tmp_path):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        experiments.read(tmp_path, "x")


def test_of_scales_put_together_those_with_a_result_are_listed(tmp_path):
    scales = "[scales.big]\ncost = 10\n[scales.long]\ncost = 2\n"
    (tmp_path / "x.toml").write_text(HEAD + ROW.replace("[1, 2]", "1") + scales)
    (tmp_path / "results").mkdir()
    for name in ("x-big+long", "x-other-big+long"):  # the second is of an experiment x-other
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps({"name": "x", "scale": "s", "cells": []}))
    found = [(row["scale"], row["cost_s"]) for row in experiments.listing(tmp_path)]
    assert found == [(None, 1), ("big", 10), ("long", 2), ("big+long", 20)]


def test_a_grid_is_a_row_for_each_value_and_a_scale_changes_its_options(tmp_path):
    scale = "[scales.big]\ncost = 10\n[scales.big.train]\nlayers = 12\n"
    (tmp_path / "x.toml").write_text(HEAD + ROW + "[rows.grid]\ntime_steps = [1, 2]\n" + scale)
    rows = experiments.read(tmp_path, "x")["rows"]
    assert [(row["row"], row["run"], row["options"], row["cost_s"]) for row in rows] == [
        ("r, time_steps 1", "r-time_steps-1", {"time_steps": 1}, 1),
        ("r, time_steps 2", "r-time_steps-2", {"time_steps": 2}, 2),
    ]
    big = experiments.read(tmp_path, "x", "big")["rows"][1]
    assert big["options"] == {"time_steps": 2, "layers": 12} and big["cost_s"] == 20
    assert [(row["scale"], row["cost_s"]) for row in experiments.listing(tmp_path)] == [(None, 3), ("big", 30)]
    with pytest.raises(ValueError, match="no scale 'small'; expected s, big"):
        experiments.read(tmp_path, "x", "small")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x-big.json").write_text(json.dumps({"name": "x", "scale": "s", "cells": []}))
    with pytest.raises(ValueError, match="never mixed"):
        reproduce.reproduce(tmp_path, "x", scale="big")
    with pytest.raises(ValueError, match="no data set 'mr'; it has demo"):
        reproduce.reproduce(tmp_path, "x", only=["mr"])
    with pytest.raises(ValueError, match="no row contains 'T = 9'; it has r, time_steps 1, r, time_steps 2"):
        reproduce.reproduce(tmp_path, "x", rows=["T = 9"])


def test_a_whole_name_is_that_row_alone_and_a_part_is_every_row_that_has_it():
    rows = [{"row": name} for name in ("dense 2x1", "dense 2x128", "spiking")]
    asked = {"": 3, "dense": 2, "dense 2x1": 1, "2x1": 2, "dense 2x1,spik": 2, "x9": 0}
    assert {parts: len(reproduce._chosen(rows, parts.split(",") if parts else [])) for parts in asked} == asked


def test_energy_and_studies_read_the_models_of_another_table(tiny_vectors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("experiments")
    folder.mkdir()
    (folder / "first.toml").write_text(
        HEAD + 'energy = 4\nagainst = "tailored"\n[[rows]]\nrow = "tailored"\nkind = "train"\nrun = "tailored"\n'
        f'[rows.options]\nmodel = "tailored-textcnn"\nvectors = "{tiny_vectors}"\nepochs = 1\nquiet = true\n'
        '[[rows]]\nrow = "converted"\nkind = "convert"\nrun = "converted"\nfrom = "tailored"\n'
        "[rows.options]\ntime_steps = 4\n"
    )
    (folder / "cost.toml").write_text(
        HEAD + "energy = 4\nformulas = true\n"
        '[[rows]]\nrow = "dense"\nkind = "energy"\nfrom = "first:tailored"\n'
        '[[rows]]\nrow = "spiking"\nkind = "energy"\nfrom = "first:converted"\n'
    )
    (folder / "study.toml").write_text(
        HEAD + 'split = "validation"\n[[rows]]\nrow = "read at"\nkind = "evaluate"\nfrom = "first:converted"\n'
        "[rows.grid]\ntime_steps = [2, 4]\n"
    )
    first = reproduce.reproduce(folder, "first")
    assert "gap, points" in first["table"] and "energy mJ" in first["table"]
    cost = reproduce.reproduce(folder, "cost")
    cells = {(cell["row"], cell["metric"]): cell["values"] for cell in cost["json"]["cells"]}
    known = {cell["row"]: cell["values"] for cell in first["json"]["cells"] if cell["metric"] == "accuracy"}
    assert cells["spiking", "accuracy"] == known["converted"]  # out of the result file: test is not read again
    reads = Path("runs/first/converted-0/test_reads.jsonl")
    assert len(reads.read_text().splitlines()) == 1
    assert cells["dense", "additions"] == [0] and cells["spiking", "additions"][0] > 0
    assert cells["dense", "v1"] == cells["dense", "dense of this shape"] and cells["dense", "density"] == [None]
    assert cost["json"]["pictures"] == ["figures/cost-demo.png"] and (folder / "figures/cost-demo.png").stat().st_size
    assert "| sst2 | 27.46 |" in cost["table"]
    part = reproduce.reproduce(folder, "study", rows=["time_steps 4"])["json"]
    assert {cell["at"]["time_steps"] for cell in part["cells"] if cell["values"]} == {4}
    (folder / "results" / "study.json").write_text(json.dumps(part | {"pictures": []}))  # killed before it drew
    (folder / "figures/study-demo.png").unlink()
    assert reproduce.reproduce(folder, "study", rows=["4"])["json"]["pictures"] == part["pictures"] != []
    study = reproduce.reproduce(folder, "study")["json"]
    assert {cell["at"]["time_steps"] for cell in study["cells"]} == {2, 4} and (
        folder / "figures/study-demo.png"
    ).exists()
    assert all(cell["test_reads"] == 0 for cell in study["cells"]) and len(reads.read_text().splitlines()) == 1
    assert reproduce.reproduce(folder, "study")["json"]["cells"] == study["cells"]
