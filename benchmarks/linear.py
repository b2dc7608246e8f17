"""Sums over spikes against the matrix product: forward, gradients, and the density where both are even.

The dense product is `torch.nn.functional.linear`. Densities are shares of ones; ratios are sums / product, so below 1
the sums are sooner. The gradient of the input has no zeros to skip and is a matrix product on both sides.

peak_share: additions per second / the most multiply-adds per second that any dense product of this run reached; one
addition takes the slot of one multiply-add in the vector unit, and its operand one load from the first cache.
bytes: what must move at least: a bit for each spike, weight, bias and output once (forward); a bit for each spike, the
gradient of the output and that of the weight once (weight gradient).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear

from spiketext.bench import Row, Samples, Say, measure
from spiketext.ops import kernels, spike_linear
from spiketext.options import BenchOptions

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
ROWS = (4 * 32 * 27, 4 * 32 * 64)  # T x B x L: the mean length of SST-2, and 64 tokens
TURNS = {"tiny": 2, "short": 5, "full": 9}


def shapes(width: int) -> list[tuple[int, int]]:
    """Inputs and outputs of the Linears of a block: q, k and v in one, output, and the two of the feed-forward."""
    return [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: one for each shape, number of rows, pass and density; then the crossover densities."""
    if kernels.load() is None:
        raise ValueError(f"benchmark linear: the compiled sums cannot run here ({kernels.why_not()})")
    if options.scale == "tiny":
        cases = [(64, 32, 128)]
    else:
        both = ROWS if options.scale == "full" else ROWS[:1]
        cases = [(k, n, m) for m in ROWS for k, n in shapes(384)] + [(k, n, m) for m in both for k, n in shapes(768)]
    measured = []
    for inputs, outputs, rows in cases:
        say(f"linear: {inputs} -> {outputs}, {rows} rows")
        measured.append(_case(inputs, outputs, rows, options.repeats or TURNS[options.scale]))
    peak = max(m * k * n / samples.median(f"{what} dense") for (k, n, m), samples in zip(cases, measured, strict=True)
               for what in ("forward", "weight gradient"))  # fmt: skip
    rows_out: list[Row] = []
    for (inputs, outputs, rows), samples in zip(cases, measured, strict=True):
        rows_out += _rows(samples, inputs, outputs, rows, peak)
    for (inputs, outputs, rows), samples in zip(cases, measured, strict=True):
        rows_out += _crossovers(samples, inputs, outputs, rows)
    return rows_out


def _case(inputs: int, outputs: int, rows: int, turns: int) -> Samples:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=draw).div_(inputs**0.5).requires_grad_()
    bias, grad = torch.zeros(outputs), torch.randn(rows, outputs, generator=draw)
    chance = torch.rand(rows, inputs, generator=draw)
    dense = (chance < 0.2).float()
    work: dict[str, Any] = {}

    def add(name: str, spikes: torch.Tensor, function: Any) -> None:
        out = function(spikes, weight, bias)

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return function(spikes, weight, bias)

        work[f"forward {name}"] = forward
        work[f"weight gradient {name}"] = lambda: torch.autograd.grad(out, weight, grad, retain_graph=True)

    add("dense", dense, linear)
    at = dense.clone().requires_grad_()
    through = linear(at, weight, bias)
    work["input gradient dense"] = lambda: torch.autograd.grad(through, at, grad, retain_graph=True)
    for density in DENSITIES:
        spikes = (chance < density).float()
        add(f"{density}", spikes, lambda s, w, b: spike_linear(s, w, b, backend="cpp"))
        expected = linear(spikes, weight, bias)
        assert torch.allclose(work[f"forward {density}"](), expected, atol=1e-4), "the sums are wrong"
    return measure(work, turns)


def _rows(samples: Samples, inputs: int, outputs: int, rows: int, peak: float) -> list[Row]:
    found = []
    products = rows * inputs * outputs
    for what in ("forward", "weight gradient", "input gradient"):
        head = {"table": "sums and products", "shape": f"{inputs}->{outputs}", "rows": rows, "pass": what}
        dense = f"{what} dense"
        found.append(samples.row(dense, dense, **head, density="dense") | {"additions_per_s": None,
                     "peak_share": products / samples.median(dense) / peak, "bytes": None})  # fmt: skip
        for density in DENSITIES if what != "input gradient" else ():
            name = f"{what} {density}"
            rate = density * products / samples.median(name)
            moved = rows * inputs // 8 + 4 * (rows * outputs + inputs * outputs)
            found.append(samples.row(name, dense, **head, density=density)
                         | {"additions_per_s": rate, "peak_share": rate / peak, "bytes": moved})  # fmt: skip
    return found


def _crossovers(samples: Samples, inputs: int, outputs: int, rows: int) -> list[Row]:
    passes = {"forward": ["forward"], "weight gradient": ["weight gradient"], "both": ["forward", "weight gradient"]}
    found: list[Row] = []
    for name, parts in passes.items():
        ratios = [sum(samples.median(f"{part} {density}") for part in parts)
                  / sum(samples.median(f"{part} dense") for part in parts) for density in DENSITIES]  # fmt: skip
        found.append({"table": "even at", "shape": f"{inputs}->{outputs}", "rows": rows, "pass": name,
                      "density": crossover(DENSITIES, ratios)})  # fmt: skip
    return found


def crossover(densities: tuple[float, ...], ratios: list[float]) -> float | str:
    """The density where the ratio passes 1, by straight lines between the measured ones; or on which side it lies."""
    if ratios[0] >= 1:
        return f"below {densities[0]}"
    for i in range(1, len(ratios)):
        if ratios[i] >= 1:
            share = (1 - ratios[i - 1]) / (ratios[i] - ratios[i - 1])
            return densities[i - 1] + share * (densities[i] - densities[i - 1])
    return f"above {densities[-1]}"
