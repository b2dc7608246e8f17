"""Floor 0: what a student is punished for (SpikeBERT 3.3). Losses know tensors and nothing else."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Norm = Literal["euclidean", "mse"]


def feature_loss(student: Tensor, teacher: Tensor, mask: Tensor, norm: Norm = "euclidean") -> Tensor:
    """Distance of features, mean over real tokens (eq. 6): student, teacher [B, L, D], mask [B, L] -> scalar.

    "euclidean" is the length of the difference of each token; "mse" the mean of its squares over D.
    Raises ValueError when the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"features of student {list(student.shape)} and teacher {list(teacher.shape)} must be equal")
    difference = student - teacher
    if norm == "mse":
        distance = difference.square().mean(-1)
    else:  # the root has no slope at zero: an equal pair gets gradient zero, not NaN
        distance = difference.square().sum(-1).clamp_min(torch.finfo(student.dtype).tiny).sqrt()
    weight = mask.to(distance.dtype)
    return (distance * weight).sum() / weight.sum()


def logit_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student), mean over texts (eq. 8): logits [B, K] -> scalar in nats times temperature squared.

    With one output (regression) it is the squared error to the teacher's output.
    """
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    log_p = F.log_softmax(student / temperature, dim=-1)
    log_q = F.log_softmax(teacher / temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def label_loss(logits: Tensor, labels: Tensor, gold: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy (one output: squared error) on the rows that have a gold label, mean over those rows.

    Shapes: logits [B, K], labels [B], gold [B] of 0/1 -> scalar, 0 when no row is gold (augmented texts are not).
    class_weights [K] multiply the cross-entropy of each row; the mean is over rows, not over weights, so that the
    parts of a batch add up.
    """
    if logits.shape[-1] == 1:
        rows = (logits.squeeze(-1) - labels.to(logits.dtype)).square()
    else:
        rows = F.cross_entropy(logits, labels, reduction="none")
        if class_weights is not None:
            rows = rows * class_weights.to(rows)[labels]
    weight = gold.to(rows.dtype)
    return (rows * weight).sum() / weight.sum().clamp_min(1)


def rate_loss(rate: Tensor, budget: float) -> Tensor:
    """(rate / budget - 1)^2 above the budget, 0 below: mean spikes of a connection at a step -> scalar without unit."""
    return (rate / budget - 1).clamp_min(0).square()


def problem_of(labels: Tensor, outputs: int, problem_type: str | None) -> str:
    """The problem type; where none was given, Hugging Face's guess: of one output regression, of floats multi-label."""
    if problem_type is not None:
        return problem_type
    if outputs == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def task_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """What a Hugging Face classifier answers when it is given labels: logits [B, K] -> scalar, mean over texts.

    Cross-entropy with labels [B]; of regression the squared error, labels [B] or [B, K]; of several labels a text the
    binary cross-entropy of each class, labels [B, K] of 0 and 1. Without a problem type: `problem_of`.
    Raises ValueError for labels of another shape.
    """
    problem = problem_of(labels, logits.shape[-1], problem_type)
    if problem == "single_label_classification":
        return F.cross_entropy(logits, labels)
    if labels.numel() != logits.numel():
        raise ValueError(
            f"labels: {problem} expects one for each of the outputs {list(logits.shape)}, got {list(labels.shape)}"
        )
    labels = labels.to(logits.dtype).view_as(logits)
    return F.mse_loss(logits, labels) if problem == "regression" else F.binary_cross_entropy_with_logits(logits, labels)


def at_least_float32(values: Tensor) -> Tensor:
    """What a loss is computed in: bf16 becomes float32, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def layer_map(student_layers: int, teacher_layers: int, rule: str = "last") -> list[tuple[int, int]]:
    """Pairs (student, teacher), counted from 1: which teacher layer each student layer imitates.

    "last": student i of M <-> teacher ceil(i B / M), so last to last; more students than teachers: teacher j <->
    student ceil(j M / B), the others are free. "first": 1 + (i - 1) * floor(B / M), the authors' program.
    Raises ValueError for another rule, or for "first" with more students than teachers.
    """
    if rule == "last":
        few, many = sorted((student_layers, teacher_layers))
        pairs = [(i, -(-i * many // few)) for i in range(1, few + 1)]
        return pairs if student_layers <= teacher_layers else [(student, teacher) for teacher, student in pairs]
    if rule != "first":
        raise ValueError(f"layer map rule: expected last or first, got {rule!r}")
    if student_layers > teacher_layers:
        raise ValueError(
            f"layer map rule first: {student_layers} student layers but only {teacher_layers} of the teacher"
        )
    return [(i, 1 + (i - 1) * (teacher_layers // student_layers)) for i in range(1, student_layers + 1)]


def check_layer_map(pairs: list[tuple[int, int]], student_layers: int, teacher_layers: int) -> None:
    """Raises ValueError naming the first pair that is out of range, or that is there twice."""
    for student, teacher in pairs:
        if not 1 <= student <= student_layers or not 1 <= teacher <= teacher_layers:
            raise ValueError(
                f"layer map: pair {student}:{teacher} is out of range, the student has layers 1..{student_layers} and "
                f"the teacher 1..{teacher_layers}; give pairs as --layer-map 1:2,2:4"
            )
        if pairs.count((student, teacher)) > 1:
            raise ValueError(f"layer map: pair {student}:{teacher} is given twice, expected once; leave one out")
