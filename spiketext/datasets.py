"""The benchmark sets: readers of the files as their authors distribute them, and how each set is split."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spiketext.splits import SEED, SPLITS, Parts, cut, draw, hold_out
from spiketext.tables import (
    Row,
    complete_rows,
    contradictory,
    listing,
    number_of,
    read_lines,
    read_table,
    shown,
    text_key,
)

# Rows of the distributed files that cannot be used, counted from 1 after the header. They are dropped and reported;
# the same fault in any other row is an error or, for contradictions, left to `data check`.
KNOWN_DEFECTS = {
    "ChnSentiCorp_htl_all.csv": ("without a review", (6375,)),
    "waimai_10k.csv": (
        "with a review that occurs once with each label",
        (982, 1208, 1212, 1460, 1470, 1773, 3223, 4411, 5020, 7049, 8331, 8544, 8942, 11368),
    ),
}


class Tree(NamedTuple):
    """One SST tree: the label of its root (0-4) and the phrases of all its nodes, normalised, the root's last."""

    label: str
    phrases: list[str]


def _class_name(path: Path, row: int, code: str | float, names: dict[str, str]) -> str:
    if code not in names:
        raise ValueError(
            f"{path}: row {row} has label {shown(code)}, expected one of {listing(names)}. "
            f"Is this the file as its authors distribute it?"
        )
    return names[code]


