"""Spiking neural networks that classify text: teachers in, spiking classifiers out, with honest accounts.

Public names are imported when they are first used, so that `import spiketext` is quick.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "spiketext.data": ("TextSet", "load", "check"),
    "spiketext.ops": ("lif", "lif_reference", "presets"),
    "spiketext.options": (
        "AttackOptions",
        "ConvertOptions",
        "DistillOptions",
        "MlmOptions",
        "PretrainOptions",
        "TeacherOptions",
        "TrainOptions",
    ),
    "spiketext.models": ("SpikeBertConfig", "SpikeBertForSequenceClassification", "SpikeBertModel"),
    "spiketext.evaluation": ("evaluate", "predict"),
    "spiketext.energy": ("reference",),
    "spiketext.insight": ("look_inside",),
    "spiketext.portraits": ("attention_map", "firing_rates", "learning_curves", "raster"),
    "spiketext.sharing": ("export", "push", "model_card"),
    "spiketext.figures": ("accuracy_against_energy", "energy_by_layer"),
}
_STAGES = {
    "teacher": ("spiketext.training", "TeacherOptions"),
    "train": ("spiketext.training", "TrainOptions"),
    "mlm": ("spiketext.maskedlm", "MlmOptions"),
    "pretrain": ("spiketext.distillation", "PretrainOptions"),
    "distill": ("spiketext.distillation", "DistillOptions"),
    "convert": ("spiketext.conversion", "ConvertOptions"),
    "attack": ("spiketext.attacks", "AttackOptions"),
}
_ROOMS = ("energy", "audit", "report", "bench", "reproduce")  # each has a function of its own name
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted([*_HOME_OF, *_STAGES, *_ROOMS])


class _Room(ModuleType):
    """A module that is called as its function of the same name: importing it makes `spiketext.energy` the module."""

    def __call__(self, *args: Any, **asked: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **asked)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"spiketext.{name}")
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _STAGES:
        return _stage(name)
    raise AttributeError(f"module 'spiketext' has no attribute {name!r}")


def _stage(name: str) -> Any:
    """A training stage as a plain function of keyword arguments: the fields of its options."""
    module, options = _STAGES[name]

    def stage(**asked: Any) -> dict[str, Any]:
        out = Path(asked.get("out") or "")
        try:
            return getattr(importlib.import_module(module), name)(_options(options, asked))
        finally:  # after an error too, so that another program may go on in it
            if out.is_dir():
                importlib.import_module("spiketext.processes").give_back(out)

    stage.__name__ = name
    stage.__doc__ = f"Run `{module}.{name}` with the fields of `options.{options}` as keyword arguments."
    return stage


def _options(name: str, asked: dict[str, Any]) -> Any:
    return getattr(importlib.import_module("spiketext.options"), name)(**asked)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
