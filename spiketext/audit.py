"""Floor 8: is it spiking? What every layer reads, which neurons never or always fire, and which threshold would help.

A layer that must be spiking is every Linear and both products of the attention of a network that has spiking neurons.
It is, when it reads what the neurons are declared to send: zeros and ones; with the ternary or the signed integer code
also negative ones, sent by the OFF neuron of an ON/OFF pair; with the integer code whole numbers up to `levels`. Any
other product (a function's, a convolution's, a third one in attention) is not spiking, and neither is a Linear that was
never called: its weights may be used where nobody looks. What is not spiking is not called so: norms, the embedding,
residual currents and the mean at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spiketext.checkpoints import load_classifier, load_tokenizer
from spiketext.counting import SYNAPTIC, Layer, count, spread
from spiketext.data import TextSet
from spiketext.evaluation import read_split
from spiketext.neurons import LIF, NormLIF
from spiketext.ops import lif

LOWEST, HIGHEST, HEALTHY = 0.01, 0.6, 0.15  # rates of a layer: silent below, saturated above, what the doctor aims at
_SAMPLE = 64  # rows of current that the doctor tries thresholds on
Say = Callable[..., str]  # a sentence and the values of its {names} -> the sentence that is shown


def audit(
    model: str,
    data: str | TextSet,
    split: str = "validation",
    *,
    limit: int | None = 64,
    batch_size: int = 32,
    strict: bool = False,
    progress: bool = False,
    **reading: Any,
) -> dict[str, Any]:
    """Audit a saved model on the texts of a split, each at its own length.

    limit: so many texts, spread evenly (None: all). Returns model, data, split, texts, spiking, declared, impure (names
    of layers that must be spiking and are not), layers (what each reads: kind, density, range), neurons (rate, silent
    and saturated ones, with the advice of the doctor), not_spiking (kinds of other work).
    Raises ValueError as `energy`; with strict also for a dense network or an impure layer, naming the first.
    """
    text_set, part = read_split(data, split, **reading)
    network, tokenizer = load_classifier(model), load_tokenizer(model)
    texts, pairs = spread(part.texts, limit), spread(part.pairs, limit) if part.pairs else None
    with currents(network) as samples:
        counter = count(network, tokenizer, texts, pairs, batch_size=batch_size, progress=progress)
    accepted, levels = declared(network)
    layers, neurons = [], []
    for layer in counter.layers.values():
        if layer.kind in SYNAPTIC:
            layers.append(_reading(layer, counter.spiking, accepted, levels))
        elif layer.kind == "neurons":
            module = network.get_submodule(layer.name)
            assert isinstance(module, LIF)
            neurons.append(_health(layer, module, samples[layer.name]))
    if counter.spiking:
        layers += [_reading(Layer(name, "linear"), True, [], 0.0) | {"reads": "nothing"}
                   for name, module in network.named_modules()
                   if isinstance(module, nn.Linear) and name not in counter.layers]  # fmt: skip
    others = sorted({layer.kind for layer in counter.layers.values()} - {*SYNAPTIC, "neurons"})
    result = {
        "model": model,
        "data": text_set.name,
        "split": split,
        "texts": counter.texts,
        "spiking": counter.spiking,
        "declared": " or ".join(accepted) if counter.spiking else "dense",
        "impure": [row["layer"] for row in layers if row["spiking"] == "no"],
        "layers": layers,
        "neurons": neurons,
        "not_spiking": others,
    }
    if strict:
        require_spiking(result)
    return result


def require_spiking(result: dict[str, Any]) -> None:
    """Raise ValueError when an audit's network is dense, or one of its layers that must be spiking is not."""
    if not result["spiking"]:
        raise ValueError(
            f"model {result['model']} is dense: it has no layer of spiking neurons, expected one with --strict"
        )
    if result["impure"]:
        row = next(row for row in result["layers"] if row["layer"] == result["impure"][0])
        got = "it was never called" if row["reads"] == "nothing" else "a product that no layer declares"
        if row["low"] is not None:
            got = f"got {row['reads']} from {row['low']:.4g} to {row['high']:.4g}"
        raise ValueError(
            f"model {result['model']}: {len(result['impure'])} of {len(result['layers'])} layers that must be spiking "
            f"are not; first {row['layer']}: expected {result['declared']} inputs, {got}"
        )


