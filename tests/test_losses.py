"""The losses against numbers worked out by hand, and who imitates whom."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch

from spiketext.losses import check_layer_map, feature_loss, label_loss, layer_map, logit_loss, task_loss


def raises(message: str):
    return pytest.raises(ValueError, match=re.compile(message))


def close(loss: torch.Tensor, value: float) -> None:
    torch.testing.assert_close(loss, torch.tensor(value, dtype=loss.dtype), rtol=1e-6, atol=1e-7)


# Features -------------------------------------------------------------------------------------------------------------


def features():
    """Three tokens at distances 5, 13 and (padding) 1000 from the teacher's zero."""
    student = torch.tensor([[[3.0, 4.0], [5.0, 12.0]], [[0.0, 0.0], [600.0, 800.0]]])
    return student, torch.zeros_like(student), torch.tensor([[1, 1], [1, 0]])


def test_the_feature_loss_is_the_mean_length_of_the_differences_of_real_tokens():
    close(feature_loss(*features()), (5 + 13 + 0) / 3)


def test_the_feature_loss_by_squares_is_the_mean_of_squares_over_features_and_real_tokens():
    close(feature_loss(*features(), norm="mse"), (25 / 2 + 169 / 2 + 0) / 3)


@pytest.mark.parametrize("norm", ["euclidean", "mse"])
def test_padding_has_no_part_in_the_feature_loss(norm):
    student, teacher, mask = features()
    student.requires_grad_()
    feature_loss(student, teacher, mask, norm).backward()
    assert (student.grad[1, 1] == 0).all()
    assert (student.grad[0, 0] != 0).all()


def test_the_gradient_of_a_length_is_a_direction_and_zero_at_distance_zero():
    student, teacher, mask = features()
    student.requires_grad_()
    feature_loss(student, teacher, mask).backward()
    torch.testing.assert_close(student.grad[0, 0] * 3, torch.tensor([0.6, 0.8]))
    assert (student.grad[1, 0] == 0).all(), "equal features: no slope, and above all no NaN"


def test_equal_features_cost_nothing_in_any_precision():
    for dtype in (torch.float32, torch.float64):
        same = torch.randn(2, 3, 4, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = feature_loss(same, same.detach().clone(), torch.ones(2, 3))
        loss.backward()
        assert float(loss.detach()) < 1e-15 and torch.isfinite(same.grad).all() and loss.dtype == dtype


def test_features_of_two_shapes_are_refused():
    with raises(r"student \[1, 2, 3\] and teacher \[1, 2, 4\]"):
        feature_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1, 2))


# Logits ---------------------------------------------------------------------------------------------------------------


def logits_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_logit_loss_is_the_divergence_of_the_teacher_from_the_student_averaged_over_texts():
    teacher, student = logits_of([0.5, 0.5], [0.9, 0.1]), logits_of([0.25, 0.75], [0.9, 0.1])
    close(logit_loss(student, teacher), (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2)


def test_the_logit_loss_is_not_symmetric_and_the_teacher_stands_first():
    sharp, even = logits_of([0.9, 0.1]), logits_of([0.5, 0.5])
    close(logit_loss(even, sharp), 0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    close(logit_loss(sharp, even), 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))


def test_a_constant_on_all_logits_changes_no_divergence():
    teacher, student = logits_of([0.5, 0.5]), logits_of([0.25, 0.75])
    close(logit_loss(student + 7, teacher - 3), float(logit_loss(student, teacher)))


def test_the_temperature_softens_both_sides_and_its_square_keeps_the_gradient_in_scale():
    teacher, student = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    p = 1 / (1 + math.exp(-1))
    close(logit_loss(student, teacher, temperature=2.0), 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))))


def test_with_one_output_the_logit_loss_is_the_squared_error_to_the_teacher():
    close(logit_loss(torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0]])), (1 + 9) / 2)


# Labels ---------------------------------------------------------------------------------------------------------------


def test_the_label_loss_is_the_cross_entropy_of_gold_rows_alone():
    logits = logits_of([0.25, 0.75], [0.5, 0.5], [0.99, 0.01])
    close(label_loss(logits, torch.tensor([1, 0, 1]), torch.tensor([1, 1, 0])), -(math.log(0.75) + math.log(0.5)) / 2)


