"""Floor 8: what a classification costs, in operations and in millijoules, by our account and by the papers'.

Units: operations and bytes for one text (the mean over texts); constants in picojoules, results in millijoules.
What is counted, and how: `spiketext.counting`. Our account of one text, at one precision:

    matrix work  = AC e_ac + MAC e_mac                       every Linear, every product in attention and elsewhere
    neurons      = updates (e_mac + e_ac) + spikes e_ac      leak and input, comparison with the threshold; the reset
    norms        = values (3 e_mac + 2 e_ac)                 mean, square, centre, scale, weight and bias
    additions    = (residual sums + biases) e_ac
    traffic      = (w (AC + MAC) + 2 s updates + embedding bytes) e_byte     apart from compute, never added unseen

w and s are the bytes of a weight and a membrane: each input spike reads one weight row, each neuron reads and writes
its membrane at each step, and nothing is kept for the next token. The dense network reads by the same rule. "Weights
once" is for chips that hold them: both networks read each weight once for a text. The dense network of the same shape
does every Linear and attention once, on floats; its norms, softmax and activations are left out. The ON/OFF pair of a
ternary or signed neuron is one update here; two would add (default student, SST-2) 23,424 updates a token at 5.5 pJ,
0.13 microjoules beside about 3.5 of matrix work, 4 %.
"""

from __future__ import annotations

import csv
import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spiketext.checkpoints import load_tokenizer, on_gpu
from spiketext.counting import SYNAPTIC, Counter, Layer, count, read_through, spread
from spiketext.data import TextSet
from spiketext.evaluation import at_least_one, load_at, read_split, sends
from spiketext.meter import measure


class Constant(NamedTuple):
    """A value in picojoules and where it comes from; [recall] is from memory and unverified."""

    pj: float
    source: str


class Precision(NamedTuple):
    """An addition, a multiply-accumulate, and the bytes of a weight and of a membrane."""

    ac: Constant
    mac: Constant
    bytes: int


PRECISIONS = {
    "fp32": Precision(
        Constant(0.9, "Horowitz, ISSCC 2014, 45 nm: 32-bit float addition"),
        Constant(4.6, "Horowitz 2014: 32-bit float multiplication 3.7 and addition 0.9"), 4),
    "int8": Precision(
        Constant(0.03, "Horowitz 2014: 8-bit integer addition"),
        Constant(0.23, "Horowitz 2014: 8-bit multiplication 0.2 and addition 0.03"), 1),
}  # fmt: skip
MEMORY = {
    "cache": Constant(12.5, "Horowitz 2014: 100 pJ for 8 bytes of a 1 MB cache [recall]"),
    "DRAM": Constant(160.0, "Horowitz 2014: 640 pJ for 4 bytes of DRAM [recall]"),
}
V1_SOP = Constant(0.9, "SpikeBERT v1 eq. 16, one synaptic operation")
V1_FLOP = Constant(4.6, "SpikeBERT v1 eq. 18, one FLOP, which is a MAC there")
A4_SOP = Constant(0.077, "SNN-TextCNN A.4 (Indiveri 2015), one synaptic operation [recall]")
A4_FLOP = Constant(12.5, "SNN-TextCNN A.4, one FLOP [recall]")
SHAPES = {  # layers, width, inner width of the feed-forward
    "bert-tiny": (2, 128, 512),
    "bert-mini": (4, 256, 1024),
    "bert-small": (4, 512, 2048),
    "bert-medium": (8, 512, 2048),
    "bert-base": (12, 768, 3072),
    "tinybert": (4, 312, 1200),
    "distilbert": (6, 768, 3072),
    "all-minilm": (6, 384, 1536),
}
_REGIMES = (("fp32", "fp32", "fp32"), ("int8", "int8", "int8"), ("fp32 against int8", "fp32", "int8"))
_MEMORIES = (
    ("none", 0.0, False),
    ("cache", MEMORY["cache"].pj, False),
    ("DRAM", MEMORY["DRAM"].pj, False),
    ("DRAM, weights once", MEMORY["DRAM"].pj, True),
)
_MJ = 1e-9  # picojoules to millijoules


