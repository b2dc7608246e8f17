"""Floor 5: what this machine and a model folder are."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from spiketext import checkpoints
from spiketext.ops import Neuron, available_backends, kernels
from spiketext.runs import read_json, readings_of_test

_PACKAGES = ("spiketext", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "scikit-learn")
SPIKING = ("design", "attention", "time_steps", "code", "levels", "signed", "beta", "threshold", "attention_threshold",
           "reset", "coding", "neurons_per_class", "pool_gain")  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of what results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, what the processor can compute in."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory) if memory else None,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "bf16": torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def describe_machine() -> dict[str, Any]:
    """Versions, machine, and which back end the neurons take here, with the reason when it is not the compiled one."""
    backends = available_backends(torch.zeros(1, 1), Neuron())
    return {
        "versions": versions(),
        "machine": machine(),
        "neurons": {"backend": backends[0], "available": backends, "compiled_missing_because": kernels.why_not()},
    }


def describe_model(folder: str) -> dict[str, Any]:
    """What a model folder holds: sizes, labels, spike settings, where it comes from, readings of test splits."""
    network = checkpoints.load_encoder(folder)
    config = network.config.to_dict()
    sizes = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    return {
        "model": folder,
        **{name: config.get(name) for name in sizes},
        "encoder_parameters": sum(p.numel() for p in network.parameters()),
        "labels": checkpoints.label_names(network),
        "spiking": {name: config[name] for name in SPIKING if name in config} if "time_steps" in config else None,
        "made_by": read_json(Path(folder) / "spiketext.json"),
        "test_reads": len(readings_of_test(Path(folder))),
    }
