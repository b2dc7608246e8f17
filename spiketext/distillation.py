"""Floor 8: two-stage distillation from a BERT-type teacher (SpikeBERT 3.3), into a spiking student or a dense one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spiketext import checkpoints
from spiketext.answers import Teacher
from spiketext.augmentation import Augmenter, english_reader
from spiketext.data import TextSet
from spiketext.evaluation import in_order, logits_of, model_inputs, scores
from spiketext.fitting import fit
from spiketext.losses import at_least_float32, check_layer_map, feature_loss, label_loss, layer_map, logit_loss
from spiketext.models import SpikeBertForSequenceClassification, SpikeBertModel, initialise_from_teacher
from spiketext.options import DistillationOptions, DistillOptions, PretrainOptions
from spiketext.passages import passages, unlabelled
from spiketext.processes import is_first, rank
from spiketext.rates import RateBudget
from spiketext.runs import CHECKPOINTS, Run
from spiketext.training import (
    class_weights,
    finish,
    keep_reading,
    label_settings,
    new_encoder,
    new_student,
    prepare,
    read,
    require_as_asked,
    require_unseen,
    rows_of,
)
from spiketext.words import chinese_reader, language_of

Pairs = list[tuple[int, int]]
TRANSFORMS = tuple(
    f"{over_time}-{rest}"
    for over_time in ("sum", "mean")
    for rest in ("linear-norm", "mlp-norm", "norm-linear", "norm-mlp", "linear", "mlp")
)
_ALIGNMENT = "alignment.safetensors"


class Alignment(nn.Module):
    """Maps of a student's features to a teacher's, one for each pair of layers and one for the embedding (eq. 6).

    transform says what is done to features of T steps, as in "sum-linear-norm": their sum or mean over time, then in
    the order given a map of the widths, linear (one Linear, which the paper calls MLP) or mlp (Linear, GELU, Linear),
    and a layer norm, before it, after it or not at all. The embedding has the map alone.
    Not part of the student: used in training only, saved beside it so that stage 2 can go on from stage 1.
    Raises ValueError for another transform.
    """

    def __init__(self, pairs: Pairs, student_width: int, teacher: PreTrainedModel, transform: str = TRANSFORMS[0]):
        super().__init__()
        if transform not in TRANSFORMS:
            raise ValueError(f"feature transform: expected one of {', '.join(TRANSFORMS)}; got {transform!r}")
        self.pairs, self.transform = pairs, transform
        over_time, *self.order = transform.split("-")
        self.over_time = {"sum": torch.sum, "mean": torch.mean}[over_time]
        teacher_width = teacher.config.hidden_size
        widths, normed = (student_width, teacher_width), student_width if self.order[0] == "norm" else teacher_width
        self.features = nn.ModuleList(_map("mlp" in self.order, *widths) for _ in pairs)
        self.norms = nn.ModuleList(_last_norm(teacher, theirs, normed) for _, theirs in pairs if "norm" in self.order)
        self.embedding = _map("mlp" in self.order, *widths)

    def layer_loss(self, student: tuple[Tensor, ...], teacher: Mapping[int, Tensor], mask: Tensor, norm: Any) -> Tensor:
        """L_fea, summed over pairs.

        student: the embedding [B, L, D], then the blocks [T, B, L, D], or [B, L, D] of a dense one; teacher: by layer.
        """
        losses = []
        for number, (mine, theirs) in enumerate(self.pairs):
            guess = self._transformed(student[mine], number)
            losses.append(feature_loss(at_least_float32(guess), at_least_float32(teacher[theirs]), mask, norm))
        return torch.stack(losses).sum() if losses else at_least_float32(student[0]).new_zeros(())

    def embedding_loss(
        self, student: tuple[Tensor, ...], teacher: Mapping[int, Tensor], mask: Tensor, norm: Any
    ) -> Tensor:
        """L_emb; arguments as in `layer_loss`."""
        guess = self.embedding(student[0])
        return feature_loss(at_least_float32(guess), at_least_float32(teacher[0]), mask, norm)

    def _transformed(self, features: Tensor, number: int) -> Tensor:
        out = self.over_time(features, 0) if features.dim() == 4 else features
        for part in self.order:
            out = (self.norms if part == "norm" else self.features)[number](out)
        return out


def _map(mlp: bool, student_width: int, teacher_width: int) -> nn.Module:
    """A map of widths. One Linear between equal widths starts as no map, as a student starts from its teacher."""
    linear = nn.Linear(student_width, teacher_width)
    if mlp:
        return nn.Sequential(linear, nn.GELU(), nn.Linear(teacher_width, teacher_width))
    if student_width == teacher_width:
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return linear


def _last_norm(teacher: PreTrainedModel, layer: int, width: int) -> nn.LayerNorm:
    """A norm that starts with the scale and shift of the teacher's own last norm in a layer, where it has one."""
    blocks = next((m for m in teacher.modules() if isinstance(m, nn.ModuleList) and len(m) >= layer), None)
    norms = [m for m in blocks[layer - 1].modules() if isinstance(m, nn.LayerNorm)] if blocks is not None else []
    fresh = nn.LayerNorm(width, eps=1e-12)
    if norms and norms[-1].weight.shape == fresh.weight.shape:
        fresh.load_state_dict(norms[-1].state_dict())
    return fresh


