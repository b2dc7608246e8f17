"""Floor 9: run experiments. Cells that are complete are not run again; the result file is saved after each row.

experiments/NAME.toml -> experiments/results/NAME.json (NAME-SCALE.json at another scale), pictures in
experiments/figures/, models in runs/, and experiments/RESULTS.md out of all result files.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from spiketext import (
    attacks,
    baseline,
    conversion,
    distillation,
    ledger,
    maskedlm,
    results,
    significance,
    skipgram,
    training,
)
from spiketext.checkpoints import load_classifier, load_tokenizer
from spiketext.data import TextSet, load
from spiketext.energy import energy, points
from spiketext.evaluation import Diverged, evaluate
from spiketext.experiments import (
    KINDS,
    READING,
    UNLABELLED,
    encoder_of,
    of_set,
    outdated,
    read,
    sets_of,
    source_of,
    stage_of,
    teacher_of,
    unlabelled_of,
)
from spiketext.figures import accuracy_against_energy, columns
from spiketext.figures import save as picture
from spiketext.insight import legible, look_inside
from spiketext.portraits import attention_map
from spiketext.processes import alone, side_by_side
from spiketext.runs import read_json

STAGES: dict[str, Callable] = {
    "teacher": training.teacher,
    "train": training.train,
    "distill": distillation.distill,
    "convert": conversion.convert,
    "attack": attacks.attack,
    "pretrain": distillation.pretrain,
    "mlm": maskedlm.mlm,
    "vectors": skipgram.vectors,
}
Say = Callable[[str], None]


def reproduce(
    folder: Path,
    name: str,
    data_dir: str | None = None,
    seeds: int | None = None,
    say: Say = lambda text: None,
    scale: str | None = None,
    only: Sequence[str] = (),
    rows: Sequence[str] = (),
    jobs: int = 1,
) -> dict[str, Any]:
    """Run an experiment row by row, saving the result file after each; complete cells are not run again.

    seeds: 0..seeds-1 in place of the experiment's; scale: another of its sizes, with a result file of its own; only:
    these of its data sets, rows: the rows whose names contain one of these; the other cells stay as they are; jobs: so
    many models are trained side by side, before they are measured one after the other (on a GPU that one leaves idle).
    An experiment without rows makes its network, unless it is there. Returns {"json": the result, "table": text}.
    Raises as `experiments.read`, and as the stages; ValueError for a data set or row that it does not have, fewer than
    one job, and a result file of another scale.
    """
    spec, data_dir = read(folder, name, scale), data_dir or os.environ.get("SPIKETEXT_DATA")
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1 model at a time, got {jobs}")
    if not spec["rows"]:
        if only or rows or seeds:
            raise ValueError(
                f"experiment {name}: makes one network of unlabelled text; leave --data, --rows, --seeds out"
            )
        out = unlabelled(folder, name, data_dir, scale)
        made = read_json(Path(out) / "result.json")
        epochs = read_json(Path(out) / "run.json")["epochs"]
        ledger.network(folder, spec, made | {"epochs": epochs})
        shown = [{"": key, " ": value} for key, value in made.items() if isinstance(value, (int, float, str))]
        return {"json": made | {"out": out}, "table": f"{columns(shown)}\nsaved in {out}"}
    unknown = sorted(set(only) - set(sets_of(spec)))
    if unknown:
        raise ValueError(f"experiment {name}: no data set {unknown[0]!r}; it has {', '.join(sets_of(spec))}")
    chosen = _chosen(spec["rows"], rows)
    if not chosen:
        every = ", ".join(dict.fromkeys(row["row"] for row in spec["rows"]))
        raise ValueError(f"experiment {name}: no row contains {' or '.join(map(repr, rows))}; it has {every}")
    text_sets = {data: load(data, data_dir) for data in only or sets_of(spec)}
    wanted = list(range(seeds)) if seeds else list(spec["seeds"])
    before = results.load(folder, name, spec["at"])
    result = ledger.plan(folder, spec, before, text_sets, seeds)
    left = [(data, row, seed) for data in text_sets for row in chosen for seed in wanted
            if not _is_filled(result, data, row, seed)]  # fmt: skip
    if jobs > 1:
        side_by_side(_train_only, [(folder, data_dir, *task) for task in _trainings(folder, spec, left)], jobs, say)
    for data, row, seed in left:
        result = ledger.plan(folder, spec, results.load(folder, name, spec["at"]), text_sets, seeds)
        if _is_filled(result, data, row, seed):
            continue  # by another process
        say(f"{name}: {data}, {row['row']}, seed {seed}")
        started = time.monotonic()
        try:
            outcome = _run_row(folder, spec, data, row, seed, data_dir, text_sets[data])
        except Diverged:
            outcome = {}
        found = partial(ledger.fill_row, row["row"], data, seed, outcome, time.monotonic() - started)
        result = ledger.change(folder, spec, text_sets, seeds, found)
    drawn = bool(result["pictures"]) and all((folder / path).exists() for path in result["pictures"])
    if before != result or not drawn:
        pictures = _draw(folder, spec, result, say, data_dir)
        result = ledger.change(folder, spec, text_sets, seeds, lambda now: now.update(pictures=pictures))
    return {"json": result, "table": results.table(result)}


def _is_filled(result: dict[str, Any], data: str, row: dict, seed: int) -> bool:
    """Whether a result has every metric of a row on a data set, of a seed."""
    return seed in results.complete(results.by_row(result["cells"])[row["row"], data])


def _run_row(
    folder: Path, spec: dict, data: str, row: dict, seed: int, data_dir: str | None, text_set: TextSet
) -> dict[str, Any]:
    """Every metric of a row, in its unit, with the answers to each text and the seconds of training."""
    split = spec.get("split", "test")
    if row["kind"] == "tfidf":
        return _in_units(baseline.tfidf(text_set, split))
    asked = row.get("options", {})
    same = row["kind"] == "energy" or (row["kind"] == "evaluate" and not asked)
    known = _known_scores(folder, spec, data, row, seed, text_set.hash) if same else None
    if known and row["kind"] == "evaluate" and not spec.get("energy") and not spec.get("maps"):
        return known  # so its model need not be there
    out, trained = _train(folder, spec, data, row, seed, data_dir)
    if row["kind"] == "attack":
        return results.attacked(trained) | {
            "correct": [each["status"] == "failed" for each in attacks.saved(Path(out))]
        }
    if row["kind"] == "energy":
        account = energy(out, text_set, "validation", **{"limit": spec.get("energy"), **asked})
        scores = known or _in_units(evaluate(out, text_set, split))
        return {text_set.metric: scores[text_set.metric], "test_reads": scores["test_reads"]} | results.account(account)
    if "epoch" in asked:
        return _at_epoch(Path(out), asked["epoch"], split) | {"texts": len(text_set.splits[split])}
    changed = {"time_steps": asked.get("time_steps")} if row["kind"] == "evaluate" else {}
    scores = known or _in_units(evaluate(out, text_set, split, per_text=True, **changed))
    scores |= {"wall_s": trained["wall_s"], "gpu": results.computed_by(trained)}
    if spec.get("energy"):
        account = energy(out, text_set, "validation", limit=spec["energy"], **changed)
        scores["parameters"] = trained["parameters"] * 1e-6
        scores["energy"] = results.account(account)["v1, rate as mean"]  # an integer k is k additions
    return scores


def _at_epoch(out: Path, epoch: int, split: str) -> dict[str, Any]:
    """What the training in a folder read on validation at the end of an epoch; raises ValueError when it read none."""
    history = read_json(out / "history.json") or []
    found = [entry for entry in history if "eval_loss" in entry and math.isclose(entry["epoch"], epoch)]
    if split != "validation" or not found:
        raise ValueError(f"{out}: no {split} scores at the end of epoch {epoch}; training reads validation as it goes")
    return _in_units({name.removeprefix("eval_"): value for name, value in found[-1].items()})


def _in_units(scores: dict[str, Any]) -> dict[str, Any]:
    """Shares in percent."""
    return {name: 100 * value if isinstance(value, float) else value for name, value in scores.items()}


def _known_scores(folder: Path, spec: dict, data: str, row: dict, seed: int, data_hash: str) -> dict[str, Any] | None:
    """What the result file of the row that this one reads says, so that test is not read again; None when nothing."""
    there, other = source_of(folder, spec, row, data)
    saved = (results.load(folder, there["name"], there["at"]) if there is not spec else None) or {"cells": []}
    known: dict[str, Any] = {}
    for cell in saved["cells"]:
        where = (cell["row"], cell["column"], cell["split"], cell["data_hash"])
        same = where == (other["row"], data, spec.get("split", "test"), data_hash)
        place = cell["seeds"].index(seed) if same and seed in cell["seeds"] else None
        if place is None or outdated(folder, cell, there, other, data):
            continue
        if cell["values"][place] is not None:
            known |= {cell["metric"]: cell["values"][place], "test_reads": cell["test_reads"]}
            where_filled = dict(enumerate(cell.get("machines", []))).get(place)
            if where_filled is not None:
                known.setdefault("filled_by", {})[cell["metric"]] = saved["machines"][where_filled]
            known |= {"wall_s": cell["wall_s"][place], "gpu": dict(enumerate(cell.get("gpus", []))).get(place)}
            if packed := significance.seeds_answered(cell).get(seed):
                known |= significance.answered(cell, packed)
    return known or None


def _train(
    folder: Path, spec: dict, data: str, row: dict, seed: int, data_dir: str | None
) -> tuple[str, dict[str, Any]]:
    """The folder of a row's model and what its training returned; what it needs is made first where it is gone."""

    def made(where: tuple[dict, dict]) -> tuple[str, dict[str, Any]]:
        return _train(folder, where[0], data, where[1], seed, data_dir)

    if row["kind"] in ("evaluate", "energy"):
        return made(source_of(folder, spec, row, data))
    options = KINDS[row["kind"]]
    assert isinstance(options, type)
    mine = {key: of_set(value, data) for key, value in row.get("options", {}).items()}
    asked = {key: value for key, value in mine.items() if value is not None}
    asked |= _below(data_dir, asked, "unlabelled")
    asked |= {"data": data, "data_dir": data_dir, "seed": seed}
    if row["kind"] == "attack":
        asked |= {"split": spec.get("split", "test"), "model": made(source_of(folder, spec, row, data))[0]}
    elif "from" in row:
        asked["model" if row["kind"] == "convert" else "start"] = made(source_of(folder, spec, row, data))[0]
    if row["kind"] == "distill":
        asked["teacher"] = made(teacher_of(folder, spec, row, data))[0]
        student = of_set(row.get("student"), data)
        if student:
            asked["student"] = unlabelled(folder, student, data_dir, spec["at"])
    if encoder := encoder_of(row, data):
        asked[encoder[0]] = unlabelled(folder, encoder[1], data_dir, spec["at"])
    if "vectors" in row:
        asked["vectors"] = unlabelled(folder, row["vectors"], data_dir, spec["at"])
    root = Path("runs") / (f"{spec['name']}-{spec['at']}" if spec["at"] else spec["name"])
    root /= data.replace("/", "-") if isinstance(spec["data"], list) else ""
    out = str(root / f"{row['run']}-{seed}")
    with alone(out):
        return out, STAGES[row["kind"]](options(**asked, out=out))


