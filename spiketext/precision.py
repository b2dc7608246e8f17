"""Floor 3: the numbers in which a saved model is computed."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from transformers import PreTrainedModel

PRECISIONS = ("float32", "bf16", "int8")


def to_precision(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """The model, changed in place: float32 as it is; bf16 weights; or int8 weights in every Linear, one scale a row.

    int8 is PyTorch's dynamic quantisation: the inputs of a Linear become bytes at each call. Spikes of 0 and 1 are
    exact in a byte, so of a binary model only the weights are rounded. Norms and membranes stay in float32.
    Raises ValueError for another name, or int8 where this build of PyTorch has no kernels for it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bf16":
        nn.Module.to(model, torch.bfloat16)
    if precision == "int8":
        if not {"x86", "fbgemm", "onednn", "qnnpack"} & set(torch.backends.quantized.supported_engines):
            raise ValueError("precision int8: this build of PyTorch has no int8 kernels; take float32")
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                model.set_submodule(name, _quantised(module))
    return model


def _quantised(layer: nn.Linear) -> nn.Module:
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import per_channel_dynamic_qconfig

    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    setattr(plain, "qconfig", per_channel_dynamic_qconfig)  # noqa: B010  how from_float is told
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # its own tensors are to be renamed
        return Linear.from_float(plain)
