"""Students that start from their teacher: which of its weights become which of theirs."""

from __future__ import annotations

import re

import torch
from torch import nn

from spiketext.models.spikebert import SpikeBertModel

Pairs = list[tuple[int, int]]


@torch.no_grad()
def initialise_from_teacher(student: nn.Module, teacher: nn.Module, layer_pairs: Pairs) -> int:
    """Copy the weights of a BERT encoder into the student where the shapes allow; returns how many tensors came over.

    The student is a `SpikeBertModel` or a BERT encoder; layer_pairs are (student, teacher) counted from 1. Weight and
    bias of a layer come together or not at all; norms before neurons keep their own start; the designs of the paper and
    its authors start on their own. Where the first Linear of a spiking sublayer came over, its last one starts at zero:
    what the teacher's weights would make of spikes has nothing to do with what the teacher adds there (a correlation
    of 0.1 at most from the second block on), and would have to be unlearned first.
    """
    sources = dict(teacher.named_parameters())
    names = (
        _of_spiking(student, layer_pairs) if isinstance(student, SpikeBertModel) else _of_dense(student, layer_pairs)
    )
    copied, came = 0, set()
    for name, from_names in names.items():
        parameters = dict(student.get_submodule(name).named_parameters(recurse=False))
        found = {
            kind: torch.cat([sources[f"{source}.{kind}"] for source in from_names])
            for kind in parameters
            if all(f"{source}.{kind}" in sources for source in from_names)
        }
        if "position" in name and "weight" in found:
            before = getattr(teacher.get_submodule(from_names[0]), "padding_idx", None)
            if before is not None:  # RoBERTa's positions begin behind that of padding
                found["weight"] = found["weight"].roll(-before - 1, 0)
        if all(parameter.shape == getattr(found.get(kind), "shape", None) for kind, parameter in parameters.items()):
            for kind, parameter in parameters.items():
                parameter.copy_(found[kind])
                copied += 1
            came.add(name)
    for mine, _ in layer_pairs if isinstance(student, SpikeBertModel) else ():
        for first, last in (("attention.qkv", "attention.output"), ("feed_forward.expand", "feed_forward.output")):
            if f"layers.{mine - 1}.{first}" in came:
                for parameter in student.get_submodule(f"layers.{mine - 1}.{last}").parameters():
                    parameter.zero_()
    return copied


def _of_spiking(student: SpikeBertModel, layer_pairs: Pairs) -> dict[str, list[str]]:
    """Modules of a spiking student, and those of a BERT whose weights they take, one after the other."""
    if student.config.design != "default":
        return {}  # word vectors of a BERT are far below a threshold of 1: no input neuron would fire
    names = {
        "embeddings.word": ["embeddings.word_embeddings"],
        "embeddings.position": ["embeddings.position_embeddings"],
        "embeddings.segment": ["embeddings.token_type_embeddings"],
        "embeddings.norm": ["embeddings.LayerNorm"],
    }
    for mine, theirs in layer_pairs:
        here, there = f"layers.{mine - 1}.", f"encoder.layer.{theirs - 1}."
        names[f"{here}attention.qkv"] = [f"{there}attention.self.{part}" for part in ("query", "key", "value")]
        names[f"{here}feed_forward.expand"] = [f"{there}intermediate.dense"]
    return names


def _of_dense(student: nn.Module, layer_pairs: Pairs) -> dict[str, list[str]]:
    """Every module of a BERT that has weights, and the same one in the teacher; layers without a partner are left."""
    layers = {f"encoder.layer.{mine - 1}.": f"encoder.layer.{theirs - 1}." for mine, theirs in layer_pairs}
    names = {}
    for name, module in student.named_modules():
        layer = re.match(r"encoder\.layer\.\d+\.", name)
        if next(module.parameters(recurse=False), None) is not None and (layer is None or layer[0] in layers):
            names[name] = [layers[layer[0]] + name.removeprefix(layer[0]) if layer else name]
    return names
