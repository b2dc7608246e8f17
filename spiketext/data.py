"""Labelled texts with their splits: the benchmark sets by name, and any CSV, TSV or JSON-lines file.

What was repaired, dropped or occurs in two splits is told in `TextSet.notes`, and `Split.hash` says which texts a
result was measured on.
"""

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spiketext import hubsets
from spiketext.datasets import BUILT_IN
from spiketext.downloads import PLACES, locate, whereabouts
from spiketext.splits import SPLITS, Parts, Rows, cut, hold_out, overlap_notes
from spiketext.tables import (
    Row,
    class_names,
    complete_rows,
    consistent_rows,
    contradictory,
    listing,
    number_of,
    read_table,
    require_known_labels,
    shown,
    text_key,
)

FILE_TYPES = hubsets.KINDS
NO_LABELS = {"", "-1", "-1.0"}  # what stands in place of labels that the authors of a set keep to themselves


@dataclass(frozen=True)
class Split:
    """The texts of one split, in file order: texts [N], pairs [N] or None, labels [N] (class ids, or scores)."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[float]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts)

    @property
    def hash(self) -> str:
        """The first 16 hex digits of a SHA-256 over texts, pairs and labels in order."""
        pairs: Sequence[str | None] = self.pairs or [None] * len(self)
        rows = zip(self.texts, pairs, self.labels, strict=True)
        return _digest(json.dumps(row) + "\n" for row in rows)


@dataclass(frozen=True)
class TextSet:
    """A data set: splits train, validation and test, and what their labels mean.

    task is "classification" or "regression"; labels are the class names in the order of their ids ([] for regression);
    metric is "accuracy", "f1" (of class 1) or "spearman"; notes say what was repaired, dropped or counted.
    """

    name: str
    task: str
    labels: list[str]
    metric: str
    splits: dict[str, Split]
    notes: list[str]

    @property
    def hash(self) -> str:
        """The first 16 hex digits of a SHA-256 over the hashes of the three splits."""
        return _digest(self.splits[split].hash for split in SPLITS)


def _digest(pieces: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.encode())
    return digest.hexdigest()[:16]


def names() -> list[str]:
    """Return the names of the built-in sets."""
    return list(BUILT_IN)


def _folder_of(name: str, data_dir: str | Path | None) -> Path | None:
    """The folder that a built-in set's files may be under: the package for `demo`, else data_dir or SPIKETEXT_DATA."""
    if name == "demo":
        return Path(__file__).parent
    folder = data_dir or os.environ.get("SPIKETEXT_DATA")
    return Path(folder) if folder else None


def _load_built_in(name: str, data_dir: str | Path | None) -> TextSet:
    source = BUILT_IN[name]
    paths = locate(name, source.files, _folder_of(name, data_dir))
    parts, notes = source.build(paths, source.labels)
    return _text_set(name, parts, source.labels, source.metric, notes + overlap_notes(parts))


def _text_set(name: str, parts: Parts, labels: Sequence[str], metric: str, notes: list[str]) -> TextSet:
    for split, rows in parts.items():
        if not rows:
            raise ValueError(
                f"{name}: no row is left for {split}; are its files complete, as their authors distribute them?"
            )
    ids = {label: number for number, label in enumerate(labels)}
    splits = {
        split: Split(
            [row.text for row in rows],
            [row.pair or "" for row in rows] if rows[0].pair is not None else None,
            [ids[str(row.label)] for row in rows] if ids else [float(row.label) for row in rows],
        )
        for split, rows in parts.items()
    }
    return TextSet(name, "classification" if ids else "regression", list(labels), metric, splits, notes)


# A user's file, or folder of three files ------------------------------------------------------------------------------


