"""Our default network as one would write it with SpikingJelly: its LIFNode, nn.Linear, nn.LayerNorm, eager mode.

Equal to ours, spike by spike, where LIFNode can express the neuron: the preset "spikingjelly" (hard reset, gain
1 - beta), and ternary spikes in one step as the difference of two LIFNodes, ON and OFF. With a soft reset LIFNode
subtracts beta * threshold where the paper subtracts the threshold: the same work, but another neuron.
"""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import functional, surrogate
from spikingjelly.activation_based import neuron as nodes
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from spiketext.models import SpikeBertConfig, SpikeBertForSequenceClassification
from spiketext.neurons import LIF


class Pair(nn.Module):
    """Ternary spikes: a LIFNode for currents above the threshold minus one for those below minus the threshold."""

    def __init__(self, on: nn.Module, off: nn.Module):
        super().__init__()
        self.on, self.off = on, off

    def forward(self, current: Tensor) -> Tensor:
        """current [T, ...] -> -1, 0 or 1."""
        return self.on(current) - self.off(-current)


def node(config: SpikeBertConfig, threshold: float) -> nn.Module:
    """SpikingJelly's neuron with the constants of a config."""
    if config.code == "ternary":
        return Pair(_lif(config, threshold), _lif(config, threshold))
    return _lif(config, threshold)


def _lif(config: SpikeBertConfig, threshold: float) -> nn.Module:
    hard = config.reset == "zero"
    return nodes.LIFNode(tau=1 / (1 - config.beta), decay_input=hard, v_threshold=threshold,
                         v_reset=0.0 if hard else None, surrogate_function=surrogate.ATan(alpha=config.alpha or 2.0),
                         detach_reset=True, step_mode="m")  # fmt: skip


class Spikes(nn.Sequential):
    """Layer norm, then neurons: [T, ..., D] -> spikes."""

    def __init__(self, config: SpikeBertConfig, width: int, threshold: float):
        super().__init__(nn.LayerNorm(width, eps=config.layer_norm_eps), node(config, threshold))


class Block(nn.Module):
    """x [T, B, L, D] -> x: attention without softmax, then feed-forward, each added to x."""

    def __init__(self, config: SpikeBertConfig):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads, self.scale, self.squared = config.num_attention_heads, config.scale, config.attention == "squared"
        self.input = Spikes(config, width, config.threshold)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.qs, self.ks, self.vs = (Spikes(config, width, config.threshold) for _ in range(3))
        self.mixed = Spikes(config, width, config.attention_threshold)
        self.output = nn.Linear(width, width)
        self.feed = nn.Sequential(Spikes(config, width, config.threshold), nn.Linear(width, inner),
                                  Spikes(config, inner, config.threshold), nn.Linear(inner, width))  # fmt: skip

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask [B, L], 1 for a real token."""
        a = self.input(x)
        q, k, v = self.qs(self.q(a)), self.ks(self.k(a)), self.vs(self.v(a))
        k = k * mask[..., None].to(k.dtype)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(2, 3) for part in (q, k, v))
        counts = q @ k.mT
        mixed = (counts.clamp_min(0).square() if self.squared else counts) @ v
        mixed = mixed.transpose(2, 3).flatten(3) * self.scale
        x = x + self.output(self.mixed(mixed))
        return x + self.feed(x)


class PlainSpikeBert(nn.Module):
    """Token ids [B, L] -> logits [B, K], with the weights of one of our classifiers of the default design."""

    def __init__(self, ours: SpikeBertForSequenceClassification):
        super().__init__()
        config = self.config = ours.config
        width = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, width)
        self.segment = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.head = Spikes(config, width, config.threshold)
        self.classifier = nn.Linear(width, ours.num_labels)
        self.to(next(ours.parameters()).dtype)
        self.load_state_dict(_renamed(ours))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.word.weight.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> SequenceClassifierOutput:
        """Mean over steps and real tokens of what the classifier makes of the head's spikes."""
        functional.reset_net(self)
        places = torch.arange(input_ids.shape[1])
        x = self.norm(self.word(input_ids) + self.position(places) + self.segment(token_type_ids))
        x = x.repeat(self.config.time_steps, 1, 1, 1)
        for block in self.blocks:
            x = block(x, attention_mask)
        scores = self.classifier(self.head(x)).mean(0)
        weight = attention_mask.to(scores.dtype)
        return SequenceClassifierOutput(logits=(scores * weight[..., None]).sum(1) / weight.sum(1, keepdim=True))


def _renamed(ours: SpikeBertForSequenceClassification) -> dict[str, Tensor]:
    """Our weights under the names of the plain network; the joint q, k, v cut in three."""
    found: dict[str, Tensor] = {}
    within = {"attention.input": "input.0", "attention.mixed": "mixed.0", "attention.output": "output",
              "feed_forward.input": "feed.0.0", "feed_forward.expand": "feed.1",
              "feed_forward.expand_spikes": "feed.2.0", "feed_forward.output": "feed.3"}  # fmt: skip
    for name, weight in ours.state_dict().items():
        path, _, kind = name.removeprefix("spikebert.").rpartition(".")
        if not path.startswith("layers."):
            found[f"{path.removeprefix('embeddings.').replace('head_spikes', 'head.0')}.{kind}"] = weight
            continue
        _, number, inside = path.split(".", 2)
        here = f"blocks.{number}."
        if inside == "attention.qkv":
            found |= {f"{here}{part}.{kind}": w for part, w in zip("qkv", weight.chunk(3), strict=True)}
        elif inside == "attention.qkv_spikes":
            found |= {f"{here}{part}s.0.{kind}": w for part, w in zip("qkv", weight, strict=True)}
        else:
            found[f"{here}{within[inside]}.{kind}"] = weight
    return found


@torch.no_grad()
def agreement(ours: SpikeBertForSequenceClassification, plain: PlainSpikeBert, inputs: dict[str, Tensor]) -> dict:
    """{"spikes_differ": share of neuron-steps, "logits_differ": largest difference} of the two networks on a batch."""
    mine, theirs, handles = [], [], []
    for model, kind, seen in ((ours, LIF, mine), (plain, Spikes, theirs)):
        for module in model.modules():
            if isinstance(module, kind):
                handles.append(module.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out)))
    ours.eval(), plain.eval()
    difference = (ours(**inputs).logits - plain(**inputs).logits).abs().max().item()
    for handle in handles:
        handle.remove()
    flat: list[Tensor] = [part for out in mine for part in (out.unbind(3) if out.dim() == 5 else [out])]
    differ = sum((a != b).sum().item() for a, b in zip(flat, theirs, strict=True))
    return {"spikes_differ": differ / sum(part.numel() for part in flat), "logits_differ": difference}


def check(ours: Any, inputs: dict[str, Tensor]) -> dict:
    """`agreement` of a copy in float64. Raises ValueError when one spike differs or a logit by more than 1e-10."""
    import copy

    exact = copy.deepcopy(ours).double()
    found = agreement(exact, PlainSpikeBert(exact), inputs)
    if found["spikes_differ"] or found["logits_differ"] > 1e-10:
        raise ValueError(f"the network of plain modules is not ours in float64: {found}; a ratio would compare nothing")
    return found
