"""Floor 6: the training loop: Hugging Face's Trainer over an objective (what that is: `training.LabelObjective`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from itertools import islice
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from spiketext.batching import EvaluationOrder, LengthBuckets, Rows, TextRows
from spiketext.callbacks import AfterStep, Clock, EarlyStop, LossBar
from spiketext.evaluation import Diverged, texts_at_once
from spiketext.options import TrainingOptions
from spiketext.processes import processes, require_all, share_out, totals
from spiketext.runs import CHECKPOINTS, Run, mark_whole

Measure = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # answers [N, ...], labels [N] -> scores by name


class ObjectiveTrainer(Trainer):
    """Hugging Face's Trainer over an objective: every loss term is logged, checkpoints are whole or ignored."""

    loss_is_scaled_for_ga = True  # compute_loss returns a micro-batch's share of the mean over the step

    def __init__(self, rows: Rows, validation: Rows, **kwargs: Any):
        super().__init__(train_dataset=rows, eval_dataset=validation, data_collator=rows.collate, **kwargs)
        self.rows, self.validation = rows, validation
        self.sums: dict[str, Any] = {}
        self.counted = 0

    def get_train_dataloader(self) -> DataLoader:
        """Length buckets, shared out here and not by Accelerate; the order is a function of (seed, epoch)."""
        parts, world = self.args.gradient_accumulation_steps, self.accelerator.num_processes
        size = self.args.train_batch_size * parts * world
        rank = self.accelerator.process_index
        sampler = LengthBuckets(self.rows.lengths, size, self.args.seed, parts, world, rank)
        loader = DataLoader(self.rows, batch_sampler=sampler, collate_fn=self.rows.collate)
        return prepare_data_loader(loader, self.accelerator.device, 1, 0, put_on_device=True)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch of a run that was killed after its end has no steps."""
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

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
        """Weighted sum of the objective's terms, this micro-batch's share of it in a step (`get_batch_samples`).

        DDP takes the mean of the gradients of the processes, so each counts that often.
        """
        terms, _ = model(inputs)
        objective = self.accelerator.unwrap_model(model)
        mine = objective.counts(inputs)
        terms = {name: term * (mine[name] / num_items_in_batch[name]).to(term) for name, term in terms.items()}
        for name, term in terms.items():  # in tensors: reading a number would wait for the GPU
            self.sums[name] = self.sums.get(name, 0.0) + term.detach().double()
        return _weighted(objective, {name: term * self.accelerator.num_processes for name, term in terms.items()})

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, logits and labels of a validation batch; no loss where the scores hold a better one (`fit`).

        In float32 whatever training computes in, as a saved model is read: in bf16 spikes flip, and with them answers.
        """
        objective = self.accelerator.unwrap_model(model)
        with torch.no_grad():
            inputs = self._prepare_inputs(inputs)
            terms, logits = type(objective).forward(objective, inputs)  # Accelerate's autocast is in objective.forward
        scored = self.compute_metrics is not None and not self.args.load_best_model_at_end
        loss = None if scored else _weighted(objective, terms)
        return loss, None if logits is None else logits.float(), inputs["labels"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term since the last line."""
        if self.counted and "loss" in logs:
            own = torch.stack(list(self.sums.values()))
            means = (self.accelerator.reduce(own, "sum") / self.counted).tolist()
            logs |= dict(zip(self.sums, means, strict=True))
            self.sums, self.counted = {}, 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Safetensors takes no weight of two names, such as a word embedding that is a head's too: a copy for each."""
        assert self.model is not None
        state = state_dict or self.model.state_dict()
        first = {weight.data_ptr(): name for name, weight in reversed(state.items())}
        copied = {name: w if first[w.data_ptr()] == name else w.clone() for name, w in state.items()}
        super()._save(output_dir, copied)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes the state of its random numbers
        here = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        best = self.state.best_model_checkpoint
        if self.is_world_process_zero():
            mark_whole(here, keep={Path(best).name} if best else set())


def _weighted(objective: nn.Module, terms: dict[str, torch.Tensor]) -> torch.Tensor:
    weights = cast(dict[str, float], objective.weights)
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def fit(
    objective: nn.Module,
    rows: Rows,
    validation: Rows,
    options: TrainingOptions,
    run: Run,
    measure: Measure | None = None,
    metric: str | None = None,
) -> dict[str, Any]:
    """Train an objective; with a metric, keep the best validation and stop early. Resumes from the run's checkpoint.

    measure scores the objective's answers on validation, metric is one of its scores. Without a metric the scores hold
    the loss, which is then exact and not the mean of the batches' means.
    A step reads options.batch_size texts, whatever the micro-batches and processes (`torchrun`) that share them.
    Validation keeps nothing for a gradient: two micro-batches at once, at most 64 texts and `texts_at_once`.
    Returns steps, seconds, processes, the GPU (None without one), validation scores and, of labelled texts, those
    that were cut ("n of N").
    Raises ValueError for a batch that cannot be shared out, Diverged when a weight is no number at the end.
    """
    micro, accumulate = share_out(options.batch_size, options.micro_batch, processes())
    at_once = texts_at_once(cast(Any, validation), cast(Any, objective.model), min(64, 2 * options.micro_batch))
    every = math.ceil(math.ceil(len(rows) / options.batch_size) / options.evals_per_epoch)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.out / "logs")
    arguments = TrainingArguments(
        output_dir=str(run.out / CHECKPOINTS),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=at_once,
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
    _take_one_gpu(arguments)
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
        compute_metrics=None if measure is None else lambda seen: measure(seen.predictions, seen.label_ids),
    )
    trainer.remove_callback(PrinterCallback)
    _train_on(trainer, run.checkpoint())
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
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": "bf16" if arguments.bf16 else "float32",
        **({"truncated": f"{rows.truncated} of {len(rows.texts)}"} if isinstance(rows, TextRows) else {}),
    }


def _train_on(trainer: Trainer, checkpoint: str | None) -> None:
    """Train, from a checkpoint where there is one; raises ValueError where it or the best one was damaged since."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (EOFError, RuntimeError, SafetensorError, UnpicklingError, JSONDecodeError) as error:
        damaged = not isinstance(error, RuntimeError) or "PytorchStreamReader" in str(error)
        if checkpoint is None or not damaged or "while serializing" in str(error):  # the last is a full disk
            raise
        why = str(error).strip().split("\n")[0] or type(error).__name__
        best = trainer.state.best_model_checkpoint
        if best and best != checkpoint and not _is_readable(Path(best, "model.safetensors")):
            raise ValueError(
                f"checkpoint {best}, the best so far: is damaged ({why}); remove {Path(best).parent}, and the same "
                "command begins again"
            ) from None
        raise ValueError(
            f"checkpoint {checkpoint}: is damaged ({why}); remove it, and the same command goes on from the one "
            "before, or begins again where there is none"
        ) from None


def _is_readable(weights: Path) -> bool:
    try:
        with safe_open(weights, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _take_one_gpu(arguments: TrainingArguments) -> None:
    """A process takes one GPU (more: torchrun); Hugging Face would split the batches among all in nn.DataParallel."""
    arguments._n_gpu = min(1, arguments.n_gpu)


def _use_bf16(precision: str) -> bool:
    if precision == "auto":
        processor = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return processor and not torch.cuda.is_available()
    return precision == "bf16"
