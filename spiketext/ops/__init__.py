"""Floor 0: the neuron, and what reads its spikes, as functions of tensors."""

from spiketext.ops.attention import require_whole_numbers, squared_attention, squared_attention_reference
from spiketext.ops.lif import Neuron, available_backends, lif, lif_reference, norm_lif, norm_lif_from, presets
from spiketext.ops.linear import spike_linear, spike_linear_int8

__all__ = [
    "Neuron",
    "available_backends",
    "lif",
    "lif_reference",
    "norm_lif",
    "norm_lif_from",
    "presets",
    "require_whole_numbers",
    "spike_linear",
    "spike_linear_int8",
    "squared_attention",
    "squared_attention_reference",
]
