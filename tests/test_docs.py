"""What the pages promise is there: commands parse, files exist, their result tables are those of the result files."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from statistics import stdev

import pytest

from spiketext.cli import build_parser
from spiketext.results import load as load_result
from spiketext.results import mean_of, paired

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOUND = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, flags=re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("spiketext ")]


def test_readme_shows_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_readme_parses(command):
    parts = shlex.split(command.split("  #")[0].split(" | ")[0])
    assert build_parser().parse_args(parts[1:]).command == parts[1]


@pytest.mark.parametrize(("folder", "target"), [
    (folder, target) for folder, page in ((ROOT, README), (ROOT / "experiments", FOUND))
    for target in sorted(set(re.findall(r"(?:\]\(|src=\")(?!http)([^)\"]+)", page)))
])  # fmt: skip
def test_a_link_leads_somewhere(folder, target):
    file, _, heading = target.partition("#")
    assert (folder / file).exists()
    if heading:
        lines = (folder / file).read_text(encoding="utf-8").splitlines()
        heads = [re.sub(r"[^\w -]", "", line.lstrip("# ")).lower() for line in lines if line.startswith("#")]
        assert heading in [head.replace(" ", "-") for head in heads]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"^make ([a-z-]+)", README, flags=re.M))))
def test_a_make_target_of_readme_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)


def test_rows_of_readme_are_those_of_the_result_file():
    every = load_result(ROOT / "experiments", "spikebert-table1", "laptop")["cells"]
    for name, *said in ([part.strip() for part in line] for line in _tables(README, "Results")[0][1:]):
        cells = [cell for cell in every if cell["column"] == _column(name) and cell["values"]]
        tfidf, direct, student, longer, teacher = (
            next((cell for cell in cells if row in cell["row"] and cell["metric"] == "accuracy"), None)
            for row in ("TF-IDF", "trained directly", "SpikeBERT (", "seven augmented texts", "teacher")
        )
        gap = paired(longer, teacher)
        [rate] = [cell for cell in cells if (cell["row"], cell["metric"]) == (longer["row"], "firing_rate")]
        interval = f"{gap['difference']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f})"
        assert said == [*map(_score, (tfidf, direct, student, longer, teacher)), interval, _score(rate)], name


@pytest.mark.parametrize(("heading", "scale"), [("Students and their teacher", None), ("On two cores", "laptop")])
def test_rows_of_table_1_are_those_of_the_result_file(heading, scale):
    head, *rows = _tables(FOUND, heading)[0]
    sets = [_column(name) for name in head[1:-1]]
    cells = load_result(ROOT / "experiments", "spikebert-table1", scale)["cells"]
    done = _filled(cells)
    assert len(rows) == len({row for row, *_ in done})
    for row, *said in ([part.strip() for part in line] for line in rows):
        found = [done.get((row, name, "accuracy")) for name in sets]
        assert any(found), row
        rates = [mean_of(done[row, name, "firing_rate"]) for name in sets if (row, name, "firing_rate") in done]
        assert said == [*map(_score, found), _span([round(rate) for rate in rates])], row


def _column(name: str) -> str:
    """The data set that a page names: SST-2 is sst2."""
    return name.strip().replace("-", "").lower()


def _filled(cells: list[dict]) -> dict[tuple[str, str, str], dict]:
    """The cells that have a value, by row, data set and metric."""
    return {(cell["row"], cell["column"], cell["metric"]): cell for cell in cells if cell["values"]}


def test_rows_of_snn_textcnn_are_those_of_the_result_files():
    head, *rows = _tables(FOUND, "SNN-TextCNN")[0]
    sets = [_column(name) for name in head[1:-1]]
    cells = [cell for name in ("textcnn-table1", "textcnn-table1-zh")
             for cell in load_result(ROOT / "experiments", name, None)["cells"] if cell["values"]]  # fmt: skip
    done = {(cell["row"], cell["column"], cell["metric"]): cell for cell in cells}
    assert {row[0].strip() for row in rows} == {row for row, *_ in done}
    for row, *said in ([part.strip() for part in line] for line in rows):
        assert said[:-1] == [_score(done.get((row, name, "accuracy"))) for name in sets], row
        rates = [mean_of(done[row, name, "firing_rate"]) for name in sets if (row, name, "firing_rate") in done]
        assert said[-1] == _span([round(rate) for rate in rates]), row


CURVES = {
    "trained at T": ("spikebert-figure3", "trained at T, without stage 1, time_steps"),
    "trained with beta": ("spikebert-figure3", "trained with decay beta, without stage 1, beta"),
    "trained at T = 4, read at T": ("spikebert-figure3", "trained at T = 4 and beta 0.9, read at T, time_steps"),
    "blocks": ("spikebert-figure3-depth", "SpikeBERT without stage 1, layers"),
}


def test_curves_of_figure_3_are_those_of_the_result_files():
    tables = _tables(FOUND, "Neurons, time steps and depth")
    assert [table[0][0].strip() for table in tables] == list(CURVES)
    for (head, *lines), (experiment, row) in zip(tables, CURVES.values(), strict=True):
        done = _filled(load_result(ROOT / "experiments", experiment, None)["cells"])
        for name, *said in ([part.strip() for part in line] for line in lines):
            cells = [done.get((f"{row} {value.strip()}", _column(name), "accuracy")) for value in head[1:]]
            assert said == [f"{mean_of(cell):.1f}" if cell else "" for cell in cells], (row, name)


def test_dense_rivals_are_those_of_the_result_file():
    cells = load_result(ROOT / "experiments", "dense-rivals", "laptop")["cells"]
    done = _filled(cells)
    rows = _tables(FOUND, "Small dense rivals")[0][1:]
    assert {row[0].strip() for row in rows} == {row for row, *_ in done}
    for row, *said in ([part.strip() for part in line] for line in rows):
        assert said[:2] == [_score(done.get((row, data, "accuracy"))) for data in ("sst2", "mr")], row
        energy, parameters = (mean_of(done[row, "sst2", metric]) for metric in ("energy", "parameters"))
        assert said[2:] == [f"{energy:.3g}", f"{parameters:.2f}"], row


def test_fewer_spikes_are_those_of_the_result_file():
    cells = load_result(ROOT / "experiments", "spikebert-budget", "laptop")["cells"]
    done = _filled(cells)
    rows = ["SpikeBERT without a budget", "SpikeBERT, rate_budget 0.2", "SpikeBERT, rate_budget 0.1"]
    for (name, *said), metric in zip(_tables(FOUND, "What fewer spikes cost")[0][1:],
                                     ("accuracy", "energy", "firing_rate"), strict=True):  # fmt: skip
        written = [f"{mean_of(done[row, 'sst2', metric]):{'.3g' if metric == 'energy' else '.2f'}}" for row in rows]
        assert [part.strip() for part in said] == written, name


def test_glue_rows_are_those_of_the_result_files():
    rows = {"teacher": "teacher", "SpikeBERT": "SpikeBERT (", "without stage 1": "SpikeBERT without",
            "trained directly": "spiking, trained directly", "TF-IDF": "TF-IDF"}  # fmt: skip
    head, *lines = _tables(FOUND, "GLUE")[0]
    for name, *said in ([part.strip() for part in line] for line in lines):
        cells = load_result(ROOT / "experiments", f"glue-{_column(name)}", None)["cells"]
        main = [cell for cell in cells if cell["metric"] == cells[0]["metric"] and cell["values"]]
        for column, value in zip(head[1:], said, strict=True):
            assert value == "".join(_score(cell) for cell in main if cell["row"].startswith(rows[column.strip()])), name


SPEEDS = [  # the rows of README: a result file and what its row says
    *(("step-spikingjelly", {"network": "ours, float32", "size": f"{size}, {neuron}"})
      for size in ("6x384, B 32, L 64", "12x768, B 4, L 64") for neuron in ("ternary, T 1", "binary, T 4")),
    *(("codes", {"network": code}) for code in ("ternary", "integer", "binary")),
    *(("inference", {"table": "throughput", "network": name})
      for name in ("ours, float32", "SpikingJelly", "ours, int8", "dense BERT, int8")),
    *(("inference", {"table": "latency of one text", "network": name}) for name in ("ours, float32", "ours, int8")),
    ("textcnn-epoch", {"network": "ours"}),
]  # fmt: skip


def test_speeds_of_readme_are_those_of_the_result_files():
    lines = _tables(README, "What it costs")[0][1:]
    for (what, seconds, _, ratio), (name, said) in zip(lines, SPEEDS, strict=True):
        rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        [row] = [row for row in rows if said.items() <= row.items()]
        found = row["seconds"], row["ratio"]
        if name == "textcnn-epoch":
            found = row["epoch_s"], row["epoch_s"] / next(r["epoch_s"] for r in rows if r["network"] == "snnTorch")
        memory = f" (memory {row['memory_ratio']:.2f})" if "memory_ratio" in row else ""
        assert seconds.strip() == f"{found[0]:.{len(seconds.strip().partition('.')[2])}f}", what
        assert ratio.strip() == f"{found[1]:.2f}{memory}", what


def _tables(page: str, heading: str) -> list[list[list[str]]]:
    """The tables under a heading, as lines of their parts, without the rules under their heads."""
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, flags=re.M)
    return [[line[1:-1].split("|") for line in table.splitlines() if line.startswith("| ")] for table in tables]


def _score(cell: dict | None) -> str:
    if cell is None:
        return ""
    paper = f" ({cell['paper']:.2f})" if cell["paper"] else ""
    spread = f" ± {stdev(cell['values']):.2f}" if len(set(cell["values"])) > 1 else ""
    return f"{mean_of(cell):.2f}{spread}{paper}"


def _span(numbers: list[int]) -> str:
    return " to ".join(str(number) for number in sorted({min(numbers), max(numbers)})) if numbers else ""
