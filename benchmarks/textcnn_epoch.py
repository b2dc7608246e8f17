"""One epoch of MR (T = 50, batch 32): our spiking TextCNN against the same network stepped with snnTorch's `Leaky`.

    SPIKETEXT_DATA=FOLDER python benchmarks/textcnn_epoch.py [--batches N] [--threads N]

Both train the same weights on the same batches in one run, in turns: Poisson spikes, forward, cross-entropy at every
step, backward, AdamW. Theirs is a loop over the steps, with `spikegen.rate` as its coding. First both read the same
spikes in float64, and their votes must be equal. Prints JSON: seconds of an epoch (from N batches times their share of
all), `ratio` (theirs / ours), and what bounds ours: the seconds of its parts alone, and the rate of its matrix products
against that of one large product.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings

import torch
from torch import nn

from spiketext.batching import LengthBuckets, TextRows
from spiketext.coding import deterministic, poisson
from spiketext.data import load
from spiketext.models import SpikingTextCnnConfig, SpikingTextCnnForSequenceClassification
from spiketext.models.textcnn import embed, window_mask, windows
from spiketext.ops import lif
from spiketext.vectors import unit_range
from spiketext.wordmodels import tokenizer_of
from spiketext.words import lexicon

warnings.simplefilter("ignore")
import snntorch  # noqa: E402
from snntorch import spikegen, surrogate  # noqa: E402

VECTORS = "vectors/enwiki.sgns.300d.txt.gz"


class Stepped(nn.Module):
    """The network as its authors' program runs it: one step after the other. Shares the weights of ours."""

    def __init__(self, ours: SpikingTextCnnForSequenceClassification):
        super().__init__()
        self.ours, self.config = ours, ours.config

        def neuron() -> snntorch.Leaky:
            return snntorch.Leaky(beta=self.config.beta, threshold=self.config.threshold,
                                  spike_grad=surrogate.fast_sigmoid(slope=25))  # fmt: skip

        self.first, self.second = (nn.ModuleList(neuron() for _ in self.config.filter_widths) for _ in range(2))
        self.last = neuron()

    def forward(self, spikes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Input spikes [T, B, L, D], mask [B, L] -> votes [T, B, K]."""
        network, widths = self.ours.textcnn, self.config.filter_widths
        real = [window_mask(mask, width, spikes.dtype) for width in widths]
        first = [layer.init_leaky() for layer in self.first]
        second = [layer.init_leaky() for layer in self.second]
        last, votes = self.last.init_leaky(), []
        for step in spikes:
            pooled = []
            for i, width in enumerate(widths):
                fired, first[i] = self.first[i](network.convolutions[i](windows(step, width)), first[i])
                mean = (fired * real[i][..., None]).sum(1) / real[i].sum(1, keepdim=True)
                fired, second[i] = self.second[i](mean, second[i])
                pooled.append(fired.to(step.dtype))  # Leaky fires in float32
            fired, last = self.last(self.ours.classifier(torch.cat(pooled, -1)), last)
            votes.append(fired.unflatten(-1, (-1, self.config.neurons_per_class)).sum(-1))
        return torch.stack(votes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, help="measure the first N batches only")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    train = load("mr").splits["train"]
    words, vectors, coverage = lexicon(train.texts, VECTORS, data_dir=os.environ.get("SPIKETEXT_DATA"))
    rows = TextRows(train.texts, tokenizer_of(words, coverage["language"]), 64, labels=train.labels)
    config = SpikingTextCnnConfig(vocab_size=len(words), fire=">", dropout=0.0, num_labels=2)  # Leaky fires above
    ours = SpikingTextCnnForSequenceClassification(config).train()
    with torch.no_grad():
        ours.textcnn.embedding.weight[1:] = torch.from_numpy(unit_range(vectors[1:]))
        for linear, factor in ((ours.classifier, 8), *((linear, 2) for linear in ours.textcnn.convolutions)):
            linear.weight.mul_(factor)  # so that every layer fires
    theirs = Stepped(ours)
    batches = [rows.collate([rows[index] for index in group]) for group in LengthBuckets(rows.lengths, 32, 0)]
    measured = batches[: arguments.batches]
    check(ours, theirs, batches[0])
    optimiser = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=1e-4)

    def ours_step(batch: dict) -> torch.Tensor:
        return ours(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss

    def their_step(batch: dict) -> torch.Tensor:
        rates, mask = embed(ours.textcnn.embedding, batch["input_ids"], batch["attention_mask"], 5)
        votes = theirs(spikegen.rate(rates, num_steps=config.time_steps), mask)
        return nn.functional.cross_entropy(votes.flatten(0, 1), batch["labels"].repeat(len(votes)))

    seconds: dict[str, list[float]] = {"ours": [], "snntorch": []}
    for batch in measured:
        for name, step in (("ours", ours_step), ("snntorch", their_step)):
            start = time.perf_counter()
            optimiser.zero_grad()
            step(batch).backward()
            optimiser.step()
            seconds[name].append(time.perf_counter() - start)
    share = sum(b["attention_mask"].sum() for b in batches) / sum(b["attention_mask"].sum() for b in measured)
    epoch = {name: round(sum(times) * float(share), 1) for name, times in seconds.items()}
    print(json.dumps({
        "benchmark": "textcnn_epoch",
        "batches": len(batches),
        "measured_batches": len(measured),
        "threads": arguments.threads,
        "epoch_s": epoch,
        "ratio": round(epoch["snntorch"] / epoch["ours"], 2),
        "median_batch_s": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "bounds": bounds(ours, batches[0]),
    }, indent=2))  # fmt: skip


def check(ours: SpikingTextCnnForSequenceClassification, theirs: Stepped, batch: dict) -> None:
    """The two are the same network: equal votes for equal spikes, in float64."""
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
        raise SystemExit(
            f"{different} of {found.numel()} votes differ, {int(expected.sum())} are cast: not the same network"
        )


def bounds(ours: SpikingTextCnnForSequenceClassification, batch: dict) -> dict:
    """Seconds of the parts of one batch, each alone, and billions of multiply-adds per second."""
    config, network = ours.config, ours.textcnn
    rates, mask = embed(network.embedding, batch["input_ids"], batch["attention_mask"], 5)
    ids = batch["input_ids"]
    spikes = poisson(rates, config.time_steps, ids, mask)

    def products() -> list[torch.Tensor]:
        return [
            linear(windows(spikes, w)) for w, linear in zip(config.filter_widths, network.convolutions, strict=True)
        ]

    currents = [current.detach() for current in products()]
    macs = sum(c.numel() * linear.in_features for c, linear in zip(currents, network.convolutions, strict=True))
    large = torch.randn(2048, 2048)
    took = {
        "coding": best(lambda: poisson(rates, config.time_steps, ids, mask)),
        "products_forward": best(products),
        "products_backward": best(lambda: torch.stack([c.sum() for c in products()]).sum().backward()),
        "neurons_forward": best(lambda: [lif(current, **config.neuron()) for current in currents]),
    }
    took["products_backward"] -= took["products_forward"]
    return {name: round(value, 4) for name, value in took.items()} | {
        "products_gmac_s": round(macs / took["products_forward"] / 1e9, 1),
        "large_product_gmac_s": round(2048**3 / best(lambda: large @ large) / 1e9, 1),
    }


def best(run, times: int = 3) -> float:
    """The shortest of a few runs, in seconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    main()
