"""Floor 7: experiments. A TOML file holds what differs from the defaults; the result file says what came out.

experiments/NAME.toml -> experiments/results/NAME.json, and experiments/RESULTS.md out of all result files.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from spiketext import conversion, distillation, training
from spiketext.about import machine, versions
from spiketext.data import TextSet, load
from spiketext.evaluation import Diverged, evaluate, tfidf_baseline
from spiketext.options import ConvertOptions, DistillOptions, PretrainOptions, TeacherOptions, TrainOptions
from spiketext.runs import write_whole

KINDS: dict[str, tuple[Callable, type] | None] = {
    "tfidf": None,
    "teacher": (training.teacher, TeacherOptions),
    "train": (training.train, TrainOptions),
    "distill": (distillation.distill, DistillOptions),
    "convert": (conversion.convert, ConvertOptions),
}
_DENSE = ("textcnn", "tailored-textcnn")
_METRICS = {"accuracy": ["accuracy"], "f1": ["f1", "accuracy"], "spearman": ["spearman", "pearson"]}  # the main first
_PAGE_HEAD = """# Results

Made by `spiketext reproduce`; do not edit. Every number comes from the JSON file of its name in `results/`, which also
holds versions, machine, data hash and configuration. `paper` is the published number of the system of that row, at the
paper's size and with its own data handling.
"""
Say = Callable[[str], None]


def read(folder: Path, name: str) -> dict[str, Any]:
    """An experiment, checked. Raises FileNotFoundError, or ValueError naming the key that is wrong."""
    path = folder / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml"))) or "none"
        raise FileNotFoundError(f"experiment {name}: no {path}; known are {known}")
    spec = tomllib.loads(path.read_text(encoding="utf-8"))
    spec |= {"name": name, "path": path.as_posix()}
    parts: list[tuple[type, dict]] = [(PretrainOptions, spec["pretrain"])] if "pretrain" in spec else []
    for row in spec.get("rows", []):
        if row.get("kind") not in KINDS:
            raise ValueError(
                f"{path}: row {row.get('row')!r} has kind {row.get('kind')!r}, expected {', '.join(KINDS)}"
            )
        kind = KINDS[row["kind"]]
        if kind is not None:
            parts.append((kind[1], row.get("options", {})))
    for options, asked in parts:
        unknown = set(asked) - {field.name for field in fields(options)}
        if unknown:
            raise ValueError(f"{path}: unknown key {min(unknown)!r} for {options.__name__}")
    return spec


def listing(folder: Path) -> list[dict[str, Any]]:
    """Name, title, state and open cells with their estimated seconds of every experiment."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        spec = read(folder, path.stem)
        if "rows" not in spec:
            continue
        saved = _saved(folder, path.stem)
        cells = saved["cells"] if saved else []
        empty = [cell for cell in cells if cell["status"] == "empty"]
        state = "not run" if not cells else f"{len(cells) - len(empty)}/{len(cells)} cells"
        found.append({"name": path.stem, "title": spec["title"], "state": state,
                      "cost_s": sum(cell.get("cost_s") or 0 for cell in empty)})  # fmt: skip
    return found


def reproduce(
    folder: Path, name: str, data_dir: str | None = None, seeds: int | None = None, say: Say = lambda text: None
) -> dict[str, Any]:
    """Run an experiment row by row, saving the result file after each; complete cells are not run again.

    Returns {"json": the result, "table": text}. Raises as `read`, and as the stages.
    """
    spec = read(folder, name)
    data_dir = data_dir or os.environ.get("SPIKETEXT_DATA")
    text_sets = {data: load(data, data_dir) for data in _columns(spec)}
    wanted = list(range(seeds)) if seeds else list(spec["seeds"])
    result = {
        "name": name,
        "scale": spec["scale"],
        "command": f"spiketext reproduce {name}" + (f" --seeds {seeds}" if seeds else ""),
        "versions": versions(),
        "machine": machine(),
        "cells": [],
    }
    before = {(c["row"], c["column"], c["metric"]): c for c in (_saved(folder, name) or {"cells": []})["cells"]}
    pairs = [(data, row) for data in text_sets for row in spec["rows"]]
    for data, row in pairs:
        for metric in _metrics(row, text_sets[data].metric):
            cell = before.get((row["row"], data, metric))
            keep = cell is not None and cell["status"] != "empty" and cell["data_hash"] == text_sets[data].hash
            result["cells"].append(cell if keep else _empty(spec, data, row, metric, text_sets[data]))
    for data, row in pairs:
        cells = [cell for cell in result["cells"] if (cell["row"], cell["column"]) == (row["row"], data)]
        for seed in wanted:
            if seed in cells[0]["seeds"]:
                continue
            say(f"{name}: {data}, {row['row']}, seed {seed}")
            started = time.monotonic()
            try:
                outcome = _run_row(folder, spec, data, row, seed, data_dir, text_sets[data])
            except Diverged:
                outcome = {}
            for cell in cells:
                value = outcome.get(cell["metric"])
                cell["seeds"].append(seed)
                cell["values"].append(None if value is None else round(100 * value, 3))
                cell["wall_s"].append(round(outcome.get("wall_s", time.monotonic() - started), 1))
                cell["test_reads"] = max(cell["test_reads"], outcome.get("test_reads", 1))
                cell["status"] = "diverged" if None in cell["values"] else "done"
                cell.pop("cost_s", None)
            write_whole(folder / "results" / f"{name}.json", json.dumps(result, indent=2) + "\n")
            write_whole(folder / "RESULTS.md", results_page(folder))
    return {"json": result, "table": table(result)}


