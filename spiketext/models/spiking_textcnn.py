"""The spiking TextCNN (SNN-TextCNN 3.1.3, 3.2): every Linear reads binary spikes.

    embedding -> spikes -> Linear over windows -> SN -> mean over windows -> SN -> Linear -> SN -> votes

SN is a layer of integrate-and-fire neurons (beta 1: no leak); each width has membranes of its own. The mean divides a
count of spikes by the number of the text's windows; its neuron may have a gain (`conversion`). Votes are the spikes of
a class's neurons at a step, logits their mean over the T steps.
Shapes: T time steps, B texts, L words, D features, C filters per width, K classes; the layout is [T, B, L, D].
How we differ from the authors' program: no random biases, a membrane for each branch, new noise at every pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from spiketext.coding import CODINGS, deterministic, poisson
from spiketext.losses import problem_of, task_loss
from spiketext.models.textcnn import RateLinear, TextCnnSizes, WordNetwork, classes, embed, window_mask, windows
from spiketext.neurons import LIF
from spiketext.ops import Neuron

NEURON_FIELDS = ("beta", "threshold", "reset", "reset_delay", "fire", "surrogate", "alpha", "detach_reset")


@strict
class SpikingTextCnnConfig(TextCnnSizes):
    """T = time_steps; coding of the input "poisson" or "deterministic"; neuron constants as in `ops.Neuron`.

    seed and draw key the Poisson spikes of an evaluation: another draw is other noise. A training pass draws anew.
    scales says what a rate means after a conversion: an activation is scales[layer] times the rate of its neuron, for
    the layers "convolutions", "pooling" and "classifier" (there: times the mean input current in thresholds). pool_gain
    is threshold * scales["convolutions"] / scales["pooling"].
    """

    model_type = "spiking-textcnn"

    neurons_per_class: int = 10
    time_steps: int = 50
    coding: str = "poisson"
    seed: int = 0
    draw: int = 0
    pool_gain: float = 1.0
    scales: dict[str, float] | None = None
    beta: float = 1.0
    threshold: float = 1.0
    reset: str = "subtract"
    reset_delay: bool = True
    fire: str = ">="
    surrogate: str = "fast_sigmoid"
    alpha: float | None = None
    detach_reset: bool = True

    def neuron(self, gain: float = 1.0) -> dict[str, Any]:
        """Arguments of `ops.lif`."""
        return {"gain": gain} | {name: getattr(self, name) for name in NEURON_FIELDS}

    def validate_spiking(self):
        """Cross-field checks, run after construction."""
        if self.time_steps < 1:
            raise ValueError(f"time_steps: expected at least 1, got {self.time_steps}")
        if self.coding not in CODINGS:
            raise ValueError(f"coding: expected {' or '.join(CODINGS)}, got {self.coding!r}")
        if self.draw < 0:
            raise ValueError(f"draw: expected 0 or more (training takes what is below), got {self.draw}")
        if self.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"a spiking TextCNN counts votes for classes: expected single-label classification, "
                f"got {self.problem_type}"
            )
        Neuron(**self.neuron(self.pool_gain))


@dataclass
class VotesOutput(SequenceClassifierOutput):
    """Logits [B, K] and the votes at every step [T, B, K], whose mean over steps they are."""

    votes: Tensor | None = None


def _neurons(span: int | None, constants: dict[str, Any]) -> LIF:
    layer = LIF(**constants)
    layer.span = span
    return layer


class SpikingTextCnnModel(WordNetwork):
    """Word ids [B, L] -> spikes of the pooled features [T, B, widths * C]."""

    config_class = SpikingTextCnnConfig
    passes: Tensor  # of training, so far: each has noise of its own, also after a resumption

    def __init__(self, config: SpikingTextCnnConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.convolutions = nn.ModuleList(
            RateLinear(width * config.hidden_size, config.num_filters, bias=False) for width in config.filter_widths
        )
        gain = config.pool_gain
        self.window_spikes = nn.ModuleList(_neurons(width, config.neuron()) for width in config.filter_widths)
        self.pooled_spikes = nn.ModuleList(_neurons(None, config.neuron(gain)) for _ in config.filter_widths)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the word embedding."""
        self.embedding = value

    def spikes(
        self, input_ids: Tensor, attention_mask: Tensor | None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Input spikes [T, B, L, D] and the mask [B, L], with L at least the widest filter. noise: as `coding.poisson`.

        A spike train has no slope in its rate: no gradient reaches the embedding, which is thereby frozen.
        """
        config = self.config
        rates, mask = embed(self.embedding, input_ids, attention_mask, max(config.filter_widths))
        if config.coding == "deterministic":
            return deterministic(rates, config.time_steps), mask
        draw = config.draw
        if self.training:
            self.passes += 1
            draw = -int(self.passes)
        ids = nn.functional.pad(input_ids, (0, mask.shape[1] - input_ids.shape[1]))
        return poisson(rates, config.time_steps, ids, mask, seed=config.seed, draw=draw, noise=noise), mask

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, noise: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """last_hidden_state: spikes [T, B, widths * C]. attention_mask [B, L]: 1 for a real token; noise: `spikes`."""
        spikes, mask = self.spikes(input_ids, attention_mask, noise)
        pooled = []
        layers = zip(self.config.filter_widths, self.convolutions, self.window_spikes, self.pooled_spikes, strict=True)
        for width, linear, fire, fire_pooled in layers:
            current = linear(windows(spikes, width))
            fired = fire(current.to(torch.promote_types(current.dtype, torch.float32)))
            real = window_mask(mask, width, fired.dtype)
            counts = (fired * real[:, :, None]).sum(2)  # of zeros and ones: exact, so equal at every padding
            pooled.append(fire_pooled(counts / real.sum(1)[:, None]))
        return BaseModelOutput(last_hidden_state=torch.cat(pooled, -1).to(spikes.dtype))


class SpikingTextCnnForSequenceClassification(WordNetwork):
    """Texts -> logits [B, K] and the votes at every step."""

    config_class = SpikingTextCnnConfig

    def __init__(self, config: SpikingTextCnnConfig):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.textcnn = SpikingTextCnnModel(config)
        width = len(config.filter_widths) * config.num_filters
        self.classifier = RateLinear(width, config.output_neurons, bias=False)
        self.votes = _neurons(None, config.neuron())
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        noise: Tensor | None = None,
        **kwargs: Any,
    ) -> VotesOutput:
        """Loss, if labels are given: the cross-entropy of the votes at each step, averaged (eq. 4); noise: `spikes`."""
        spikes = self.textcnn(input_ids, attention_mask, noise, return_dict=True).last_hidden_state
        if self.training and self.config.dropout:  # one mask for all steps
            spikes = spikes * nn.functional.dropout(torch.ones_like(spikes[0]), self.config.dropout)
        current = self.classifier(spikes)
        fired = self.votes(current.to(torch.promote_types(current.dtype, torch.float32)))
        votes = classes(fired, self.config.neurons_per_class)
        loss = None
        if labels is not None:
            if problem_of(labels, self.num_labels, self.config.problem_type) != "single_label_classification":
                raise ValueError(
                    f"labels: a spiking TextCNN votes for one of two classes or more, expected their ids [B]; got "
                    f"{labels.dtype} {list(labels.shape)} for {self.num_labels} outputs"
                )
            loss = task_loss(votes.flatten(0, 1), labels.repeat(len(votes)), "single_label_classification")
        return VotesOutput(loss=loss, logits=votes.mean(0), votes=votes)