def _trainings(folder: Path, spec: dict, cells: list[tuple[str, dict, int]]) -> list[tuple]:
    """What cells need trained, in an order in which few wait for another: first what all of a stage 1 wait for."""
    networks: dict[tuple, None] = {}
    found: list[tuple[int, tuple]] = []
    for data, row, seed in cells:
        if row["kind"] == "tfidf":
            continue
        there, real = source_of(folder, spec, row, data) if row["kind"] in READING else (spec, row)
        _, first = encoder_of(real, data) or (None, None)
        second = of_set(real.get("student"), data)
        networks |= {(network, there["at"]): None for network in (first, second) if network}
        found.append(((real["kind"] not in ("teacher", "train")) + bool(second), (spec, data, row, seed)))
    return [*networks, *(task for _, task in sorted(found, key=lambda entry: entry[0]))]


def _train_only(folder: Path, data_dir: str | None, *task: Any) -> None:
    """One of `_trainings` in a process of its own; one that diverges does so again where it is measured."""
    if len(task) == 2:
        name, scale = task
        unlabelled(folder, name, data_dir, scale)
        return
    spec, data, row, seed = task
    with suppress(Diverged):
        _train(folder, spec, data, row, seed, data_dir)


def unlabelled(folder: Path, reference: str, data_dir: str | None, scale: str | None = None) -> str:
    """The folder of a network trained on unlabelled text: experiments/NAME.toml -> runs/NAME, or runs/NAME-SCALE.

    It is made first where it is not there, after the encoder that is its teacher.
    """
    spec = unlabelled_of(folder, reference, scale)
    stage, options, encoder = stage_of(spec)
    asked = {"data_dir": data_dir, **options}
    if encoder:
        asked["teacher"] = unlabelled(folder, encoder, data_dir, spec["at"])
    asked |= _below(data_dir, asked, "corpus", "vocab")
    out = f"runs/{spec['name']}-{spec['at']}" if spec["at"] else f"runs/{spec['name']}"
    with alone(out):
        STAGES[stage](UNLABELLED[stage](**asked, out=out))
    return out


