"""Floor 2: the networks as Hugging Face classes. Importing this registers them with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from spiketext.models.initialise import initialise_from_teacher
from spiketext.models.masked_lm import SpikeBertForMaskedLM
from spiketext.models.spikebert import (
    PRESETS,
    SpikeBertConfig,
    SpikeBertForSequenceClassification,
    SpikeBertModel,
)
from spiketext.models.spiking_textcnn import (
    SpikingTextCnnConfig,
    SpikingTextCnnForSequenceClassification,
    SpikingTextCnnModel,
)
from spiketext.models.textcnn import TAILORED, TextCnnConfig, TextCnnForSequenceClassification, TextCnnModel
from spiketext.models.unrolling import unroll
from spiketext.words import WordTokenizer

for config, encoder, classifier in (
    (SpikeBertConfig, SpikeBertModel, SpikeBertForSequenceClassification),
    (TextCnnConfig, TextCnnModel, TextCnnForSequenceClassification),
    (SpikingTextCnnConfig, SpikingTextCnnModel, SpikingTextCnnForSequenceClassification),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, encoder, exist_ok=True)
    AutoModelForSequenceClassification.register(config, classifier, exist_ok=True)
    if encoder is not SpikeBertModel:
        AutoTokenizer.register(config, slow_tokenizer_class=WordTokenizer, exist_ok=True)
AutoModelForMaskedLM.register(SpikeBertConfig, SpikeBertForMaskedLM, exist_ok=True)

__all__ = [
    "PRESETS",
    "TAILORED",
    "SpikeBertConfig",
    "SpikeBertForMaskedLM",
    "SpikeBertForSequenceClassification",
    "SpikeBertModel",
    "SpikingTextCnnConfig",
    "SpikingTextCnnForSequenceClassification",
    "SpikingTextCnnModel",
    "TextCnnConfig",
    "TextCnnForSequenceClassification",
    "TextCnnModel",
    "WordTokenizer",
    "initialise_from_teacher",
    "unroll",
]
