"""Floor 1: the neuron functions as layers. They hold constants and weights; all mathematics is in `spiketext.ops`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from spiketext.ops import Neuron, lif, norm_lif, spike_linear


class LIF(nn.Module):
    """Leaky integrate-and-fire layer: current [T, ...] -> spikes [T, ...]. Equation: `spiketext.ops.lif`.

    Options: the fields of `ops.Neuron`. Every call starts at rest, so there is nothing to reset.
    span: how many tokens one neuron sees (a filter: its width; None: the whole text). fan_out: its connections, if a
    Linear of an encoder's block reads it. Counting and the price on spikes (`spiketext.rates`) need them.
    """

    span: int | None = 1

    def __init__(self, fan_out: int = 1, **neuron: Any):
        super().__init__()
        self.neuron, self.fan_out = neuron, fan_out
        self.constants = Neuron(**neuron)

    def forward(self, current: Tensor) -> Tensor:
        """Spikes in current's dtype."""
        return lif(current, **self.neuron)[0]

    def extra_repr(self) -> str:
        """The constants that differ from the defaults."""
        usual = asdict(Neuron()) | {"alpha": Neuron(surrogate=self.constants.surrogate).alpha}
        own = {name: value for name, value in asdict(self.constants).items() if value != usual[name]}
        return ", ".join(f"{name}={value}" for name, value in own.items())


class NormLIF(LIF):
    """Layer norm and LIF: x [T, ..., D] -> spikes, or x [T, ..., G, D] with a norm of its own for each of G groups."""

    def __init__(self, width: int, groups: int | None = None, eps: float = 1e-12, fan_out: int = 1, **neuron: Any):
        super().__init__(fan_out, **neuron)
        shape = (width,) if groups is None else (groups, width)
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Spikes in x's dtype; the norm and the membrane are computed in float32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return norm_lif(x.to(dtype), weight, bias, self.eps, **self.neuron).to(x.dtype)


class SpikeLinear(nn.Linear):
    """`nn.Linear` of spikes: the same numbers, sooner where they are binary. Equation: `spiketext.ops.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """input [..., K] -> [..., N]."""
        return spike_linear(input, self.weight, self.bias)
