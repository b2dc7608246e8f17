"""Floor 7: the two trainings without a student-teacher pair, and what every training needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from spiketext import baseline, checkpoints
from spiketext.batching import TextRows
from spiketext.data import TextSet, load
from spiketext.evaluation import METRICS, model_inputs, scores
from spiketext.fitting import fit
from spiketext.losses import at_least_float32, label_loss
from spiketext.models import PRESETS, SpikeBertConfig, SpikeBertModel
from spiketext.options import (
    DataOptions,
    StudentOptions,
    TaskOptions,
    TeacherOptions,
    TrainingOptions,
    TrainOptions,
    WordOptions,
)
from spiketext.rates import RateBudget
from spiketext.runs import Run, read_json
from spiketext.wordmodels import WORD_MODELS, new_word_model, start_from

DENSE = "dense"  # the preset of a student without spikes
_SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "max_position_embeddings",
          "type_vocab_size", "layer_norm_eps", "vocab_size")  # fmt: skip
_ORIGINS = {"teacher": ("model",), "train": ("start",), "distill": ("teacher", "student"), "pretrain": ("teacher",),
            "mlm": ("model",), "convert": ("model",)}  # fmt: skip
_OVERLAPS = ({"mr"}, {"sst2", "sst5", "glue/sst2"})  # 815 of the 1821 test sentences of SST-2 are in MR
_CONSTANTS = ("beta", "threshold", "attention", "attention_threshold", "alpha")


class LabelObjective(nn.Module):
    """Learn gold labels alone. An objective is a module: batch -> (loss terms by name, logits or None).

    Each term is a mean; `counts` says over how many tokens or texts, so that the means of the micro-batches of a step,
    on any number of processes, add up to the mean over all of them. class_weights [K] as in `label_loss`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: TrainingOptions,
        class_weights: Tensor | None = None,
    ):
        super().__init__()
        self.model, self.tokenizer, self.weights = model, tokenizer, {"label": 1.0}
        self.class_weights = class_weights
        self.budget = RateBudget(model, options)
        self.weights |= self.budget.weights

    def forward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Terms: label, rate. Where a network votes at every step, label is the mean over steps (SNN-TextCNN eq. 4)."""
        with self.budget.watching(self.model, batch) as rate:
            answer = self.model(**model_inputs(self.tokenizer, batch))
        terms, logits = self._label(answer, batch)
        return terms | rate(), logits

    def _label(self, answer: Any, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        labels, gold = batch["labels"], batch["gold"]
        votes = answer.get("votes")  # [T, B, K]
        if votes is None:
            votes = at_least_float32(answer.logits)[None]
        labels, gold = (tensor.repeat(len(votes)) for tensor in (labels, gold))
        return {"label": label_loss(votes.flatten(0, 1), labels, gold, self.class_weights)}, answer.logits.detach()

    def counts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How many rows each term is a mean over."""
        return {"label": batch["gold"].sum(), "over_budget": batch["attention_mask"].sum()}


def prepare(options: TrainingOptions) -> None:
    """Seed every generator, take the threads that were asked for, keep other libraries quiet."""
    checkpoints.quiet()
    if options.threads:
        torch.set_num_threads(options.threads)
    set_seed(options.seed)


def read(options: DataOptions) -> TextSet:
    """The labelled texts of a command."""
    reading = {name: getattr(options, name) for name in DataOptions.__dataclass_fields__ if name != "data"}
    return load(options.data, **reading)


def rows_of(text_set: TextSet, split: str, tokenizer: Any, max_length: int, **augmentation: Any) -> TextRows:
    """A split as rows."""
    part = text_set.splits[split]
    labels = [float(label) for label in part.labels] if text_set.task == "regression" else part.labels
    return TextRows(part.texts, tokenizer, max_length, part.pairs, labels, **augmentation)


def label_settings(text_set: TextSet) -> dict[str, Any]:
    """What a config must know of the task: names of the classes, or regression."""
    if text_set.task == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    names = dict(enumerate(text_set.labels))
    return {
        "id2label": names,
        "label2id": {name: i for i, name in names.items()},
        "problem_type": "single_label_classification",
    }


def keep_reading(model: PreTrainedModel, options: TrainingOptions) -> None:
    """Let a model be given texts ever after as it learned from them: cut at the same length, in the same way."""
    model.config.truncation, model.config.text_length = options.truncation, options.max_length


def class_weights(options: TaskOptions, text_set: TextSet) -> Tensor | None:
    """Weights [K] of the classes in the label loss: None, or rows / (K * rows of the class) of the training split.

    Raises ValueError for scores instead of classes, or a class without a row.
    """
    if options.class_weights == "none":
        return None
    if not text_set.labels:
        raise ValueError(f"class weights: expected none (the labels are scores), got {options.class_weights!r}")
    counts = torch.bincount(torch.tensor(text_set.splits["train"].labels), minlength=len(text_set.labels))
    if not counts.all():
        empty = text_set.labels[int(counts.argmin())]
        raise ValueError(f"class weights: {text_set.name} has no training text of class {empty!r}; leave them out")
    return counts.sum() / (len(counts) * counts.float())


