"""Floor 8: a tailored TextCNN becomes a spiking one (SNN-TextCNN 3.1.3). Weights are copied, nothing is left random.

With beta = 1, a neuron whose mean current is I fires at the rate min(1, max(0, I) / threshold): ReLU below saturation.
Normalisation divides each layer by a scale, so that rate * scale is the activation and no rate has to exceed 1, at any
threshold; without it a layer's scale is the threshold, times the scale of the layer before:

model       the largest sum of positive weights that a neuron of the layer has (Diehl et al. 2015); 1 for a mean
data        the largest activation that a text of the training split gives the layer (Diehl et al. 2015)
percentile  a percentile of its activations above zero on those texts (Rueckauer et al. 2017): outliers saturate

The three widths are one layer with one scale. A mean has no weights to divide: its neuron gets a gain.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spiketext import checkpoints
from spiketext.coding import CODINGS
from spiketext.data import TextSet
from spiketext.evaluation import longest
from spiketext.figures import log_curves
from spiketext.models import (
    SpikingTextCnnConfig,
    SpikingTextCnnForSequenceClassification,
    TextCnnForSequenceClassification,
)
from spiketext.options import ConvertOptions
from spiketext.runs import Run
from spiketext.training import finish, read, rows_of

NORMALISATIONS = ("none", "model", "data", "percentile")
LAYERS = ("convolutions", "pooling", "classifier")
LIMIT_TEXTS = 8  # at T = 1000 the spikes of a text take some 30 MB
_BINS = 10_000  # of the histogram that a percentile is read from: exact to the largest activation / 10,000
_KEPT = ("vocab_size", "hidden_size", "filter_widths", "num_filters", "neurons_per_class", "dropout", "pad_token_id",
         "max_position_embeddings", "id2label", "label2id", "problem_type", "vectors",
         "truncation", "text_length")  # fmt: skip
Batch = dict[str, Tensor]


def convert(options: ConvertOptions) -> dict[str, Any]:
    """The command: the tailored TextCNN of a folder becomes a spiking one in options.out; returns scales and seconds.

    With options.limit_law the picture is drawn and the result has "limit_law", by network the rows and exponents of
    `limit_law` on LIMIT_TEXTS validation texts. Raises ValueError for a model that cannot be converted (naming the
    layer), a percentile that nothing reads, or what needs texts without them; as `data.load` for texts that are named,
    needed or not. Then the folder is not touched.
    """
    started = time.monotonic()
    if options.normalize not in NORMALISATIONS:
        raise ValueError(f"normalize: expected {', '.join(NORMALISATIONS)}; got {options.normalize!r}")
    if options.percentile != ConvertOptions.percentile and options.normalize != "percentile":
        raise ValueError(f"percentile: is read by normalize percentile, got {options.normalize!r}; leave it out")
    checkpoints.quiet()
    model = require_convertible(checkpoints.load_classifier(options.model))
    tokenizer = checkpoints.load_tokenizer(options.model)
    normalised, batches = options.normalize in ("data", "percentile"), []
    if (normalised or options.limit_law) and not options.data:
        asks = f"normalize {options.normalize}" if normalised else "limit-law"
        raise ValueError(f"{asks}: reads texts; name them with --data")
    text_set = read(options) if options.data else None
    if (known := _known(options, text_set)) is not None:
        return known
    reading: dict[str, Any] = {
        "max_length": longest(model, tokenizer),
        "truncation": getattr(model.config, "truncation", "head"),
    }
    if text_set is not None and normalised:
        rows = rows_of(text_set, "train", tokenizer, **reading)
        batches = [batch for _, batch in rows.batches(64)]
    scales = None
    if options.normalize != "none":
        scales = scales_of(model, options.normalize, batches, options.percentile)
    settings = {name: getattr(options, name) for name in ("time_steps", "coding", "beta", "threshold", "seed")}
    spiking = spiking_from(model, scales, **settings)
    run = Run("convert", options)
    if text_set is not None:
        run.reads(text_set.name, text_set.hash)
    result: dict[str, Any] = {"scales": spiking.config.scales, "validation": {}, "history": []}
    if text_set is not None and options.limit_law:
        rows = rows_of(text_set, "validation", tokenizer, **reading)
        count = min(len(rows), LIMIT_TEXTS)
        batch = rows.collate([rows[0, int(i)] for i in torch.linspace(0, len(rows) - 1, count).round()])
        result["limit_law"] = _limits(model, spiking, options, batch)
    result["wall_s"] = round(time.monotonic() - started, 1)
    return finish(run, spiking, tokenizer, "convert", text_set, result)


def _known(options: ConvertOptions, text_set: TextSet | None) -> dict[str, Any] | None:
    """What came out where the run is complete; else None, and the folder is not touched."""
    if not (Path(options.out) / "result.json").exists():
        return None
    run = Run("convert", options)
    if text_set is not None:
        run.reads(text_set.name, text_set.hash)
    return run.result


def _limits(
    model: TextCnnForSequenceClassification, spiking: SpikingTextCnnForSequenceClassification, options: ConvertOptions,
    batch: Batch,
) -> dict[str, Any]:  # fmt: skip
    """The picture of options.limit_law: both codings with the scales of `spiking`, and without any."""
    asked = {"beta": options.beta, "threshold": options.threshold, "seed": options.seed}
    name = f"normalised ({options.normalize})" if options.normalize != "none" else "not normalised"
    runs = {}
    for title, scales in {name: spiking.config.scales, "not normalised": None}.items():
        for coding in CODINGS:
            runs[f"{title}, {coding}"] = limit_law(model, spiking_from(model, scales, coding=coding, **asked), batch)
    limit_figure(f"From {options.model} to spikes", runs, str(options.limit_law))
    return {name: {"exponents": {layer: slope(rows, layer) for layer in LAYERS}, "rows": rows}
            for name, rows in runs.items()}  # fmt: skip


def require_convertible(model: PreTrainedModel) -> TextCnnForSequenceClassification:
    """The model itself; raises ValueError naming the layer that no spikes can stand for, and what would do."""
    if not isinstance(model, TextCnnForSequenceClassification):
        raise ValueError(f"a {type(model).__name__} cannot be converted; expected a tailored TextCNN "
                         "(spiketext train --model tailored-textcnn)")  # fmt: skip

    def refuse(layer: str, why: str) -> None:
        raise ValueError(f"layer {layer}: {why}; train a network that can be converted with --model tailored-textcnn")

    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            refuse(name, "has a weight that is no finite number")
    if model.config.problem_type == "regression":
        refuse("classifier", "answers a number, and votes are counted for classes")
    if model.config.pooling != "mean":
        refuse("textcnn.pooling", f"{model.config.pooling} pooling, expected the mean: spikes know no largest value")
    if model.config.activation != "relu":
        refuse("textcnn.convolutions", f"{model.config.activation}, expected relu: a rate of 0 is an activation of 0")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            refuse(name, "has biases, expected none: they would be currents without a spike")
    values = model.textcnn.embedding.weight
    if not (values.min() >= 0 and values.max() <= 1):
        refuse("textcnn.embedding", f"has inputs from {values.min():.3g} to {values.max():.3g}, expected 0 to 1: rates")
    return model


def spiking_from(
    model: TextCnnForSequenceClassification, scales: dict[str, float] | None = None, **settings: Any
) -> SpikingTextCnnForSequenceClassification:
    """The spiking network with the weights of a tailored one, each layer divided by its scale and times that before.

    scales: `scales_of`; None for none, and every weight is bit for bit the dense network's. A layer that has a scale is
    multiplied by the threshold. settings go into its config (time_steps, coding, beta, ...). Raises as
    `require_convertible`; for settings that cannot be as `SpikingTextCnnConfig`.
    """
    require_convertible(model)
    kept = {name: getattr(model.config, name) for name in _KEPT if hasattr(model.config, name)}
    config = SpikingTextCnnConfig(**kept, **settings)
    unit = config.threshold
    config.scales = scales or {"convolutions": unit, "pooling": unit * unit, "classifier": unit * unit * unit}
    before, pooling, after = (config.scales[layer] for layer in LAYERS)
    config.pool_gain = unit * before / pooling
    spiking = SpikingTextCnnForSequenceClassification(config).to(model.dtype)  # type: ignore[arg-type]
    weights = dict(model.state_dict())
    for name in weights:
        if name.startswith("textcnn.convolutions."):
            weights[name] = weights[name] / (before / unit)
    weights["classifier.weight"] = weights["classifier.weight"] * (unit * pooling / after)
    weights["textcnn.passes"] = torch.zeros((), dtype=torch.int64)
    spiking.load_state_dict(weights, strict=True)
    return spiking.eval()


@torch.no_grad()
def scales_of(
    model: TextCnnForSequenceClassification, normalize: str, batches: Iterable[Batch] = (), percentile: float = 99.9
) -> dict[str, float]:
    """The scale of each layer, in units of its activation: {"convolutions", "pooling", "classifier"}.

    normalize is one of NORMALISATIONS (head of this file); batches (input_ids, attention_mask [B, L]) are read by data
    (once) and percentile (twice), so they must be a sequence. A layer that never fires has scale 1.
    """
    if normalize == "none":
        return dict.fromkeys(LAYERS, 1.0)
    if normalize == "model":
        before = max(_largest_sum(weight) for weight in model.textcnn.convolutions.parameters())
        return {"convolutions": before, "pooling": before, "classifier": before * _largest_sum(model.classifier.weight)}
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile: expected more than 0 and at most 100, got {percentile}")
    batches = list(batches)
    if not batches:
        raise ValueError(f"normalize {normalize}: expected texts, got none")
    largest = dict.fromkeys(LAYERS, 0.0)
    for batch in batches:
        for layer, values in _activations(model, batch).items():
            largest[layer] = max(largest[layer], float(values.max()))
    if normalize == "percentile":
        counts = {layer: torch.zeros(_BINS, dtype=torch.float64) for layer in LAYERS}
        for batch in batches:
            for layer, values in _activations(model, batch).items():
                if largest[layer] > 0:
                    positive = values[values > 0]
                    counts[layer] += torch.histc(positive, _BINS, 0, largest[layer]).double()
        for layer, histogram in counts.items():
            below = histogram.cumsum(0)
            number = int((below < percentile / 100 * below[-1]).sum())
            largest[layer] *= min(number + 1, _BINS) / _BINS
    return {layer: value or 1.0 for layer, value in largest.items()}


def _largest_sum(weight: Tensor) -> float:
    return float(weight.clamp(min=0).sum(1).max()) or 1.0


def _activations(model: TextCnnForSequenceClassification, batch: Batch) -> dict[str, Tensor]:
    """Activations of real windows, pooled features, outputs of the neurons, each flat and without what is below 0."""
    convolved, real = model.textcnn.activations(batch["input_ids"], batch["attention_mask"])
    pooled = model.textcnn(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    flat = torch.cat([active[mask == 1].flatten() for active, mask in zip(convolved, real, strict=True)])
    outputs = model.classifier(pooled).clamp(min=0)
    return {"convolutions": flat, "pooling": pooled.flatten(), "classifier": outputs.flatten()}


@torch.no_grad()
def limit_law(
    model: TextCnnForSequenceClassification,
    spiking: SpikingTextCnnForSequenceClassification,
    batch: Batch,
    steps: Sequence[int] = (10, 20, 50, 100, 200, 500, 1000),
) -> list[dict[str, float]]:
    """How far the spiking network is from the dense one after T steps, for each T of `steps`, in one pass of the last.

    Each row has time_steps and mean absolute differences: "convolutions", rate * scale against the ReLU activation of
    real windows; "pooling", the same of the pooled features; "classifier", mean input current * scale of the output
    neurons, in thresholds, against the dense outputs. "saturated" is the share of the first layer's neurons whose dense
    activation exceeds their scale. For beta = 1 the differences shrink as 1/T with deterministic input, which is what
    rounding to whole spikes costs; Poisson input adds noise that shrinks as 1/sqrt(T). Saturated neurons stay wrong.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    convolved, real = model.textcnn.activations(ids, mask)
    features = model.textcnn(ids, mask).last_hidden_state
    outputs = model.classifier(features)
    seen: list[Tensor] = []
    layers = (*spiking.textcnn.window_spikes, *spiking.textcnn.pooled_spikes, spiking.classifier)
    handles = [layer.register_forward_hook(lambda module, inputs, out: seen.append(out)) for layer in layers]
    before, threshold = spiking.config.time_steps, spiking.config.threshold
    spiking.config.time_steps = max(steps)
    try:
        spiking.eval()(ids, mask)
    finally:
        spiking.config.time_steps = before
        for handle in handles:
            handle.remove()
    widths = len(convolved)  # the layers of a width fire one after the other: windows, then pooled
    windows, pooled, current = seen[0:-1:2], torch.cat(seen[1:-1:2], -1), seen[-1]
    scales = spiking.config.scales or dict.fromkeys(LAYERS, 1.0)
    rows = []
    for count in sorted(steps):
        differences = [
            (windows[i][:count].mean(0) * scales["convolutions"] - convolved[i])[real[i] == 1] for i in range(widths)
        ]
        rows.append({
            "time_steps": count,
            "convolutions": float(torch.cat(differences).abs().mean()),
            "pooling": float((pooled[:count].mean(0) * scales["pooling"] - features).abs().mean()),
            "classifier": float((current[:count].mean(0) / threshold * scales["classifier"] - outputs).abs().mean()),
            "saturated": _share([a[r == 1] > scales["convolutions"] for a, r in zip(convolved, real, strict=True)]),
        })  # fmt: skip
    return rows


def _share(flags: list[Tensor]) -> float:
    return float(torch.cat(flags).double().mean())


def slope(rows: Sequence[dict[str, float]], layer: str) -> float:
    """The exponent of a layer's difference as a power of T: least squares of the logarithms."""
    steps = torch.tensor([row["time_steps"] for row in rows], dtype=torch.float64).log()
    errors = torch.tensor([row[layer] for row in rows], dtype=torch.float64).log()
    return float(((steps - steps.mean()) * (errors - errors.mean())).sum() / (steps - steps.mean()).square().sum())


def limit_figure(
    title: str, runs: Mapping[str, Sequence[dict[str, float]]], path: str, layer: str = "classifier"
) -> None:
    """Draw a layer's difference over T, a curve for each named result of `limit_law`, its exponent in the legend."""
    curves = {
        f"{name}: T^{slope(rows, layer):.2f}": [(row["time_steps"], row[layer]) for row in rows]
        for name, rows in runs.items()
    }
    log_curves(title, "time steps T", f"mean |spiking - dense|, {layer}", curves, path)
