"""Floor 5: the training loop (Hugging Face's Trainer) and the two trainings without a student-teacher pair."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from spiketext import checkpoints
from spiketext.batching import EvaluationOrder, LengthBuckets, TextRows
from spiketext.callbacks import AfterStep, Clock, EarlyStop, LossBar
from spiketext.data import TextSet, load
from spiketext.evaluation import Diverged, model_inputs, scores
from spiketext.losses import at_least_float32, label_loss
from spiketext.models import PRESETS, SpikeBertConfig, SpikeBertForSequenceClassification
from spiketext.options import DataOptions, StudentOptions, TaskOptions, TeacherOptions, TrainingOptions, TrainOptions
from spiketext.processes import processes, require_all, share_out, totals
from spiketext.rates import RateBudget
from spiketext.runs import CHECKPOINTS, Run, mark_whole
from spiketext.wordmodels import WORD_MODELS, new_word_model, start_from


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
        return {"label": batch["gold"].sum(), "rate": batch["attention_mask"].sum()}


class ObjectiveTrainer(Trainer):
    """Hugging Face's Trainer over an objective: every loss term is logged, checkpoints are whole or ignored."""

    loss_is_scaled_for_ga = True  # compute_loss returns a micro-batch's share of the mean over the step

    def __init__(self, rows: TextRows, validation: TextRows, **kwargs: Any):
        super().__init__(train_dataset=rows, eval_dataset=validation, data_collator=rows.collate, **kwargs)
        self.rows, self.validation = rows, validation
        self.sums: dict[str, float] = {}
        self.counted = 0

    def get_train_dataloader(self) -> DataLoader:
        """Length buckets, shared out here and not by Accelerate; the order is a function of (seed, epoch)."""
        parts, world = self.args.gradient_accumulation_steps, self.accelerator.num_processes
        size = self.args.train_batch_size * parts * world
        rank = self.accelerator.process_index
        sampler = LengthBuckets(self.rows.lengths, size, self.args.seed, parts, world, rank)
        loader = DataLoader(self.rows, batch_sampler=sampler, collate_fn=self.rows.collate)
        return prepare_data_loader(loader, self.accelerator.device, 1, 0, put_on_device=True)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step, and over how many tokens or texts of all of them each term is a mean."""
        batches = list(islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        counts = self.accelerator.unwrap_model(self.model).counts
        self.counted += 1
        reduce = partial(self.accelerator.reduce, reduction="sum")
        return batches, totals(map(counts, batches), lambda own: reduce(own.to(device)))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Longest texts first."""
        rows = self.validation
        sampler = EvaluationOrder(rows.lengths, self.args.eval_batch_size)
        return self.accelerator.prepare(DataLoader(rows, batch_sampler=sampler, collate_fn=rows.collate))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted sum of the objective's terms; in training this micro-batch's share of it (`get_batch_samples`).

        DDP takes the mean of the gradients of the processes, so each counts that often.
        """
        terms, logits = model(inputs)
        objective = self.accelerator.unwrap_model(model)
        if num_items_in_batch is not None:
            mine = objective.counts(inputs)
            terms = {name: term * (mine[name] / num_items_in_batch[name]).to(term) for name, term in terms.items()}
            for name, term in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(term.detach())
            terms = {name: term * self.accelerator.num_processes for name, term in terms.items()}
        loss = torch.stack([objective.weights[name] * term for name, term in terms.items()]).sum()
        return (loss, logits) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, logits and labels of a validation batch."""
        with torch.no_grad():
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                loss, logits = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), None if logits is None else logits.float(), inputs["labels"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term since the last line."""
        if self.counted and "loss" in logs:
            own = torch.tensor(list(self.sums.values()), dtype=torch.float64, device=self.args.device)
            means = (self.accelerator.reduce(own, "sum") / self.counted).tolist()
            logs |= dict(zip(self.sums, means, strict=True))
            self.sums, self.counted = {}, 0
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes the state of its random numbers
        here = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        best = self.state.best_model_checkpoint
        if self.is_world_process_zero():
            mark_whole(here, keep={Path(best).name} if best else set())


def fit(
    objective: nn.Module,
    rows: TextRows,
    validation: TextRows,
    options: TrainingOptions,
    run: Run,
    task: str | None = None,
    metric: str | None = None,
) -> dict[str, Any]:
    """Train an objective; with a metric, keep the best validation and stop early. Resumes from the run's checkpoint.

    A step reads options.batch_size texts, whatever the micro-batches and processes (`torchrun`) that share them.
    Returns steps, seconds, processes, validation scores and the cut texts ("n of N").
    Raises ValueError for a batch that cannot be shared out, Diverged when a weight is no number at the end.
    """
    micro, accumulate = share_out(options.batch_size, options.micro_batch, processes())
    every = math.ceil(math.ceil(len(rows) / options.batch_size) / options.evals_per_epoch)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.out / "logs")
    arguments = TrainingArguments(
        output_dir=str(run.out / CHECKPOINTS),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=accumulate,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup,
        max_grad_norm=options.max_grad_norm,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=_use_bf16(options.precision),
        logging_steps=10,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        load_best_model_at_end=metric is not None,
        metric_for_best_model=metric or "loss",
        greater_is_better=metric is not None,
        restore_callback_states_from_checkpoint=True,
        report_to=["tensorboard"],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    require_all(arguments.world_size)
    if options.recompute:
        assert isinstance(objective.model, PreTrainedModel)
        objective.model.gradient_checkpointing_enable()
    clock = Clock()
    callbacks: list[TrainerCallback] = [clock, AfterStep()]
    if metric is not None:
        callbacks.append(EarlyStop(options.patience))
    if not options.quiet:
        callbacks.append(LossBar())
    trainer = ObjectiveTrainer(
        rows,
        validation,
        model=objective,
        args=arguments,
        callbacks=callbacks,
        compute_metrics=None if task is None else lambda seen: scores(task, seen.predictions, seen.label_ids),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=run.checkpoint())
    trainer.accelerator.wait_for_everyone()  # the first process drops the checkpoints when it finishes
    clock = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Clock))
    if not torch.isfinite(torch.stack([p.detach().sum() for p in objective.parameters()])).all():
        raise Diverged("training diverged: a weight is not a number; try a lower --learning-rate")
    seen = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = max(seen, key=lambda entry: entry[f"eval_{metric}"]) if metric else seen[-1]
    keep = {"eval_loss", "eval_accuracy", "eval_f1", "eval_matthews", "eval_pearson", "eval_spearman"}
    return {
        "steps": trainer.state.global_step,
        "planned_steps": trainer.state.max_steps,
        "best_step": best["step"],
        "validation": {name.removeprefix("eval_"): value for name, value in best.items() if name in keep},
        "history": trainer.state.log_history,
        "wall_s": round(clock.seconds, 1),
        "processes": arguments.world_size,
        "truncated": f"{rows.truncated} of {len(rows.texts)}",
    }


def _use_bf16(precision: str) -> bool:
    if precision not in ("auto", "float32", "bf16"):
        raise ValueError(f"precision: expected auto, float32 or bf16, got {precision!r}")
    if precision == "auto":
        return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision == "bf16"


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
    """Let a model that learned from the heads and tails of texts be given texts in that way ever after."""
    kept = {"truncation": options.truncation, "text_length": options.max_length}
    for name, value in kept.items():
        vars(model.config).pop(name, None)
        if options.truncation != "head":
            setattr(model.config, name, value)


def class_weights(options: TaskOptions, text_set: TextSet) -> Tensor | None:
    """Weights [K] of the classes in the label loss: None, or rows / (K * rows of the class) of the training split.

    Raises ValueError for another wish, scores instead of classes, or a class without a row.
    """
    if options.class_weights == "none":
        return None
    if options.class_weights != "balanced" or not text_set.labels:
        raise ValueError(
            f"class weights: expected none{' or balanced' if text_set.labels else ' (the labels are scores)'}, "
            f"got {options.class_weights!r}"
        )
    counts = torch.bincount(torch.tensor(text_set.splits["train"].labels), minlength=len(text_set.labels))
    if not counts.all():
        empty = text_set.labels[int(counts.argmin())]
        raise ValueError(f"class weights: {text_set.name} has no training text of class {empty!r}; leave them out")
    return counts.sum() / (len(counts) * counts.float())


def new_student(options: StudentOptions, tokenizer: PreTrainedTokenizerBase, teacher: Any = None) -> SpikeBertConfig:
    """The config of a new student: the teacher's width, heads and feed-forward size, the preset's spiking."""
    if options.preset not in PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {options.preset!r}")
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if teacher is not None:
        names = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers",
                 "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "vocab_size")  # fmt: skip
        sizes |= {name: getattr(teacher, name) for name in names if getattr(teacher, name, None) is not None}
    sizes |= PRESETS[options.preset]
    if options.layers:
        sizes["num_hidden_layers"] = options.layers
    if options.time_steps:
        sizes["time_steps"] = options.time_steps
    return SpikeBertConfig(**sizes)


def _learn_labels(command: str, options: Any, build: Any) -> dict[str, Any]:
    run = Run(command, options)
    if run.result is not None:
        return run.result
    text_set = read(options)
    prepare(options)
    model, tokenizer = build(text_set)
    rows, validation = (
        rows_of(text_set, s, tokenizer, options.max_length, truncation=options.truncation)
        for s in ("train", "validation")
    )
    keep_reading(model, options)
    objective = LabelObjective(model, tokenizer, options, class_weights(options, text_set))
    result = fit(objective, rows, validation, options, run, text_set.task, text_set.metric)
    return finish(run, model, tokenizer, command, text_set, result)


def finish(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    command: str,
    text_set: TextSet | None,
    result: dict[str, Any],
    save_more: Callable[[str], None] = lambda folder: None,
) -> dict[str, Any]:
    """Save a trained model, what else belongs to it, and what came out into the run's folder."""
    about = {"command": command, "parameters": sum(p.numel() for p in model.parameters())}
    if text_set is not None:
        about |= {"data": text_set.name, "data_hash": text_set.hash, "notes": text_set.notes}
    history = result.pop("history")

    def save(folder: str) -> None:
        checkpoints.save_model(model, tokenizer, folder, about)
        save_more(folder)
        (Path(folder) / "history.json").write_text(json.dumps(history), encoding="utf-8")

    return run.finish(save, {**about, **result})


def teacher(options: TeacherOptions) -> dict[str, Any]:
    """Fine-tune a BERT-type model on labelled texts, chosen on validation; saved in options.out.

    Returns validation scores, steps and seconds. Raises ValueError for bad options, data or model.
    """

    def build(text_set: TextSet):
        model = checkpoints.load_for_training(options.model, **label_settings(text_set))
        return model, checkpoints.load_tokenizer(options.model)

    return _learn_labels("teacher", options, build)


def train(options: TrainOptions) -> dict[str, Any]:
    """Train a classifier on labelled texts alone: "directly-trained Spikformer", or a TextCNN; returns as `teacher`."""

    def build(text_set: TextSet):
        if options.model not in ("spikebert", *WORD_MODELS):
            raise ValueError(f"model: expected spikebert, {', '.join(WORD_MODELS)}; got {options.model!r}")
        if options.model in WORD_MODELS:
            make = start_from if options.start else new_word_model
            return make(options, text_set.splits["train"], label_settings(text_set))
        if options.start:
            model = checkpoints.load_for_training(options.start, **label_settings(text_set))
            return model, checkpoints.load_tokenizer(options.start)
        tokenizer = checkpoints.load_tokenizer(options.tokenizer)
        config = new_student(options, tokenizer)
        config.update(label_settings(text_set))
        return SpikeBertForSequenceClassification(config), tokenizer

    return _learn_labels("train", options, build)