def new_student(
    options: StudentOptions, tokenizer: PreTrainedTokenizerBase, teacher: Any = None
) -> SpikeBertConfig | BertConfig:
    """The config of a new student: spiking, or for the preset dense a BERT.

    Sizes that are not asked for are the preset's or those of the teacher (its config); with another width a head stays
    as wide as it was and the feed-forward keeps its ratio. Raises ValueError for an unknown preset and for constants
    that its neurons do not have, and for sizes and constants that do not fit together.
    """
    presets = PRESETS | {DENSE: {}}
    if options.preset not in presets:
        raise ValueError(f"preset: expected one of {', '.join(presets)}, got {options.preset!r}")
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if teacher is not None:
        sizes |= {name: getattr(teacher, name) for name in _SIZES if getattr(teacher, name, None) is not None}
    sizes |= presets[options.preset]
    try:
        config = SpikeBertConfig(**sizes)
        config = SpikeBertConfig(**(sizes | _shape(options, config) | _constants(options, config)))
    except StrictDataclassClassValidationError as error:
        raise ValueError(str(error.__cause__)) from error
    if options.preset != DENSE:
        return config
    return BertConfig(**{name: getattr(config, name) for name in ("pad_token_id", *_SIZES)})


def _shape(options: StudentOptions, config: SpikeBertConfig) -> dict[str, int]:
    width = options.width or config.hidden_size
    return {
        "hidden_size": width,
        "num_attention_heads": options.heads or width * config.num_attention_heads // config.hidden_size,
        "num_hidden_layers": options.layers or config.num_hidden_layers,
        "intermediate_size": config.intermediate_size * width // config.hidden_size,
    }


def _constants(options: StudentOptions, config: SpikeBertConfig) -> dict[str, Any]:
    """The constants of the neurons that were asked for."""
    every = {name: getattr(options, name) for name in _CONSTANTS} | {"time_steps": options.time_steps or None}
    asked = {name: value for name, value in every.items() if value is not None}
    absent = every if options.preset == DENSE else ("beta", "alpha") if config.code == "integer" else ()
    foreign = [f"--{name.replace('_', '-')}" for name in asked if name in absent]
    if foreign:
        raise ValueError(f"{', '.join(foreign)}: a student of preset {options.preset} has no such thing; leave it out")
    return asked


def require_as_asked(options: StudentOptions, network: PreTrainedModel, folder: str) -> None:
    """Raises ValueError for an option that a network out of a folder contradicts."""
    config, kind = network.config, ("design", "code", "signed")
    names = {"layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"}
    asked = {option: getattr(options, option) or None for option in (*names, "time_steps")}  # 0 asks for nothing
    asked |= {option: getattr(options, option) for option in _CONSTANTS}
    for option, value in asked.items():
        has = getattr(config, names.get(option, option), None)
        if value is not None and value != has:
            raise ValueError(f"{option}: the network in {folder} has {has}, asked is {value}; leave it out")
    if options.preset == StudentOptions.preset:
        return
    fresh: Any = SpikeBertConfig(**PRESETS[options.preset]) if options.preset in PRESETS else BertConfig()
    same = [getattr(config, name, None) for name in kind] == [getattr(fresh, name, None) for name in kind]
    if options.preset not in (*PRESETS, DENSE) or not same:
        raise ValueError(f"preset: the network in {folder} is not of preset {options.preset}; leave it out")


def new_encoder(config: SpikeBertConfig | BertConfig) -> PreTrainedModel:
    """An encoder without weights of a head, so that stage 1 trains all there is."""
    return BertModel(config, add_pooling_layer=False) if isinstance(config, BertConfig) else SpikeBertModel(config)


def _learn_labels(command: str, options: Any, build: Any) -> dict[str, Any]:
    run = Run(command, options)
    text_set = read(options)
    run.reads(text_set.name, text_set.hash)
    if run.result is not None:
        return run.result
    require_unseen(run, text_set)
    prepare(options)
    model, tokenizer = build(text_set)
    rows, validation = (
        rows_of(text_set, s, tokenizer, options.max_length, truncation=options.truncation)
        for s in ("train", "validation")
    )
    keep_reading(model, options)
    objective = LabelObjective(model, tokenizer, options, class_weights(options, text_set))
    result = fit(objective, rows, validation, options, run, partial(scores, text_set.task), text_set.metric)
    return finish(run, model, tokenizer, command, text_set, result)


