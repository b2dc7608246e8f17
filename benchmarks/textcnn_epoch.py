"""One epoch of the spiking TextCNN (T = 50, batch 32) against the same network stepped with snnTorch's `Leaky`.

Both train the same weights on the same batches in turns: Poisson spikes, forward, cross-entropy at every step,
backward, AdamW. Theirs is a loop over the steps, with `spikegen.rate` as its coding. First both read the same spikes in
float64: their votes must be equal. seconds: of a batch; epoch_s: of the measured batches, times their share of all
words. `ratio` is seconds / theirs batch by batch, epoch_ratio epoch_s / theirs, in which long batches weigh more. Then
what bounds ours: seconds of its parts alone on the batch of middle length, `ratio` their share of the whole batch, and
`of_product`, the rate of the sums against that of one large product.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from torch import nn

from spiketext.batching import LengthBuckets, TextRows
from spiketext.bench import Row, Say, absent, installed, measure
from spiketext.coding import deterministic, poisson
from spiketext.data import load
from spiketext.models import SpikingTextCnnConfig, SpikingTextCnnForSequenceClassification
from spiketext.models.textcnn import embed, window_mask, windows
from spiketext.ops import lif
from spiketext.options import BenchOptions
from spiketext.vectors import unit_range
from spiketext.wordmodels import tokenizer_of
from spiketext.words import lexicon

VECTORS = "vectors/enwiki.sgns.300d.txt.gz"
STEPS = {"tiny": 3, "short": 50, "full": 50}
BATCHES = {"tiny": 2, "short": 16, "full": 1 << 30}
Batch = dict[str, torch.Tensor]


def stepped(ours: SpikingTextCnnForSequenceClassification) -> nn.Module:
    """The network as its authors' program runs it, one step after the other; it shares the weights of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import snntorch
        from snntorch import surrogate

    config, network = ours.config, ours.textcnn

    class Stepped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.ModuleList(self.neuron() for _ in config.filter_widths) for _ in range(2))
            self.last = self.neuron()

        @staticmethod
        def neuron() -> Any:
            return snntorch.Leaky(beta=config.beta, threshold=config.threshold,
                                  spike_grad=surrogate.fast_sigmoid(slope=25))  # fmt: skip

        def forward(self, spikes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            """Input spikes [T, B, L, D], mask [B, L] -> votes [T, B, K]."""
            real = [window_mask(mask, width, spikes.dtype) for width in config.filter_widths]
            first = [layer.init_leaky() for layer in self.first]
            second = [layer.init_leaky() for layer in self.second]
            last, votes = self.last.init_leaky(), []
            for step in spikes:
                pooled = []
                for i, width in enumerate(config.filter_widths):
                    convolution = network.convolutions[i]
                    current = nn.functional.linear(windows(step, width), convolution.weight)
                    fired, first[i] = self.first[i](current, first[i])
                    mean = (fired * real[i][..., None]).sum(1) / real[i].sum(1, keepdim=True)
                    fired, second[i] = self.second[i](mean, second[i])
                    pooled.append(fired.to(step.dtype))  # Leaky fires in float32
                current = nn.functional.linear(torch.cat(pooled, -1), ours.classifier.weight)
                fired, last = self.last(current, last)
                votes.append(fired.unflatten(-1, (-1, config.neurons_per_class)).sum(-1))
            return torch.stack(votes)

    return Stepped()


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: both networks, then the parts of ours."""
    if not installed("snntorch"):
        return [absent("snntorch is not installed", network="snnTorch")]
    ours, rows = network_and_rows(options)
    theirs = stepped(ours)
    batches = [rows.collate([rows[index] for index in group]) for group in LengthBuckets(rows.lengths, 32, 0)]
    measured = batches[: BATCHES[options.scale]]
    middle = sorted(measured, key=lambda batch: batch["input_ids"].shape[1])[len(measured) // 2]
    check(ours, theirs, measured[0])
    say(f"textcnn-epoch: {len(measured)} of {len(batches)} batches of {options.data}")
    samples = measure(work_of(ours, theirs, measured), len(measured), warm=0)
    share = sum(int(b["attention_mask"].sum()) for b in batches) / sum(int(b["attention_mask"].sum()) for b in measured)
    total = {name: sum(seconds) for name, seconds in samples.seconds.items()}
    found = [samples.row(name, "snnTorch", table="a batch and an epoch", network=name, batches=len(measured))
             | {"epoch_s": total[name] * share, "epoch_ratio": total[name] / total["snnTorch"]}
             for name in total]  # fmt: skip
    say("textcnn-epoch: the parts of a batch")
    return [*found, *parts(ours, middle, options.repeats or 5)]


def network_and_rows(options: BenchOptions) -> tuple[SpikingTextCnnForSequenceClassification, TextRows]:
    """A network of random filters that fires in every layer, on word vectors, and the texts that it trains on."""
    torch.manual_seed(0)
    train = load(options.data, options.data_dir).splits["train"]
    tiny = options.scale == "tiny"
    words, vectors, coverage = lexicon(train.texts, None if tiny else VECTORS, data_dir=options.data_dir,
                                       dimension=8 if tiny else 300)  # fmt: skip
    rows = TextRows(train.texts, tokenizer_of(words, coverage["language"]), 64, labels=train.labels)
    sizes = {"vocab_size": len(words), "hidden_size": vectors.shape[1], "time_steps": STEPS[options.scale]}
    config = SpikingTextCnnConfig(**sizes, fire=">", dropout=0.0, num_labels=2)  # Leaky fires above its threshold
    ours = SpikingTextCnnForSequenceClassification(config).train()
    with torch.no_grad():
        ours.textcnn.embedding.weight[1:] = torch.from_numpy(unit_range(vectors[1:]))
        for linear, factor in ((ours.classifier, 8), *((linear, 2) for linear in ours.textcnn.convolutions)):
            linear.weight.mul_(factor)
    return ours, rows


def work_of(
    ours: SpikingTextCnnForSequenceClassification, theirs: nn.Module, batches: list[Batch]
) -> dict[str, Callable[[], None]]:
    """A training step of each, on one batch after the other."""
    from snntorch import spikegen

    optimiser = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=1e-9)

    def ours_loss(batch: Batch) -> torch.Tensor:
        return ours(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss

    def their_loss(batch: Batch) -> torch.Tensor:
        rates, mask = embed(ours.textcnn.embedding, batch["input_ids"], batch["attention_mask"], 5)
        votes = theirs(spikegen.rate(rates, num_steps=ours.config.time_steps), mask)
        return nn.functional.cross_entropy(votes.flatten(0, 1), batch["labels"].repeat(len(votes)))

    def stepping(loss: Callable[[Batch], torch.Tensor]) -> Callable[[], None]:
        following = cycle(batches)

        def step() -> None:
            optimiser.zero_grad()
            loss(next(following)).backward()
            optimiser.step()

        return step

    return {"snnTorch": stepping(their_loss), "ours": stepping(ours_loss)}


def check(ours: SpikingTextCnnForSequenceClassification, theirs: nn.Module, batch: Batch) -> None:
    """The two are the same network: equal votes for equal spikes, in float64. Raises ValueError when they are not."""
    ours.eval().double()
    ours.config.coding = "deterministic"
    with torch.no_grad():
        rates, mask = embed(ours.textcnn.embedding, batch["input_ids"], batch["attention_mask"], 5)
        expected = theirs(deterministic(rates, ours.config.time_steps), mask)
        found = ours(batch["input_ids"], batch["attention_mask"]).votes
    ours.config.coding = "poisson"
    ours.float().train()
    different = int((found != expected).sum())
    if different or not expected.any():
        raise ValueError(f"{different} of {found.numel()} votes differ, {int(expected.sum())} are cast: not the same "
                         "network as snnTorch's")  # fmt: skip


def parts(ours: SpikingTextCnnForSequenceClassification, batch: Batch, turns: int) -> list[Row]:
    """What a batch of ours consists of, each alone, beside a large product of the same run."""
    config, network = ours.config, ours.textcnn
    ids, widths = batch["input_ids"], config.filter_widths
    rates, mask = embed(network.embedding, ids, batch["attention_mask"], max(widths))
    spikes = poisson(rates, config.time_steps, ids, mask)
    pairs = list(zip(widths, network.convolutions, strict=True))
    currents = [linear(windows(spikes, width)) for width, linear in pairs]
    fired = [lif(current.detach().requires_grad_(), **config.neuron())[0] for current in currents]
    filters = [linear.weight for linear in network.convolutions]
    side = 2048
    large = torch.randn(side, side)
    coding, sums, gradient, neurons, slopes, product = (
        "coding", "sums, forward", "sums, gradient of the filters", "neurons, forward", "neurons, backward",
        f"product {side} x {side}")  # fmt: skip

    def forward() -> None:
        with torch.no_grad():
            for width, linear in pairs:
                linear(windows(spikes, width))

    whole = "whole batch"
    work = {
        whole: lambda: ours(ids, batch["attention_mask"], labels=batch["labels"]).loss.backward(),
        coding: lambda: poisson(rates, config.time_steps, ids, mask),
        sums: forward,
        gradient: lambda: torch.autograd.grad(currents, filters, [torch.ones_like(c) for c in currents],
                                              retain_graph=True),
        neurons: lambda: [lif(current.detach(), **config.neuron()) for current in currents],
        slopes: lambda: [spike.backward(torch.ones_like(spike), retain_graph=True) for spike in fired],
        product: lambda: large @ large,
    }  # fmt: skip
    samples = measure(work, turns)
    macs = sum(c.numel() * linear.in_features for c, linear in zip(currents, network.convolutions, strict=True))
    best = side**3 / samples.median(product)
    found = []
    for name in work:
        row = samples.row(name, whole, table=f"parts of a batch of {len(ids)} x {ids.shape[1]} words", part=name)
        if name in (sums, gradient):
            row |= {"spikes_times_weights_per_s": macs / row["seconds"],
                    "of_product": macs / row["seconds"] / best}  # fmt: skip
        found.append(row)
    return found