def _below(data_dir: str | None, asked: dict[str, Any], *keys: str) -> dict[str, str]:
    """The options among these that name files of the data folder, with the path of each."""
    return {key: ",".join(str(Path(data_dir or ".") / part) for part in asked[key].split(","))
            for key in asked.keys() & set(keys)}  # fmt: skip


def _chosen(rows: list[dict], parts: Sequence[str]) -> list[dict]:
    """The rows whose names contain one of the parts, all rows without any; a whole name is that row alone."""
    whole = {row["row"] for row in rows} & set(parts)
    return [
        row for row in rows if not parts or row["row"] in whole or any(part in row["row"] for part in {*parts} - whole)
    ]


def _draw(folder: Path, spec: dict, result: dict[str, Any], say: Say, data_dir: str | None) -> list[str]:
    """Pictures of a result, as paths below the folder; what cannot be drawn is said and left out."""
    name = f"{spec['name']}-{spec['at']}" if spec["at"] else spec["name"]
    drawn = []
    try:
        for data in sets_of(spec):
            filled = [cell for cell in result["cells"] if any(value is not None for value in cell["values"])]
            cells = [cell for cell in filled if cell["column"] == data]
            path = f"figures/{name}-{data.replace('/', '-')}.png"
            title = f"{name}, {data}"
            energies = path
            if results.grid_picture(cells, title, folder / path) or results.attack_picture(cells, title, folder / path):
                drawn.append(path)
                energies = path.replace(".png", "-energy.png")
            if _draw_energy(folder, spec, cells, title, energies):
                drawn.append(energies)
            drawn += _draw_maps(folder, spec, data, cells, path, data_dir) if spec.get("maps") else []
    except ValueError as error:
        say(f"{name}: {error}")
    return drawn