class Distillation(nn.Module):
    """What both stages share: the student, its alignment, and a teacher that is neither trained nor saved."""

    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel, tokenizer: Any, alignment: Alignment, options):
        super().__init__()
        self.model, self.alignment, self.tokenizer, self.options = model, alignment, tokenizer, options
        self.class_weights: Tensor | None = None
        self.weights = {"features": options.feature_weight, "embedding": options.embedding_weight}
        if isinstance(options, DistillOptions):
            self.weights |= {"logits": options.logit_weight, "labels": options.label_weight}
        layers = (0, *dict.fromkeys(theirs for _, theirs in alignment.pairs))
        self.teacher = Teacher(teacher, layers if self.weights["features"] or self.weights["embedding"] else ())
        self.budget = RateBudget(model, options)
        self.weights |= self.budget.weights

    def forward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Terms of eq. 7 (stage 1) or eq. 8 (stage 2); a term of weight 0 is not computed."""
        inputs, mask = model_inputs(self.tokenizer, batch), batch["attention_mask"]
        weights = self.weights
        asks = self.teacher.layers or weights.get("logits")
        target, told = self.teacher(inputs, batch["again"]) if asks else ({}, None)
        wants_features = bool(self.teacher.layers)
        with self.budget.watching(self.model, batch) as rate:
            answer = self.model(**inputs, output_hidden_states=wants_features)
        terms = rate()
        if wants_features:
            hidden = answer.hidden_states
            if isinstance(self.model, SpikeBertModel):
                hidden = (answer.embedding, *hidden)
            asked = (hidden, target, mask, self.options.feature_norm)
            terms |= {"features": self.alignment.layer_loss(*asked)} if weights["features"] else {}
            terms |= {"embedding": self.alignment.embedding_loss(*asked)} if weights["embedding"] else {}
        logits = answer.get("logits")
        if logits is None:
            return terms, None
        logits = at_least_float32(logits)
        if weights["logits"] and told is not None:
            terms["logits"] = logit_loss(logits, at_least_float32(told), self.options.temperature)
        if weights["labels"]:
            terms["labels"] = label_loss(logits, batch["labels"], batch["gold"], self.class_weights)
        return terms, logits.detach()

    def counts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How many tokens or rows each term is a mean over."""
        tokens, rows = batch["attention_mask"].sum(), torch.ones_like(batch["gold"]).sum()
        means = dict.fromkeys(("features", "embedding", "over_budget"), tokens)
        return means | {"logits": rows, "labels": batch["gold"].sum()}


