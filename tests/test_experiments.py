"""Every experiment parses, and result files have the shape that readers rely on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spiketext import reproduce

FOLDER = Path(__file__).parent.parent / "experiments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
RESULTS = sorted((FOLDER / "results").glob("*.json"))
CELL = {"row", "column", "metric", "unit", "values", "seeds", "split", "data_hash", "config", "wall_s", "test_reads",
        "status", "paper"}  # fmt: skip


def test_there_are_experiments():
    assert {"sst2", "mr", "subj"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_holds_known_keys_only(name):
    assert reproduce.read(FOLDER, name)["name"] == name


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_file_says_what_it_must(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"name", "scale", "command", "versions", "machine", "cells"} <= set(result)
    for cell in result["cells"]:
        assert set(cell) >= CELL
        assert len(cell["values"]) == len(cell["seeds"]) == len(cell["wall_s"])
        assert (cell["status"] == "empty") == (not cell["values"])
        assert ("cost_s" in cell) == (cell["status"] == "empty")
        assert (FOLDER.parent / cell["config"]).exists()


def test_the_page_is_made_from_the_result_files():
    assert (FOLDER / "RESULTS.md").read_text(encoding="utf-8") == reproduce.results_page(FOLDER)


def test_an_unknown_experiment_names_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"known are .*sst2"):
        reproduce.read(FOLDER, "sst9")


def test_an_unknown_key_is_named(tmp_path):
    head = 'title="x"\nscale="s"\ndata="demo"\nseeds=[0]\n'
    row = '[[rows]]\nrow="r"\nkind="teacher"\nrun="t"\n[rows.options]\nlearning_rat=1\n'
    (tmp_path / "x.toml").write_text(head + row)
    with pytest.raises(ValueError, match="unknown key 'learning_rat' for TeacherOptions"):
        reproduce.read(tmp_path, "x")
