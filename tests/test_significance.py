"""Two rows on the same texts: intervals and p against other libraries, for every metric that a set may have."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from spiketext import ledger, results, significance
from spiketext.baseline import tfidf
from spiketext.cli import main
from spiketext.data import TextSet
from spiketext.evaluation import evaluate


def cell(row: str, correct: list[np.ndarray], **changes) -> dict:
    values = [100 * float(one.mean()) for one in correct]
    return {"row": row, "column": "d", "metric": "accuracy", "unit": "%", "values": values, "split": "test",
            "seeds": list(range(len(correct))), "data_hash": "h", "status": "done", "paper": None, "wall_s": values,
            "correct": [significance.packed(one) for one in correct], "texts": len(correct[0])} | changes  # fmt: skip


def scored(row: str, metric: str, gold: np.ndarray, answers: list[np.ndarray], score, **changes) -> dict:
    values = [100 * score(gold, one) for one in answers]
    return {"row": row, "column": "d", "metric": metric, "unit": "%", "values": values, "split": "test",
            "seeds": list(range(len(answers))), "data_hash": "h", "status": "done", "paper": None, "wall_s": values,
            "answers": [significance.packed_values(one) for one in answers], "texts": len(gold),
            "gold": significance.packed_values(gold)} | changes  # fmt: skip


@pytest.fixture
def answers() -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [draw.random(501) < share for share in (0.85, 0.84, 0.80, 0.78)]


def test_answers_survive_packing(answers):
    for one in answers:
        assert (significance.unpacked(significance.packed(one), len(one)) == one).all()


def test_the_interval_is_that_of_a_bootstrap_over_texts_and_p_is_mcnemars(answers):
    a, b = answers[0], answers[2]
    found = significance.paired(cell("a", [a]), cell("b", [b]))
    difference = a.astype(float) - b
    expected = stats.bootstrap((difference,), np.mean, n_resamples=9999, method="percentile", rng=0).confidence_interval
    assert found["difference"] == pytest.approx(100 * difference.mean())
    assert (found["low"], found["high"]) == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.25)
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    assert (found["first_right"], found["second_right"]) == (won, lost)
    assert found["p"] == pytest.approx(min(1.0, 2 * stats.binom.cdf(min(won, lost), won + lost, 0.5)))


def test_seeds_are_pooled_text_by_text(answers):
    found = significance.paired(cell("a", answers[:2]), cell("b", answers[2:], seeds=[1, 0]))
    means = [np.mean([one.mean() for one in pair]) for pair in (answers[:2], answers[2:])]
    assert found["difference"] == pytest.approx(100 * (means[0] - means[1])) and found["seeds"] == [0, 1]
    swapped = significance.paired(cell("b", answers[2:]), cell("a", answers[:2]))
    assert swapped["difference"] == pytest.approx(-found["difference"]) and swapped["p"] == found["p"]
    assert significance.paired(cell("a", answers[:1]), cell("a", answers[:1]))["p"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"data_hash": "x"}, "data_hash"), ({"split": "validation"}, "split"), ({"correct": []}, "share no seed")],
)
def test_what_cannot_be_compared_is_said(answers, changes, message):
    with pytest.raises(ValueError, match=message):
        significance.paired(cell("a", answers[:1]), cell("b", answers[1:2]) | changes)


def binary_f1(gold, answers):
    return f1_score(gold, answers)


def macro_f1(gold, answers):
    return f1_score(gold, answers, average="macro")


def spearman(gold, answers):
    return stats.spearmanr(gold, answers)[0]


def drawn(metric: str, score) -> tuple[np.ndarray, list[np.ndarray]]:
    """Gold labels and two systems, the first better: classes, or numbers with many ties."""
    draw = np.random.default_rng(2)
    if metric == "f1":
        gold = draw.integers(0, 2 if score is binary_f1 else 4, 400)
        return gold, [np.where(draw.random(400) < share, gold, draw.permutation(gold)) for share in (0.8, 0.7)]
    gold = np.round(draw.random(400) * 5, 0)
    return gold, [np.float32(np.round(gold + draw.normal(0, noise, 400), 1)) for noise in (1.0, 1.4)]


METRICS = [("f1", binary_f1), ("f1", macro_f1), ("spearman", spearman)]


@pytest.mark.parametrize(("metric", "score"), METRICS)
def test_f1_and_spearman_have_the_interval_that_scipy_draws_from_other_libraries_scores(metric, score):
    gold, (a, b) = drawn(metric, score)
    found = significance.paired(scored("a", metric, gold, [a], score), scored("b", metric, gold, [b], score))

    def difference(gold, a, b):
        return score(gold, a) - score(gold, b)

    expected = stats.bootstrap((gold, a, b), difference, paired=True, vectorized=False, n_resamples=700,
                               method="percentile", rng=0)  # fmt: skip
    interval = expected.confidence_interval
    assert found["difference"] == pytest.approx(100 * difference(gold, a, b), abs=1e-6)
    width = 100 * (interval.high - interval.low)
    assert (found["low"], found["high"]) == pytest.approx((100 * interval.low, 100 * interval.high), abs=0.06 * width)
    draws = expected.bootstrap_distribution
    assert found["p"] == pytest.approx(2 * min((draws <= 0).mean(), (draws >= 0).mean()), abs=0.02)


@pytest.mark.parametrize(("metric", "score"), METRICS)
def test_a_row_differs_from_itself_by_nothing_and_from_another_both_ways_alike(metric, score):
    gold, (a, b) = drawn(metric, score)
    one, other = (scored(name, metric, gold, each, score) for name, each in (("a", [a, b]), ("b", [b, b])))
    same = significance.paired(one, one)
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)
    there, back = significance.paired(one, other), significance.paired(other, one)
    assert there["difference"] == pytest.approx(-back["difference"]) and there["p"] == pytest.approx(back["p"])
    assert there["low"] == pytest.approx(-back["high"]) and there["seeds"] == [0, 1]
    assert there["difference"] == pytest.approx(np.mean(one["values"]) - np.mean(other["values"]), abs=1e-6)


def test_a_system_with_one_answer_for_every_text_has_no_rank_correlation():
    gold, (a, _) = drawn("spearman", spearman)
    flat = scored("flat", "spearman", gold, [np.zeros_like(a)], lambda gold, one: 0.0)
    better = significance.paired(scored("a", "spearman", gold, [a], spearman), flat)
    assert better["difference"] == pytest.approx(100 * spearman(gold, a), abs=1e-6) and better["p"] == 1 / 2000


def test_metrics_are_not_mixed(answers):
    gold, (a, _) = drawn("f1", binary_f1)
    with pytest.raises(ValueError, match="metric"):
        significance.paired(cell("a", answers[:1]), scored("b", "f1", gold, [a], binary_f1))


def in_another_metric(texts: TextSet, metric: str) -> TextSet:
    """The same texts as pairs that F1 is the metric of, or with their numbers of words as scores."""
    if metric == "f1":
        return replace(texts, metric=metric)
    splits = {name: replace(part, labels=[float(len(text.split())) for text in part.texts])
              for name, part in texts.splits.items()}  # fmt: skip
    return replace(texts, task="regression", labels=[], metric=metric, splits=splits)


@pytest.mark.parametrize("metric", ["f1", "spearman"])
def test_rows_of_these_metrics_are_filled_shown_and_compared_on_the_command_line(metric, demo, saved, tmp_path, capsys):
    """TF-IDF and a network that has learned nothing, whose classes are in another order than those of the set."""
    texts = in_another_metric(demo, metric)
    settings = {"problem_type": "regression", "num_labels": 1}
    if metric == "f1":
        settings = {"id2label": dict(enumerate(reversed(texts.labels)))}
    outcomes = {"TF-IDF": tfidf(texts, "validation"),
                "network": evaluate(saved(**settings), texts, "validation", per_text=True)}  # fmt: skip
    cells = []
    for row, outcome in outcomes.items():
        blank = {"row": row, "column": "d", "metric": metric, "unit": "%", "values": [], "seeds": [], "wall_s": [],
                 "split": "validation", "data_hash": texts.hash, "status": "empty", "paper": None,
                 "test_reads": 0}  # fmt: skip
        ledger.fill({"machines": []}, blank, 0, outcome | {metric: 100 * outcome[metric]}, 1.0)
        cells.append(blank)
    (tmp_path / "results").mkdir()
    result = {"name": "t", "scale": "s", "against": "TF-IDF", "cells": cells}
    (tmp_path / "results" / "t.json").write_text(json.dumps(result))
    assert main(["reproduce", "--folder", str(tmp_path), "compare", "t:TF-IDF", "t:network", "--json"]) == 0
    [line] = json.loads(capsys.readouterr().out)
    assert line["metric"] == metric and line["low"] > 0 and line["p"] < 0.01
    assert line["difference"] == pytest.approx(line["first %"] - line["second %"], abs=1e-3)
    assert f"{-line['difference']:+.2f} (" in results.table(result)
