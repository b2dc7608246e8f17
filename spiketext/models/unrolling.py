"""An integer model run by binary spikes: each code k is sent as k spikes, the numbers stay the same.

Layer by layer with a barrier: a Linear adds up its binary steps before the norm and the next encoding. In attention K
is streamed as binary steps against the counts V, then Q against the counts K^T V; where counts are squared, Q against
K, then V against the squares. A signed code is sent by a pair of neurons, ON and OFF, whose outgoing weights are each
other's negative. `unroll` is for looking and for counting; the integer model is the quick way to the same logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spiketext.models.spikebert import SpikingSelfAttention
from spiketext.neurons import SpikeLinear
from spiketext.ops import spike_linear


def binary_steps(codes: Tensor, levels: int, signed: bool = False) -> Tensor:
    """Codes [...] of 0..levels -> spikes [levels, ...] of 0/1 whose sum over the steps is the code.

    Signed codes of -levels..levels -> [levels, 2, ...]: the ON neurons, then the OFF neurons; code = ON - OFF.
    """
    thresholds = torch.arange(1, levels + 1, dtype=codes.dtype, device=codes.device)
    thresholds = thresholds.view(-1, *[1] * codes.dim())
    on = (codes >= thresholds).to(codes.dtype)
    return torch.stack([on, (-codes >= thresholds).to(codes.dtype)], dim=1) if signed else on


def _streamed(codes: Tensor, levels: int, signed: bool, product: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum over binary steps of a product of the spikes of that step, those of OFF neurons taken away."""
    steps = binary_steps(codes, levels, signed)
    return torch.stack([product(step[0]) - product(step[1]) if signed else product(step) for step in steps]).sum(0)


class UnrolledLinear(SpikeLinear):
    """The sum over binary steps of W s, and the bias once; in half precision each step is rounded."""

    levels: int
    signed: bool

    def forward(self, input: Tensor) -> Tensor:
        """Codes [..., K] -> [..., N], the same as the integer layer."""
        out = _streamed(input, self.levels, self.signed, lambda spikes: spike_linear(spikes, self.weight))
        return out if self.bias is None else out + self.bias


class UnrolledAttention(SpikingSelfAttention):
    """(q k^T) v or max(q k^T, 0)^2 v with one binary operand in each product."""

    levels: int
    signed: bool

    def products(self, q: Tensor, k: Tensor, v: Tensor, with_scores: bool) -> tuple[Tensor, Tensor | None]:
        """As of the integer layer; the scores are built only to be squared, and never answered."""
        code = self.levels, self.signed
        if self.squared:
            squares = _streamed(q, *code, lambda spikes: spikes @ k.mT).clamp_min(0).square()
            return _streamed(v, *code, lambda spikes: squares @ spikes), None
        context = _streamed(k, *code, lambda spikes: spikes.mT @ v)
        return _streamed(q, *code, lambda spikes: spikes @ context), None


def unroll(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of an integer SpikeBERT that computes with binary spikes only; its codes and logits are the same.

    Raises ValueError for a model of another code, or of a design whose Linear layers read sums of spikes.
    """
    config = model.config
    if getattr(config, "code", None) != "integer" or config.design != "default":
        raise ValueError(
            f"unroll: expected a spikebert of the default design with the integer code, got {config.model_type} "
            f"{getattr(config, 'design', '')} {getattr(config, 'code', '')}"
        )
    twin = copy.deepcopy(model)
    for module in twin.modules():
        swap = {SpikeLinear: UnrolledLinear, SpikingSelfAttention: UnrolledAttention}.get(type(module))
        if swap is not None:
            module.__class__ = swap
            module.levels, module.signed = config.levels, config.signed
    return twin
