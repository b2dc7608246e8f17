"""Measured bandwidth and matrix rate, and how near each kernel and the whole step come to them.

bytes: what must move at least between memory and processor when caches hold nothing from before (each input read once,
each output written once). operations: multiply-adds for products, additions for sums and element work; one of them is
one slot of the vector unit, so both are held against the matrix rate in multiply-adds. bound_s is the larger of bytes /
bandwidth and operations / rate, `bound_by` says which; `ratio` is bound_s / seconds: the share of the limit that is
reached. A copy is measured on arrays larger than most caches; a kernel whose arrays fit into a large last cache may
show a share above 1.

bytes and operations, N rows of D (T x B x L tokens), M = N, K inputs, F outputs, W weights; our default, ternary spikes
and T = 1:
norm_lif forward 8 N D, backward 12 N D, about 12 and 24 operations an element; spike_linear forward M K / 4 + 4 (K F +
M F), M K F / 3; weight gradient the same; product 4 (M K + K F + M F), M K F; AdamW 28 W, about 12 W; embedding
gradient 4 B L D read, 4 V D written as zeros and 8 B L D of adding, B L D operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.networks import Labels, Step, batch_of, copy_bandwidth, student
from spiketext.bench import Row, Samples, Say, measure
from spiketext.ops import norm_lif, spike_linear
from spiketext.options import BenchOptions

TURNS = {"tiny": 2, "short": 7, "full": 15}
VOCABULARY = 30522
Kernel = tuple[Callable[[], Any], float, float, int]  # the call, bytes, operations, calls in a step


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: the machine's two rates, each kernel at the shapes of a step, then the whole step."""
    tiny = options.scale == "tiny"
    turns = options.repeats or TURNS[options.scale]
    layers, width, texts, length = (1, 32, 2, 8) if tiny else (6, 384, 32, 64)
    say("roofline: bandwidth and matrix rate")
    rates, rows = machine_rates(1 if tiny else 256, (64,) if tiny else (1024, 2048, 3072), turns)
    say(f"roofline: the kernels of {layers}x{width}, B {texts}, L {length}")
    found = kernels(layers, width, texts, length)
    samples = measure({name: kernel[0] for name, kernel in found.items()}, turns)
    for name, (_, moved, operations, calls) in found.items():
        rows.append(_row(name, samples, moved, operations, rates, calls))
    say("roofline: a whole step")
    return [*rows, _whole(rows, layers, width, texts, length, max(2, turns // 3))]


def machine_rates(mebibytes: int, sides: tuple[int, ...], turns: int) -> tuple[tuple[float, float], list[Row]]:
    """Bytes a second of a copy and multiply-adds a second of the best square product, and their rows."""
    work = {f"copy of {mebibytes} MiB": copy_bandwidth(mebibytes)}
    for side in sides:
        a, b = torch.randn(side, side), torch.randn(side, side)
        work[f"product {side} x {side}"] = lambda a=a, b=b: a @ b
    samples = measure(work, turns)
    copied, *products = work
    bandwidth = 2 * mebibytes * 2**20 / samples.median(copied)
    speeds = {name: side**3 / samples.median(name) for name, side in zip(products, sides, strict=True)}
    best = max(speeds.values())
    rows = [samples.row(copied, copied, table="rates of the machine", what=copied) | {"per_s": bandwidth,
            "unit": "bytes"}]  # fmt: skip
    rows += [samples.row(name, copied, table="rates of the machine", what=name)
             | {"per_s": speeds[name], "unit": "multiply-adds"} for name in products]  # fmt: skip
    return (bandwidth, best), rows


def kernels(layers: int, width: int, texts: int, length: int) -> dict[str, Kernel]:
    """The kernels of a training step by name, with the number of calls in one step of cross-entropy alone."""
    config = student(1, 32).config
    steps, constants = config.time_steps, config.neuron()
    rows = steps * texts * length
    draw = torch.Generator().manual_seed(0)
    found: dict[str, Kernel] = {}
    norms = {width: 6 * layers + 1, 4 * width: layers}  # input, three for q k v, mixed, feed-forward input; head
    for wide, calls in norms.items():
        x = torch.randn(steps, rows // steps, wide, generator=draw).requires_grad_()
        weight, bias = torch.ones(wide, requires_grad=True), torch.zeros(wide, requires_grad=True)
        spikes = norm_lif(x, weight, bias, 1e-12, **constants)
        grad = torch.randn(spikes.shape, generator=draw)

        def forward(x: Any = x, weight: Any = weight, bias: Any = bias) -> Any:
            with torch.no_grad():
                return norm_lif(x, weight, bias, 1e-12, **constants)

        elements = rows * wide
        found[f"norm_lif forward, D {wide}"] = forward, 8 * elements, 12 * elements, calls
        found[f"norm_lif backward, D {wide}"] = (
            _backward(spikes, (x, weight, bias), grad), 12 * elements, 24 * elements, calls)  # fmt: skip
    for inputs, outputs in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
        found |= _linear(rows, inputs, outputs, layers, draw)
    table = nn.Embedding(VOCABULARY, width)
    ids = torch.randint(0, VOCABULARY, (texts, length), generator=draw)
    looked, entries = table(ids), texts * length * width
    found["embedding gradient"] = (_backward(looked, (table.weight,), torch.ones_like(looked)),
                                   4 * VOCABULARY * width + 12 * entries, entries, 1)  # fmt: skip
    weights = sum(p.numel() for p in student(layers, width).parameters())
    value = nn.Parameter(torch.zeros(weights))
    value.grad = torch.ones_like(value)
    optimiser = torch.optim.AdamW([value], lr=1e-9, fused=True)
    found["AdamW, fused"] = optimiser.step, 28 * weights, 12 * weights, 1
    return found


def _linear(rows: int, inputs: int, outputs: int, calls: int, draw: torch.Generator) -> dict[str, Kernel]:
    spikes = torch.randint(-1, 2, (rows, inputs), generator=draw).float()
    weight = torch.randn(outputs, inputs, generator=draw).requires_grad_()
    grad = torch.randn(rows, outputs, generator=draw)
    products = rows * inputs * outputs
    bits = rows * inputs / 4 + 4 * (inputs * outputs + rows * outputs)
    dense = 4 * (rows * inputs + inputs * outputs + rows * outputs)
    out = spike_linear(spikes, weight)

    def forward() -> Any:
        with torch.no_grad():
            return spike_linear(spikes, weight)

    held = weight.detach()
    shape = f"{inputs}->{outputs}"
    added = products / 3
    return {f"spike_linear forward, {shape}": (forward, bits, added, calls),
            f"spike_linear weight gradient, {shape}": (_backward(out, (weight,), grad), bits, added, calls),
            f"product (gradient of the input), {shape}": (lambda: grad @ held, dense, products, calls)}  # fmt: skip


def _backward(out: torch.Tensor, leaves: tuple[torch.Tensor, ...], grad: torch.Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def _row(name: str, samples: Samples, moved: float, operations: float, rates: tuple[float, float], calls: int) -> Row:
    bandwidth, rate = rates
    by_memory, by_rate = moved / bandwidth, operations / rate
    row = samples.row(name, table="kernels", what=name)
    bound = max(by_memory, by_rate)
    return row | {"bytes": moved, "operations": operations, "bytes_per_s": moved / row["seconds"],
                  "operations_per_s": operations / row["seconds"], "bound_s": bound, "ratio": bound / row["seconds"],
                  "bound_by": "memory" if by_memory >= by_rate else "arithmetic", "calls_in_a_step": calls}  # fmt: skip


def _whole(rows: list[Row], layers: int, width: int, texts: int, length: int, turns: int) -> Row:
    """A step of cross-entropy alone against the bounds of its kernels, and against their measured times."""
    step, batch = Step(Labels(student(layers, width))), batch_of(texts, length)
    samples = measure({"whole step": lambda: step(batch)}, turns)
    kernels = [row for row in rows if row["table"] == "kernels"]
    row = samples.row("whole step", table="whole step", what=f"{layers}x{width}, B {texts}, L {length}")
    bound = sum(k["bound_s"] * k["calls_in_a_step"] for k in kernels)
    timed = sum(k["seconds"] * k["calls_in_a_step"] for k in kernels)
    memory = sum(k["bound_s"] * k["calls_in_a_step"] for k in kernels if k["bound_by"] == "memory")
    return row | {"bound_s": bound, "ratio": bound / row["seconds"], "memory_share_of_bound": memory / bound,
                  "kernels_alone_s": timed, "kernels_share": timed / row["seconds"]}  # fmt: skip
