"""Floor 3: experiments as TOML files that hold what differs from the defaults, and what of them is still to be run.

    title, scale, seeds      scale names the size of the default; data is a set, or a list of sets
    split                    "test", or "validation" where a study chooses something
    against                  the row that the others are held against; the first teacher when left out
    energy                   count the energy of so many validation texts beside each accuracy
    maps                     draw what so many texts look at in each row's model (SpikeBERT figure 4)
    points                   a CSV of published points for the picture of accuracy against energy
    cost_s                   of an experiment without rows: seconds
    [scales.S]               what another size S changes: cost (a factor), options by kind of row and, in a table rows,
                             by name; without: the rows that it does not have; S+R changes what S does, then what R does
    [[rows]]                 row (its name), kind, run (folder), options; paper and cost_s (seconds for each seed)
      from                   the row to start from, to read or to attack: its run, or EXPERIMENT:RUN; a row of kind
                             evaluate with a run stands for the one that it reads
      teacher, student       of kind distill: a row as in `from`, an experiment of stage 1 or EXPERIMENT:SCALE, which
                             the experiment's own scale comes on top of where SCALE does not name it
      encoder                an experiment with [mlm], in place of a teacher's model, of the tokenizer of kind train or
                             of the masked language model of an attack
      vectors                an experiment with [vectors], for a TextCNN of kind train
      options.epoch          of kind evaluate: what validation said of the row at the end of that epoch of its training
      grid                   lists of options: a row for each value, and a picture over them; a row with `from` and the
                             same grid goes on from the row at the same value

An experiment without rows trains on unlabelled text: [pretrain] holds the options of stage 1, whose teacher `encoder`
may name; [mlm] those of an encoder, [vectors] those of word vectors.

A row of kind attack names the substitutes of its recipe, "pwws[enwiki-sgns, minilm]", and others are refused; `split`
is the experiment's, seeds are those of the victim and of the texts drawn.

In `paper`, `cost_s`, `from`, `student`, `encoder` and every option a table stands for one value for each data set;
`cost_s` may be a list along the grid.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from spiketext import results
from spiketext.options import (
    AttackOptions,
    ConvertOptions,
    DistillOptions,
    MlmOptions,
    PretrainOptions,
    TeacherOptions,
    TrainOptions,
    VectorOptions,
)

KINDS: dict[str, type | tuple[str, ...]] = {
    "tfidf": (),
    "teacher": TeacherOptions,
    "train": TrainOptions,
    "distill": DistillOptions,
    "convert": ConvertOptions,
    "attack": AttackOptions,
    "evaluate": ("time_steps", "epoch"),
    "energy": ("limit", "length"),
}
_TOP = {"title", "scale", "data", "seeds", "split", "against", "energy", "points", "formulas", "maps", "rows", "scales",
        "cost_s", "pretrain", "mlm", "vectors", "encoder"}  # fmt: skip
_STARTS = ("from", "teacher", "student", "encoder", "vectors")
_ROW = {"row", "kind", "run", *_STARTS, "paper", "cost_s", "options", "grid"}
UNLABELLED = {"pretrain": PretrainOptions, "mlm": MlmOptions, "vectors": VectorOptions}
READING = ("evaluate", "energy", "attack")  # kinds of rows that train nothing
_READS_ENCODER = {"train": "tokenizer", "attack": "masked_lm"}  # what `encoder` of a row is; of the others the model
_DENSE = ("textcnn", "tailored-textcnn")


def read(folder: Path, name: str, scale: str | None = None) -> dict[str, Any]:
    """An experiment, checked, at a scale of its own (None: the default), a row for each value of its grids.

    Raises FileNotFoundError for a name without a file, ValueError naming the key that is wrong, or the unknown scale.
    """
    path = folder / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml"))) or "none"
        raise FileNotFoundError(f"experiment {name}: no {path}; known are {known}")
    try:
        spec = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    _require(path, "the experiment", set(spec), _TOP)
    missing = sorted({"title", "scale", *(("data", "seeds") if "rows" in spec else ())} - set(spec))
    if missing:
        raise ValueError(f"{path}: no {missing[0]}, which every experiment has; add it")
    spec |= {"name": name, "path": path.as_posix(), "at": None if scale == spec["scale"] else scale}
    for row in spec.get("rows", []):
        _require(path, f"row {row.get('row')!r}", set(row), _ROW)
        if row.get("kind") not in KINDS:
            raise ValueError(
                f"{path}: row {row.get('row')!r} has kind {row.get('kind')!r}, expected {', '.join(KINDS)}"
            )
    for at in spec["at"].split("+") if spec["at"] else ():
        _rescale(spec, at, path)
    spec["scale"] = spec["at"] or spec["scale"]
    spec["rows"] = [one for row in spec.get("rows", []) for one in _expand(row)]
    for row in spec["rows"]:
        _require(path, row["kind"], set(row.get("options", {})), _known(KINDS[row["kind"]]))
    for stage, options in UNLABELLED.items():
        _require(path, stage, set(spec.get(stage, {})), _known(options))
    return spec


def _known(options: type | tuple[str, ...]) -> set[str]:
    return set(options) if isinstance(options, tuple) else {field.name for field in fields(options)}


def _require(path: Path, where: str, asked: set[str], known: set[str]) -> None:
    unknown = sorted(asked - known)
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r} for {where}; expected some of {', '.join(sorted(known))}")


def _rescale(spec: dict[str, Any], at: str, path: Path) -> None:
    """Put what another scale changes into the rows."""
    scales = spec.get("scales", {})
    if at not in scales:
        raise ValueError(f"{path}: no scale {at!r}; expected {', '.join([spec['scale'], *scales])}")
    changes = scales[at]
    _require(path, f"scale {at}", set(changes), {"cost", "cost_s", "without", "rows", *UNLABELLED, *KINDS})
    without, named = changes.get("without", []), changes.get("rows", {})
    for key, names in (("without", without), ("rows", named)):
        _require(path, f"{key} of scale {at}", set(names), {row["row"] for row in spec.get("rows", [])})
    spec["rows"] = [row for row in spec.get("rows", []) if row["row"] not in without]
    spec["cost_s"] = changes.get("cost_s", _times(spec.get("cost_s"), changes.get("cost", 1)))
    for row in spec["rows"]:
        row["options"] = row.get("options", {}) | changes.get(row["kind"], {}) | named.get(row["row"], {})
        row["cost_s"] = _times(row.get("cost_s"), changes.get("cost", 1))
    for stage in UNLABELLED.keys() & spec.keys():
        spec[stage] |= changes.get(stage, {})


def _times(cost: Any, factor: float) -> Any:
    if isinstance(cost, dict):
        return {key: _times(value, factor) for key, value in cost.items()}
    if isinstance(cost, list):
        return [_times(value, factor) for value in cost]
    return cost and round(cost * factor)


def _expand(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each value of its grid, named and foldered after it."""
    if "grid" not in row:
        return [row]
    found, known, follows = [], _known(KINDS[row["kind"]]), "from" in row
    for number, values in enumerate(itertools.product(*row["grid"].values())):
        at = dict(zip(row["grid"], values, strict=True))
        cost = row.get("cost_s")
        one = {key: value for key, value in row.items() if key != "grid"} | {
            "row": f"{row['row']}, {', '.join(f'{key} {value}' for key, value in at.items())}",
            "options": row.get("options", {})
            | {key: value for key, value in at.items() if key in known or not follows},
            "at": at,
            "curve": row["row"],
            "cost_s": cost[number] if isinstance(cost, list) else cost,
        }
        if "run" in row:
            one["run"] = tagged(row["run"], at)
        found.append(one)
    return found


