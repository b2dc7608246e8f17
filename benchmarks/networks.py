"""What the benchmarks share: networks of random weights, batches, a step, its memory.

A network that is set to RATE fires like a trained binary one; the default (ternary) one fires at 0.53, trained at 0.37.
"""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import BertConfig, BertForSequenceClassification

from spiketext.distillation import Alignment, Distillation, pairs_of
from spiketext.evaluation import RateCounter
from spiketext.models import PRESETS, SpikeBertConfig, SpikeBertForSequenceClassification
from spiketext.neurons import NormLIF
from spiketext.options import DistillOptions, StudentOptions

RATE = 0.18  # of the trained binary SpikeBERT on SST-2, experiments/RESULTS.md
READS = SimpleNamespace(model_input_names=["input_ids", "token_type_ids", "attention_mask"])  # of a BERT's tokenizer


def sizes(layers: int, width: int, words: int = 30522) -> dict[str, int]:
    """The sizes of a BERT of this depth and width."""
    return {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 12 if width >= 192 else 4,
            "intermediate_size": 4 * width, "vocab_size": words, "max_position_embeddings": 512}  # fmt: skip


def student(layers: int, width: int, **settings: Any) -> SpikeBertForSequenceClassification:
    """A spiking classifier with random weights: our default, or with settings a binary one that fires at RATE."""
    torch.manual_seed(0)
    own = settings or PRESETS[StudentOptions().preset]
    model = SpikeBertForSequenceClassification(SpikeBertConfig(**sizes(layers, width), num_labels=2, **own))
    return set_rate(model, batch_of(2, 32)) if settings else model


def teacher(layers: int, width: int) -> BertForSequenceClassification:
    """A dense classifier of the same shape with random weights, frozen."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**sizes(layers, width), num_labels=2))
    return model.eval().requires_grad_(False)


def batch_of(texts: int, length: int, words: int = 30522) -> dict[str, Tensor]:
    """Random token ids without padding, as a batch of `TextRows.collate`: [B, L] and [B]."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, words, (texts, length), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids),
            "labels": torch.randint(0, 2, (texts,), generator=draw), "gold": torch.ones(texts).long(),
            "again": torch.ones(texts).long()}  # fmt: skip


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a model reads of a batch."""
    return {name: batch[name] for name in READS.model_input_names}


@torch.no_grad()
def rate_of(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """Share of neuron-steps of real tokens that fire, 0..1."""
    counter = RateCounter()
    counter.mask = batch["attention_mask"]
    with counter.counting(model):
        model(**inputs_of(batch))
    return counter.rate or 0.0


@torch.no_grad()
def set_rate(model: Any, batch: dict[str, Tensor], rate: float = RATE) -> Any:
    """Move the shift of every norm before neurons by one common number until the network fires at `rate`."""
    norms = [module for module in model.modules() if isinstance(module, NormLIF)]
    low, high = -2.0, 2.0
    for _ in range(8):
        middle = (low + high) / 2
        for norm in norms:
            norm.bias.fill_(middle)
        low, high = (middle, high) if rate_of(model, batch) < rate else (low, middle)
    return model


class Step:
    """One optimiser step of an objective, as the training loop makes it: forward, backward, clip, AdamW."""

    def __init__(self, objective: nn.Module, bf16: bool = False):
        self.objective, self.bf16 = objective.train(), bf16
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-9, weight_decay=5e-3, fused=True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The weighted loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            terms, _ = self.objective(batch)
        weights: Any = self.objective.weights
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def __call__(self, batch: dict[str, Tensor]) -> None:
        """Change the weights by next to nothing, so that every step is the same work."""
        self.forward(batch).backward()
        with record_function("optimiser"):
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad()

    def saved_bytes(self, batch: dict[str, Tensor]) -> int:
        """Bytes that one forward pass keeps for backward: unique storages, without the weights."""
        weights = {p.untyped_storage().data_ptr() for p in self.objective.parameters()}
        with counting_saved(weights) as kept:
            self.forward(batch)
        return sum(kept.values())


@contextlib.contextmanager
def counting_saved(weights: set[int]) -> Iterator[dict[int, int]]:
    """Bytes by storage of what autograd keeps meanwhile; the tensors stay alive, so that no address comes twice."""
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


class Labels(nn.Module):
    """The objective without a teacher: cross-entropy with the labels."""

    weights = {"label": 1.0}

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """The loss and the logits."""
        logits = self.model(**inputs_of(batch)).logits.float()
        return {"label": nn.functional.cross_entropy(logits, batch["labels"])}, logits


def distillation(model: Any, dense: Any, tokenizer: Any = READS) -> Distillation:
    """Stage 2 with its default weights."""
    options = DistillOptions()
    pairs = pairs_of(options, model.config.num_hidden_layers, dense.config.num_hidden_layers)
    return Distillation(model, dense, tokenizer, Alignment(pairs, model.config.hidden_size, dense), options)


def resident_peak() -> float:
    """The most memory that this process has held, in MiB. (What getrusage says can be the parent's, on Linux.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10  # type: ignore[index]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def copy_bandwidth(mebibytes: int = 256) -> Callable[[], Any]:
    """A copy between two arrays far larger than the caches of a laptop: 2 * mebibytes MiB move."""
    source, target = torch.ones(mebibytes << 18), torch.empty(mebibytes << 18)
    return lambda: target.copy_(source)
