"""Floor 5: the passages of a corpus that a training reads, tokenised once into a file beside its checkpoints.

A row is read from that file when it is needed, so memory grows by a few bytes for each passage; and a run that was
stopped goes on with the rows it had, whatever happened to the corpus since.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from spiketext.batching import Rows
from spiketext.corpora import TestTexts, left_out, sentences, words_in
from spiketext.data import TextSet
from spiketext.hubsets import HUB
from spiketext.processes import is_first
from spiketext.runs import CHECKPOINTS, Run

_WINDOW = 4096  # neighbouring passages of which some are drawn
_AT_ONCE = 64  # passages in one call of the tokenizer


def draw(
    corpus: str,
    tokenizer: PreTrainedTokenizerBase,
    budget: int,
    max_length: int,
    size: int | None = None,
    quiet: bool = True,
    pairs: bool = False,
    without: TestTexts | None = None,
    encoding: str = "utf-8",
) -> Iterator[list[int]]:
    """Token ids of passages evenly drawn over a corpus until they reach the budget, each at most max_length long.

    The corpus is read twice: once to count its passages, once to draw from each window of them the share that is due.
    A corpus of the Hub is not counted: its first passages are taken, and of its files no more fetched than they need.
    size: sentences of a line are joined up to it, see `sentences`, which also says what is raised and what
    `without` and `encoding` mean; pairs: a passage is a sentence and the next that is kept, be it
    of another line or file; no sentence is in two of them.
    Raises ValueError without a pair.
    """
    bar: dict[str, Any] = {"unit": " passages", "disable": quiet}

    def stream() -> Iterator[tuple[str, ...]]:
        found = sentences(corpus, size=size, without=without, encoding=encoding)
        return zip(found, found, strict=False) if pairs else ((sentence,) for sentence in found)

    total = None
    if not any(part.strip().startswith(HUB) for part in corpus.split(",")):
        total = sum(1 for _ in tqdm(stream(), desc="counting the corpus", **bar))
    drawn_from = iter(tqdm(stream(), desc="drawing from it", total=total, **bar))
    taken = seen = number = 0
    while taken < budget and (window := list(islice(drawn_from, _WINDOW))):
        seen += len(window)
        due = budget * seen / total if total else budget
        order = np.random.default_rng(number).permutation(len(window))
        for start in range(0, len(order), _AT_ONCE):
            if taken >= due:
                break
            columns = map(list, zip(*(window[i] for i in order[start : start + _AT_ONCE]), strict=True))
            for ids in tokenizer(*columns, truncation=True, max_length=max_length)["input_ids"]:
                if taken < due:
                    taken += len(ids)
                    yield ids
        number += 1
    if not seen:
        raise ValueError(f"corpus {corpus}: one sentence is no pair; give more text, or leave --pairs out")


class TokenFile:
    """Rows of token ids in a folder: ids.bin (uint32, one row after the other) and lengths.bin (int32)."""

    def __init__(self, folder: Path):
        self.lengths = np.fromfile(folder / "lengths.bin", np.int32)
        self.starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        self._ids = os.open(folder / "ids.bin", os.O_RDONLY)
        weakref.finalize(self, os.close, self._ids)

    @classmethod
    def write(cls, folder: Path, rows: Iterator[list[int]]) -> TokenFile:
        """Write rows into a new folder, whole or not at all."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".corpus-"))
        try:
            with (made / "ids.bin").open("wb") as ids, (made / "lengths.bin").open("wb") as lengths:
                for row in rows:
                    ids.write(np.asarray(row, np.uint32).tobytes())
                    lengths.write(np.int32(len(row)).tobytes())
            try:
                os.replace(made, folder)
            except OSError:  # another process of the same run was quicker
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return cls(folder)

    def __getitem__(self, row: int) -> list[int]:
        """The ids of a row."""
        return np.frombuffer(os.pread(self._ids, 4 * int(self.lengths[row]), 4 * int(self.starts[row])),
                             np.uint32).tolist()  # fmt: skip


