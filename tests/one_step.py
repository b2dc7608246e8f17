"""One step of stage 2 in float64, started by test_processes: TEACHER OUT, alone or under torchrun.

SGD with learning rate 1 and no clipping, so that weights before minus weights after are the gradient.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

from spiketext import checkpoints, processes
from spiketext.augmentation import Augmenter, Word
from spiketext.data import load
from spiketext.distillation import Alignment, Distillation
from spiketext.fitting import ObjectiveTrainer
from spiketext.models import SpikeBertForSequenceClassification
from spiketext.options import DistillOptions
from spiketext.training import label_settings, new_student, rows_of

BATCH, MICRO = 16, 4


def step(teacher_folder: str, out: str) -> None:
    """Take the step; the first process saves gradients, the world size and the logged terms."""
    torch.manual_seed(0)
    options = DistillOptions(teacher=teacher_folder, out=out)
    text_set, tokenizer = load("demo"), checkpoints.load_tokenizer(teacher_folder)
    teacher = checkpoints.teacher_of_task(teacher_folder)
    config = new_student(options, tokenizer, teacher.config)
    config.update(label_settings(text_set))
    model = SpikeBertForSequenceClassification(config)
    alignment = Alignment([(1, 1), (2, 2)], config.hidden_size, teacher)
    objective = Distillation(model, teacher.double(), tokenizer, alignment, options).double()
    objective.class_weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
    augment = Augmenter(
        text_set.splits["train"].texts, "[MASK]", lambda text: [Word(w, None, " ") for w in text.split()]
    )
    rows = rows_of(text_set, "train", tokenizer, 64, augment=augment, copies=1)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    parts = BATCH // MICRO // processes.processes()
    arguments = TrainingArguments(
        output_dir=out, max_steps=1, learning_rate=1.0, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0,
        per_device_train_batch_size=MICRO if processes.processes() > 1 else BATCH, use_cpu=True, save_strategy="no",
        gradient_accumulation_steps=parts if processes.processes() > 1 else 1, logging_steps=1, report_to=[],
        disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    assert arguments.world_size == processes.processes()
    trainer = ObjectiveTrainer(rows, rows, model=objective, args=arguments)
    trainer.train()
    if processes.is_first():
        after = objective.state_dict()
        found = {name: before[name] - after[name] for name in before if before[name].is_floating_point()}
        logged = trainer.state.log_history[0]
        terms = {f"logged {name}": torch.tensor(logged[name], dtype=torch.float64) for name in objective.weights}
        save_file(found | terms, f"{out}/step.safetensors", {"world": str(arguments.world_size)})


if __name__ == "__main__":
    step(*sys.argv[1:])