def tagged(run: str, at: dict[str, Any]) -> str:
    """The folder of a row of a grid; what a recipe has in brackets is left out."""
    short = {key: value.partition("[")[0] if isinstance(value, str) else value for key, value in at.items()}
    return "-".join([run, *(f"{key}-{value}" for key, value in short.items())])


def of_set(value: Any, data: str) -> Any:
    """One value for all sets, or one for each."""
    return value.get(data) if isinstance(value, dict) else value


def sets_of(spec: dict[str, Any]) -> list[str]:
    """The data sets of an experiment."""
    return spec["data"] if isinstance(spec["data"], list) else [spec["data"]]


def find(folder: Path, spec: dict[str, Any], reference: str, row: dict[str, Any], data: str) -> tuple[dict, dict]:
    """The experiment and the row that a reference in a row means on a data set, at the same scale and grid value.

    A row of kind evaluate that has a run stands for the row that it reads. Raises ValueError when there is none.
    """
    name, _, run = reference.rpartition(":")
    there = read(folder, name, spec["at"]) if name else spec
    for wanted in (tagged(run, row.get("at", {})), run):
        for other in there["rows"]:
            if other.get("run") == wanted:
                return source_of(folder, there, other, data) if other["kind"] == "evaluate" else (there, other)
    known = ", ".join(other["run"] for other in there["rows"] if "run" in other)
    raise ValueError(f"{spec['path']}: row {row['row']!r} wants {reference!r}, expected a run of {known or 'no row'}")