def test_rows_without_a_gold_label_get_no_gradient():
    logits = torch.zeros(3, 2, requires_grad=True)
    label_loss(logits, torch.tensor([1, 0, 1]), torch.tensor([1, 0, 0])).backward()
    assert (logits.grad[1:] == 0).all() and (logits.grad[0] != 0).all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_batch_without_any_gold_row_costs_nothing_and_stays_finite(outputs):
    logits = torch.randn(2, outputs, requires_grad=True)
    loss = label_loss(logits, torch.tensor([1, 0]), torch.tensor([0, 0]))
    loss.backward()
    assert float(loss.detach()) == 0 and (logits.grad == 0).all()


def test_with_one_output_the_label_loss_is_the_squared_error_of_gold_rows():
    logits, labels = torch.tensor([[1.0], [4.0], [9.0]]), torch.tensor([3.0, 4.5, 0.0])
    close(label_loss(logits, labels, torch.tensor([1, 1, 0])), (4 + 0.25) / 2)


def test_scores_that_are_whole_numbers_are_scores_too():
    close(label_loss(torch.tensor([[1.0], [4.0]]), torch.tensor([3, 4]), torch.tensor([1, 1])), 2.0)


# The layer map --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        (4, 6, [(1, 2), (2, 3), (3, 5), (4, 6)]),
        (6, 4, [(2, 1), (3, 2), (5, 3), (6, 4)]),
        (12, 12, [(i, i) for i in range(1, 13)]),
        (1, 12, [(1, 12)]),
        (12, 1, [(12, 1)]),
    ],
)
def test_each_layer_of_the_shorter_network_has_a_partner_and_the_last_ones_meet(student, teacher, pairs):
    assert layer_map(student, teacher) == pairs


@pytest.mark.parametrize("student", range(1, 14))
@pytest.mark.parametrize("teacher", [1, 2, 4, 6, 12])
def test_every_layer_map_is_in_range_rises_and_ends_at_the_last_layers(student, teacher):
    pairs = layer_map(student, teacher)
    check_layer_map(pairs, student, teacher)
    assert len(pairs) == min(student, teacher)
    assert pairs[-1] == (student, teacher)
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(pairs))


@pytest.mark.parametrize(
    ("student", "teacher", "layers"), [(6, 12, [1, 3, 5, 7, 9, 11]), (4, 6, [1, 2, 3, 4]), (12, 12, list(range(1, 13)))]
)
def test_the_authors_rule_starts_at_the_first_layer_of_the_teacher(student, teacher, layers):
    assert layer_map(student, teacher, "first") == list(enumerate(layers, 1))


def test_the_authors_rule_is_refused_for_a_student_with_more_layers():
    with raises("6 student layers but only 4 of the teacher"):
        layer_map(6, 4, "first")


def test_an_unknown_rule_is_named():
    with raises("expected last or first, got 'middle'"):
        layer_map(6, 12, "middle")


@pytest.mark.parametrize("pair", [(0, 1), (7, 1), (1, 0), (1, 13)])
def test_a_pair_out_of_range_is_named_with_the_range(pair):
    with raises(rf"pair {pair[0]}:{pair[1]} is out of range.*1\.\.6.*1\.\.12"):
        check_layer_map([(1, 2), pair], 6, 12)


def test_a_pair_of_layers_that_is_given_twice_is_refused():
    check_layer_map([(1, 1), (1, 2)], 2, 2)
    with raises("pair 1:1 is given twice"):
        check_layer_map([(1, 1), (2, 2), (1, 1)], 2, 2)


# The loss of a Hugging Face classifier --------------------------------------------------------------------------------


def test_the_task_is_guessed_from_the_labels_as_hugging_face_does():
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    several = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    wanted = torch.nn.BCEWithLogitsLoss()(logits, several)
    for problem in (None, "multi_label_classification"):
        assert torch.equal(task_loss(logits, several, problem), wanted)
    ids = torch.tensor([1, 0])
    assert torch.equal(task_loss(logits, ids, None), torch.nn.CrossEntropyLoss()(logits, ids))
    for labels in (torch.tensor([1.0, 2.0]), torch.tensor([[1], [2]])):
        close(task_loss(torch.tensor([[3.0], [2.0]]), labels, None), 2.0)
    with raises(r"multi_label_classification expects one for each of the outputs \[2, 2\], got \[2\]"):
        task_loss(logits, ids, "multi_label_classification")