def reference(name: str, length: int = 128) -> dict[str, Any]:
    """MACs and millijoules of the encoder of a dense BERT (`SHAPES`) at `length` tokens, computed from its shape.

    MACs = N L (4 D^2 + 2 D I) + 2 N L^2 D for N layers, width D, inner width I: the Linears and both products of the
    attention. Raises ValueError for another name or a length below 1.
    """
    if name not in SHAPES:
        raise ValueError(f"reference: expected one of {', '.join(SHAPES)}, got {name!r}")
    if length < 1:
        raise ValueError(f"length: expected at least 1 token, got {length}")
    layers, width, inner = SHAPES[name]
    linear = layers * length * (4 * width**2 + 2 * width * inner)
    attention = 2 * layers * length**2 * width
    macs = linear + attention
    return {
        "name": name,
        "length": length,
        "layers": layers,
        "width": width,
        "inner": inner,
        "linear MACs": linear,
        "attention MACs": attention,
        "MACs": macs,
        "fp32 mJ": macs * PRECISIONS["fp32"].mac.pj * _MJ,
        "int8 mJ": macs * PRECISIONS["int8"].mac.pj * _MJ,
        "A.4 mJ": macs * A4_FLOP.pj * _MJ,
    }


def points(path: str, length: float = 128) -> list[dict[str, Any]]:
    """Published accuracies beside millijoules of `length` tokens, for `figures.accuracy_against_energy`, out of a CSV.

    Columns name, kind, shape, millijoules, tokens, accuracy (%), source. A row with a shape of `SHAPES` has its
    millijoules computed (fp32); of the others, what their authors printed is taken in proportion to their tokens.
    """
    with open(path, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        row
        | {
            "accuracy": float(row["accuracy"]),
            "millijoules": reference(row["shape"], round(length))["fp32 mJ"]
            if row["shape"]
            else float(row["millijoules"]) * length / float(row["tokens"]),
        }
        for row in rows
    ]


class Work(NamedTuple):
    """What one text took. Operations, values or bytes.

    ac holds the coincidences of spikes in attention; sops_share and sops_mean are the papers' SOPs = T rate FLOPs with
    the share of non-zero inputs, or their mean, as the rate; integer_macs: what inputs beyond one would cost in MACs
    instead of their `integer_ac`; dense_macs: the dense network of the same shape; density: share of the inputs of
    Linears that is not zero, weighted with the weights that they meet.
    """

    ac: float
    mac: float
    coincidences: float
    sops_share: float
    sops_mean: float
    integer_ac: float
    integer_macs: float
    updates: float
    spikes: float
    norms: float
    additions: float
    embedding_bytes: float
    embedding_values: float
    weights: float
    dense_macs: float
    density: float


def work(counter: Counter) -> Work:
    """The sums over all layers of a `Counter`, for one text."""
    layers, n = list(counter.layers.values()), counter.texts
    synaptic = [layer for layer in layers if layer.kind in SYNAPTIC]
    weighted = [layer for layer in layers if layer.kind == "linear"]
    integers = [layer for layer in weighted if "integer" in layer.reads.kind]
    neurons = [layer for layer in layers if layer.kind == "neurons"]
    tables = [layer for layer in layers if layer.kind == "embedding"]
    share = sum(_sum(layer.papers) for layer in synaptic)
    mean = sum(
        layer.ac if layer.reads.whole and layer.kind != "attention" else _sum(layer.papers) for layer in synaptic
    )
    return Work(
        ac=sum(layer.ac for layer in synaptic) / n,
        mac=sum(layer.mac for layer in layers if layer.kind in (*SYNAPTIC, "squares")) / n,
        coincidences=sum(layer.ac for layer in synaptic if layer.name.endswith("first product")) / n,
        sops_share=share / n,
        sops_mean=mean / n,
        integer_ac=sum(layer.ac for layer in integers) / n,
        integer_macs=sum(_sum(layer.papers) for layer in integers) / n,
        updates=sum(layer.updates for layer in neurons) / n,
        spikes=sum(float(layer.reads.total.sum()) for layer in neurons) / n,
        norms=sum(layer.norms for layer in layers) / n,
        additions=sum(layer.additions + layer.biases for layer in layers) / n,
        embedding_bytes=sum(layer.bytes for layer in tables) / n,
        embedding_values=max((layer.bytes / 4 for layer in tables), default=0.0) / n,
        weights=sum(layer.weights for layer in weighted),
        dense_macs=sum(layer.products for layer in synaptic) / counter.steps / n,
        density=sum(_sum(layer.papers) for layer in weighted) / max(1.0, sum(layer.products for layer in weighted)),
    )


def _sum(values: Any) -> float:
    return float(torch.as_tensor(values).sum())


