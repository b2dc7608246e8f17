"""Floor 4: what a model answers, how often it is right, how often its neurons fire."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spiketext.batching import TextRows
from spiketext.checkpoints import label_names, load_classifier, load_tokenizer
from spiketext.data import Split, TextSet, load
from spiketext.models.streaming import Stepper
from spiketext.neurons import LIF
from spiketext.precision import to_precision

_TOKEN_STEPS = 2**19  # tokens times steps in one forward pass


class Diverged(ValueError):
    """A training ended in numbers that are none."""


def scores(task: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 (of class 1, or macro), Matthews in 0..1; for regression Pearson and Spearman.

    logits [N, K], labels [N]. Raises Diverged when a logit is not a number.
    """
    from scipy import stats
    from sklearn import metrics

    if not np.isfinite(logits).all():
        raise Diverged("the model answers NaN or infinity; it diverged: train again with a lower --learning-rate")
    if task == "regression":
        answers = logits.squeeze(-1)
        if answers.std() == 0 or labels.std() == 0:
            return {"pearson": 0.0, "spearman": 0.0}
        return {"pearson": float(stats.pearsonr(answers, labels)[0]),
                "spearman": float(stats.spearmanr(answers, labels)[0])}  # fmt: skip
    answers = logits.argmax(-1)
    average = "binary" if logits.shape[1] == 2 else "macro"
    return {
        "accuracy": float(metrics.accuracy_score(labels, answers)),
        "f1": float(metrics.f1_score(labels, answers, average=average, zero_division=0.0)),
        "matthews": float(metrics.matthews_corrcoef(labels, answers)),
    }


class RateCounter:
    """Shares of neuron-steps of real tokens that fired, layer by layer, while `counting` is active."""

    def __init__(self) -> None:
        self.fired: dict[str, float] = {}
        self.possible: dict[str, float] = {}
        self.mask: Tensor | None = None

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[RateCounter]:
        """Hooks on every layer of neurons; set `mask` [B, L] before each forward pass."""
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LIF)]
        handles = [module.register_forward_hook(partial(self._record, name)) for name, module in layers]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, name: str, module: nn.Module, inputs: tuple, spikes: Tensor) -> None:
        assert self.mask is not None
        span = getattr(module, "span", 1)
        if span is None:  # neurons of the whole text
            spikes = spikes[:, :, None]
        fired = (spikes != 0).flatten(3).sum(-1, dtype=torch.float32)  # [T, B, L]
        real = _places(self.mask, span, spikes.shape[2])
        self.fired[name] = self.fired.get(name, 0.0) + float((fired * real).sum())
        neurons = spikes[0, 0, 0].numel() * spikes.shape[0]
        self.possible[name] = self.possible.get(name, 0.0) + neurons * float(real.sum())

    @property
    def rates(self) -> dict[str, float]:
        """Firing rate of each layer, 0..1."""
        return {name: self.fired[name] / self.possible[name] for name in self.fired}

    @property
    def rate(self) -> float | None:
        """Firing rate over all neurons; None for a model without any."""
        return sum(self.fired.values()) / sum(self.possible.values()) if self.possible else None


def _places(mask: Tensor, span: int | None, places: int) -> Tensor:
    """mask [B, L] of real tokens -> [B, places] of real neurons, each of which sees `span` tokens: at least one."""
    words = mask.sum(1, keepdim=True)
    real = words - span + 1 if span else torch.ones_like(words)
    return torch.arange(places, device=mask.device) < real.clamp(min=1)


