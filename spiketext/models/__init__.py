"""Floor 2: the networks as Hugging Face classes. Importing this registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from spiketext.models.spikebert import (
    PRESETS,
    SpikeBertConfig,
    SpikeBertForSequenceClassification,
    SpikeBertModel,
    initialise_from_teacher,
)
from spiketext.models.unrolling import unroll

AutoConfig.register("spikebert", SpikeBertConfig, exist_ok=True)
AutoModel.register(SpikeBertConfig, SpikeBertModel, exist_ok=True)
AutoModelForSequenceClassification.register(SpikeBertConfig, SpikeBertForSequenceClassification, exist_ok=True)

__all__ = [
    "PRESETS",
    "SpikeBertConfig",
    "SpikeBertForSequenceClassification",
    "SpikeBertModel",
    "initialise_from_teacher",
    "unroll",
]