def pretrain(options: PretrainOptions) -> dict[str, Any]:
    """Stage 1: an encoder, spiking or dense, learns the features of a teacher on unlabelled text (eq. 6, 7).

    Saves the encoder, its tokenizer and the alignment in options.out; returns losses, steps, tokens and seconds.
    Raises ValueError for bad options, corpus or teacher.
    """
    run = Run("pretrain", options)
    if run.result is not None:
        return run.result
    prepare(options)
    teacher = checkpoints.as_teacher(checkpoints.load_encoder(options.teacher), options.teacher)
    tokenizer = checkpoints.load_tokenizer(options.teacher)
    config = new_student(options, tokenizer, teacher.config)
    student = new_encoder(config)
    pairs = pairs_of(options, config.num_hidden_layers, teacher.config.num_hidden_layers)
    copied = initialise_from_teacher(student, teacher, pairs) if options.initialise else 0
    rows, validation, tokens = passages(run, tokenizer, options, pairs=options.pairs)
    alignment = Alignment(pairs, config.hidden_size, teacher, options.feature_transform)
    objective = Distillation(student, teacher, tokenizer, alignment, options)
    _remember(objective, run, options)
    _tell(pairs, options)
    result = fit(objective, rows, validation, options, run)
    count = len(rows) + len(validation)
    result |= {"layer_map": pairs, "initialised_tensors": copied, "tokens": tokens, "sentences": count}
    return _finish(run, objective, tokenizer, "pretrain", None, result)


def distill(options: DistillOptions) -> dict[str, Any]:
    """Stage 2: a student, spiking or dense, learns a task from a teacher fine-tuned on it (eq. 8).

    options.student is the folder of stage 1; without it a new student is made. Chosen on validation.
    Saves the classifier in options.out; returns validation scores, steps and seconds.
    Raises ValueError for bad options, data, teacher or student, or tokenizers that differ.
    """
    run = Run("distill", options)
    text_set = read(options)
    run.reads(text_set.name, text_set.hash)
    if run.result is not None:
        return run.result
    require_unseen(run, text_set)
    prepare(options)
    teacher, tokenizer = checkpoints.teacher_of_task(options.teacher), checkpoints.load_tokenizer(options.teacher)
    _require_task(teacher, text_set, options.teacher)
    if options.student:
        checkpoints.require_same_tokenizer(tokenizer, checkpoints.load_tokenizer(options.student))
        model = checkpoints.load_for_training(options.student, **label_settings(text_set))
        if not isinstance(model, (SpikeBertForSequenceClassification, BertForSequenceClassification)):
            raise ValueError(f"student {options.student}: is a {type(model).__name__}, expected the folder of pretrain")
        require_as_asked(options, model, options.student)
        copied = 0
    else:
        config = new_student(options, tokenizer, teacher.config)
        config.update(label_settings(text_set))
        model = AutoModelForSequenceClassification.from_config(config)
    pairs = pairs_of(options, model.config.num_hidden_layers, teacher.config.num_hidden_layers)
    if not options.student:
        copied = initialise_from_teacher(model.base_model, teacher.base_model, pairs) if options.initialise else 0
    alignment = Alignment(pairs, model.config.hidden_size, teacher, options.feature_transform)
    saved = Path(options.student or "") / _ALIGNMENT
    if options.student and saved.exists():
        _go_on(alignment, saved)
    train = text_set.splits["train"]
    augment = augmenter(options, [*train.texts, *(train.pairs or [])], tokenizer)
    more = unlabelled(run, tokenizer, options, text_set) if options.unlabelled else None
    rows = rows_of(text_set, "train", tokenizer, options.max_length, augment=augment, copies=options.copies,
                   seed=options.seed, truncation=options.truncation, unlabelled=more)  # fmt: skip
    validation = rows_of(text_set, "validation", tokenizer, options.max_length, truncation=options.truncation)
    keep_reading(model, options)
    objective = Distillation(model, teacher, tokenizer, alignment, options)
    objective.class_weights = class_weights(options, text_set)
    _remember(objective, run, options)
    _tell(pairs, options)
    measure = partial(scores, text_set.task)
    result = fit(objective, rows, validation, options, run, measure, text_set.metric)
    part = text_set.splits["validation"]
    told = in_order(teacher, text_set, logits_of(teacher, tokenizer, part.texts, part.pairs))
    result |= {"beside": {"teacher": scores(text_set.task, told, np.asarray(part.labels))}}
    result |= {"layer_map": pairs, "initialised_tensors": copied, "stage1": options.student,
               "part_of_speech": bool(augment and augment.pool),
               "unlabelled_texts": 0 if more is None else len(more)}  # fmt: skip
    return _finish(run, objective, tokenizer, "distill", text_set, result)


