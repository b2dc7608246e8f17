"""Floor 5: the training loop (Hugging Face's Trainer) and the two trainings without a student-teacher pair."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from spiketext import checkpoints
from spiketext.batching import EvaluationOrder, LengthBuckets, Rows, TextRows
from spiketext.data import TextSet, load
from spiketext.evaluation import Diverged, model_inputs, scores
from spiketext.losses import label_loss
from spiketext.models import PRESETS, SpikeBertConfig, SpikeBertForSequenceClassification
from spiketext.options import DataOptions, StudentOptions, TeacherOptions, TrainingOptions, TrainOptions
from spiketext.runs import CHECKPOINTS, Run, mark_whole
from spiketext.wordmodels import WORD_MODELS, new_word_model, start_from


class LabelObjective(nn.Module):
    """Learn gold labels alone. An objective is a module: batch -> (loss terms by name, logits or None)."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.model, self.tokenizer, self.weights = model, tokenizer, {"label": 1.0}

    def forward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Terms: label. Where a network votes at every step, its mean over the steps (SNN-TextCNN eq. 4)."""
        answer = self.model(**model_inputs(self.tokenizer, batch))
        labels, gold = batch["labels"], batch["gold"]
        votes = answer.get("votes")  # [T, B, K]
        if votes is None:
            return {"label": label_loss(answer.logits.float(), labels, gold)}, answer.logits
        steps = len(votes)
        return {"label": label_loss(votes.flatten(0, 1), labels.repeat(steps), gold.repeat(steps))}, answer.logits


class ObjectiveTrainer(Trainer):
    """Hugging Face's Trainer over an objective: every loss term is logged, checkpoints are whole or ignored."""

    loss_is_scaled_for_ga = False  # compute_loss returns a mean over the micro-batch: divide by their number

    def __init__(self, rows: Rows, validation: Rows, **kwargs: Any):
        super().__init__(train_dataset=rows, eval_dataset=validation, data_collator=rows.collate, **kwargs)
        self.rows, self.validation = rows, validation
        self.sums: dict[str, float] = {}
        self.counted = 0

    def get_train_dataloader(self) -> DataLoader:
        """Length buckets; the order is a function of (seed, epoch)."""
        sampler = LengthBuckets(self.rows.lengths, self.args.train_batch_size, self.args.seed)
        return self.accelerator.prepare(DataLoader(self.rows, batch_sampler=sampler, collate_fn=self.rows.collate))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Longest texts first."""
        rows = self.validation
        sampler = EvaluationOrder(rows.lengths, self.args.eval_batch_size)
        return self.accelerator.prepare(DataLoader(rows, batch_sampler=sampler, collate_fn=rows.collate))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted sum of the objective's terms."""
        terms, logits = model(inputs)
        if model.training:
            self.counted += 1
            for name, term in terms.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(term.detach())
        weights = self.accelerator.unwrap_model(model).weights
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
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
            logs |= {name: total / self.counted for name, total in self.sums.items()}
            self.sums, self.counted = {}, 0
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        here = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        best = self.state.best_model_checkpoint
        mark_whole(here, keep={Path(best).name} if best else set())


class LossBar(ProgressCallback):
    """The progress bar, with every loss term behind it instead of a line for each."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the newest losses and scores."""
        shown = {k: f"{v:.3g}" for k, v in (logs or {}).items() if isinstance(v, float) and k in _shown(logs or {})}
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown, refresh=False)


def _shown(logs: dict[str, Any]) -> set[str]:
    hidden = {"epoch", "learning_rate", "grad_norm", "total_flos", "train_runtime", "train_loss"}
    return {name for name in logs if name not in hidden and not name.endswith("per_second") and "runtime" not in name}


class EarlyStop(EarlyStoppingCallback):
    """Early stopping that a resumed run remembers: stopped before it was killed, it stops again at once."""

    def on_step_end(self, args, state, control, **kwargs):
        """The best checkpoint is loaded at the end, so the step that was taken changes nothing."""
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class AfterStep(TrainerCallback):
    """Lets a network that has `after_step` put its weights in order after every optimiser step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Before the validation and the checkpoint."""
        getattr(getattr(model, "model", None), "after_step", lambda: None)()


class Clock(TrainerCallback, ExportableState):
    """Seconds of training, over all resumptions."""

    def __init__(self, elapsed: float = 0.0):
        self.elapsed = elapsed
        self.since: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Start."""
        self.since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self.elapsed + (time.monotonic() - self.since if self.since is not None else 0.0)

    def state(self) -> dict:
        """For the checkpoint."""
        return {"args": {"elapsed": self.seconds}, "attributes": {}}


def fit(
    objective: nn.Module,
    rows: Rows,
    validation: Rows,
    options: TrainingOptions,
    run: Run,
    task: str | None = None,
    metric: str | None = None,
) -> dict[str, Any]:
    """Train an objective; with a metric, keep the best validation and stop early. Resumes from the run's checkpoint.

    Returns steps, tokens read, seconds, validation scores and whether it stopped early.
    Raises ValueError for a batch that micro-batches do not divide, Diverged when a weight is no number at the end.
    """
    if options.batch_size % options.micro_batch and options.micro_batch < options.batch_size:
        raise ValueError(f"batch_size ({options.batch_size}) must be a multiple of micro_batch ({options.micro_batch})")
    micro = min(options.micro_batch, options.batch_size)
    accumulate = options.batch_size // micro
    steps = math.ceil(math.ceil(len(rows) / micro) / accumulate)
    every = math.ceil(steps / options.evals_per_epoch)
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
    rows, validation = (rows_of(text_set, s, tokenizer, options.max_length) for s in ("train", "validation"))
    objective = LabelObjective(model, tokenizer)
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
