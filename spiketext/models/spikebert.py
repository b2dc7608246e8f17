"""SpikeBERT: embedding -> N x [spiking self-attention, spiking feed-forward] -> head (SpikeBERT 3.2, figure 1b).

Shapes: T time steps, B texts, L tokens, D features, H heads, K classes; the layout is [T, B, L, D] throughout.
Three designs live in this one file. N is a layer norm, SN a layer of spiking neurons.

default   a = SN(N x);  q, k, v = SN(N(W a));  x += W_o SN(N(scale (q k^T) v));  x += W_2 SN(N(W_1 SN(N x)))
          x is a membrane current in float; every Linear reads binary spikes, or ON/OFF pairs of them; padding is
          masked; positions are learned. attention "squared": max(q k^T, 0)^2 v, whole numbers all the same, which
          looks sharply where the counts alone can only look everywhere at once.
paper     SSA = SN(N(W_o(scale (q k^T) v))), q, k, v = SN(N(W x));  FFN = SN(N(W_2 SN(N(W_1 x))));  x = x + spikes,
          so a Linear reads integers; no positions, no mask; the attention block's neurons have their own threshold.
authors   what the authors' program does: input spikes are the sign of the embedding, neurons reset to zero, one more
          neuron at half the threshold stands before W_o. `PRESETS` has the settings of both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import init
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from spiketext.losses import task_loss
from spiketext.neurons import LIF, NormLIF, SpikeLinear
from spiketext.ops import Neuron, presets, require_whole_numbers, squared_attention
from spiketext.ops.surrogate import encode

NEURON_FIELDS = ("beta", "reset", "reset_delay", "gain", "fire", "code", "levels", "signed", "surrogate", "alpha",
                 "detach_reset")  # fmt: skip


def _authors(tau: float, time_steps: int) -> dict[str, Any]:
    own = {"design": "authors", "time_steps": time_steps, "attention_threshold": 0.5, "num_attention_heads": 8}
    return own | {"layer_norm_eps": 1e-5} | presets("spikingjelly", tau=tau)


_PAPER_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
# Silent tokens are exact zeros in these designs: with BERT's 1e-12 a norm would multiply their gradients by a million.
PRESETS: dict[str, dict[str, Any]] = {
    # ON/OFF pairs, one step: of three values, these are nearest to a normal current at 0.6 (least squared error)
    "ternary": {"code": "ternary", "time_steps": 1, "attention": "squared"}
    | {"threshold": 0.6, "attention_threshold": 0.6},
    "binary": {},  # as the paper's neuron, T = 4
    "integer": {"code": "integer", "time_steps": 1},  # 0..4 in one pass; `unroll` sends a code k as k binary spikes
    "signed": {"code": "integer", "time_steps": 1, "levels": 2, "signed": True},  # -2..2
    "paper": {"design": "paper", "layer_norm_eps": 1e-5, **_PAPER_SIZES},
    "authors-stage1": _authors(tau=10.0, time_steps=16),
    "authors-stage2": _authors(tau=2.0, time_steps=4),
}


@strict
class SpikeBertConfig(PreTrainedConfig):
    """Sizes as in BERT; time_steps is T; thresholds in units of the membrane; neuron constants as in `ops.Neuron`.

    attention_threshold belongs to the neuron before W_o (default, authors) or to all neurons of the attention block
    (paper). scale multiplies (q k^T) v; attention is "counts", or in the default design "squared".
    Raises ValueError for sizes, designs or constants that do not fit together.
    """

    model_type = "spikebert"

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    design: str = "default"
    attention: str = "counts"
    time_steps: int = 4
    threshold: float = 1.0
    attention_threshold: float = 0.25
    scale: float = 0.125
    beta: float = 0.9
    reset: str = "subtract"
    reset_delay: bool = True
    gain: float = 1.0
    fire: str = ">="
    code: str = "binary"
    levels: int = 4
    signed: bool = False
    surrogate: str = "atan"
    alpha: float | None = None
    detach_reset: bool = True

    def neuron(self, threshold: float | None = None) -> dict[str, Any]:
        """Arguments of `ops.lif` at a threshold (the general one when None)."""
        constants = {name: getattr(self, name) for name in NEURON_FIELDS}
        return {**constants, "threshold": self.threshold if threshold is None else threshold}

    def validate_spiking(self):
        """Cross-field checks, run after construction."""
        if self.design not in ("default", "paper", "authors"):
            raise ValueError(f"design: expected default, paper or authors, got {self.design!r}")
        if self.attention not in (("counts", "squared") if self.design == "default" else ("counts",)):
            raise ValueError(f"attention: expected counts, or squared in the default design; got {self.attention!r}")
        for name in ("num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                             f"({self.num_attention_heads})")  # fmt: skip
        if self.time_steps < 1 or self.time_steps != int(self.time_steps):
            raise ValueError(f"time_steps: expected at least 1, whole; got {self.time_steps}")
        if self.code == "integer" and self.time_steps != 1:
            raise ValueError(f"the integer code has no memory: expected time_steps 1, got {self.time_steps}")
        if self.attention == "squared":
            levels, width = self.levels if self.code == "integer" else 1, self.hidden_size // self.num_attention_heads
            require_whole_numbers(self.max_position_embeddings, width, levels)
        for threshold in (self.threshold, self.attention_threshold):
            Neuron(**self.neuron(threshold))


@dataclass
class SpikeBertOutput(ModelOutput):
    """last_hidden_state [T, B, L, D]: the residual after the last block; embedding [B, L, D].

    hidden_states: the residual after each block, when asked for; attentions: q k^T [T, B, H, L, L], when asked for:
    counts of coinciding spikes, 0 to D / H (times levels squared with the integer code), or of ON/OFF pairs and signed
    integers coinciding minus opposed ones, which may be as far below zero.
    """

    last_hidden_state: Tensor | None = None
    embedding: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class SpikeBertEmbeddings(nn.Module):
    """Token ids [B, L] -> embedding [B, L, D]: word + position + segment, normed; paper, authors: the word alone."""

    def __init__(self, config: SpikeBertConfig):
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.bert_like = config.design == "default"
        if self.bert_like:
            self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
            self.segment = nn.Embedding(config.type_vocab_size, config.hidden_size)
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Raises ValueError when a text is longer than the positions that were learned."""
        words = self.word(input_ids)
        if not self.bert_like:
            return words
        length = input_ids.shape[1]
        if length > self.position.num_embeddings:
            raise ValueError(f"text of {length} tokens: this model has positions for {self.position.num_embeddings}")
        positions = self.position(torch.arange(length, device=input_ids.device))
        segments = self.segment(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        return self.norm(words + positions + segments)


class SignNeurons(LIF):
    """The authors' input spikes: a neuron without memory fires where its current is not negative."""

    def __init__(self, config: SpikeBertConfig):
        tiny = torch.finfo(torch.float32).tiny  # a threshold is positive
        super().__init__(threshold=tiny, beta=0.0, surrogate=config.surrogate, alpha=config.alpha)

    def forward(self, current: Tensor) -> Tensor:
        """Spikes in current's dtype, zero fires too."""
        tiny = torch.finfo(current.dtype).tiny
        return encode(current + 2 * tiny, replace(self.constants, threshold=tiny))


class SpikingSelfAttention(nn.Module):
    """Attention without softmax. x [T, B, L, D] -> what is added to x, and the scores [T, B, H, L, L] when asked for.

    Nothing normalises the scores, so (q k^T) v = q (k^T v) as integers: the cheaper order is taken, and the scores
    are built only when asked for, or squared. Whole numbers stay in float32 (exact below 2^24), under autocast too.
    """

    def __init__(self, config: SpikeBertConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.design, self.heads, self.scale = config.design, config.num_attention_heads, config.scale
        self.squared = config.attention == "squared"
        inner = config.attention_threshold if self.design == "paper" else config.threshold
        general, special = config.neuron(inner), config.neuron(config.attention_threshold)
        if self.design == "default":
            self.input = NormLIF(width, eps=eps, fan_out=3 * width, **general)
            self.mixed: LIF = NormLIF(width, eps=eps, fan_out=width, **special)
        if self.design == "authors":
            self.mixed = LIF(fan_out=width, **special)
        self.qkv = SpikeLinear(width, 3 * width)
        self.qkv_spikes = NormLIF(width, groups=3, eps=eps, **general)
        self.output = SpikeLinear(width, width)
        if self.design != "default":
            self.output_spikes = NormLIF(width, eps=eps, fan_out=config.intermediate_size, **general)

    def forward(self, x: Tensor, mask: Tensor | None, with_scores: bool) -> tuple[Tensor, Tensor | None]:
        """mask [B, L], 1 for a real token: a padded token is never attended to."""
        spikes = self.input(x) if self.design == "default" else x
        currents = self.qkv(spikes).unflatten(-1, (3, -1))  # [T, B, L, 3, D]
        mixed, scores = self.attend(self.qkv_spikes(currents), mask, with_scores)
        mixed = mixed * self.scale
        if self.design != "paper":
            mixed = self.mixed(mixed)
        out = self.output(mixed.to(spikes.dtype))
        return (out if self.design == "default" else self.output_spikes(out)), scores

    def attend(self, qkv: Tensor, mask: Tensor | None, with_scores: bool) -> tuple[Tensor, Tensor | None]:
        """qkv spikes [T, B, L, 3, D] -> (q k^T) v or max(q k^T, 0)^2 v [T, B, L, D], the counts q k^T or None."""
        steps, texts, length, _, width = qkv.shape
        with torch.autocast(qkv.device.type, enabled=False):
            exact = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
            split = exact.view(steps, texts, length, 3, self.heads, width // self.heads).permute(3, 0, 1, 4, 2, 5)
            q, k, v = split.unbind()  # [T, B, H, L, D/H] each
            if mask is not None:
                k = k * mask[:, None, :, None].to(k.dtype)
            mixed, scores = self.products(q, k, v, with_scores)
        return mixed.transpose(2, 3).reshape(steps, texts, length, width), scores if with_scores else None

    def products(self, q: Tensor, k: Tensor, v: Tensor, with_scores: bool) -> tuple[Tensor, Tensor | None]:
        """Spikes [T, B, H, L, D/H] each -> what is mixed [T, B, H, L, D/H], the counts if they were made."""
        cheaper = not self.squared and q.shape[-2] <= q.shape[-1]  # as (q k^T) v
        scores = q @ k.mT if with_scores or cheaper else None
        if self.squared:
            return squared_attention(q, k, v), scores
        return (q @ (k.mT @ v) if scores is None else scores @ v), scores


class SpikingFeedForward(nn.Module):
    """x [T, B, L, D] -> what is added to x."""

    def __init__(self, config: SpikeBertConfig):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.design = config.design
        if self.design == "default":
            self.input = NormLIF(width, eps=eps, fan_out=inner, **config.neuron())
        self.expand = SpikeLinear(width, inner)
        self.expand_spikes = NormLIF(inner, eps=eps, fan_out=width, **config.neuron())
        self.output = SpikeLinear(inner, width)
        if self.design != "default":
            self.output_spikes = NormLIF(width, eps=eps, fan_out=3 * width, **config.neuron())

    def forward(self, x: Tensor) -> Tensor:
        """W_2 SN(N(W_1 SN(N x))), or with the neuron last in the other designs."""
        spikes = self.input(x) if self.design == "default" else x
        out = self.output(self.expand_spikes(self.expand(spikes)))
        return out if self.design == "default" else self.output_spikes(out)


class SpikeBertLayer(GradientCheckpointingLayer):
    """One block: residual x [T, B, L, D] -> residual x, scores or None."""

    def __init__(self, config: SpikeBertConfig):
        super().__init__()
        self.attention, self.feed_forward = SpikingSelfAttention(config), SpikingFeedForward(config)

    def forward(self, x: Tensor, mask: Tensor | None, with_scores: bool) -> tuple[Tensor, Tensor | None]:
        """Attention, then feed-forward, each added to x."""
        out, scores = self.attention(x, mask, with_scores)
        x = x + out
        return x + self.feed_forward(x), scores


class SpikeBertPreTrainedModel(PreTrainedModel):
    """Weights at birth: normal with config.initializer_range, biases zero.

    In paper and authors word vectors have deviation 1 and biases are drawn as PyTorch draws them: where no spike
    arrives a norm would see exact zeros, and multiply a gradient by 1 / sqrt(eps) in each block (6 blocks: infinity).
    """

    config_class = SpikeBertConfig
    base_model_prefix = "spikebert"
    accepts_loss_kwargs = False  # the loss is a mean over the batch: a Trainer divides it by its micro-batches
    supports_gradient_checkpointing = True
    _no_split_modules = ["SpikeBertLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        default = self.config.design == "default"
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=self.config.initializer_range)
            if default:
                init.zeros_(module.bias)
            else:
                init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range if default else 1.0)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, (nn.LayerNorm, NormLIF)):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class SpikeBertModel(SpikeBertPreTrainedModel):
    """The encoder: token ids [B, L] -> residual [T, B, L, D]."""

    def __init__(self, config: SpikeBertConfig):
        super().__init__(config)
        self.embeddings = SpikeBertEmbeddings(config)
        if config.design != "default":
            self.input = LIF(**config.neuron()) if config.design == "paper" else SignNeurons(config)
        self.layers = nn.ModuleList(SpikeBertLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.embeddings.word

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the word embedding."""
        self.embeddings.word = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SpikeBertOutput:
        """See `SpikeBertOutput`. attention_mask [B, L] is 1 for a real token; paper and authors do not look at it.

        What is to be answered beside the residual is the config's choice where it is None.
        """
        config = self.config
        mask = attention_mask if config.design == "default" else None
        keep_hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keep_scores = config.output_attentions if output_attentions is None else output_attentions
        embedding = self.embeddings(input_ids, token_type_ids)
        x = self.start(embedding)
        hidden_states: list[Tensor] = []
        attentions: list[Tensor] = []
        for layer in self.layers:
            x, scores = layer(x, mask, bool(keep_scores))
            hidden_states += [x] if keep_hidden else []
            attentions += [] if scores is None else [scores]
        return SpikeBertOutput(
            last_hidden_state=x,
            embedding=embedding,
            hidden_states=tuple(hidden_states) if keep_hidden else None,
            attentions=tuple(attentions) if keep_scores else None,
        )

    def start(self, embedding: Tensor) -> Tensor:
        """Embedding [B, L, D] -> x at the first block [T, B, L, D]: the embedding at every step, or input spikes."""
        repeated = embedding.expand(self.config.time_steps, *embedding.shape)
        return repeated if self.config.design == "default" else self.input(repeated)


def head_neurons(config: SpikeBertConfig) -> nn.Module:
    """What stands before the Linear of a head: norm and neurons; in paper and authors the norm alone."""
    width, eps = config.hidden_size, config.layer_norm_eps
    return NormLIF(width, eps=eps, **config.neuron()) if config.design == "default" else nn.LayerNorm(width, eps=eps)


class SpikeBertForSequenceClassification(SpikeBertPreTrainedModel):
    """Single texts or pairs -> logits [B, K] (K = 1 and problem_type "regression": one number)."""

    def __init__(self, config: SpikeBertConfig):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.spikebert = SpikeBertModel(config)
        self.head_spikes = head_neurons(config)
        self.classifier = SpikeLinear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits: mean over steps and real tokens of the head's Linear, which reads spikes. Loss when labels given."""
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        encoded = self.spikebert(input_ids, attention_mask, token_type_ids, **asked, return_dict=True)
        scores = self.classifier(self.head_spikes(encoded.last_hidden_state)).mean(0)  # [B, L, K]
        if attention_mask is None or self.config.design != "default":
            logits = scores.mean(1)
        else:
            weight = attention_mask.to(scores.dtype)
            logits = (scores * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1)  # 0 of no token
        loss = None if labels is None else task_loss(logits, labels, self.config.problem_type)
        hidden = None if encoded.hidden_states is None else (encoded.embedding, *encoded.hidden_states)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden, attentions=encoded.attentions)