def compute(w: Work, precision: Precision) -> dict[str, float]:
    """Our account without traffic, in millijoules: "matrix work", "neurons", "norms", "additions" and their "sum"."""
    ac, mac = precision.ac.pj * _MJ, precision.mac.pj * _MJ
    parts = {
        "matrix work": w.ac * ac + w.mac * mac,
        "neurons": w.updates * (mac + ac) + w.spikes * ac,
        "norms": w.norms * (3 * mac + 2 * ac),
        "additions": w.additions * ac,
    }
    return parts | {"sum": sum(parts.values())}


def ours(w: Work) -> dict[str, dict[str, float]]:
    """`compute` at every precision; where inputs beyond one are read, also with those multiplied instead."""
    found = {name: compute(w, precision) for name, precision in PRECISIONS.items()}
    if w.integer_ac:
        multiplied = w._replace(ac=w.ac - w.integer_ac, mac=w.mac + w.integer_macs)
        found |= {f"{name}, integers multiplied": compute(multiplied, p) for name, p in PRECISIONS.items()}
    return found


def traffic(w: Work, precision: Precision, once: bool = False) -> float:
    """Bytes moved for one text by the formula at the head of this file; once: each weight is read once."""
    weights = w.weights if once else w.ac + w.mac
    return precision.bytes * (weights + 2 * w.updates) + w.embedding_bytes * precision.bytes / 4


def papers(w: Work, spiking: bool) -> list[dict[str, Any]]:
    """The papers' formulas as printed, in millijoules for one text, beside the dense network of the same shape.

    SpikeBERT v1 eq. 16-18 with the rate read as share and as mean; v2 eq. 19 adds the MACs of the embedding layer,
    which it does not define (here one for each feature of each token, a row of weights picked by a one-hot input);
    SNN-TextCNN A.4. FLOPs are MACs there; a dense network spends them all.
    """
    v1_dense, a4_dense = w.dense_macs * V1_FLOP.pj, w.dense_macs * A4_FLOP.pj
    v1, embedding = w.sops_share * V1_SOP.pj, w.embedding_values * V1_FLOP.pj
    rows = [("v1 eq. 18", v1_dense, v1_dense), ("A.4", a4_dense, a4_dense)]
    if spiking:
        rows = [
            ("v1 eq. 16-18, rate as share of non-zeros", v1, v1_dense),
            ("v1 eq. 16-18, rate as mean", w.sops_mean * V1_SOP.pj, v1_dense),
            ("v2 eq. 19", v1 + embedding, v1_dense),
            ("A.4", w.sops_share * A4_SOP.pj, a4_dense),
        ]
    return [
        {"as printed": name, "mJ": pj * _MJ, "dense mJ": dense * _MJ, "of dense %": 100 * pj / dense}
        for name, pj, dense in rows
    ]


def comparisons(w: Work) -> list[dict[str, Any]]:
    """The network against the dense one of its shape, by precision and memory, with the break-even density.

    Break-even: the density of inputs at which both cost the same, when every count of spikes grows by one factor (and
    coincidences by its square). None: dearer even without a spike. "cheaper" says at which densities the network is the
    cheaper one: as none is above 100 %, that is any, where the factor leads beyond. Millijoules for one text.
    """
    rows = []
    for (name, own, other), (memory, e_byte, once) in itertools.product(_REGIMES, _MEMORIES):
        precision, dense = PRECISIONS[own], PRECISIONS[other]
        mine = compute(w, precision)["sum"] + traffic(w, precision, once) * e_byte * _MJ
        moved = dense.bytes * ((w.weights if once else w.dense_macs) + w.embedding_bytes / 4)
        theirs = (w.dense_macs * dense.mac.pj + moved * e_byte) * _MJ
        each = (precision.ac.pj + (0 if once else precision.bytes * e_byte)) * _MJ  # of an accumulation
        squared = w.coincidences * each
        linear = (w.ac - w.coincidences) * each + w.spikes * precision.ac.pj * _MJ
        factor = _root(squared, linear, mine - squared - linear - theirs)
        even = None if factor is None else 100 * w.density * factor
        rows.append(
            {
                "precision": name,
                "memory": memory,
                "mJ": mine,
                "dense mJ": theirs,
                "of dense %": 100 * mine / theirs,
                "density %": 100 * w.density,
                "break-even density %": even,
                "cheaper": "never" if even is None else "below break-even" if even <= 100 else "at any density",
            }
        )
    return rows


def _root(a: float, b: float, c: float) -> float | None:
    """The factor f >= 0 with a f^2 + b f + c = 0, for a, b >= 0; None when there is none."""
    if c > 0 or a + b == 0:
        return None
    return -c / b if a == 0 else (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)


