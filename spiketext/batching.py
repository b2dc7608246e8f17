"""Floor 1: texts to batches of token ids, grouped by length, padded to the longest text of the batch only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from spiketext.tables import half_character

Variant = Callable[[str, tuple, bool], str]


def padded(rows: list[dict[str, Any]], name: str, fill: int) -> Tensor:
    """A list of numbers in each row -> a tensor [B, L], filled up to the longest."""
    longest = max(len(row[name]) for row in rows)
    return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])


class Rows(Dataset):
    """What a training reads: an index is (epoch, row), `lengths` are in tokens, `pad` is the id that fills a batch.

    A row is {"input_ids", "token_type_ids", "labels", "gold"}; gold is 0 for a text without a label, such as an
    augmented copy. Where "again" is 1 the same text comes in every epoch; left out, it does where gold is 1.
    """

    lengths: np.ndarray
    pad: int

    def __len__(self) -> int:
        return len(self.lengths)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows -> input_ids, attention_mask, token_type_ids [B, L], labels [B], gold [B], again [B]."""
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": padded(rows, "input_ids", self.pad),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "token_type_ids": padded(rows, "token_type_ids", 0),
            "labels": torch.tensor([row["labels"] for row in rows]),
            "gold": torch.tensor([row["gold"] for row in rows]),
            "again": torch.tensor([row.get("again", row["gold"]) for row in rows]),
        }


class TextRows(Rows):
    """Tokenised texts, see `Rows`. Rows from len(texts) on are augmented copies, new in every epoch, then `unlabelled`.

    A text of more than max_length tokens keeps its head, or with truncation "head-tail" its two ends; `truncated` says
    how many texts were cut.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Any,
        max_length: int,
        pairs: Sequence[str] | None = None,
        labels: Sequence[float] | None = None,
        augment: Variant | None = None,
        copies: int = 0,
        seed: int = 0,
        truncation: str = "head",
        unlabelled: Rows | None = None,
    ):
        if truncation not in ("head", "head-tail"):
            raise ValueError(f"truncation: expected head or head-tail, got {truncation!r}")
        if truncation == "head-tail" and pairs:
            raise ValueError("truncation head-tail: is for single texts, got pairs; leave it out")
        self.truncation = truncation
        self.texts, self.pairs, self.labels = list(texts), list(pairs) if pairs else None, labels
        self.tokenizer, self.max_length, self.pad = tokenizer, max_length, tokenizer.pad_token_id
        self.augment, self.copies, self.seed = augment, copies if augment else 0, seed
        self.ids, self.segments, self.truncated = self._encode(self.texts, self.pairs)
        self.lengths = np.tile([len(ids) for ids in self.ids], 1 + self.copies)
        self.unlabelled = unlabelled
        if unlabelled is not None:
            self.lengths = np.concatenate([self.lengths, unlabelled.lengths])

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        epoch, row = index
        if (beyond := row - len(self.texts) * (1 + self.copies)) >= 0:
            assert self.unlabelled is not None
            return self.unlabelled[epoch, beyond] | {"gold": 0, "again": 1}
        source = row % len(self.texts)
        ids, segments = self.ids[source], self.segments[source]
        if row >= len(self.texts):
            assert self.augment is not None
            key = (self.seed, epoch, row)
            alone = self.pairs is None
            pair = None if alone else [self.augment(self.pairs[source], (*key, "pair"), False)]  # type: ignore[index]
            (ids,), (segments,), _ = self._encode([self.augment(self.texts[source], key, alone)], pair)
        label = self.labels[source] if self.labels is not None else 0
        return {"input_ids": ids, "token_type_ids": segments, "labels": label, "gold": int(row < len(self.texts))}

    def _encode(self, texts: list[str], pairs: list[str] | None) -> tuple[list[list[int]], list[list[int]], int]:
        """Ids, segments, and how many texts had to be cut."""
        asked = {"return_token_type_ids": True, "return_attention_mask": False, "verbose": False}
        try:
            encoded = self.tokenizer(texts, pairs, truncation=True, max_length=self.max_length, **asked)
        except TypeError:
            half = next(filter(None, map(half_character, [*texts, *(pairs or [])])), None)
            if half is None:
                raise
            raise ValueError(f"a text holds {half!r}, half a character; expected whole ones (UTF-8)") from None
        ids, segments = encoded["input_ids"], encoded["token_type_ids"]
        full = [row for row, tokens in enumerate(ids) if len(tokens) == self.max_length]
        if not full:
            return ids, segments, 0
        whole = self.tokenizer([texts[row] for row in full], pairs and [pairs[row] for row in full], **asked)
        cut = [number for number, tokens in enumerate(whole["input_ids"]) if len(tokens) > self.max_length]
        for number in cut if self.truncation == "head-tail" else ():
            ids[full[number]] = self._ends(whole["input_ids"][number])
            segments[full[number]] = self._ends(whole["token_type_ids"][number])
        return ids, segments, len(cut)

    def _ends(self, tokens: list[int]) -> list[int]:
        """The first and the last tokens, marks of beginning and end included."""
        tail = self.max_length // 2
        return tokens[: self.max_length - tail] + tokens[len(tokens) - tail :]

    def batches(self, size: int) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """All rows once, without shuffling, longest first: (row numbers, batch)."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), size):
            rows = order[start : start + size].tolist()
            yield rows, self.collate([self[0, row] for row in rows])


class LengthBuckets(Sampler):
    """Batches of (epoch, row) with rows of similar length together; the order is a function of (seed, epoch).

    Each batch is cut into `parts` micro-batches for each of `processes` processes, and those of process `rank` are
    given one after the other. So the rows of an optimiser step do not depend on how they are shared out. A last batch
    of fewer rows than shares repeats its rows: nobody may be left without one.
    """

    POOL = 50  # batches that are sorted together: large enough to fill batches evenly, small enough to stay random

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, parts: int = 1, processes: int = 1, rank: int = 0
    ):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0
        self.parts, self.processes, self.rank = parts, processes, rank

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before each pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        order = draw.permutation(len(self.lengths))
        pool, batches = self.POOL * self.batch_size, []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        shares = self.parts * self.processes
        for index in draw.permutation(len(batches)):
            batch = batches[index] if len(batches[index]) >= shares else np.resize(batches[index], shares)
            for part in np.array_split(batch, shares)[self.rank :: self.processes]:
                yield [(self.epoch, int(row)) for row in part]


class EvaluationOrder(Sampler):
    """All rows once, longest first, as (0, row): labels come back in that order, so scores do not depend on it."""

    def __init__(self, lengths: np.ndarray, batch_size: int):
        self.order, self.batch_size = np.argsort(-lengths, kind="stable").tolist(), batch_size

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.order), self.batch_size):
            yield [(0, row) for row in self.order[start : start + self.batch_size]]