@torch.inference_mode()
def logits_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    batch_size: int = 64,
    counter: RateCounter | None = None,
    progress: bool = False,
    noise: np.ndarray | None = None,
) -> np.ndarray:
    """Logits [N, K] in the order of the texts. Texts longer than the model's positions are cut.

    Fewer than batch_size texts go together where T times their tokens would need more than about 1 GB. noise [N],
    int64: keys of the Poisson spikes of the texts, for a network that draws some (`coding.poisson`).
    """
    if not texts:
        raise ValueError("no texts: expected at least one")
    rows = TextRows(texts, tokenizer, longest(model, tokenizer), pairs)
    batch_size = min(batch_size, max(1, _TOKEN_STEPS // (int(max(rows.lengths)) * steps_of(model))))
    answers = np.empty((len(texts), len(label_names(model))), dtype=np.float32)
    model.eval()
    bar = tqdm(total=len(texts), unit="text", disable=not progress, leave=False)
    for numbers, batch in rows.batches(batch_size):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        if counter is not None:
            counter.mask = batch["attention_mask"]
        inputs = model_inputs(tokenizer, batch)
        if noise is not None:
            inputs["noise"] = torch.as_tensor(noise[numbers], device=model.device)
        answers[numbers] = model(**inputs).logits.float().cpu().numpy()
        bar.update(len(numbers))
    bar.close()
    return answers


def anytime_logits(
    stepper: Stepper,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    batch_size: int = 64,
    confidence: float = 0.9,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """As `logits_of`, of a stepper's model, each text only for as many steps as it needs to be that sure.

    Returns logits [N, K] and the steps used [N].

    Raises ValueError for a confidence that is no probability.
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence: expected a probability, got {confidence}")
    rows = TextRows(texts, tokenizer, longest(stepper.model, tokenizer), pairs)
    answers = np.empty((len(texts), len(label_names(stepper.model))), dtype=np.float32)
    steps = np.empty(len(texts), dtype=int)
    bar = tqdm(total=len(texts), unit="text", disable=not progress, leave=False)
    for numbers, batch in rows.batches(batch_size):
        logits, used = stepper(model_inputs(tokenizer, batch), confidence)
        answers[numbers], steps[numbers] = logits.float().numpy(), used.numpy()
        bar.update(len(numbers))
    bar.close()
    return answers, steps


def steps_of(model: PreTrainedModel) -> int:
    """T; 1 for a model without time."""
    return getattr(model.config, "time_steps", None) or 1


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that a model can read of one text."""
    positions = getattr(model.config, "max_position_embeddings", 512) or 512
    return min(positions, tokenizer.model_max_length, 512)


def model_inputs(tokenizer: PreTrainedTokenizerBase, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that a model of this tokenizer reads."""
    return {name: batch[name] for name in tokenizer.model_input_names if name in batch}


def evaluate(
    model: str,
    data: str | TextSet,
    split: str = "validation",
    *,
    time_steps: int | None = None,
    confidence: float | None = None,
    precision: str = "float32",
    batch_size: int = 64,
    progress: bool = False,
    **reading: Any,
) -> dict[str, Any]:
    """Scores of a saved model on a split, with its firing rates and the hash of the texts.

    model is a folder, data a name or path (`reading`: see `data.load`), time_steps changes T, precision the numbers
    (`to_precision`). With a confidence (a probability) a text stops at the first time step that is as sure of its
    label; the mean number of steps is in the result. A reading of the test split is counted in the model's folder.
    Raises ValueError for an unknown split, an empty one, or labels that are not the model's.
    """
    text_set, part = read_split(data, split, **reading)
    network = load_classifier(model, **({} if time_steps is None else {"time_steps": time_steps}))
    tokenizer = load_tokenizer(model)
    labels = labels_for(network, text_set, part, model)
    network = to_precision(network, precision)
    counter = RateCounter()
    steps = None
    if confidence is not None:
        stepper = Stepper(network)
        answers, steps = anytime_logits(stepper, tokenizer, part.texts, part.pairs, batch_size, confidence, progress)
    else:
        with counter.counting(network):
            answers = logits_of(network, tokenizer, part.texts, part.pairs, batch_size, counter, progress)
    result = {
        "model": model,
        "data": text_set.name,
        "split": split,
        "rows": len(part),
        **scores(text_set.task, answers, labels),
        "firing_rate": counter.rate,
        "layer_rates": counter.rates,
        "time_steps": getattr(network.config, "time_steps", None),
        "precision": precision,
        "data_hash": text_set.hash,
    }
    if steps is not None:
        result |= {"confidence": confidence, "mean_steps": float(steps.mean())}
    if split == "test":
        result["test_reads"] = note_test_reading(Path(model), result)
    return result


def read_split(data: str | TextSet, split: str, **reading: Any) -> tuple[TextSet, Split]:
    """A data set (`reading`: see `data.load`) and one split of it; ValueError when it has no such split, or no rows."""
    text_set = load(data, **reading) if isinstance(data, str) else data
    if split not in text_set.splits:
        raise ValueError(f"split: expected one of {', '.join(text_set.splits)}, got {split!r}")
    if not len(text_set.splits[split]):
        raise ValueError(f"{text_set.name}: split {split} has no rows")
    return text_set, text_set.splits[split]


def labels_for(network: PreTrainedModel, text_set: TextSet, part: Split, model: str) -> np.ndarray:
    """Labels [N] in the ids of the network. Raises ValueError when the class names differ."""
    if text_set.task == "regression":
        return np.asarray(part.labels, dtype=np.float64)
    names = label_names(network)
    if sorted(names) != sorted(text_set.labels):
        raise ValueError(
            f"model {model} knows the labels {', '.join(names)}; {text_set.name} has {', '.join(text_set.labels)}; "
            "evaluate on texts with the labels it was trained on"
        )
    return np.asarray([names.index(text_set.labels[int(label)]) for label in part.labels])


def note_test_reading(folder: Path, result: dict[str, Any]) -> int:
    """Append this reading of a test split to the model's folder; how often that split was read by now."""
    log = folder / "test_reads.jsonl"
    entry = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "data": result["data"],
             "data_hash": result["data_hash"], "time_steps": result["time_steps"]}  # fmt: skip
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")
    lines = log.read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["data_hash"] == result["data_hash"] for line in lines)


def predict(
    model: str,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    top_k: int = 1,
    precision: str = "float32",
    batch_size: int = 64,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """The top_k labels of each text with probabilities, most probable first (regression: the number).

    Each answer is {"text", "labels", "probabilities"} or {"text", "value"}. Any string is a text, the empty one too.
    """
    if top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    network, tokenizer = to_precision(load_classifier(model), precision), load_tokenizer(model)
    answers = logits_of(network, tokenizer, texts, pairs, batch_size, progress=progress)
    if network.config.problem_type == "regression":
        return [{"text": text, "value": float(row[0])} for text, row in zip(texts, answers, strict=True)]
    probabilities = torch.tensor(answers).softmax(-1).numpy()
    names, results = label_names(network), []
    for text, row in zip(texts, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:top_k]
        results.append(
            {"text": text, "labels": [names[i] for i in best], "probabilities": [float(row[i]) for i in best]}
        )
    return results


def tfidf_baseline(text_set: TextSet, split: str = "test") -> dict[str, Any]:
    """TF-IDF (words and pairs of words) with logistic regression, C chosen on validation."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    train, validation, part = (text_set.splits[name] for name in ("train", "validation", split))
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    x = vectors.fit_transform(train.texts)
    best, best_score = None, -1.0
    for c in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0):
        candidate = LogisticRegression(C=c, max_iter=2000).fit(x, train.labels)
        score = candidate.score(vectors.transform(validation.texts), validation.labels)
        if score > best_score:
            best, best_score, chosen = candidate, score, c
    assert best is not None
    return {"data": text_set.name, "split": split, "rows": len(part), "C": chosen, "validation_accuracy": best_score,
            "accuracy": float(best.score(vectors.transform(part.texts), part.labels)),
            "data_hash": text_set.hash}  # fmt: skip