def _coded(names: Sequence[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def read_class_file(path: Path, label: str) -> list[Row]:
    """Read a file of MR or Subj: Windows-1252, one sentence per line, all of one class; raises as `read_text`."""
    lines = read_lines(path, "windows-1252")
    return complete_rows(path, [Row(number, line.strip(), None, label) for number, line in enumerate(lines, 1)])


def read_reviews(path: Path, names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Read ChnSenti or Waimai (CSV: label, review) without its KNOWN_DEFECTS; returns rows and a note on those.

    Raises:  ValueError as `read_table`, for a label other than 0 and 1, or an empty review that is not a known one.
    """
    rows = read_table(path)
    what, known = KNOWN_DEFECTS[path.name]
    both = contradictory(rows)
    dropped = {row.number for row in rows if row.number in known and (not row.text or text_key(row) in both)}
    rows = complete_rows(path, [row for row in rows if row.number not in dropped])
    notes = [f"{len(dropped)} of {len(rows) + len(dropped)} rows dropped: {what}"] if dropped else []
    return _with_names(path, rows, _coded(names)), notes


def _with_names(path: Path, rows: Sequence[Row], names: dict[str, str]) -> list[Row]:
    return [row._replace(label=_class_name(path, row.number, row.label, names)) for row in rows]


def read_stsa(path: Path, names: Sequence[str]) -> list[Row]:
    """Read an stsa file of SST: the first character is the label (0-1 or 0-4), the rest the sentence."""
    rows = [Row(number, line[1:].strip(), None, line[:1]) for number, line in enumerate(read_lines(path), 1)]
    return _with_names(path, complete_rows(path, rows), _coded(names))


def read_glue_sst2(path: Path, names: Sequence[str]) -> list[Row]:
    """Read GLUE's SST-2 (sentence, label 0/1); raises as `read_table`."""
    return _with_names(path, complete_rows(path, read_table(path)), _coded(names))


def read_named(path: Path, names: Sequence[str]) -> list[Row]:
    """Read a table whose labels are the class names (GLUE's RTE, the demo); raises as `read_table`."""
    return _with_names(path, complete_rows(path, read_table(path)), {name: name for name in names})


def read_mrpc(path: Path, names: Sequence[str]) -> list[Row]:
    """Read Microsoft's paraphrase corpus (byte-order mark, CRLF, literal quotes); raises as `read_table`."""
    rows = read_table(path, text_column="#1 String", pair_column="#2 String", label_column="Quality")
    return _with_names(path, complete_rows(path, rows), _coded(names))


def read_stsb(path: Path) -> list[Row]:
    """Read a part of the STS benchmark: no header, tabs, CRLF, literal quotes; fields 5-7 are score 0-5 and sentences.

    Raises:  ValueError naming the row if it has under 7 or over 9 fields, or a score that is no number from 0 to 5.
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        fields = line.split("\t")
        if not 7 <= len(fields) <= 9:
            raise ValueError(f"{path}: row {number} has {len(fields)} fields, expected 7 to 9 separated by tabs.")
        score = number_of(path, number, fields[4])
        if not 0 <= score <= 5:
            raise ValueError(f"{path}: row {number} has score {score}, expected 0 to 5.")
        rows.append(Row(number, fields[5].strip(), fields[6].strip(), score))
    return complete_rows(path, rows)


def phrase_key(phrase: str) -> str:
    """Normalise case, brackets, slashes and blanks, so that phrases of GLUE's SST-2 and of SST trees can meet."""
    phrase = phrase.lower().replace("-lrb-", "(").replace("-rrb-", ")").replace("\\", "")
    return " ".join(phrase.split())


def read_trees(path: Path) -> list[Tree]:
    """Read SST's bracketed trees, one per line; raises ValueError naming the row if its brackets do not match."""
    return [_tree(path, number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]


def _tree(path: Path, number: int, line: str) -> Tree:
    words: list[str] = []
    starts: list[int] = []
    phrases = []
    for token in re.findall(r"\([0-4](?=[ (])|\)|[^()\s]+|\(", line.strip()):
        if token == ")" and starts:
            phrases.append(phrase_key(" ".join(words[starts.pop() :])))
        elif token[0] == "(" and len(token) == 2 and (starts or not words):
            starts.append(len(words))
        elif token[0] not in "()" and starts:
            words.append(token)
        else:
            starts.append(0)
            break
    if starts or not words:
        raise ValueError(f"{path}: row {number} is no bracketed tree, expected the form (3 (2 good) (2 fun)).")
    return Tree(line.strip()[1], phrases)


# The sets: files and class names in, parts and notes out --------------------------------------------------------------


def _cut_class_files(paths: list[Path], labels: list[str]) -> tuple[Parts, list[str]]:
    return cut([row for path, label in zip(paths, labels, strict=True) for row in read_class_file(path, label)])


def _cut_reviews(paths: list[Path], labels: list[str]) -> tuple[Parts, list[str]]:
    rows, defects = read_reviews(paths[0], labels)
    parts, notes = cut(rows)
    return parts, defects + notes


def _official_stsa(paths: list[Path], labels: list[str]) -> tuple[Parts, list[str]]:
    return {split: read_stsa(path, labels) for split, path in zip(SPLITS, paths, strict=True)}, []


def _demo(paths: list[Path], labels: list[str]) -> tuple[Parts, list[str]]:
    return {split: read_named(path, labels) for split, path in zip(SPLITS, paths, strict=True)}, []


def _glue_rte(paths: list[Path], labels: list[str]) -> tuple[Parts, list[str]]:
    parts, notes = hold_out(read_named(paths[0], labels), read_named(paths[1], labels), grouped=True)
    return parts, ["GLUE's dev part serves as test", *notes]


def _glue_mrpc(paths: list[Path], labels: list[str]) -> tuple[Parts, list[str]]:
    parts, notes = hold_out(read_mrpc(paths[0], labels), read_mrpc(paths[1], labels), grouped=True)
    return parts, ["MRPC (MSR test): the test part is Microsoft's test file, not GLUE's dev part", *notes]


def _glue_stsb(paths: list[Path], labels: list[str]) -> tuple[Parts, list[str]]:
    parts, notes = hold_out(read_stsb(paths[0]), read_stsb(paths[1]), grouped=False)
    return parts, ["the dev part serves as test, sts-test is unused", *notes]


def _glue_sst2(paths: list[Path], labels: list[str]) -> tuple[Parts, list[str]]:
    """Validation by tree: train's rows are phrases of the same sentences, so a cut by row would leak."""
    rows, test, trees = read_glue_sst2(paths[0], labels), read_glue_sst2(paths[1], labels), read_trees(paths[2])
    drawn = [trees[position] for position in sorted(draw([tree.label for tree in trees]))]
    roots, held = {tree.phrases[-1] for tree in drawn}, {phrase for tree in drawn for phrase in tree.phrases}
    known = {phrase for tree in trees for phrase in tree.phrases}
    keys = [phrase_key(row.text) for row in rows]
    kept, rowed = known - held, set(keys)
    parts = {
        "train": [row for row, key in zip(rows, keys, strict=True) if key in kept],
        "validation": [row for row, key in zip(rows, keys, strict=True) if key in roots],
        "test": test,
    }
    rowless = [tree.label for tree in drawn if tree.phrases[-1] not in rowed]
    inner = sum(key in held for key in keys) - len(parts["validation"])
    return parts, [
        "GLUE's dev part serves as test",
        f"validation: the {len(parts['validation'])} train rows that are a whole sentence of the {len(drawn)} drawn of "
        f"{len(trees)} SST train trees (10 %, stratified, seed {SEED}); {len(rowless)} drawn sentences have no row, "
        f"{rowless.count('2')} of them as they are neutral",
        f"{inner} train rows are other phrases of a drawn tree and left train",
        f"{sum(key not in known for key in keys)} train rows are in no tree (spelling or tokens differ) and left train",
    ]


@dataclass(frozen=True)
class BuiltIn:
    """How a built-in set is made of its files; labels in id order, [] for regression."""

    files: tuple[str, ...]
    labels: list[str]
    build: Callable[[list[Path], list[str]], tuple[Parts, list[str]]]
    metric: str = "accuracy"


_POLARITY = ["negative", "positive"]
BUILT_IN = {
    "mr": BuiltIn(("MR/rt-polarity.neg", "MR/rt-polarity.pos"), _POLARITY, _cut_class_files),
    "sst2": BuiltIn(
        ("SST/stsa/stsa.binary.train", "SST/stsa/stsa.binary.dev", "SST/stsa/stsa.binary.test"),
        _POLARITY,
        _official_stsa,
    ),
    "sst5": BuiltIn(
        ("SST/stsa/stsa.fine.train", "SST/stsa/stsa.fine.dev", "SST/stsa/stsa.fine.test"),
        ["very negative", "negative", "neutral", "positive", "very positive"],
        _official_stsa,
    ),
    "subj": BuiltIn(("Subj/subj.objective", "Subj/subj.subjective"), ["objective", "subjective"], _cut_class_files),
    "chnsenti": BuiltIn(("ChnSenti/ChnSentiCorp_htl_all.csv",), _POLARITY, _cut_reviews),
    "waimai": BuiltIn(("Waimai/waimai_10k.csv",), _POLARITY, _cut_reviews),
    "demo": BuiltIn(tuple(f"demo_reviews/{split}.tsv" for split in SPLITS), _POLARITY, _demo),
    "glue/sst2": BuiltIn(("glue/SST-2/train.tsv", "glue/SST-2/dev.tsv", "SST/trees/train.txt"), _POLARITY, _glue_sst2),
    "glue/rte": BuiltIn(("glue/RTE/train.tsv", "glue/RTE/dev.tsv"), ["not_entailment", "entailment"], _glue_rte),
    "glue/mrpc": BuiltIn(
        ("glue/MRPC/msr_paraphrase_train.txt", "glue/MRPC/msr_paraphrase_test.txt"),
        ["not_equivalent", "equivalent"],
        _glue_mrpc,
        "f1",
    ),
    "glue/stsb": BuiltIn(("glue/STS-B/sts-train.csv", "glue/STS-B/sts-dev.csv"), [], _glue_stsb, "spearman"),
}
