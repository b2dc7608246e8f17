"""TextCNN (Kim 2014) and the tailored TextCNN that can become spiking (SNN-TextCNN 3.1.1).

Embedding -> for each width w a Linear over all windows of w words, C filters -> activation -> pooling over the windows
-> Linear. Shapes: B texts, L words, D features, windows [B, L - w + 1, w * D]. A window counts when all its words are
real; a text shorter than w has one window, its words and silence. So padding changes nothing.

original   max pooling, biases, ReLU, vectors as they are, one output neuron per class
sigmoid    the same with sigmoid, the variant that the paper's introduction speaks of
tailored   mean pooling, no biases, ReLU, embedding in [0, 1] (clipped after every step), several neurons per class
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from spiketext.losses import task_loss
from spiketext.ops import spike_linear

TAILORED: dict[str, Any] = {"pooling": "mean", "bias": False, "unit_embedding": True, "neurons_per_class": 10}
ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid}


@strict
class TextCnnSizes(PreTrainedConfig):
    """What dense and spiking networks share: D = hidden_size, C = num_filters for each of filter_widths (in words).

    max_position_embeddings is the longest text in words; neurons_per_class output neurons vote for each class.
    Raises ValueError for sizes below 1, a dropout that is no share, or texts shorter than the widest filter.
    """

    vocab_size: int = 2
    hidden_size: int = 300
    filter_widths: list[int] = field(default_factory=lambda: [3, 4, 5])
    num_filters: int = 100
    neurons_per_class: int = 1
    dropout: float = 0.5
    max_position_embeddings: int = 128
    pad_token_id: int | None = 0

    @property
    def output_neurons(self) -> int:
        """K * neurons_per_class; those of class k stand together."""
        return int(self.num_labels or 0) * self.neurons_per_class

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As Hugging Face's; raises ValueError for the config of another network, whose weights may fit."""
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(f"model: is a {found}, expected a {cls.model_type}; load it with the class of its kind")
        return super().from_dict(config_dict, **kwargs)

    def validate_sizes(self):
        """Cross-field checks, run after construction."""
        for name in ("vocab_size", "hidden_size", "num_filters", "neurons_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.filter_widths or min(self.filter_widths) < 1:
            raise ValueError(f"filter_widths: expected widths of at least 1 word, got {self.filter_widths}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a share from 0 to below 1, got {self.dropout}")
        if self.max_position_embeddings < max(self.filter_widths):
            raise ValueError(
                f"texts cut to {self.max_position_embeddings} words are shorter than the widest filter, "
                f"{max(self.filter_widths)} words; raise --max-length"
            )


@strict
class TextCnnConfig(TextCnnSizes):
    """pooling "max" or "mean", activation "relu" or "sigmoid", bias, unit_embedding (kept in [0, 1])."""

    model_type = "textcnn"

    pooling: str = "max"
    activation: str = "relu"
    bias: bool = True
    unit_embedding: bool = False

    def validate_design(self):
        """Run after construction."""
        for name, known in (("pooling", ("max", "mean")), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}")


def windows(x: Tensor, width: int) -> Tensor:
    """x [..., L, D] -> its windows [..., L - width + 1, width * D], a view where x is contiguous."""
    features = x.shape[-1]
    return x.flatten(-2).unfold(-1, width * features, features)


class RateLinear(nn.Linear):
    """`nn.Linear` of rates or their spikes: the same numbers, another gradient, dL/dW minus its mean over the inputs.

    Rates average 0.5, which every text gives a neuron, whatever it says. That common part rules the gradient: AdamW
    scales its steps by it, and one step of 1e-3 can move a current by 0.001 * 0.5 * inputs = 0.45 to 0.75, where the
    features of texts differ by 0.02. So every ReLU died (experiments/LOG.md). Without the mean, the sum of a neuron's
    weights stays about where it was at birth, and so does the current that the average text gives it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input [..., w * D] -> [..., C]."""
        weight = self.weight
        if torch.is_grad_enabled():
            mean = weight.mean(1, keepdim=True)
            weight = weight - (mean - mean.detach())  # takes off zero, bit for bit
        return spike_linear(input, weight, self.bias)


def window_mask(mask: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """mask [B, L] (1 for a real token, these first) -> [B, L - width + 1], 1 for a window that counts: at least one."""
    real = (mask.sum(1, keepdim=True) - width + 1).clamp(min=1)
    return (torch.arange(mask.shape[1] - width + 1, device=mask.device) < real).to(dtype)


def embed(embedding: nn.Embedding, input_ids: Tensor, mask: Tensor | None, least: int) -> tuple[Tensor, Tensor]:
    """Vectors [B, L, D], zeros where the mask is 0, and the mask; both padded to at least `least` words.

    Raises ValueError for a mask with padding before a real word.
    """
    mask = torch.ones_like(input_ids) if mask is None else mask
    if (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError("attention_mask: expected real words first, got padding before them; pad on the right")
    vectors = embedding(input_ids) * mask[..., None].to(embedding.weight.dtype)
    missing = max(0, least - input_ids.shape[1])
    return nn.functional.pad(vectors, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing))


def classes(neurons: Tensor, per_class: int) -> Tensor:
    """Outputs [..., K * n] -> the sum over each class's n neurons [..., K]."""
    return neurons.unflatten(-1, (-1, per_class)).sum(-1)


class WordNetwork(PreTrainedModel):
    """Weights at birth: uniform up to 1 / sqrt(inputs) as PyTorch has them; an embedding is uniform in [0, 1].

    Weights of rates are uniform up to sqrt(6 / inputs) (He et al. 2015), less their mean, plus 1 / inputs: so the mean
    input of 0.5 is a current of 0.5, half a threshold, for every neuron. The authors' program shifts weights too.
    """

    base_model_prefix = "textcnn"
    accepts_loss_kwargs = False  # the loss is a mean over the batch: a Trainer divides it by its micro-batches

    def __init__(self, config: Any):
        config.validate()  # a setting that `from_pretrained` was given comes into it unseen
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RateLinear):
            weight = torch.empty_like(module.weight).uniform_(-1, 1) * (6 / module.in_features) ** 0.5
            init.copy_(module.weight, weight - weight.mean(1, keepdim=True) + 1 / module.in_features)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])


