"""Floor 8: what happens inside a model while it reads: its answers after every step, its spikes, its attention.

Observed from outside, by hooks, on any of our classifiers and on dense ones. Shapes: T time steps, N texts, L tokens,
H heads, K classes; a dense network has one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spiketext.checkpoints import label_names
from spiketext.data import Split
from spiketext.evaluation import model_inputs, rows_for, steps_of, texts_at_once
from spiketext.models import SpikeBertForSequenceClassification
from spiketext.neurons import LIF

BINS = 10
LEGIBLE = 16  # tokens of a text whose inside is shown, about


@dataclass(frozen=True)
class Reading:
    """What a model did with one text.

    tokens: the L pieces; spikes: by layer, in the order of the network, [T, places, neurons] (places: tokens, windows
    of a filter, or 1 where a neuron sees the whole text); attention: [H, L, L] of the last block at the last step,
    row = token that looks, column = token looked at (counts of coinciding spikes; a dense model: shares that sum to
    1), None for a model without attention; logits: [T, K], the answer after each step.
    """

    tokens: list[str]
    spikes: dict[str, np.ndarray]
    attention: np.ndarray | None
    logits: np.ndarray


@torch.inference_mode()
def answers_by_step(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> np.ndarray:
    """Logits [T, N, K] after each time step, in the order of the texts; the last are the model's answer.

    No spike depends on a later step, so step t's are the mean over the first t steps of one run. Raises ValueError
    for no texts.
    """
    if not texts:
        raise ValueError("no texts: expected at least one")
    rows = rows_for(model, tokenizer, texts, pairs)
    answers = np.empty((_steps(model), len(texts), len(label_names(model))), dtype=np.float32)
    model.eval()
    with _answering(model) as answer, tqdm(total=len(texts), unit="text", disable=not progress, leave=False) as bar:
        for numbers, batch in rows.batches(texts_at_once(rows, model, batch_size)):
            answers[:, numbers] = answer(model_inputs(tokenizer, batch)).float().numpy()
            bar.update(len(numbers))
    return answers


@torch.inference_mode()
def look_inside(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, pair: str | None = None
) -> Reading:
    """Read one text and keep what the network did. A text longer than the model's positions is cut."""
    rows = rows_for(model, tokenizer, [text], None if pair is None else [pair])
    inputs = model_inputs(tokenizer, rows.collate([rows[0, 0]]))
    spikes: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple, out: Tensor) -> None:
            places = out[:, 0] if getattr(layer, "span", 1) is not None else out  # [T, places, ...]
            spikes[name] = places.flatten(2).to(torch.int8).numpy()

        return hook

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LIF)]
    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers]
    model.eval()
    try:
        with _answering(model) as answer:
            logits = answer(inputs)[:, 0].float().numpy()
    finally:
        for handle in handles:
            handle.remove()
    return Reading(
        tokens=list(tokenizer.convert_ids_to_tokens(rows.ids[0])),
        spikes=spikes,
        attention=_attention(model, inputs),
        logits=logits,
    )


def legible(part: Split, tokenizer: PreTrainedTokenizerBase, rows: Sequence[int], count: int = 1) -> list[int]:
    """Those of the first 200 rows whose texts are neither long nor short: nearest to LEGIBLE tokens, best first."""
    chosen = rows[:200]
    lengths = [len(tokenizer(part.texts[i], part.pairs[i] if part.pairs else None)["input_ids"]) for i in chosen]
    order = np.argsort(np.abs(np.asarray(lengths) - LEGIBLE), kind="stable")
    return [int(chosen[place]) for place in order[:count]]


def _attention(model: PreTrainedModel, inputs: dict[str, Tensor]) -> np.ndarray | None:
    """Maps [H, L, L] of the last block at the last step."""
    if not getattr(model.config, "num_attention_heads", None):
        return None
    spiking = isinstance(model, SpikeBertForSequenceClassification)
    if not spiking:
        model.set_attn_implementation("eager")  # the quicker ones never build the map
    scores = model(**inputs, output_attentions=True).attentions[-1]
    return (scores[-1, 0] if spiking else scores[0]).float().numpy()


def _steps(model: PreTrainedModel) -> int:
    return steps_of(model) if any(isinstance(layer, LIF) for layer in model.modules()) else 1


@contextmanager
def _answering(model: PreTrainedModel) -> Iterator[Callable[[dict[str, Tensor]], Tensor]]:
    """A function of inputs [B, L] to the logits [T, B, K] after each step."""
    seen: list[Tensor] = []
    by_token = isinstance(model, SpikeBertForSequenceClassification)

    def answer(inputs: dict[str, Tensor]) -> Tensor:
        seen.clear()
        whole = model(**inputs)
        votes = whole.get("votes")
        if by_token:
            mask = inputs["attention_mask"]
            real = mask if model.config.design == "default" else torch.ones_like(mask)
            weight = real.to(seen[0].dtype)
            votes = (seen[0] * weight[..., None]).sum(2) / weight.sum(1, keepdim=True)
        if votes is None:
            return whole.logits[None]
        return votes.cumsum(0) / torch.arange(1, len(votes) + 1).view(-1, 1, 1)

    head: Any = model.classifier if by_token else None
    handle = head.register_forward_hook(lambda module, args, out: seen.append(out)) if by_token else None
    try:
        yield answer
    finally:
        if handle is not None:
            handle.remove()


def confusion(labels: np.ndarray, answers: np.ndarray, classes: int) -> np.ndarray:
    """Counts [K, K] of labels [N] (rows) against answers [N] (columns)."""
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (labels, answers), 1)
    return counts


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Is a model right as often as it is sure? probabilities [N, K], labels [N].

    Returns "error", the expected calibration error in 0..1 (Guo et al. 2017: the gap between confidence and accuracy,
    mean over texts, in ten equal bins of confidence), and "bins" of {"confidence", "accuracy", "texts"}, empty ones
    left out.
    """
    sure, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    number = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins = [
        {"confidence": float(sure[here].mean()), "accuracy": float(right[here].mean()), "texts": int(here.sum())}
        for here in (number == i for i in range(BINS))
        if here.any()
    ]
    gap = sum(abs(row["confidence"] - row["accuracy"]) * row["texts"] for row in bins)
    return {"error": gap / len(labels), "bins": bins}
