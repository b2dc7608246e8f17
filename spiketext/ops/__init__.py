"""Floor 0: the neuron as a function of tensors."""

from spiketext.ops.lif import Neuron, available_backends, lif, lif_reference, norm_lif, presets

__all__ = ["Neuron", "available_backends", "lif", "lif_reference", "norm_lif", "presets"]
