"""A training step of each code of spikes against one of the dense BERT of the same shape.

Cross-entropy alone: forward, backward, clipping, AdamW, on random ids and random weights. `ratio` is seconds / those of
the dense network: what an integer code trains at "the cost of one dense pass" for, and what four steps cost. saved_mib:
what one forward pass keeps for backward, without the weights.
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.networks import Labels, Step, batch_of, rate_of, sizes
from spiketext.bench import Row, Say, measure
from spiketext.models import PRESETS, SpikeBertConfig, SpikeBertForSequenceClassification
from spiketext.options import BenchOptions

TURNS = {"tiny": 1, "short": 5, "full": 9}
CODES = ("ternary", "signed", "integer", "binary")
DENSE = "dense BERT"


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: the dense network, then each code."""
    layers, width, texts, length = (1, 32, 2, 8) if options.scale == "tiny" else (6, 384, 32, 32)
    shape = sizes(layers, width)
    torch.manual_seed(0)
    networks: dict[str, torch.nn.Module] = {DENSE: BertForSequenceClassification(BertConfig(**shape, num_labels=2))}
    for code in CODES:
        networks[code] = SpikeBertForSequenceClassification(SpikeBertConfig(**shape, num_labels=2, **PRESETS[code]))
    batch = batch_of(texts, length)
    size = f"{layers}x{width}, B {texts}, L {length}"
    say(f"codes: {size}")
    rates = {name: rate_of(network.eval(), batch) for name, network in networks.items() if name != DENSE}
    steps = {name: Step(Labels(network)) for name, network in networks.items()}
    saved = {name: step.saved_bytes(batch) / 2**20 for name, step in steps.items()}
    work = {name: lambda step=step: step(batch) for name, step in steps.items()}
    samples = measure(work, options.repeats or TURNS[options.scale])
    return [
        samples.row(name, DENSE, size=size, network=name, time_steps=getattr(network.config, "time_steps", 1))
        | {"saved_mib": saved[name], "firing_rate": rates.get(name)}
        for name, network in networks.items()
    ]
