"""Floor 5: what a model answers, how often it is right, how often its neurons fire."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spiketext.batching import TextRows
from spiketext.checkpoints import label_names, load_classifier, load_tokenizer, on_gpu
from spiketext.data import Split, TextSet, load
from spiketext.datasets import BUILT_IN
from spiketext.models.streaming import Stepper
from spiketext.neurons import LIF
from spiketext.precision import to_precision
from spiketext.rates import RateCounter
from spiketext.runs import TEST_READS, read_json, readings_of_test

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")
_TOKEN_STEPS = 2**19  # tokens times steps in one forward pass


class Diverged(ValueError):
    """A training ended in numbers that are none."""


def scores(task: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 (of class 1, or macro), Matthews in 0..1; for regression Pearson and Spearman.

    logits [N, K], labels [N]. Raises Diverged when a logit is not a number.
    """
    from scipy import stats
    from sklearn import metrics

    _require_numbers(logits)
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


def _require_numbers(logits: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        raise Diverged("the model answers NaN or infinity; it diverged: train again with a lower --learning-rate")


def per_text_of(task: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, list]:
    """What was answered to each text and what is right, [N] each, as classes or numbers; of classes also a flag.

    logits [N, K], labels [N] -> {"answers", "gold"}, and {"correct"} of a classification.
    """
    answers = logits.squeeze(-1) if task == "regression" else logits.argmax(-1)
    flags = {} if task == "regression" else {"correct": (answers == labels).tolist()}
    return {"answers": answers.tolist(), "gold": labels.tolist(), **flags}


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
    return _logits(model, tokenizer, rows_for(model, tokenizer, texts, pairs), batch_size, counter, progress, noise)


@torch.inference_mode()
def _logits(
    model: Any, tokenizer: Any, rows: TextRows, batch_size: int, counter: Any, progress: bool, noise: Any = None
) -> np.ndarray:
    batch_size = texts_at_once(rows, model, batch_size)
    answers = np.empty((len(rows), len(label_names(model))), dtype=np.float32)
    model.eval()
    bar = tqdm(total=len(rows), unit="text", disable=not progress, leave=False)
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
    return _anytime(
        stepper, tokenizer, rows_for(stepper.model, tokenizer, texts, pairs), batch_size, confidence, progress
    )


def _anytime(
    stepper: Stepper, tokenizer: Any, rows: TextRows, batch_size: int, confidence: float, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence: expected a probability, got {confidence}")
    at_least_one(batch_size=batch_size)
    answers = np.empty((len(rows), len(label_names(stepper.model))), dtype=np.float32)
    steps = np.empty(len(rows), dtype=int)
    bar = tqdm(total=len(rows), unit="text", disable=not progress, leave=False)
    for numbers, batch in rows.batches(batch_size):
        batch = {name: tensor.to(stepper.model.device) for name, tensor in batch.items()}
        logits, used = stepper(model_inputs(tokenizer, batch), confidence)
        answers[numbers], steps[numbers] = logits.float().cpu().numpy(), used.cpu().numpy()
        bar.update(len(numbers))
    bar.close()
    return answers, steps


def texts_at_once(rows: TextRows, model: PreTrainedModel, batch_size: int) -> int:
    """At most batch_size, fewer where T times the tokens would need more than about 1 GB. ValueError below 1."""
    at_least_one(batch_size=batch_size)
    widest = max(getattr(model.config, "filter_widths", [1]))  # words of a window, copied side by side
    return min(batch_size, max(1, _TOKEN_STEPS // (int(max(rows.lengths)) * widest * steps_of(model))))


def steps_of(model: PreTrainedModel) -> int:
    """T; 1 for a model without time."""
    return getattr(model.config, "time_steps", None) or 1


def at_least_one(**counts: int | None) -> None:
    """Raises ValueError for a count, by its name, that is below 1; None is no count."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")


def sends(model: PreTrainedModel) -> str | None:
    """What the neurons of a model send, and in how many time steps; None for a dense one.

    An integer code is one pass here; as binary spikes (`unroll`) it takes as many steps as it has levels.
    """
    if not any(isinstance(module, LIF) for module in model.modules()):
        return None
    config, code = model.config, getattr(model.config, "code", "binary")
    design = f", {config.design} design" if hasattr(config, "design") else ""
    if code != "integer":
        return f"{code}, T = {steps_of(model)}{design}"
    lowest = -config.levels if config.signed else 0
    return (f"integer {lowest} to {config.levels}, T = 1{design}; `unroll` sends a code k as k binary spikes: "
            f"{config.levels} steps, a latency of its own")  # fmt: skip


def load_at(model: str, time_steps: int | None) -> PreTrainedModel:
    """A saved classifier with another T, if one is asked for.

    Raises ValueError as `load_classifier`, for a T below 1, and for one of a model without spiking neurons.
    """
    at_least_one(time_steps=time_steps)
    network = load_classifier(model, **({} if time_steps is None else {"time_steps": time_steps}))
    if time_steps is not None and sends(network) is None:
        raise ValueError(f"time_steps: {model} is dense and has no time, got {time_steps}; leave it out")
    return network


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that a model reads of one text: as many as in training, where that is known."""
    positions = getattr(model.config, "max_position_embeddings", 512) or 512
    return min(getattr(model.config, "text_length", positions), positions, tokenizer.model_max_length, 512)


def rows_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    length: int | None = None,
) -> TextRows:
    """Texts as a model reads them, cut where they are longer than `longest` (or length)."""
    truncation = getattr(model.config, "truncation", "head")
    return TextRows(texts, tokenizer, length or longest(model, tokenizer), pairs, truncation=truncation)


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
    per_text: bool = False,
    progress: bool = False,
    **reading: Any,
) -> dict[str, Any]:
    """Scores of a saved model on a split, with its firing rates and the hash of the texts.

    model is a folder, data a name or path (`reading`: see `data.load`), time_steps changes T, precision the numbers
    (`to_precision`). With a confidence (a probability) a text stops at the first time step that is as sure of its
    label; the mean number of steps is in the result. per_text adds what `per_text_of` returns. "sends" is what the
    neurons send (`sends`). A reading of the test split is counted in the model's folder, where it has one.
    Raises ValueError for an unknown split, an empty one, labels that are not the model's, or a count below 1.
    """
    at_least_one(batch_size=batch_size, time_steps=time_steps)
    text_set, part = read_split(data, split, **reading)
    network, tokenizer = load_at(model, time_steps), load_tokenizer(model)
    labels_for(network, text_set, part, model)  # or it raises
    if split == "test" and Path(model).is_dir():
        (Path(model) / TEST_READS).open("a").close()  # or it raises, before test is read
    network = _ready(network, precision)
    rows = rows_for(network, tokenizer, part.texts, part.pairs)
    counter = RateCounter()
    steps = None
    if confidence is not None:
        answers, steps = _anytime(Stepper(network), tokenizer, rows, batch_size, confidence, progress)
    else:
        with counter.counting(network):
            answers = _logits(network, tokenizer, rows, batch_size, counter, progress)
    answers, labels = in_order(network, text_set, answers), np.asarray(part.labels)
    result: dict[str, Any] = {
        "model": model,
        "data": text_set.name,
        "split": split,
        "rows": len(part),
        "truncated": f"{rows.truncated} of {len(part)}",
        **scores(text_set.task, answers, labels),
        "firing_rate": counter.rate,
        "layer_rates": counter.rates,
        "time_steps": getattr(network.config, "time_steps", None),
        "sends": sends(network),
        "precision": precision,
        "data_hash": text_set.hash,
    }
    made = read_json(Path(model) / "spiketext.json") or {}
    own = not {text_set.name, made.get("data")} & {*BUILT_IN}  # benchmark sets don't change
    if own and made.get("data_hash", text_set.hash) != text_set.hash:
        result["note"] = f"it learned from {made['data']} as its texts were: of a file that grew or was sorted since, "
        result["note"] += f"texts that are {split} now may be among them"
    if per_text:
        result |= per_text_of(text_set.task, answers, labels)
    if steps is not None:
        result |= {"confidence": confidence, "mean_steps": float(steps.mean())}
    if split == "test":
        result["test_reads"] = note_test_reading(Path(model), result)
    return result


def _ready(network: PreTrainedModel, precision: str) -> PreTrainedModel:
    """In its precision, on the GPU where there is one; int8 is the processor's."""
    network = to_precision(network, precision)
    return network if precision == "int8" else on_gpu(network)


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
    names = label_names(network)
    if text_set.task == "regression" and len(names) == 1:
        return np.asarray(part.labels, dtype=np.float64)
    if sorted(names) != sorted(text_set.labels):
        raise ValueError(
            f"model {model} knows the labels {', '.join(names)}; {text_set.name} has "
            f"{', '.join(text_set.labels) or 'scores'}; "
            "evaluate on texts with the labels it was trained on"
        )
    return np.asarray([names.index(text_set.labels[int(label)]) for label in part.labels])


def in_order(network: PreTrainedModel, text_set: TextSet, logits: np.ndarray) -> np.ndarray:
    """Logits [N, K] with the classes in the order of the data set, as F1 of class 1 needs them."""
    names = label_names(network)
    return logits[:, [names.index(name) for name in text_set.labels] or slice(None)]


def note_test_reading(folder: Path, result: dict[str, Any]) -> int | None:
    """Append this reading of a test split, with its scores, to the model's folder; how often it was read by now.

    None, and nothing is written, where the model is no folder but a name of the Hub.
    """
    if not folder.is_dir():
        return None
    entry = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "data": result["data"],
             "data_hash": result["data_hash"], "time_steps": result["time_steps"],
             "precision": result.get("precision", "float32"), "confidence": result.get("confidence"),
             **{name: result[name] for name in METRICS if name in result}}  # fmt: skip
    log = folder / TEST_READS
    torn = log.exists() and log.read_bytes()[-1:] not in (b"", b"\n")
    with log.open("a", encoding="utf-8") as stream:
        stream.write("\n" * torn + json.dumps(entry) + "\n")
    return sum(other["data_hash"] == result["data_hash"] for other in readings_of_test(folder))


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

    Each answer is {"text", "labels", "probabilities"} or {"text", "value"}, with pairs also {"pair"}. Any string is a
    text, the empty one too.
    Raises ValueError for a count below 1, and Diverged when a logit is not a number.
    """
    at_least_one(top_k=top_k)
    network, tokenizer = _ready(load_classifier(model), precision), load_tokenizer(model)
    answers = logits_of(network, tokenizer, texts, pairs, batch_size, progress=progress)
    _require_numbers(answers)
    read = [{"text": text} for text in texts] if pairs is None else [
        {"text": text, "pair": pair} for text, pair in zip(texts, pairs, strict=True)]  # fmt: skip
    if network.config.problem_type == "regression":
        return [about | {"value": float(row[0])} for about, row in zip(read, answers, strict=True)]
    probabilities = torch.tensor(answers).softmax(-1).numpy()
    names, results = label_names(network), []
    for about, row in zip(read, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:top_k]
        results.append(about | {"labels": [names[i] for i in best], "probabilities": [float(row[i]) for i in best]})
    return results
