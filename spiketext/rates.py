"""Floor 2: how often neurons fire, padding excluded: counted, and priced in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiketext.losses import rate_loss
from spiketext.neurons import LIF
from spiketext.options import TrainingOptions


class RateCounter:
    """Shares of neuron-steps of real tokens that fired, layer by layer, while `counting` is active."""

    def __init__(self) -> None:
        self.fired: dict[str, Any] = {}
        self.possible: dict[str, float] = {}
        self.mask: Tensor | None = None

    def _events(self, spikes: Tensor, layer: LIF) -> Tensor:
        return spikes != 0

    def _kept(self, total: Tensor) -> Any:
        return float(total)

    def _price(self, layer: LIF) -> int:
        return 1

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[RateCounter]:
        """Hooks on every layer of neurons; set `mask` [B, L] before each forward pass."""
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LIF)]
        handles = [module.register_forward_hook(partial(self._record, name)) for name, module in layers]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, name: str, module: LIF, inputs: tuple, spikes: Tensor) -> None:
        assert self.mask is not None
        span, price = module.span, self._price(module)
        if span is None:  # neurons of the whole text
            spikes = spikes[:, :, None]
        fired = self._events(spikes, module).flatten(3).sum(-1, dtype=torch.float32)  # [T, B, L]
        real = _places(self.mask, span, spikes.shape[2])
        self.fired[name] = self.fired.get(name, 0.0) + price * self._kept((fired * real).sum())
        neurons = spikes[0, 0, 0].numel() * spikes.shape[0]
        self.possible[name] = self.possible.get(name, 0.0) + price * neurons * float(real.sum())

    @property
    def rates(self) -> dict[str, float]:
        """Firing rate of each layer, 0..1."""
        return {name: self.fired[name] / self.possible[name] for name in self.fired}

    @property
    def rate(self) -> float | None:
        """Firing rate over all neurons; None for a model without any."""
        return sum(self.fired.values()) / sum(self.possible.values()) if self.possible else None


class SlopedRate(RateCounter):
    """Synaptic operations with a gradient: spikes for each connection, step and real token; integer k is |k|.

    In a block a neuron has the connections of the Linear that reads it, since each costs an addition; any other neuron
    has one. The slope is that of the surrogate; a silent neuron of signed spikes has none, since a zero does not say
    which threshold is the nearer one.
    """

    def _events(self, spikes: Tensor, layer: LIF) -> Tensor:
        signed = layer.constants.code == "ternary" or layer.constants.signed
        return spikes.abs() if signed else spikes

    def _kept(self, total: Tensor) -> Tensor:
        return total

    def _price(self, layer: LIF) -> int:
        return layer.fan_out


class RateBudget:
    """A price on spikes above a budget (`losses.rate_loss`), where it was asked for: weights {"over_budget": w} or {}.

    Raises ValueError for a network without spiking neurons, or whose residual is made of spikes, which more than one
    Linear reads (designs paper and authors), a budget or weight out of range, or with --recompute, which runs a block
    without its gradient first.
    """

    def __init__(self, model: nn.Module, options: TrainingOptions):
        self.budget, weight = getattr(options, "rate_budget", 1.0), getattr(options, "rate_weight", 0.0)
        self.weights: dict[str, float] = {"over_budget": weight} if weight else {}
        if weight < 0 or self.budget <= 0:
            raise ValueError(f"rate: expected a weight from 0 and a budget above 0, got {weight} and {self.budget}")
        if weight and not any(isinstance(layer, LIF) for layer in model.modules()):
            raise ValueError("rate_weight: this network has no spiking neurons, expected 0; leave --rate-weight out")
        design = getattr(getattr(model, "config", None), "design", "default")
        if weight and design != "default":
            raise ValueError(
                f"rate_weight: in the design {design} all later blocks read a spike of the residual, and that has "
                "no price yet; expected 0, leave --rate-weight out"
            )
        if weight and options.recompute:
            raise ValueError("rate_weight: expected 0 with --recompute; leave one of the two out")

    @contextmanager
    def watching(self, model: nn.Module, batch: dict[str, Tensor]) -> Iterator[Callable[[], dict[str, Tensor]]]:
        """Run the model inside; then the function gives the term by name, nothing without a weight."""
        if not self.weights:
            yield dict
            return
        counter = SlopedRate()
        counter.mask = batch["attention_mask"]
        with counter.counting(model):
            yield lambda: {"over_budget": rate_loss(torch.as_tensor(counter.rate), self.budget)}


def _places(mask: Tensor, span: int | None, places: int) -> Tensor:
    """mask [B, L] of real tokens -> [B, places] of real neurons, each of which sees `span` tokens: at least one."""
    words = mask.sum(1, keepdim=True)
    real = words - span + 1 if span else torch.ones_like(words)
    return torch.arange(places, device=mask.device) < real.clamp(min=1)
