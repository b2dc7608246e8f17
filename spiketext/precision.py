"""Floor 3: the numbers in which a saved model is computed."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spiketext.neurons import SpikeLinear
from spiketext.ops import spike_linear_int8

PRECISIONS = ("float32", "bf16", "int8")


def to_precision(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """The model, changed in place: float32 as it is; bf16 weights; or int8 weights in every Linear, one scale a row.

    int8 is PyTorch's dynamic quantisation: the inputs of a Linear become bytes at each call. Where a Linear reads
    spikes of -1, 0 and 1, nothing but its weights is rounded and their bytes are summed (`ops.spike_linear_int8`).
    Norms and membranes stay in float32.
    Raises ValueError for another name, or int8 where this build of PyTorch has no kernels for it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bf16":
        nn.Module.to(model, torch.bfloat16)
    if precision == "int8":
        if not {"x86", "fbgemm", "onednn", "qnnpack"} & set(torch.backends.quantized.supported_engines):
            raise ValueError("precision int8: this build of PyTorch has no int8 kernels; take float32")
        spiking = _reads_spikes(model)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                byte = _quantised(module)
                model.set_submodule(name, Int8SpikeLinear(byte) if spiking and type(module) is SpikeLinear else byte)
    return model


class Int8SpikeLinear(nn.Module):
    """A `SpikeLinear` whose weights are those of PyTorch's quantised Linear."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.register_buffer("weight", layer.weight().int_repr())  # type: ignore[operator]
        self.register_buffer("scale", layer.weight().q_per_channel_scales().float())  # type: ignore[operator]
        self.register_buffer("bias", layer.bias())  # type: ignore[operator]

    def forward(self, spikes: Tensor) -> Tensor:
        """spikes [..., K] -> [..., N]."""
        return spike_linear_int8(spikes, self.weight, self.scale, self.bias)  # type: ignore[arg-type]


def _reads_spikes(model: nn.Module) -> bool:
    """Whether every SpikeLinear of a model reads -1, 0 and 1; in other designs and codes some read integers."""
    config = getattr(model, "config", None)
    return getattr(config, "design", "default") == "default" and getattr(config, "code", "binary") != "integer"


def _quantised(layer: nn.Linear) -> nn.Module:
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import per_channel_dynamic_qconfig

    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    setattr(plain, "qconfig", per_channel_dynamic_qconfig)  # noqa: B010  how from_float is told
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # its own tensors are to be renamed
        return Linear.from_float(plain)