class TokenRows(Rows):
    """Some rows of a token file; an index is (epoch, row), and no row depends on the epoch. sep ends a segment."""

    def __init__(self, file: TokenFile, chosen: np.ndarray, pad: int, sep: int):
        self.file, self.chosen, self.pad, self.sep = file, chosen, pad, sep
        self.lengths = file.lengths[chosen]

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        ids = self.file[self.chosen[index[1]]]
        first = ids.index(self.sep) + 1 if self.sep in ids else len(ids)
        segments = [0] * first + [1] * (len(ids) - first)
        return {"input_ids": ids, "token_type_ids": segments, "labels": 0, "gold": 1}


class Passages(NamedTuple):
    """What a training on a corpus reads: rows to learn from, rows held out, and how many there are."""

    train: TokenRows
    validation: TokenRows
    tokens: int


def passages(
    run: Run, tokenizer: PreTrainedTokenizerBase, options: Any, size: int | None = None, pairs: bool = False
) -> Passages:
    """The passages of a run: `draw`n from options.corpus the first time, as they were when the run is resumed.

    Up to 500 of them, a twentieth at most, are held out for validation. Raises as `sentences` and, for the sets that
    are left out, as `data.load`; ValueError for a corpus of fewer than two passages or tails of them.
    """
    file = _drawn(run, "corpus", options, lambda: draw(
        options.corpus, tokenizer, options.tokens, options.max_length, size, options.quiet or not is_first(), pairs,
        left_out(options.leave_out, options.data_dir, options.corpus_encoding), options.corpus_encoding))  # fmt: skip
    count = len(file.lengths)
    if count < 2:
        raise ValueError(f"corpus {options.corpus}: {count} passages drawn for {options.tokens} tokens, expected 2 or "
                         "more; give a larger corpus or more --tokens")  # fmt: skip
    order = np.random.default_rng(0).permutation(count)
    held_out = max(1, min(500, count // 20))
    marks = tokenizer.pad_token_id, tokenizer.sep_token_id
    train, validation = (TokenRows(file, np.sort(part), *marks) for part in (order[held_out:], order[:held_out]))
    return Passages(train, validation, tokens=int(file.lengths.sum(dtype=np.int64)))


def unlabelled(run: Run, tokenizer: PreTrainedTokenizerBase, options: Any, text_set: TextSet) -> TokenRows:
    """Texts without labels beside those of a set: passages of options.unlabelled, up to options.unlabelled_tokens.

    They are as long as the set's texts for training are in the mean: neighbouring sentences are joined up to that. Left
    out are the set's texts of validation and test. Drawn the first time, as they were when the run is resumed.
    Raises as `sentences`, ValueError for a set of pairs or tails of texts.
    """
    if text_set.splits["train"].pairs:
        raise ValueError(f"unlabelled: expected a set of single texts, {text_set.name} has pairs; leave it out")
    size = round(np.mean([words_in(text) for text in text_set.splits["train"].texts]))
    file = _drawn(run, "unlabelled", options, lambda: draw(
        options.unlabelled, tokenizer, options.unlabelled_tokens, options.max_length, size,
        options.quiet or not is_first(), without=TestTexts([text_set], splits=("validation", "test")),
        encoding=options.unlabelled_encoding))  # fmt: skip
    return TokenRows(file, np.arange(len(file.lengths)), tokenizer.pad_token_id, tokenizer.sep_token_id)


def _drawn(run: Run, name: str, options: Any, rows: Callable[[], Iterator[list[int]]]) -> TokenFile:
    if options.truncation != "head":
        raise ValueError(f"truncation: a passage of a corpus keeps its head, got {options.truncation!r}; leave it out")
    folder = run.out / CHECKPOINTS / name
    return TokenFile(folder) if folder.exists() else TokenFile.write(folder, rows())