def energy(
    model: str,
    data: str | TextSet,
    split: str = "validation",
    *,
    limit: int | None = None,
    length: int | None = None,
    time_steps: int | None = None,
    batch_size: int = 32,
    meter: bool = False,
    progress: bool = False,
    **reading: Any,
) -> dict[str, Any]:
    """Count a saved model on the texts of a split and price the counts. Labels are not looked at.

    model: folder of any classifier, spiking or dense; limit: so many texts, spread evenly over the split; length: pad
    or cut to so many tokens and count them all (None: the texts' own lengths, without padding); time_steps: another T;
    meter: also measure the same work without counting, where a meter exists: seconds and joules of one text; reading:
    see `data.load`.
    Returns the keys model, data, split, texts, tokens, length, spiking, time_steps, sends (`evaluation.sends`),
    operations (`Work`), ours, papers, comparisons (spiking only), traffic bytes, layers, constants, measured.
    Raises ValueError for a split that is empty or unknown, a limit, a batch or time_steps below 1, a length out of
    range, and when the model cannot be read or answers NaN.
    """
    at_least_one(batch_size=batch_size, time_steps=time_steps)
    text_set, part = read_split(data, split, **reading)
    texts, pairs = spread(part.texts, limit), spread(part.pairs, limit) if part.pairs else None
    network, tokenizer = on_gpu(load_at(model, time_steps)), load_tokenizer(model)
    counter = count(network, tokenizer, texts, pairs, length=length, batch_size=batch_size, progress=progress)
    w = work(counter)
    result = {
        "model": model,
        "data": text_set.name,
        "split": split,
        "texts": counter.texts,
        "tokens": counter.tokens / counter.texts,
        "length": length or "real",
        "spiking": counter.spiking,
        "time_steps": counter.steps if counter.spiking else None,
        "sends": sends(network),
        "operations": w._asdict(),
        "ours": ours(w),
        "papers": papers(w, counter.spiking),
        "comparisons": comparisons(w) if counter.spiking else [],
        "traffic bytes": {name: traffic(w, precision) for name, precision in PRECISIONS.items()},
        "layers": [layer_row(layer, counter) for layer in counter.layers.values()],
        "constants": constants(),
        "measured": None,
    }
    if meter:
        spent = measure(lambda: read_through(network, tokenizer, texts, pairs, length, batch_size))
        result["measured"] = _for_one(spent, counter.texts)
    return result


def _for_one(spent: dict[str, Any], texts: int) -> dict[str, Any]:
    """Seconds and joules of a whole run as those of one text."""
    meters = spent["meters"]
    if isinstance(meters, dict):
        meters = {name: joules / texts for name, joules in meters.items()}
    return {"seconds": spent["seconds"] / texts, "meters": meters}


def constants() -> dict[str, dict[str, Any]]:
    """Every constant with its source."""
    named = {f"{name} {kind}": getattr(p, kind) for name, p in PRECISIONS.items() for kind in ("ac", "mac")}
    named |= {f"byte of {name}": constant for name, constant in MEMORY.items()}
    named |= {"v1 SOP": V1_SOP, "v1 FLOP": V1_FLOP, "A.4 SOP": A4_SOP, "A.4 FLOP": A4_FLOP}
    return {name: constant._asdict() for name, constant in named.items()}


def layer_row(layer: Layer, counter: Counter) -> dict[str, Any]:
    """One layer of the account, for one text; energies at fp32, without traffic."""
    n, reads, synaptic = counter.texts, layer.reads, layer.kind in SYNAPTIC
    precision = PRECISIONS["fp32"]
    by_step: list[float] = []
    if synaptic and reads.whole:
        by_step = (torch.as_tensor(layer.accumulations) * precision.ac.pj / n * 1e-6).tolist()
    elif synaptic:
        by_step = [layer.mac * precision.mac.pj / n * 1e-6]
    neurons = layer.kind == "neurons"
    rates: Tensor = reads.nonzero.sum(1) / (reads.count / len(reads.nonzero)) if neurons else torch.empty(0)
    seen = (synaptic or neurons) and reads.count > 0
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "reads": reads.kind if synaptic else None,
        "density": reads.density if seen else None,
        "mean": reads.mean if seen else None,
        "AC": layer.ac / n,
        "MAC": layer.mac / n,
        "papers' SOPs": _sum(layer.papers) / n,
        "updates": layer.updates / n,
        "norms": layer.norms / n,
        "additions": (layer.additions + layer.biases) / n,
        "bytes": layer.bytes / n,
        "microjoules by step": by_step,
        "rate by step": rates.tolist(),
    }
