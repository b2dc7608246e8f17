"""Floor 5: new TextCNNs from word vectors, and TextCNNs to go on with."""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spiketext import checkpoints
from spiketext.data import Split
from spiketext.models import (
    TAILORED,
    SpikingTextCnnConfig,
    SpikingTextCnnForSequenceClassification,
    TextCnnConfig,
    TextCnnForSequenceClassification,
    WordTokenizer,
)
from spiketext.options import TrainOptions
from spiketext.vectors import unit_range
from spiketext.words import lexicon

_TAILORED = ("neurons_per_class", "dropout")
_HAS = {
    "textcnn": ("activation", *_TAILORED),
    "tailored-textcnn": _TAILORED,
    "spiking-textcnn": (*_TAILORED, "coding", "beta", "threshold", "time_steps"),
}
WORD_MODELS = tuple(_HAS)


def new_word_model(
    options: TrainOptions, train: Split, labels: dict[str, Any]
) -> tuple[PreTrainedModel, WordTokenizer]:
    """An untrained network of options.model on the vectors of options.vectors; labels are settings of its config.

    What the vectors cover of the training texts goes into config.vectors. Raises as `words.lexicon`; ValueError for
    pairs of texts and for an option that the network does not have.
    """
    _require_single_texts(train)
    settings = _settings(options) | labels
    words, vectors, coverage = lexicon(
        train.texts, options.vectors, options.language, data_dir=options.data_dir, seed=options.seed
    )
    settings |= {"vocab_size": len(words), "hidden_size": vectors.shape[1], "vectors": coverage}
    model: PreTrainedModel
    if options.model == "spiking-textcnn":
        model = SpikingTextCnnForSequenceClassification(SpikingTextCnnConfig(seed=options.seed, **settings))
    else:
        tailored = TAILORED if options.model == "tailored-textcnn" else {}
        model = TextCnnForSequenceClassification(TextCnnConfig(**(tailored | settings)))
    if options.model != "textcnn":
        vectors[1:] = unit_range(vectors[1:])  # [PAD] stays silent
    with torch.no_grad():
        model.textcnn.embedding.weight.copy_(torch.from_numpy(vectors))
    return model, tokenizer_of(words, coverage["language"])


def start_from(options: TrainOptions, train: Split, labels: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The network of the folder options.start, with its words.

    Raises ValueError when it is of another kind, for pairs of texts, and for other words than its own.
    """
    _require_single_texts(train)
    if options.vectors or options.language:
        flag = "--vectors" if options.vectors else "--language"
        raise ValueError(f"{flag}: a network of --from keeps its own words and vectors; leave it out")
    changes = _settings(options) | labels | ({"seed": options.seed} if options.model == "spiking-textcnn" else {})
    model = checkpoints.load_for_training(str(options.start), **changes)
    found = kind_of(model)
    if found != options.model:
        convert = "; convert it first (spiketext convert)" if options.model == "spiking-textcnn" else ""
        raise ValueError(f"model {options.start}: is a {found}, expected a {options.model}{convert}")
    return model, checkpoints.load_tokenizer(str(options.start))


def kind_of(model: PreTrainedModel) -> str:
    """The name of a network on the command line."""
    tailored = isinstance(model, TextCnnForSequenceClassification) and model.config.pooling == "mean"
    return "tailored-textcnn" if tailored else model.config.model_type


def tokenizer_of(words: list[str], language: str) -> WordTokenizer:
    """A tokenizer of these words, [PAD] and [UNK] first."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(words), encoding="utf-8", newline="\n")
        return WordTokenizer(str(path), language)


def _settings(options: TrainOptions) -> dict[str, Any]:
    if options.time_steps < 0:
        raise ValueError(f"time_steps: expected at least 1, got {options.time_steps}")
    every = {name: getattr(options, name) for name in {*chain(*_HAS.values())}}
    every["time_steps"] = options.time_steps or None
    asked = {name: value for name, value in every.items() if value is not None}
    foreign = sorted(set(asked) - set(_HAS[options.model]))
    foreign += ["tokenizer"] if options.tokenizer != TrainOptions.tokenizer else []
    if foreign:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise ValueError(f"{flags}: a {options.model} has no such thing; leave it out")
    return asked | {"max_position_embeddings": options.max_length}


def _require_single_texts(train: Split) -> None:
    if train.pairs is not None:
        raise ValueError("a TextCNN reads single texts, and these are pairs; take --model spikebert")