class TextCnnModel(WordNetwork):
    """Word ids [B, L] -> pooled features [B, widths * C]."""

    config_class = TextCnnConfig

    def __init__(self, config: TextCnnConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        linear = RateLinear if config.unit_embedding else nn.Linear
        self.convolutions = nn.ModuleList(
            linear(width * config.hidden_size, config.num_filters, bias=config.bias) for width in config.filter_widths
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.embedding

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the word embedding."""
        self.embedding = value

    def activations(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """For each width the activations [B, L - w + 1, C] and which windows count [B, L - w + 1]."""
        widths, activate = self.config.filter_widths, ACTIVATIONS[self.config.activation]
        x, mask = embed(self.embedding, input_ids, attention_mask, max(widths))
        convolved = [activate(linear(windows(x, w))) for w, linear in zip(widths, self.convolutions, strict=True)]
        return convolved, [window_mask(mask, w, x.dtype) for w in widths]

    @can_return_tuple
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        """last_hidden_state: the features [B, widths * C]. attention_mask [B, L] is 1 for a real token."""
        pooled = []
        for active, real in zip(*self.activations(input_ids, attention_mask), strict=True):
            if self.config.pooling == "max":
                pooled.append(active.masked_fill(real[..., None] == 0, -torch.inf).amax(1))
            else:
                pooled.append((active * real[..., None]).sum(1) / real.sum(1, keepdim=True))
        return BaseModelOutput(last_hidden_state=torch.cat(pooled, -1))


class TextCnnForSequenceClassification(WordNetwork):
    """Texts -> logits [B, K]: dropout, Linear, the sum over each class's neurons."""

    config_class = TextCnnConfig

    def __init__(self, config: TextCnnConfig):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.textcnn = TextCnnModel(config)
        self.dropout = nn.Dropout(config.dropout)
        linear = RateLinear if config.unit_embedding else nn.Linear
        self.classifier = linear(len(config.filter_widths) * config.num_filters, config.output_neurons, config.bias)
        self.post_init()

    def after_step(self) -> None:
        """The trainer calls this after every optimiser step: a unit embedding is clipped to [0, 1]."""
        if self.config.unit_embedding:
            self.textcnn.embedding.weight.data.clamp_(0, 1)

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Logits, and the loss when labels are given."""
        features = self.textcnn(input_ids, attention_mask, return_dict=True).last_hidden_state
        logits = classes(self.classifier(self.dropout(features)), self.config.neurons_per_class)
        loss = None if labels is None else task_loss(logits, labels, self.config.problem_type)
        return SequenceClassifierOutput(loss=loss, logits=logits)