def source_of(folder: Path, spec: dict[str, Any], row: dict[str, Any], data: str) -> tuple[dict, dict]:
    """The experiment and the row that `from` of a row means on a data set; raises ValueError when there is none."""
    reference = of_set(row.get("from"), data)
    if reference is None:
        raise ValueError(f"{spec['path']}: row {row['row']!r} has no from for {data}; name a run or EXPERIMENT:RUN")
    return find(folder, spec, reference, row, data)


def teacher_of(folder: Path, spec: dict[str, Any], row: dict[str, Any], data: str) -> tuple[dict, dict]:
    """The experiment and the row of a student's teacher; raises ValueError when there is none."""
    if "teacher" in row:
        return find(folder, spec, row["teacher"], row, data)
    for other in spec["rows"]:
        if other["kind"] == "teacher":
            return spec, other
    raise ValueError(f"{spec['path']}: row {row['row']!r} has no teacher; add a row of kind teacher or name one")


def unlabelled_of(folder: Path, reference: str, scale: str | None) -> dict[str, Any]:
    """The experiment without rows that `student` or `encoder` means, NAME or NAME:OWN, at a scale; errors as `read`."""
    name, _, own = reference.partition(":")
    both = "+".join(filter(None, (own, scale)))
    return read(folder, name, "+".join(dict.fromkeys(both.split("+"))) or None)


def encoder_of(row: dict[str, Any], data: str) -> tuple[str, str] | None:
    """The option that `encoder` of a row stands for and what makes it; None where the option is given or not read."""
    option, asked = _READS_ENCODER.get(row["kind"], "model"), row.get("options", {})
    encoder, given = of_set(row.get("encoder"), data), of_set(asked.get(option), data)
    idle = row["kind"] == "attack" and not of_set(asked.get("recipe", ""), data).startswith("bert-attack")
    return (option, encoder) if encoder and given is None and not idle else None


def stage_of(spec: dict[str, Any]) -> tuple[str, dict[str, Any], str | None]:
    """Of an experiment without rows: the stage, its options, and the encoder that is its teacher if they name none."""
    [stage] = UNLABELLED.keys() & spec.keys()
    return stage, spec[stage], None if "teacher" in spec[stage] else spec.get("encoder")


