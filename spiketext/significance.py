"""Floor 0: whether two rows of results differ by more than chance: a paired bootstrap over their texts.

A cell of a result file (`spiketext.results`) holds what was answered: of an accuracy which texts were right ("correct",
one bit a text), of F1 and Spearman the answers and the gold labels themselves ("answers", "gold"), so that rows can be
compared when their models are gone.
"""

from __future__ import annotations

import base64
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

RIGHT = ("accuracy", "accuracy_under_attack")  # metrics whose cells hold which texts were right
ANSWERED = ("f1", "spearman")  # metrics whose cells hold answers and gold labels
_DRAWS = {"f1": 10_000, "spearman": 2_000}  # of the bootstrap; ranks are dearer than sums
_AT_ONCE = 500  # draws


def packed(correct: Sequence[bool]) -> str:
    """One bit for each text, as base64."""
    return base64.b64encode(np.packbits(np.asarray(correct, dtype=bool)).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The inverse of `packed`: bool [count]."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


def packed_values(values: Sequence[float]) -> str:
    """A class or number for each text, as float32, compressed, in base64."""
    return base64.b64encode(zlib.compress(np.asarray(values, dtype="<f4").tobytes())).decode()


def unpacked_values(text: str) -> np.ndarray:
    """The inverse of `packed_values`: float32 [N]."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4")


def seeds_answered(cell: dict[str, Any]) -> dict[int, str]:
    """What a cell holds of the texts, still packed, by seed."""
    held = cell.get("answers" if cell["metric"] in ANSWERED else "correct", [])
    return {seed: text for seed, text in zip(cell["seeds"], held, strict=False) if text is not None}


def answered(cell: dict[str, Any], text: str) -> dict[str, np.ndarray]:
    """What a seed of a cell answered: {"correct": bool [N]}, or {"answers", "gold": float32 [N]}."""
    if cell["metric"] in RIGHT:
        return {"correct": unpacked(text, cell["texts"])}
    return {"answers": unpacked_values(text), "gold": unpacked_values(cell["gold"])}


def paired(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two cells of one metric on the same texts: the difference of means over the seeds that both have.

    Returns difference, low, high (points; 95 % interval of a bootstrap over texts), texts, seeds and p. Of an accuracy
    p is the exact sign test on the texts that one gets right more often, for one seed McNemar's exact test, and
    first_right and second_right count those texts (10,000 draws); of F1 (10,000) and Spearman (2,000) p is twice the
    share of draws on the other side of zero, at least one draw's.
    Raises ValueError when the cells hold no answers or are of different texts or metrics.
    """
    here, there = (f"{cell['row']!r} on {cell['column']}" for cell in (first, second))
    for key in ("metric", "data_hash", "split", "texts"):
        if first.get(key) != second.get(key):
            raise ValueError(
                f"{here} has {key} {first.get(key)}, {there} has {second.get(key)}; compare rows on equal texts"
            )
    held = [seeds_answered(cell) for cell in (first, second)]
    seeds = sorted(set(held[0]) & set(held[1]))
    if not seeds:
        raise ValueError(f"{here} and {there} share no seed with the answers to each text; reproduce both again")
    both = (tuple(one[seed] for seed in seeds) for one in held)
    return {
        "texts": first["texts"],
        "seeds": seeds,
        **_between(first["metric"], first["texts"], first.get("gold"), *both),
    }


@functools.lru_cache(maxsize=4096)  # a page of results is written again after each row that is measured
def _between(metric: str, texts: int, gold: str | None, first: tuple[str, ...], second: tuple[str, ...]) -> dict:
    """What `paired` finds of the packed answers of the same seeds; not to be changed."""
    cell = {"metric": metric, "texts": texts, "gold": gold}
    mine, theirs = ([answered(cell, text) for text in packed_texts] for packed_texts in (first, second))
    if metric in RIGHT:
        return _of_shares(*(np.stack([each["correct"] for each in rows]).astype(int) for rows in (mine, theirs)))
    return _of_scores(metric, mine[0]["gold"], *([each["answers"] for each in rows] for rows in (mine, theirs)))


def _of_shares(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Right or not, 0/1 [seeds, N] of both."""
    from scipy.stats import binomtest

    each = (first - second).sum(0)
    sums, counts = np.unique(each, return_counts=True)  # draws of texts are draws of these few sums
    drawn = np.random.default_rng(0).multinomial(len(each), counts / len(each), 10_000) @ sums
    points = 100 / first.size
    low, high = (float(end) * points for end in np.quantile(drawn, (0.025, 0.975)))
    won, lost = int((each > 0).sum()), int((each < 0).sum())
    p = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    difference = float(each.sum()) * points
    return {"difference": difference, "low": low, "high": high, "first_right": won, "second_right": lost, "p": p}


def _of_scores(metric: str, gold: np.ndarray, first: list[np.ndarray], second: list[np.ndarray]) -> dict[str, Any]:
    """Gold labels [N] and the answers [N] of each seed, of both."""
    score, pairs = {"f1": _f1, "spearman": _spearman}[metric], list(zip(first, second, strict=True))

    def difference(times: np.ndarray) -> np.ndarray:
        return 100 * np.mean([score(gold, a, times) - score(gold, b, times) for a, b in pairs], 0)

    random, draws = np.random.default_rng(0), _DRAWS[metric]
    each = np.full(len(gold), 1 / len(gold))
    parts = [random.multinomial(len(gold), each, _AT_ONCE).astype(np.float64) for _ in range(draws // _AT_ONCE)]
    drawn = np.concatenate([difference(times) for times in parts])
    low, high = map(float, np.quantile(drawn, (0.025, 0.975)))
    beyond = min((drawn <= 0).mean(), (drawn >= 0).mean())
    found = float(difference(np.ones((1, len(gold))))[0])
    return {"difference": found, "low": low, "high": high, "p": float(min(1, max(2 * beyond, 1 / draws)))}


def _f1(gold: np.ndarray, answers: np.ndarray, times: np.ndarray) -> np.ndarray:
    """F1 of class 1, or the mean over classes where there are more than two; times [draws, N] each text is there."""
    classes = np.unique([gold, answers])
    scores = []
    for one in classes if classes.max() > 1 else [1]:
        both = times @ ((gold == one) & (answers == one))
        either = times @ (gold == one) + times @ (answers == one)
        scores.append(2 * both / np.maximum(either, 1))
    return np.mean(scores, 0)


def _spearman(gold: np.ndarray, answers: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Correlation of the ranks that texts have among those drawn, ties at their middle; times [draws, N]."""

    def centred_ranks(values: np.ndarray) -> np.ndarray:
        known, group = np.unique(values, return_inverse=True)
        counts = times @ (group[:, None] == np.arange(len(known)))
        ranks = (counts.cumsum(1) - counts / 2)[:, group]
        return ranks - times.shape[1] / 2  # their mean, for each text is drawn a whole number of times

    one, other = centred_ranks(gold), centred_ranks(answers)
    products = ((times * a * b).sum(1) for a, b in ((one, other), (one, one), (other, other)))
    across, squares, others = products
    return across / np.maximum(np.sqrt(squares * others), np.finfo(float).tiny)
