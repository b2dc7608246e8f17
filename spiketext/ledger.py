"""Floor 6: the ledger of an experiment: which cells its result file has, and what is written into them.

A result holds `machines`, each with the versions of its software; a cell says for every seed which of them filled it,
and what its row asked for. A cell is emptied when its row, or a row or network that it rests on, asks for something
else today, and when the data set is another.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from spiketext import published, results, significance
from spiketext.about import machine, versions
from spiketext.data import TextSet
from spiketext.datasets import BUILT_IN
from spiketext.experiments import against, asked_of, asked_unlabelled, is_spiking, of_set, outdated, rests_on, sets_of
from spiketext.processes import alone

_METRICS = {"accuracy": ["accuracy"], "f1": ["f1", "accuracy"], "spearman": ["spearman", "pearson"]}  # the main first

_PER_SEED = {"seeds", "values", "wall_s", "machines", "gpus", "intervals", "correct", "answers"}  # lists in a cell


def network(folder: Path, spec: dict[str, Any], made: dict[str, Any]) -> None:
    """Write the result of an experiment that makes a network of unlabelled text, unless it is written already."""
    with _alone(folder):
        if (results.load(folder, spec["name"], spec["at"]) or {}).get("network") != made:
            here = {"asked": asked_unlabelled(folder, spec), "versions": versions(), "machine": machine()}
            results.save(folder, _head(spec) | here | {"network": made}, spec["at"])


def change(
    folder: Path, spec: dict, text_sets: dict[str, TextSet], seeds: int | None, how: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Change the result file as it is by now, no two processes at once, and write it; returns the result."""
    with _alone(folder):
        result = plan(folder, spec, results.load(folder, spec["name"], spec["at"]), text_sets, seeds)
        how(result)
        results.save(folder, result, spec["at"])
    return result


def _alone(folder: Path) -> AbstractContextManager[None]:
    return alone(str(folder / "results"))


def plan(
    folder: Path, spec: dict, before: dict | None, text_sets: dict[str, TextSet], seeds: int | None
) -> dict[str, Any]:
    """The result with the cells that are there and hold, and empty ones for the others.

    Raises ValueError for a result file of another scale.
    """
    if before and before["scale"] != spec["scale"]:
        raise ValueError(f"{spec['path']}: its result file holds rows of scale {before['scale']!r}, asked is "
                         f"{spec['scale']!r}; move it away, rows of two scales are never mixed")  # fmt: skip
    before = before or {"cells": []}
    result = _head(spec) | {"machines": list(before.get("machines", [])), "against": against(spec), "cells": [],
                            "pictures": before.get("pictures", [])}  # fmt: skip
    if spec.get("formulas"):
        result["formulas"] = {"What the paper's own table 2 becomes, by formula": published.table2()}
    done = {(cell["row"], cell["column"], cell["metric"]): cell for cell in before["cells"]}
    for data in sets_of(spec):
        text_hash = text_sets[data].hash if data in text_sets else None
        main = text_sets[data].metric if data in text_sets else BUILT_IN[data].metric
        for row in spec["rows"]:
            for metric in _metrics(folder, spec, row, main):
                cell = done.get((row["row"], data, metric))
                if cell is None or not _holds(folder, cell, spec, row, data, text_hash):
                    cell = _empty(folder, spec, data, row, metric, text_hash)
                result["cells"].append(cell | _beside(row, data, metric == main))
    held = {seed for cell in result["cells"] for seed in cell["seeds"]} | set(range(seeds or 0))
    if not held <= set(spec["seeds"]):
        result["command"] += f" --seeds {max(held) + 1}"
    return result


def _holds(folder: Path, cell: dict[str, Any], spec: dict, row: dict, data: str, text_hash: str | None) -> bool:
    """Whether a cell has values, of these texts where they are known, for what its row asks today."""
    same_texts = text_hash in (None, cell["data_hash"])
    return bool(cell["values"]) and same_texts and not outdated(folder, cell, spec, row, data)


def _head(spec: dict) -> dict[str, Any]:
    """What every result file begins with."""
    command = f"spiketext reproduce {spec['name']}" + (f" --scale {spec['at']}" if spec["at"] else "")
    return {"name": spec["name"], "scale": spec["scale"], "command": command}


