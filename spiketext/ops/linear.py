"""A linear map of spikes: its definition, and the same sums without products.

    out[m] = bias + sum over k of spikes[m, k] * weight[:, k]

Where every spike is 0 or 1 the sum runs over the weight columns of those neurons that fired, and so does the gradient
of the weight: additions in proportion to the firing rate. The gradient of the spikes has no zeros to skip; it stays a
matrix product. For backward one bit a spike is kept, not the spikes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from spiketext.ops import kernels

DENSEST = 0.4  # above this share of ones the matrix product is the faster one (benchmarks/results/linear.json)
FEWEST_ROWS = 512  # below, turning the weight round costs more than it saves


def spike_linear(spikes: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.linear`, sooner where the input is binary and sparse.

    Shapes:  spikes [..., K], weight [N, K], bias [N] -> [..., N].  Dtype: any; the compiled sums are for float32 and
             float64 on the CPU. Any numbers are right, not only spikes: they take the matrix product.
    Backend: "cpp" (compiled sums), "torch" (the definition); None takes the compiled one where it is sooner.
    Raises:  ValueError for a backend that cannot run, or "cpp" with an input that is not binary.
    """
    if backend not in (None, "cpp", "torch"):
        raise ValueError(f"backend: expected cpp or torch, got {backend!r}")
    possible = (
        spikes.device.type == "cpu"
        and spikes.dtype == weight.dtype
        and spikes.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and spikes.numel() > 0
        and backend != "torch"
        and (backend == "cpp" or spikes.numel() >= FEWEST_ROWS * spikes.shape[-1])
        and kernels.load() is not None
    )
    if backend == "cpp" and not possible:
        raise ValueError(f"backend 'cpp' cannot run a linear map of {spikes.dtype} on {spikes.device} here")
    if not possible:
        return linear(spikes, weight, bias)
    rows = spikes.detach().reshape(-1, spikes.shape[-1]).contiguous()
    bits, fired = kernels.spike_bits(rows)
    if backend == "cpp" and fired < 0:
        raise ValueError("backend 'cpp' needs spikes of 0 and 1; got other numbers")
    if fired < 0 or (backend is None and fired > DENSEST * rows.numel()):
        return linear(spikes, weight, bias)
    return _SpikeLinear.apply(spikes, weight, bias, bits)


class _SpikeLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, weight: Tensor, bias: Tensor | None, bits: Tensor):
        ctx.save_for_backward(bits, weight)
        out = kernels.spike_linear(bits, weight, bias)
        return out.view(*spikes.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor):
        bits, weight = ctx.saved_tensors
        rows = grad.reshape(-1, weight.shape[0]).contiguous()
        needs_spikes, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_spikes = (rows @ weight).view(*grad.shape[:-1], weight.shape[1]) if needs_spikes else None
        grad_weight = kernels.spike_linear_weight_grad(bits, rows, weight.shape[1]) if needs_weight else None
        return grad_spikes, grad_weight, rows.sum(0) if needs_bias else None, None
