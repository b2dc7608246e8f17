"""Sums over spikes against the matrix product: forward, gradients, and how many rows the tables need to pay.

The dense product is `torch.nn.functional.linear`. Ratios are sums / product, so below 1 the sums are sooner. A sum
looks up four columns of zeros and ones, or three of -1, 0 and 1, at a time, so that the firing rate does not matter:
half of all spikes fire here. The gradient of the input is no sum of spikes and is a matrix product on both sides.

peak_share: additions per second / the most multiply-adds per second that any dense product of this run reached; one
addition takes the slot of one multiply-add in the vector unit, and its operand one load from the first cache.
bytes: what must move at least: a bit (two with a sign) for each spike, weight, bias and output once (forward); the
bits, the gradient of the output and that of the weight once (weight gradient).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear

from spiketext.bench import Row, Samples, Say, measure
from spiketext.ops import kernels, spike_linear
from spiketext.options import BenchOptions

TOGETHER = {"binary": 4, "ternary": 3}  # columns that one addition stands for
ROWS = (32 * 27, 4 * 32 * 27, 4 * 32 * 64)  # T x B x L: the mean length of SST-2 at T = 1 and 4, and 64 tokens
FEW = (32, 64, 128, 256, 512)
TURNS = {"tiny": 2, "short": 5, "full": 9}


def shapes(width: int) -> list[tuple[int, int]]:
    """Inputs and outputs of the Linears of a block: q, k and v in one, output, and the two of the feed-forward."""
    return [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: one for each shape, number of rows, pass and kind of spikes; then few rows."""
    if kernels.load() is None:
        raise ValueError(f"benchmark linear: the compiled sums cannot run here ({kernels.why_not()})")
    if options.scale == "tiny":
        cases, few = [(64, 32, 128)], [(64, 32, 16)]
    else:
        both = ROWS if options.scale == "full" else ROWS[:2]
        cases = [(k, n, m) for m in ROWS for k, n in shapes(384)] + [(k, n, m) for m in both for k, n in shapes(768)]
        few = [(k, n, m) for m in FEW for k, n in shapes(384)]
    measured = []
    for inputs, outputs, rows in cases + few:
        say(f"linear: {inputs} -> {outputs}, {rows} rows")
        measured.append(_case(inputs, outputs, rows, options.repeats or TURNS[options.scale]))
    peak = max(m * k * n / samples.median(f"{what} dense")
               for (k, n, m), samples in zip(cases, measured, strict=False)
               for what in ("forward", "weight gradient"))  # fmt: skip
    rows_out: list[Row] = []
    for i, ((inputs, outputs, rows), samples) in enumerate(zip(cases + few, measured, strict=True)):
        table = "sums and products" if i < len(cases) else "few rows"
        rows_out += _rows(samples, table, inputs, outputs, rows, peak)
    return rows_out


def _case(inputs: int, outputs: int, rows: int, turns: int) -> Samples:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=draw).div_(inputs**0.5).requires_grad_()
    bias, grad = torch.zeros(outputs), torch.randn(rows, outputs, generator=draw)
    ones = torch.randint(2, (rows, inputs), generator=draw).float()
    signs = 2 * torch.randint(2, (rows, inputs), generator=draw) - 1
    work: dict[str, Any] = {}

    def add(name: str, spikes: torch.Tensor, function: Any) -> None:
        out = function(spikes, weight, bias)

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return function(spikes, weight, bias)

        work[f"forward {name}"] = forward
        work[f"weight gradient {name}"] = lambda: torch.autograd.grad(out, weight, grad, retain_graph=True)

    add("dense", ones, linear)
    at = ones.clone().requires_grad_()
    through = linear(at, weight, bias)
    work["input gradient dense"] = lambda: torch.autograd.grad(through, at, grad, retain_graph=True)
    for code, spikes in (("binary", ones), ("ternary", ones * signs)):
        add(code, spikes, lambda s, w, b: spike_linear(s, w, b, backend="cpp"))
        expected = linear(spikes, weight, bias)
        assert torch.allclose(work[f"forward {code}"](), expected, atol=1e-4), "the sums are wrong"
    return measure(work, turns)


def _rows(samples: Samples, table: str, inputs: int, outputs: int, rows: int, peak: float) -> list[Row]:
    found = []
    products = rows * inputs * outputs
    for what in ("forward", "weight gradient", "input gradient"):
        head = {"table": table, "shape": f"{inputs}->{outputs}", "rows": rows, "pass": what}
        dense = f"{what} dense"
        found.append(samples.row(dense, dense, **head, spikes="dense") | {"additions_per_s": None,
                     "peak_share": products / samples.median(dense) / peak, "bytes": None})  # fmt: skip
        for code, together in TOGETHER.items() if what != "input gradient" else ():
            name = f"{what} {code}"
            rate = products / together / samples.median(name)
            moved = rows * inputs // 8 * (1 + (code == "ternary")) + 4 * (rows * outputs + inputs * outputs)
            found.append(samples.row(name, dense, **head, spikes=code)
                         | {"additions_per_s": rate, "peak_share": rate / peak, "bytes": moved})  # fmt: skip
    return found