def _metrics(folder: Path, spec: dict, row: dict, main: str) -> list[str]:
    """The metrics of the set, the main one first, then what a row of its kind has beside them."""
    scores = _METRICS[main]
    if row["kind"] == "attack":
        return list(results.ATTACKED)
    if row["kind"] == "energy":
        return [scores[0], *results.ACCOUNTS]
    counted = "epoch" not in row.get("options", {}) and is_spiking(folder, spec, row)  # training counts no spikes
    rate = ["firing_rate"] if counted else []
    return [*scores, *rate, *(["parameters", "energy"] if spec.get("energy") and row["kind"] != "tfidf" else [])]


def _empty(folder: Path, spec: dict, data: str, row: dict, metric: str, data_hash: str | None) -> dict[str, Any]:
    cell = {"row": row["row"], "column": data, "metric": metric, "unit": results.UNITS.get(metric, "%"), "values": [],
            "seeds": [], "split": spec.get("split", "test"), "data_hash": data_hash, "config": spec["path"],
            "asked": asked_of(spec, row, data), "wall_s": [], "test_reads": 0, "status": "empty",
            "cost_s": of_set(row.get("cost_s"), data)}  # fmt: skip
    below = rests_on(folder, spec, row, data)
    return cell | ({"rests_on": below} if below else {})


def _beside(row: dict, data: str, is_main: bool) -> dict[str, Any]:
    """What a cell shows beside its values, as its row has it today: the published number, its place on a curve."""
    place = {"at": row["at"], "curve": row["curve"]} if "at" in row else {}
    return {"paper": of_set(row.get("paper"), data) if is_main else None, **place}


def _forget(cell: dict[str, Any], seed: int) -> None:
    if seed in cell["seeds"]:
        place = cell["seeds"].index(seed)
        for name in _PER_SEED & cell.keys():
            del cell[name][place : place + 1]  # one that came later may be shorter


def _hold(cell: dict[str, Any], what: str, packed: str) -> None:
    """Keep what was answered to each text, at the place of its seed."""
    cell[what] = [*cell.get(what, []), *[None] * (len(cell["seeds"]) - len(cell.get(what, []))), packed]


def fill_row(row: str, data: str, seed: int, outcome: dict[str, Any], seconds: float, result: dict[str, Any]) -> None:
    """`fill` every cell of a row on a data set."""
    for cell in result["cells"]:
        if (cell["row"], cell["column"]) == (row, data):
            fill(result, cell, seed, outcome, seconds)


def fill(result: dict[str, Any], cell: dict[str, Any], seed: int, outcome: dict[str, Any], seconds: float) -> None:
    """Put the value of a seed into a cell of a result, in place of what it had; an outcome without anything is a
    training that diverged. Under "filled_by" an outcome may say on what machine a metric was measured, if not here.
    """
    _forget(cell, seed)
    value = outcome.get(cell["metric"])
    if outcome.get("correct") is not None and cell["metric"] in significance.RIGHT:
        _hold(cell, "correct", significance.packed(outcome["correct"]))
        cell["texts"] = len(outcome["correct"])
    elif outcome.get("answers") is not None and cell["metric"] in significance.ANSWERED:
        _hold(cell, "answers", significance.packed_values(outcome["answers"]))
        cell |= {"gold": significance.packed_values(outcome["gold"]), "texts": len(outcome["gold"])}
    elif "texts" in outcome and cell["metric"] == "accuracy":
        cell["texts"] = outcome["texts"]
    interval = outcome.get("intervals", {}).get(cell["metric"])
    if interval is not None or "intervals" in cell:
        cell["intervals"] = [*cell.get("intervals", [None] * len(cell["seeds"])), interval]
    here = outcome.get("filled_by", {}).get(cell["metric"]) or {"machine": machine(), "versions": versions()}
    if here not in result["machines"]:
        result["machines"].append(here)
    cell["machines"] = [*cell.get("machines", [None] * len(cell["seeds"])), result["machines"].index(here)]
    cell["seeds"].append(seed)
    cell["values"].append(None if value is None else round(value, 6 if cell["unit"] == "mJ" else 3))
    if outcome.get("gpu") or "gpus" in cell:
        cell["gpus"] = [*cell.get("gpus", [None] * len(cell["wall_s"])), outcome.get("gpu")]
    cell["wall_s"].append(round(outcome.get("wall_s", seconds), 1))
    cell["test_reads"] = max(cell["test_reads"], outcome.get("test_reads", cell["split"] == "test"))
    diverged = not outcome or cell["status"] == "diverged"
    cell["status"] = "diverged" if diverged else "done"
    cell.pop("cost_s", None)
