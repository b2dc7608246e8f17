"""A linear map of spikes: its definition, and the same sums without products.

    out[m] = bias + sum over k of spikes[m, k] * weight[:, k]

Spikes of 0 and 1, or of -1, 0 and 1, have few patterns in four (three) columns. The sum of the weights for every
pattern is made once and then looked up: one addition in place of four (three) multiply-adds, whatever the firing rate,
and the same for the gradient of the weight. The gradient of the spikes is no sum of spikes; it stays a matrix product.
For backward one bit a spike is kept (two where they have a sign), not the spikes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from spiketext.ops import kernels

FEWEST_ROWS = 256  # from here on tables pay at every shape (benchmarks/results/linear.json); one text is slower so


def spike_linear(spikes: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """`torch.nn.functional.linear`, sooner where many rows are spikes.

    Shapes:  spikes [..., K], weight [N, K], bias [N] -> [..., N].  Dtype: any; the compiled sums are for float32 and
             float64 on the CPU. Any numbers are right, not only spikes: they take the matrix product.
    Backend: "cpp" (compiled sums), "torch" (the definition); None takes the compiled one where it is sooner.
    Raises:  ValueError for a backend that cannot run, or "cpp" with other numbers than -1, 0 and 1. Shapes that don't
             fit are for the definition, which raises RuntimeError, or broadcasts a bias of one number.
    """
    if backend not in (None, "cpp", "torch"):
        raise ValueError(f"backend: expected cpp or torch, got {backend!r}")
    possible = (
        spikes.device.type == "cpu"
        and spikes.dtype == weight.dtype
        and spikes.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and spikes.numel() > 0
        and _fit(spikes, weight, bias)
        and backend != "torch"
        and (backend == "cpp" or spikes.numel() >= FEWEST_ROWS * spikes.shape[-1])
        and kernels.load() is not None
    )
    if backend == "cpp" and not possible:
        shapes = " and ".join(str(list(each.shape)) for each in (spikes, weight))
        raise ValueError(f"backend 'cpp' cannot run a linear map of {spikes.dtype} {shapes} on {spikes.device} here")
    if not possible:
        return linear(spikes, weight, bias)
    bits = kernels.spike_bits(spikes.detach())
    if bits.shape[0] == 0:
        if backend == "cpp":
            raise ValueError("backend 'cpp' needs spikes of -1, 0 and 1; got other numbers")
        return linear(spikes, weight, bias)
    return _SpikeLinear.apply(spikes, weight, bias, bits)


def spike_linear_int8(spikes: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`spike_linear` with weights in bytes: linear(spikes, scale[:, None] * weight, bias), without a gradient.

    Shapes:  spikes [..., K] in float32, weight [N, K] in int8, scale [N], bias [N] in float32 -> [..., N].
    The sums of bytes are exact; the compiled ones take spikes of -1, 0 and 1 on the CPU, the definition the rest.
    """
    whole = spikes.device.type == "cpu" and spikes.dtype == torch.float32 and spikes.numel()
    if whole and _fit(spikes, weight, bias) and scale.shape == weight.shape[:1] and kernels.load() is not None:
        bits = kernels.spike_bits(spikes)
        if bits.shape[0]:
            return kernels.spike_linear_int8(bits, weight, scale, bias).view(*spikes.shape[:-1], -1)
    return linear(spikes, scale[:, None] * weight, bias)


def _fit(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the compiled sums may read these: they look at no shape."""
    inputs = weight.dim() == 2 and weight.shape[0] > 0 and spikes.dim() > 0 and spikes.shape[-1] == weight.shape[1]
    return inputs and (bias is None or bias.shape == weight.shape[:1])


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