def _load_user_set(path: Path, reading: dict, task: str, skip_bad_rows: bool) -> TextSet:
    notes: list[str] = []
    name = path.resolve().stem if path.is_file() else path.resolve().name
    if path.is_file():
        return _cut_user_set(name, path, _read_user_file(path, reading, task, skip_bad_rows, notes), task, notes)
    files = {split: _split_file(path, split) for split in SPLITS}
    parts = {split: _read_user_file(file, reading, task, skip_bad_rows, notes) for split, file in files.items()}
    return _given_user_set(name, files, parts, task, notes)


def _load_hub_set(name: str, reading: dict, task: str, skip_bad_rows: bool) -> TextSet:
    """A set of the Hub: its own splits, of which train is cut where one is missing; without labels is missing too."""
    found, notes = hubsets.fetch(name), [f"{name} as the Hub has it"]
    files = {split: paths[0] for split, paths in found.items()}
    parts: Parts = {}
    for split, paths in found.items():
        tables = [(path, read_table(path, **reading)) for path in paths]
        if split == "train" or {row.label for _, rows in tables for row in rows} - NO_LABELS:
            parts[split] = [row for table in tables for row in _good_rows(*table, task, skip_bad_rows, notes)]
        else:
            notes.append(f"its {split} rows have no labels and are left out")
    held = [split for split in SPLITS[1:] if split in parts]
    if not held:
        return _cut_user_set(name, files["train"], parts["train"], task, notes)
    if len(held) == 1:
        paired = parts["train"][0].pair is not None
        parts, cut_notes = hold_out(parts["train"], parts[held[0]], grouped=paired)
        _require_parts(files["train"], parts, [])
        files = {"train": files["train"], "validation": files["train"], "test": files[held[0]]}
        notes += [f"its {held[0]} part serves as test", *cut_notes]
    return _given_user_set(name, files, parts, task, notes)


def _cut_user_set(name: str, path: Path, rows: Rows, task: str, notes: list[str]) -> TextSet:
    labels = [] if task == "regression" else class_names(path, rows)
    _require_enough(path, rows, labels)
    parts, cut_notes = cut(rows)
    _require_parts(path, parts, labels)
    return _text_set(name, parts, labels, _metric(task), notes + cut_notes)


def _given_user_set(name: str, files: dict[str, Path], parts: Parts, task: str, notes: list[str]) -> TextSet:
    _require_same_columns(files, parts)
    labels = [] if task == "regression" else class_names(files["train"], parts["train"])
    for split in SPLITS[1:] if labels else ():
        require_known_labels(files[split], parts[split], files["train"], labels)
    return _text_set(name, parts, labels, _metric(task), notes + overlap_notes(parts))


def _metric(task: str) -> str:
    return "spearman" if task == "regression" else "accuracy"


def _split_file(folder: Path, split: str) -> Path:
    found = [folder / (split + kind) for kind in FILE_TYPES if (folder / (split + kind)).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} has no {split} file, expected {split}.csv, .tsv, .jsonl or .parquet beside those of the other "
            f"two of {', '.join(SPLITS)}. To have one file cut into the three, name the file itself."
        )
    if len(found) > 1:
        both = listing(file.name for file in found)
        raise ValueError(f"{folder} has {both}, expected one {split} file; move the others away.")
    return found[0]


def _read_user_file(path: Path, reading: dict, task: str, skip_bad_rows: bool, notes: list[str]) -> Rows:
    if path.suffix.lower() not in FILE_TYPES:
        raise ValueError(f"{path} has type {path.suffix or 'none'!r}, expected {', '.join(FILE_TYPES)} or a folder.")
    return _good_rows(path, read_table(path, **reading), task, skip_bad_rows, notes)


def _good_rows(path: Path, rows: Rows, task: str, skip_bad_rows: bool, notes: list[str]) -> Rows:
    """The rows that can be used; scores, unlike classes, may differ for the same text."""
    whole = complete_rows(path, rows, skip_bad_rows)
    kept = whole if task == "regression" else consistent_rows(path, whole, skip_bad_rows)
    for count, why in ((len(rows) - len(whole), "without text or label"), (len(whole) - len(kept), "contradictory")):
        if count:
            notes.append(f"{count} of {len(rows)} rows of {path.name} dropped: {why}")
    if not kept:
        raise ValueError(
            f"{path} is empty: none of its {len(rows)} rows has both text and label and contradicts no other."
        )
    if task == "regression":
        kept = [row._replace(label=number_of(path, row.number, row.label)) for row in kept]
    return kept


