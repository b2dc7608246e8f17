"""Floor 6: what a program without a network answers: the rival that costs nothing to train."""

from __future__ import annotations

from typing import Any

import numpy as np

from spiketext.data import Split, TextSet
from spiketext.evaluation import per_text_of, scores
from spiketext.words import language_of

NAME = "TF-IDF + logistic regression"


def tfidf(text_set: TextSet, split: str = "test") -> dict[str, Any]:
    """TF-IDF (words and pairs of words; Chinese: characters and pairs) with logistic regression; for scores ridge.

    A pair is read as its two texts side by side, and the product of their TF-IDF: what they share. The strength of the
    regularisation is chosen on validation, by the metric of the set. Returns all scores of
    the split, and what `per_text_of` does.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    train, validation, part = (text_set.splits[name] for name in ("train", "validation", split))
    chinese = language_of(train.texts) == "chinese"  # has no blanks between its words
    reads = {"analyzer": "char"} if chinese else {"token_pattern": r"(?u)\b\w+\b|[^\w\s]"}
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1, **reads)
    vectors.fit([*train.texts, *(train.pairs or [])])

    def read(rows: Split) -> Any:
        first = vectors.transform(rows.texts)
        if rows.pairs is None:
            return first
        second = vectors.transform(rows.pairs)
        return hstack([first, second, first.multiply(second)], format="csr")

    def answers(model: Any, features: Any) -> np.ndarray:
        if text_set.task == "regression":
            return model.predict(features)[:, None]
        known = np.zeros((features.shape[0], len(text_set.labels)))
        known[:, model.classes_] = model.predict_proba(features)  # training texts may lack a class
        return known

    learned, chosen_on = read(train), read(validation)
    best: Any = None
    best_score = -np.inf
    for c in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0):
        regression = Ridge(alpha=1 / c) if text_set.task == "regression" else LogisticRegression(C=c, max_iter=2000)
        candidate = regression.fit(learned, train.labels)
        found = scores(text_set.task, answers(candidate, chosen_on), np.asarray(validation.labels))[text_set.metric]
        if found > best_score:
            best, best_score, chosen = candidate, found, c
    given = answers(best, read(part))
    labels = np.asarray(part.labels)
    return {"data": text_set.name, "split": split, "rows": len(part), "C": chosen,
            f"validation_{text_set.metric}": best_score, **scores(text_set.task, given, labels),
            "data_hash": text_set.hash, **per_text_of(text_set.task, given, labels)}  # fmt: skip
