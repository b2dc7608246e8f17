"""Anytime inference: a SpikeBERT one time step after the other, and the texts that are sure of their label leave.

A spike never depends on a later step, so the logits after t steps are the means over t steps of the whole run: one
checkpoint answers early or late. Membranes are carried from step to step in the layers of a copy.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spiketext.neurons import NormLIF
from spiketext.ops import norm_lif_from


class SteppedNormLIF(NormLIF):
    """NormLIF that goes on from the membrane of the step before."""

    membrane: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """One step: x [1, B, L, ...] -> spikes in x's dtype."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        spikes, self.membrane = norm_lif_from(x.to(dtype), self.membrane, weight, bias, self.eps, **self.neuron)
        return spikes.to(x.dtype)


class Stepper:
    """Runs a SpikeBERT classifier of the default design step by step.

    Raises ValueError for another design, the integer code (its only step is the first), or a model of scores.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config
        if getattr(config, "design", None) != "default" or config.code == "integer":
            raise ValueError(
                "confidence: expected a spikebert of the default design that spikes over time, got "
                f"{config.model_type} {getattr(config, 'design', '')} {getattr(config, 'code', '')}"
            )
        if config.num_labels == 1:
            raise ValueError("confidence: expected a model of classes, got one of scores (num_labels 1); leave it out")
        self.most = config.time_steps
        self.model = copy.deepcopy(model).eval()
        self.model.config.time_steps = 1
        self.layers: list[SteppedNormLIF] = []
        for module in self.model.modules():
            if type(module) is NormLIF:
                module.__class__ = SteppedNormLIF
                self.layers.append(cast(SteppedNormLIF, module))

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Tensor], confidence: float) -> tuple[Tensor, Tensor]:
        """Inputs [B, L], a probability -> logits [B, K] and steps used [B].

        A text leaves after the first step at which its most probable label has at least that probability.
        """
        texts = batch["input_ids"].shape[0]
        place = batch["input_ids"].device
        running = torch.arange(texts, device=place)
        total = logits = None
        used = torch.zeros(texts, dtype=torch.long, device=place)
        for layer in self.layers:
            layer.membrane = None
        for step in range(1, self.most + 1):
            now = self.model(**batch).logits
            total = now if total is None else total + now
            mean = total / step
            logits = now.new_zeros(texts, now.shape[-1]) if logits is None else logits
            logits[running], used[running] = mean, step
            stay = mean.softmax(-1).amax(-1) < confidence
            if not stay.any():
                break
            running, total = running[stay], total[stay]
            batch = {name: tensor[stay] for name, tensor in batch.items()}
            for layer in self.layers:
                assert layer.membrane is not None
                layer.membrane = layer.membrane[stay]
        assert logits is not None
        return logits, used