def _require_same_columns(files: dict[str, Path], parts: Parts) -> None:
    paired = {split: rows[0].pair is not None for split, rows in parts.items()}
    if len(set(paired.values())) > 1:
        having = next(split for split in SPLITS if paired[split])
        lacking = next(split for split in SPLITS if not paired[split])
        raise ValueError(
            f"{files[lacking]} has no second text but {files[having]} has one; "
            f"add the column, or name it with --pair-column."
        )


def _require_enough(path: Path, rows: Rows, labels: list[str]) -> None:
    counts = Counter(row.label for row in rows) if labels else Counter({"": len(rows)})
    label, count = min(counts.items(), key=lambda item: item[1])
    if count < len(SPLITS):
        of_class = f" of class {shown(label)}" if labels else ""
        scores = " If the labels are scores, ask for --task regression." if _all_numbers(labels) else ""
        raise ValueError(
            f"{path} has too few rows to cut: {count}{of_class}, expected at least {len(SPLITS)} (one each for train, "
            f"validation and test). Add rows, or give a folder with the three files.{scores}"
        )


def _all_numbers(labels: list[str]) -> bool:
    return bool(labels) and all(re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+", label) for label in labels)


def _require_parts(path: Path, parts: Parts, labels: list[str]) -> None:
    """Fail if taking copies out has emptied a split or a class of train."""
    missing = [label for label in labels if label not in {row.label for row in parts["train"]}]
    empty = [split for split, rows in parts.items() if not rows]
    if missing or empty:
        what = f"class {shown(missing[0])} has no row in train" if missing else f"{empty[0]} has no row"
        raise ValueError(
            f"{path} has too few different texts to cut: without copies of the same text {what}. "
            f"Add texts, or give a folder with train, validation and test files."
        )


# What the commands call -----------------------------------------------------------------------------------------------


def load(
    name_or_path: str | Path,
    data_dir: str | Path | None = None,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    task: str | None = None,
    skip_bad_rows: bool = False,
) -> TextSet:
    """Load a built-in set by its name, or a user's file (.csv, .tsv, .jsonl, .parquet) or folder of three, by its path,
    or a set of the Hugging Face Hub as owner/name or owner/name/part, with `hub:` before it or not.

    data_dir: the folder of the benchmark files, SPIKETEXT_DATA when None; `demo` needs none.
    All that follows is for a user's files. A file alone is cut as `splits.cut` says; a folder has train, validation
    and test. Columns not named: text is `text`, `sentence`, `sentence1` or `review`, pair `text_pair` or `sentence2`
    if there is one, label `label`. task: "regression" makes labels scores; else they are class names, sorted (integers
    by value). skip_bad_rows drops rows without text or label, and those of a text that has two classes in one file,
    instead of failing on the first.
    Raises:  FileNotFoundError for a missing file or folder; ValueError for no or an unknown name and for all that is
             wrong with a file. Both in one line that names file, row and remedy.
    """
    reading = {
        "text_column": text_column,
        "pair_column": pair_column,
        "label_column": label_column,
        "delimiter": delimiter,
    }
    if task not in (None, "classification", "regression"):
        raise ValueError(f"task is {task!r}, expected classification or regression.")
    name = str(name_or_path)
    if not name.strip():
        raise ValueError("no data is named; name a built-in set, a file, a folder or a set of the Hub with --data.")
    if name in BUILT_IN:
        if given := [option for option, value in {**reading, "task": task}.items() if value is not None]:
            raise ValueError(f"{listing(given)} cannot be set for the built-in set {name!r}, only for a file.")
        return _load_built_in(name, data_dir)
    path, how = Path(name), ({**reading, "encoding": encoding}, task or "classification", skip_bad_rows)
    if path.exists():
        return _load_user_set(path, *how)
    if name.startswith(hubsets.HUB) or (hubsets.looks_like_one(name) and not _near(name)):
        return _load_hub_set(name, *how)
    raise _no_such_set(path)


def _near(name: str) -> list[str]:
    return [] if name.count("/") > 1 else difflib.get_close_matches(name.lower(), BUILT_IN, n=1)


def _no_such_set(path: Path) -> Exception:
    if path.suffix:
        return FileNotFoundError(f"{path} does not exist, expected a {', '.join(FILE_TYPES)} file or a folder.")
    near = _near(str(path))
    return ValueError(
        f"there is no set, file or folder {str(path)!r}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" Built-in sets: {', '.join(BUILT_IN)}."
    )


def describe(data_dir: str | Path | None = None) -> list[dict]:
    """Return one entry per built-in set: name, folder, state, present, task, classes, rows per split, problem.

    Nothing is fetched. state is that of the file that is farthest away: "at hand" (in the data folder), "cached", "to
    be fetched" or "no address known"; present is whether no file is missing. rows is None, and problem says why, when
    the set cannot be loaded.
    """
    entries = []
    for name, source in BUILT_IN.items():
        state = max((whereabouts(file, _folder_of(name, data_dir)) for file in source.files), key=PLACES.index)
        entry = {
            "name": name,
            "folder": str(Path(source.files[0]).parent),
            "state": state,
            "present": PLACES.index(state) < PLACES.index("to be fetched"),
            "task": "classification" if source.labels else "regression",
            "classes": source.labels,
            "rows": None,
            "problem": None,
        }
        try:
            if entry["present"]:
                entry["rows"] = {split: len(part) for split, part in load(name, data_dir).splits.items()}
            else:
                away = (file for file in source.files if whereabouts(file, _folder_of(name, data_dir)) == state)
                entry["problem"] = f"{next(away)} is missing"
        except ValueError as error:
            entry["problem"] = str(error)
        entries.append(entry)
    return entries


def check(text_set: TextSet) -> dict:
    """Return what there is to know of a set before it is used.

    splits: per split rows, classes (rows of each), mean_words, max_words (a Chinese character counts as a word),
    duplicates (rows that repeat an earlier one), hash. shared: per pair of splits the texts in both. contradictions:
    texts that occur with more than one label anywhere. Also name, task, metric, hash and notes.
    """
    rows = {split: _rows_of(part) for split, part in text_set.splits.items()}
    keys = {split: {text_key(row) for row in part} for split, part in rows.items()}
    return {
        "name": text_set.name,
        "task": text_set.task,
        "metric": text_set.metric,
        "hash": text_set.hash,
        "splits": {
            split: {
                "rows": len(part),
                "classes": {label: part.labels.count(number) for number, label in enumerate(text_set.labels)},
                **_word_counts(rows[split]),
                "duplicates": len(part) - len(keys[split]),
                "hash": part.hash,
            }
            for split, part in text_set.splits.items()
        },
        "shared": {
            f"{one}/{other}": len(keys[one] & keys[other])
            for one, other in (("train", "validation"), ("train", "test"), ("validation", "test"))
        },
        "contradictions": len(contradictory(row for part in rows.values() for row in part)),
        "notes": text_set.notes,
    }


def _rows_of(split: Split) -> Rows:
    pairs: Sequence[str | None] = split.pairs or [None] * len(split)
    return [Row(n, *row) for n, row in enumerate(zip(split.texts, pairs, split.labels, strict=True), 1)]


def _word_counts(rows: Rows) -> dict[str, float]:
    counts = [len(re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", f"{row.text} {row.pair or ''}")) for row in rows]
    return {"mean_words": sum(counts) / len(counts), "max_words": max(counts)}