def _columns(spec: dict) -> list[str]:
    """The data sets of an experiment: one name or a list of names."""
    return spec["data"] if isinstance(spec["data"], list) else [spec["data"]]


def _metrics(row: dict, main: str) -> list[str]:
    """Those of a set whose main metric this is; a spiking network has a firing rate too."""
    dense = row["kind"] in ("tfidf", "teacher") or row.get("options", {}).get("model") in _DENSE
    return _METRICS[main] + ([] if dense else ["firing_rate"])


def _empty(spec: dict, data: str, row: dict, metric: str, text_set: TextSet) -> dict[str, Any]:
    def of_set(value: Any) -> Any:  # one value for all sets, or one for each
        return value.get(data) if isinstance(value, dict) else value

    paper = of_set(row.get("paper")) if metric == text_set.metric else None
    return {"row": row["row"], "column": data, "metric": metric, "unit": "%", "values": [], "seeds": [],
            "split": "test", "data_hash": text_set.hash, "config": spec["path"], "wall_s": [], "test_reads": 0,
            "status": "empty", "cost_s": of_set(row.get("cost_s")), "paper": paper}  # fmt: skip


def _run_row(
    folder: Path, spec: dict, data: str, row: dict, seed: int, data_dir: str | None, text_set: Any
) -> dict[str, Any]:
    if KINDS[row["kind"]] is None:
        return tfidf_baseline(text_set)
    out, trained = _train(folder, spec, data, row, seed, data_dir)
    return evaluate(out, text_set, "test") | {"wall_s": trained["wall_s"]}


def _train(
    folder: Path, spec: dict, data: str, row: dict, seed: int, data_dir: str | None
) -> tuple[str, dict[str, Any]]:
    """The folder of a row's model and what its training returned; what it needs is made first where it is gone."""
    kind = KINDS[row["kind"]]
    assert kind is not None
    stage, options = kind
    root = Path("runs") / spec["name"] / (data.replace("/", "-") if isinstance(spec["data"], list) else "")
    asked = dict(row.get("options", {})) | {"data": data, "data_dir": data_dir, "seed": seed}
    if "from" in row:
        above = next(r for r in spec["rows"] if r.get("run") == row["from"])
        start = _train(folder, spec, data, above, seed, data_dir)[0]
        asked["model" if row["kind"] == "convert" else "start"] = start
    if row["kind"] == "distill":
        above = next(r for r in spec["rows"] if r["kind"] == "teacher")
        asked["teacher"] = _train(folder, spec, data, above, seed, data_dir)[0]
        if "student" in row:
            asked["student"] = stage_one(folder, row["student"], data_dir)
    out = str(root / f"{row['run']}-{seed}")
    return out, stage(options(**asked, out=out))


def stage_one(folder: Path, name: str, data_dir: str | None) -> str:
    """The folder of a stage-1 checkpoint, made first where it is not there: experiments/NAME.toml -> runs/NAME."""
    asked = dict(read(folder, name)["pretrain"])
    asked["corpus"] = ",".join(str(Path(data_dir or ".") / part) for part in asked["corpus"].split(","))
    out = f"runs/{name}"
    distillation.pretrain(PretrainOptions(**asked, out=out))
    return out


def _saved(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(result: dict[str, Any]) -> str:
    """A result as a Markdown table for each data set: ours beside the paper's number, one line for each row."""
    return "\n\n".join(_table_of(result, data) for data in dict.fromkeys(cell["column"] for cell in result["cells"]))


def _table_of(result: dict[str, Any], data: str) -> str:
    found = [cell for cell in result["cells"] if cell["column"] == data]
    main, *others = [m for m in dict.fromkeys(cell["metric"] for cell in found) if m != "firing_rate"]
    more = "".join(f" {metric} % |" for metric in others)
    lines = [f"{result['name']} ({result['scale']}, test split of {data})", "",
             f"| row | {main} % | paper % |{more} firing rate % | training s | seeds |",
             "|---|--:|--:|" + "--:|" * len(others) + "--:|--:|---|"]  # fmt: skip
    for row in dict.fromkeys(cell["row"] for cell in found):
        cells = {cell["metric"]: cell for cell in found if cell["row"] == row}
        cell = cells[main]
        paper = "" if cell["paper"] is None else f"{cell['paper']:.2f}"
        seconds = f"{statistics.mean(cell['wall_s']):.0f}" if cell["wall_s"] else f"(about {cell.get('cost_s')})"
        seeds = ", ".join(map(str, cell["seeds"])) or cell["status"]
        also = "".join(f" {_spread(cells[metric]['values'])} |" for metric in others)
        rate = _spread(cells["firing_rate"]["values"]) if "firing_rate" in cells else ""
        lines.append(f"| {row} | {_spread(cell['values'])} | {paper} |{also} {rate} | {seconds} | {seeds} |")
    return "\n".join(lines)


def _spread(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return f"{len(values) - len(numbers)} of {len(values)} diverged"
    if len(numbers) < 2:
        return f"{numbers[0]:.2f}" if numbers else ""
    return f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}"


def results_page(folder: Path) -> str:
    """RESULTS.md out of all result files."""
    parts = [_PAGE_HEAD]
    for path in sorted((folder / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "cells" in result:
            parts.append(table(result) + f"\n\nCommand: `{result['command']}`\n")
    return "\n".join(parts)
