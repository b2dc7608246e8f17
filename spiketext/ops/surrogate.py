"""The threshold: a step forward, a chosen derivative backward.

Formulas: the head of `spiketext.ops.lif`. The surrogate is centred on the threshold.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spiketext.ops.lif import Neuron

Surrogate = Literal["atan", "fast_sigmoid"]
DEFAULT_ALPHA = {"atan": 2.0, "fast_sigmoid": 25.0}


def encode(membrane: Tensor, neuron: Neuron) -> Tensor:
    """Spikes that a membrane fires: 0/1, -1/0/1 or 0..levels, in the membrane's dtype, with the surrogate gradient."""
    return _Encode.apply(membrane, neuron)


def fires(membrane: Tensor, neuron: Neuron) -> Tensor:
    """The same spikes without a gradient."""
    if neuron.code == "integer":
        lowest = -neuron.levels if neuron.signed else 0
        return torch.floor(membrane / neuron.threshold + 0.5).clamp(lowest, neuron.levels)
    compare = torch.ge if neuron.fire == ">=" else torch.gt
    spikes = compare(membrane, neuron.threshold).to(membrane.dtype)
    if neuron.code == "ternary":
        spikes = spikes - compare(-membrane, neuron.threshold).to(membrane.dtype)
    return spikes


def derivative(membrane: Tensor, neuron: Neuron) -> Tensor:
    """dS/dU: the surrogate at the threshold (ternary: at both; integer: 1/thr inside the range of the code)."""
    if neuron.code == "integer":
        lowest = -neuron.levels - 0.5 if neuron.signed else -0.5
        units = membrane / neuron.threshold
        return ((units >= lowest) & (units <= neuron.levels + 0.5)).to(membrane.dtype) / neuron.threshold
    slope = _slope(membrane - neuron.threshold, neuron)
    if neuron.code == "ternary":
        slope = slope + _slope(membrane + neuron.threshold, neuron)
    return slope


def _slope(distance: Tensor, neuron: Neuron) -> Tensor:
    alpha = neuron.alpha
    assert alpha is not None
    if neuron.surrogate == "atan":
        return (alpha / 2) / (1 + (math.pi / 2 * alpha * distance).square())
    return 1 / (1 + alpha * distance.abs()).square()


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, membrane: Tensor, neuron: Neuron) -> Tensor:
        ctx.save_for_backward(membrane)
        ctx.neuron = neuron
        return fires(membrane, neuron)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (membrane,) = ctx.saved_tensors
        return grads[0] * derivative(membrane, ctx.neuron), None