def asked_unlabelled(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """What decides the weights of an experiment without rows: its options, and under "encoder" those of its teacher."""
    _, asked, encoder = stage_of(spec)
    if encoder is None:
        return asked
    return asked | {"encoder": asked_unlabelled(folder, unlabelled_of(folder, encoder, spec["at"]))}


def against(spec: dict[str, Any]) -> str | None:
    """The name of the row that the others are held against."""
    teachers = [row["row"] for row in spec["rows"] if row["kind"] == "teacher"]
    return spec.get("against") or (teachers[0] if teachers else None)


def asked_of(spec: dict[str, Any], row: dict[str, Any], data: str) -> dict[str, Any]:
    """What decides the numbers of a row on a data set: its kind, its options, what it starts from, what is counted."""
    own = {key: of_set(row[key], data) for key in _STARTS if key in row}
    own |= {"energy": spec["energy"]} if "energy" in spec else {}
    options = {key: of_set(value, data) for key, value in row.get("options", {}).items()}
    return {"kind": row["kind"], **own, "options": options}


def rests_on(folder: Path, spec: dict[str, Any], row: dict[str, Any], data: str) -> str | None:
    """A digest of what the rows and networks that a row starts from or reads ask for, with theirs; None without any."""
    recipes = _recipes_below(folder, spec, row, data)
    return hashlib.sha256(json.dumps(recipes, sort_keys=True).encode()).hexdigest()[:12] if recipes else None


def _recipes_below(folder: Path, spec: dict[str, Any], row: dict[str, Any], data: str) -> list[Any]:
    rows = [source_of(folder, spec, row, data)] if "from" in row else []
    rows += [teacher_of(folder, spec, row, data)] if row["kind"] == "distill" else []
    found: list[Any] = [
        [asked_of(there, other, data), _recipes_below(folder, there, other, data)] for there, other in rows
    ]
    named = [of_set(row.get("student"), data), (encoder_of(row, data) or (None, None))[1], row.get("vectors")]
    networks = [unlabelled_of(folder, reference, spec["at"]) for reference in named if reference]
    return found + [asked_unlabelled(folder, network) for network in networks]


def outdated(folder: Path, cell: dict[str, Any], spec: dict[str, Any], row: dict[str, Any], data: str) -> bool:
    """Whether a cell does not answer what its row, or what that rests on, asks today; what it does not say is so."""
    asked = asked_of(spec, row, data)
    if cell["split"] != spec.get("split", "test") or cell.get("asked", asked) != asked:
        return True
    return "rests_on" in cell and cell["rests_on"] != rests_on(folder, spec, row, data)


def is_spiking(folder: Path, spec: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row's network has neurons that fire."""
    if row["kind"] in READING:
        return is_spiking(folder, *source_of(folder, spec, row, sets_of(spec)[0]))
    student = of_set(row.get("student"), sets_of(spec)[0])
    asked = row.get("options", {})
    if student:
        asked = asked_unlabelled(folder, unlabelled_of(folder, student, spec["at"]))
    dense = asked.get("model") in _DENSE or asked.get("preset") == "dense"
    return row["kind"] not in ("tfidf", "teacher") and not dense


def cells(folder: Path, spec: dict[str, Any], seeds: int | None = None) -> list[dict[str, Any]]:
    """Every row on every set: seeds that are done and open, what is known of their state, and the seconds to go."""
    wanted = list(range(seeds)) if seeds else spec["seeds"]
    saved = results.load(folder, spec["name"], spec["at"])
    known = results.by_row((saved or {"cells": []})["cells"])
    found = []
    for data, row in itertools.product(sets_of(spec), spec["rows"]):
        mine = known.get((row["row"], data), [])
        if mine and outdated(folder, mine[0], spec, row, data):
            mine = []
        done = results.complete(mine)
        left = [seed for seed in wanted if seed not in done]
        state = "begun" if left and done else "empty" if left else mine[0]["status"]
        found.append({"data": data, "row": row["row"], "state": state, "done": done, "open": left,
                      "cost_s": len(left) * (of_set(row.get("cost_s"), data) or 0)})  # fmt: skip
    return found


def _scales(folder: Path, name: str) -> list[str]:
    alone = list(read(folder, name).get("scales", {}))
    saved = sorted(path.stem.removeprefix(f"{name}-") for path in (folder / "results").glob(f"{name}-*+*.json"))
    return alone + [scale for scale in saved if set(scale.split("+")) <= set(alone)]


def _is_made(folder: Path, spec: dict[str, Any]) -> bool:
    """Whether the network of an experiment without rows has a result of what it asks today; older ones do not say."""
    asked = asked_unlabelled(folder, spec)
    saved = results.load(folder, spec["name"], spec["at"])
    return saved is not None and saved.get("asked", asked) == asked


def listing(folder: Path, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every experiment, or these, at every scale: name, scale, title, state, estimated seconds to go and its cells.

    The seconds are those of the open runs themselves (a run: a cell's row with one seed), without the models that they
    start from. A network of unlabelled text has no cells; it is made or not. Of scales put together those with a result
    are listed.
    """
    found = []
    for name in names or sorted(path.stem for path in folder.glob("*.toml")):
        for scale in (None, *_scales(folder, name)):
            spec = read(folder, name, scale)
            every = cells(folder, spec) if spec["rows"] else []
            whole, begun = sum(not cell["open"] for cell in every), any(cell["done"] for cell in every)
            made = not spec["rows"] and _is_made(folder, spec)
            left = sum(cell["cost_s"] for cell in every) + (0 if made else spec.get("cost_s") or 0)
            wanted = len(every) * len(spec["seeds"]) if every else 0
            runs = wanted - sum(len(cell["open"]) for cell in every)
            some = f"{whole}/{len(every)} cells, {runs}/{wanted} runs"
            state = "made" if made else some if begun else "not run"
            found.append({"name": name, "scale": scale, "title": spec["title"], "state": state, "cost_s": left,
                          "cells": every})  # fmt: skip
    return found