def _origins(asked: dict[str, Any]) -> list[str]:
    """The models that a run of a command (`Run.asked`) learns from or goes on with: folders or names."""
    return [asked[name] for name in _ORIGINS.get(asked.get("command", ""), ()) if asked.get(name)]


def seen_by(model: str) -> set[str]:
    """The labelled sets that a model of a folder has learned from, or a teacher or start of it; of a name: none."""
    about, asked = (read_json(Path(model) / name) or {} for name in ("spiketext.json", "run.json"))
    if "data_seen" in about:
        return set(about["data_seen"])
    own = {about["data"]} if "data" in about and about.get("command") != "convert" else set()
    older = (origin for origin in _origins(asked) if Path(origin).resolve() != Path(model).resolve())
    return own.union(*map(seen_by, older))  # saved before it was written down


def require_unseen(run: Run, text_set: TextSet) -> None:
    """Raises ValueError where a teacher or start of a run has learned sentences of its test split with their labels."""
    for group in _OVERLAPS:
        others = set().union(*(known for known in _OVERLAPS if known != group))
        for origin in _origins(run.asked) if text_set.name in group else ():
            if known := sorted(seen_by(origin) & others):
                raise ValueError(
                    f"data {text_set.name}: {origin} has learned from {', '.join(known)}, which has many of the same "
                    "sentences with labels; take a model that has not"
                )


def finish(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    command: str,
    text_set: TextSet | None,
    result: dict[str, Any],
    save_more: Callable[[str], None] = lambda folder: None,
) -> dict[str, Any]:
    """Save a trained model, what else belongs to it, and what came out into the run's folder.

    Of labelled texts it says under "beside" what others answer on validation, so that a weak model is seen.
    """
    about: dict[str, Any] = {"command": command, "parameters": sum(p.numel() for p in model.parameters())}
    if text_set is not None:
        about |= {"data": text_set.name, "data_hash": text_set.hash, "notes": text_set.notes}
        known = baseline.tfidf(text_set, "validation")
        result["beside"] = result.get("beside", {}) | {baseline.NAME: {m: known[m] for m in METRICS if m in known}}
    labelled = {text_set.name} if text_set is not None and command != "convert" else set()
    about["data_seen"] = sorted(labelled.union(*(seen_by(folder) for folder in _origins(run.asked))))
    history = result.pop("history")

    def save(folder: str) -> None:
        checkpoints.save_model(model, tokenizer, folder, about)
        save_more(folder)
        (Path(folder) / "history.json").write_text(json.dumps(history), encoding="utf-8")

    return run.finish(save, {**about, **result})


def _require_own_options(options: TrainOptions) -> None:
    """Raises ValueError for an option of the other kind of network; what both have is checked where it is read."""
    mine, other = (StudentOptions, WordOptions) if options.model == "spikebert" else (WordOptions, StudentOptions)
    shared = {field.name for field in fields(mine)} | {"time_steps"}
    given = [each.name for each in fields(other) if getattr(options, each.name) != each.default]
    foreign = [f"--{name.replace('_', '-')}" for name in given if name not in shared]
    if foreign:
        raise ValueError(f"{', '.join(foreign)}: a {options.model} has no such thing; leave it out")


def teacher(options: TeacherOptions) -> dict[str, Any]:
    """Fine-tune a BERT-type model on labelled texts, chosen on validation; saved in options.out.

    Returns validation scores, steps and seconds. Raises ValueError for bad options, data or model.
    """

    def build(text_set: TextSet):
        model = checkpoints.load_for_training(options.model, **label_settings(text_set))
        return checkpoints.as_teacher(model, options.model), checkpoints.load_tokenizer(options.model)

    return _learn_labels("teacher", options, build)


def train(options: TrainOptions) -> dict[str, Any]:
    """Train a classifier on labelled texts alone: "directly-trained Spikformer", or a TextCNN; returns as `teacher`."""

    def build(text_set: TextSet):
        if options.model not in ("spikebert", *WORD_MODELS):
            raise ValueError(f"model: expected spikebert, {', '.join(WORD_MODELS)}; got {options.model!r}")
        _require_own_options(options)
        if options.model in WORD_MODELS:
            make = start_from if options.start else new_word_model
            return make(options, text_set.splits["train"], label_settings(text_set))
        if options.start:
            model = checkpoints.load_for_training(options.start, **label_settings(text_set))
            if not hasattr(model.config, "num_hidden_layers"):
                raise ValueError(f"--from {options.start}: is a {type(model).__name__}, expected a spikebert or BERT; "
                                 "name its kind with --model")  # fmt: skip
            require_as_asked(options, model, options.start)
            return model, checkpoints.load_tokenizer(options.start)
        tokenizer = checkpoints.load_tokenizer(options.tokenizer)
        config = new_student(options, tokenizer)
        config.update(label_settings(text_set))
        return AutoModelForSequenceClassification.from_config(config), tokenizer

    return _learn_labels("train", options, build)