def _remember(objective: Distillation, run: Run, options: DistillationOptions) -> None:
    """Keep the teacher's answers while the run lasts, where texts come again and no GPU gives them sooner."""
    if options.epochs > 1 and options.teacher_cache > 0 and not torch.cuda.is_available():
        objective.teacher.remember(run.out / CHECKPOINTS / f"teacher-{rank()}.answers", options.teacher_cache * 1e9)


def _tell(pairs: Pairs, options: DistillationOptions) -> None:
    if is_first() and not options.quiet:
        told = ", ".join(f"{mine} of {theirs}" for mine, theirs in pairs)
        tqdm.write(f"blocks of the student, each with the teacher's that it learns from: {told}", file=sys.stderr)


def pairs_of(options: DistillationOptions, student_layers: int, teacher_layers: int) -> Pairs:
    """The layer map that was asked for: a rule, or pairs such as "1:2,2:4". Raises ValueError."""
    if options.layer_map in ("last", "first"):
        return layer_map(student_layers, teacher_layers, options.layer_map)
    try:
        pairs = [(int(s), int(t)) for s, t in (pair.split(":") for pair in options.layer_map.split(","))]
    except ValueError:
        raise ValueError(
            f"layer map: expected last, first or pairs such as 1:2,2:4; got {options.layer_map!r}"
        ) from None
    check_layer_map(pairs, student_layers, teacher_layers)
    return pairs


def augmenter(options: DistillOptions, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Augmenter | None:
    """The augmentation of stage 2, with words of the texts' language; None when no copies are asked for.

    Raises ValueError for a number of copies below 0.
    """
    if options.copies < 0:
        raise ValueError(f"copies: expected 0 (none) or more for each text, got {options.copies}")
    if not options.copies:
        return None
    mask = tokenizer.mask_token or tokenizer.unk_token
    read = chinese_reader() if language_of(texts) == "chinese" else english_reader(options.data_dir)
    return Augmenter(texts, mask, read, options.p_mask, options.p_pos, options.p_ngram)


def _require_task(teacher: PreTrainedModel, text_set: TextSet, name: str) -> None:
    known, labels = checkpoints.label_names(teacher), text_set.labels
    scores = not labels and len(known) == 1
    if known != labels and not scores:
        raise ValueError(
            f"teacher {name} answers {', '.join(known)}; {text_set.name} has {', '.join(labels) or 'scores'}; "
            "fine-tune a teacher on these texts first (spiketext teacher)"
        )


def _go_on(alignment: Alignment, saved: Path) -> None:
    """Start from the maps of stage 1 where they are of the same shapes, of one transform and for the same layers."""
    mine = _about(alignment)
    with safe_open(saved, "pt") as file:
        about = {"transform": TRANSFORMS[0], "pairs": mine["pairs"]} | (file.metadata() or {})  # of older files
    if any(about[name] != value for name, value in mine.items()):
        return
    weights = load_file(saved)
    shapes = {name: weight.shape for name, weight in alignment.state_dict().items()}
    if {name: weight.shape for name, weight in weights.items()} == shapes:
        alignment.load_state_dict(weights)


def _about(alignment: Alignment) -> dict[str, str]:
    """What is saved beside the maps: what they are maps of."""
    pairs = ",".join(f"{mine}:{theirs}" for mine, theirs in alignment.pairs)
    return {"transform": alignment.transform, "pairs": pairs}


def _finish(run: Run, objective: Distillation, tokenizer: Any, command: str, text_set: Any, result: dict) -> dict:
    def save_alignment(folder: str) -> None:
        alignment = objective.alignment
        save_file(alignment.state_dict(), Path(folder) / _ALIGNMENT, _about(alignment))

    return finish(run, objective.model, tokenizer, command, text_set, result, save_alignment)