def declared(network: nn.Module) -> tuple[list[str], float]:
    """The kinds of input that the codes of a network's neurons allow, and the largest magnitude."""
    neurons = [module.constants for module in network.modules() if isinstance(module, LIF)]
    kinds, levels = ["binary"], 1.0
    for neuron in neurons:
        if neuron.code == "integer":
            levels = max(levels, float(neuron.levels))
            kinds += ["integer", "ternary", "signed integer"] if neuron.signed else ["integer"]
        elif neuron.code == "ternary":
            kinds.append("ternary")
    return list(dict.fromkeys(kinds)), levels


def _reading(layer: Layer, spiking: bool, accepted: list[str], levels: float) -> dict[str, Any]:
    reads = layer.reads
    pure = reads.kind in accepted and max(-reads.low, reads.high) <= levels
    pairs = reads.whole and reads.low < 0
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "reads": reads.kind,
        "sent as": "ON/OFF pairs" if pairs else "",
        "density": (reads.density / 2 if pairs else reads.density) if reads.count else None,
        "low": reads.low if reads.count else None,
        "high": reads.high if reads.count else None,
        "spiking": ("yes" if pure else "no") if spiking else "dense",
    }


def _health(layer: Layer, module: LIF, current: Tensor) -> dict[str, Any]:
    reads = layer.reads
    places = reads.count / reads.nonzero.shape[1]  # neuron-steps of each feature
    fired = reads.nonzero.sum(0)
    rate = reads.density
    found: dict[str, Any] = {
        "neurons": layer.name,
        "count": len(fired),
        "rate": rate,
        "silent": int((fired == 0).sum()),
        "saturated": int((fired == places).sum()),
        "threshold": module.constants.threshold,
        "suggested": None,
        "suggested rate": None,
        "norm factor": None,
    }
    if not LOWEST <= rate <= HIGHEST:
        found["suggested"], found["suggested rate"] = suggest(module, current)
        if found["suggested"] is not None and isinstance(module, NormLIF):
            found["norm factor"] = module.constants.threshold / found["suggested"]
    return found | {"advice": advice(found)}


def _as_it_is(sentence: str, **values: Any) -> str:
    return sentence.format(**values)


def advice(row: dict[str, Any], say: Say = _as_it_is) -> str:
    """What the doctor says of a layer of neurons, "" of a healthy one; say puts a sentence into another language."""
    if LOWEST <= row["rate"] <= HIGHEST:
        return ""
    state = say("silent" if row["rate"] < LOWEST else "saturated")
    if row["suggested"] is None:
        return say("{state}: no threshold helps, its current is the same everywhere", state=state)
    numbers = {"threshold": f"{row['suggested']:.3g}", "rate": f"{row['suggested rate']:.0%}"}
    told = say("{state}: threshold {threshold} would give a rate of {rate}", state=state, **numbers)
    if row["norm factor"] is None:
        return told
    return told + say(", and so would its norm's weight and bias times {factor}", factor=f"{row['norm factor']:.3g}")


@contextmanager
def currents(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A sample [T, _SAMPLE, ...] of what every layer of neurons receives, after its norm, from the first batch."""
    samples: dict[str, Tensor] = {}

    def keep(name: str, module: LIF, args: tuple) -> None:
        if name in samples:
            return
        current = args[0].detach()
        if isinstance(module, NormLIF):
            current = functional.layer_norm(current, current.shape[-1:], eps=module.eps) * module.weight + module.bias
        rows = current.flatten(1, 2) if current.dim() > 3 else current
        samples[name] = rows[:, :: max(1, rows.shape[1] // _SAMPLE)][:, :_SAMPLE].clone()

    def hook(name: str) -> Any:
        return lambda module, args: keep(name, module, args)

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in network.named_modules()
               if isinstance(module, LIF)]  # fmt: skip
    try:
        yield samples
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def suggest(module: LIF, current: Tensor, target: float = HEALTHY) -> tuple[float | None, float]:
    """The threshold at which neurons with this current [T, ...] fire at the target rate, and the rate it gives.

    The neuron itself is run at each threshold tried, by bisection: a higher threshold never fires more on the whole.
    None, with the rate as it is, when no threshold comes near (the same current everywhere, or none above zero).
    """

    def rate(threshold: float) -> float:
        spikes, _ = lif(current, **(module.neuron | {"threshold": threshold}))
        return float((spikes != 0).double().mean())

    high = float(current.abs().max()) * len(current) * max(1.0, abs(module.constants.gain))
    low = high * 1e-6
    if not high > 0:
        return None, rate(module.constants.threshold)
    for _ in range(24):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if rate(middle) > target else (low, middle)
    reached = rate(high)
    return (high, reached) if LOWEST <= reached <= HIGHEST else (None, reached)