def _draw_energy(folder: Path, spec: dict, cells: list[dict], title: str, path: str) -> bool:
    """Accuracy against energy of the rows that have both, for the texts as they are: none that is padded to a length.

    Published points stand beside them for SST-2.
    """
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        if "length" not in cell.get("asked", {}).get("options", {}):
            found.setdefault(cell["row"], {})[cell["metric"]] = results.mean_of(cell)
    mine = [{"name": row, "millijoules": values.get("v1", values.get("energy")), "accuracy": values["accuracy"],
             "kind": "spiking" if {"density", "firing_rate"} & set(values) else "dense"}
            for row, values in found.items() if "accuracy" in values and {"v1", "energy"} & set(values)]  # fmt: skip
    if not mine:
        return False
    data = cells[0]["column"]
    lengths = {values["tokens"] for values in found.values() if values.get("tokens")}
    published = spec.get("points") and data == "sst2" and lengths
    others = points(str(folder / spec["points"]), max(lengths)) if published else []
    across = f"mJ for one text of {max(lengths):.0f} tokens" if lengths else "mJ for one text"
    across += ", published ones in proportion to theirs" if others else ""
    accuracy_against_energy([*mine, *others], str(folder / path), f"{title}, formula of SpikeBERT v1", across)
    return True


def _draw_maps(
    folder: Path, spec: dict, data: str, cells: list[dict], path: str, data_dir: str | None
) -> Iterator[str]:
    """Attention of the rows' models, last block, last step, on validation texts that are neither long nor short."""
    part = load(data, data_dir).splits["validation"]
    done = {cell["row"] for cell in cells}
    for row in (row for row in spec["rows"] if row["row"] in done):
        out = _train(folder, spec, data, row, spec["seeds"][0], data_dir)[0]
        network, tokenizer = load_classifier(out), load_tokenizer(out)
        for place, number in enumerate(legible(part, tokenizer, range(len(part)), spec["maps"])):
            inside = look_inside(network, tokenizer, part.texts[number], part.pairs[number] if part.pairs else None)
            name = row.get("run") or row["from"].rpartition(":")[2]
            where = path.replace(".png", f"-{place + 1}-{name}.png")
            picture(attention_map(inside.tokens, inside.attention, row["row"]), str(folder / where))
            yield where
