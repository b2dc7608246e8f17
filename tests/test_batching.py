"""Batches: every row once, grouped by length, the same again from the same seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spiketext.batching import EvaluationOrder, LengthBuckets, TextRows

TEXTS = ["a good film", "bad", "one of the very best films that we have seen this year", "not so good"]


@pytest.fixture
def rows(tiny_tokenizer):
    return TextRows(TEXTS, tiny_tokenizer, 32, labels=[1, 0, 1, 0])


def lengths(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(4, 100, count)


# The order of training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(1, 8), (8, 8), (9, 8), (1000, 8), (37, 3)])
def test_length_buckets_cover_every_row_once_in_each_epoch(count, size):
    buckets = LengthBuckets(lengths(count), size, seed=0)
    for epoch in range(3):
        buckets.set_epoch(epoch)
        batches = list(buckets)
        assert len(batches) == len(buckets) == -(-count // size)
        assert sorted(row for batch in batches for _, row in batch) == list(range(count))
        assert {e for batch in batches for e, _ in batch} == {epoch}
        assert max(map(len, batches)) <= size


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list:
        buckets = LengthBuckets(lengths(200), 8, seed)
        buckets.set_epoch(epoch)
        return [[row for _, row in batch] for batch in buckets]

    assert order(0, 0) == order(0, 0)
    assert order(1, 4) == order(1, 4)
    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_going_through_it_twice_in_one_epoch_gives_the_same_order():
    buckets = LengthBuckets(lengths(200), 8, seed=0)
    assert list(buckets) == list(buckets)


def test_the_composition_of_batches_changes_from_epoch_to_epoch():
    buckets = LengthBuckets(lengths(2000), 8, seed=0)
    first = {frozenset(row for _, row in batch) for batch in buckets}
    buckets.set_epoch(1)
    second = {frozenset(row for _, row in batch) for batch in buckets}
    assert len(first & second) < len(first) / 10


def test_a_batch_holds_rows_of_similar_length():
    sizes = lengths(4000)
    batches = [[sizes[row] for _, row in batch] for batch in LengthBuckets(sizes, 16, seed=0)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert padded / sizes.sum() < 1.05, "almost no padding; drawn at random it would be about 1.9"


def test_long_and_short_batches_are_shuffled():
    sizes = lengths(800)
    means = [np.mean([sizes[row] for _, row in batch]) for batch in LengthBuckets(sizes, 16, seed=0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5


def test_evaluation_reads_every_row_once_longest_first():
    sizes = lengths(37)
    order = EvaluationOrder(sizes, 8)
    batches = list(order)
    assert len(batches) == len(order) == 5
    read = [row for batch in batches for _, row in batch]
    assert sorted(read) == list(range(37))
    assert [sizes[row] for row in read] == sorted(sizes, reverse=True)
    assert {epoch for batch in batches for epoch, _ in batch} == {0}


# Rows -----------------------------------------------------------------------------------------------------------------


def test_a_row_has_ids_segments_label_and_gold(rows, tiny_tokenizer):
    assert len(rows) == 4
    row = rows[0, 2]
    assert row["input_ids"] == tiny_tokenizer(TEXTS[2])["input_ids"]
    assert row["token_type_ids"] == [0] * len(row["input_ids"])
    assert (row["labels"], row["gold"]) == (1, 1)
    assert rows.lengths.tolist() == [len(ids) for ids in tiny_tokenizer(TEXTS)["input_ids"]]


def test_a_pair_has_two_segments(tiny_tokenizer):
    rows = TextRows(["a good film"], tiny_tokenizer, 32, pairs=["not so good"])
    expected = tiny_tokenizer("a good film", "not so good")
    assert rows[0, 0]["input_ids"] == expected["input_ids"]
    assert rows[0, 0]["token_type_ids"] == expected["token_type_ids"]
    assert set(expected["token_type_ids"]) == {0, 1}


def test_texts_are_cut_at_the_longest_length(tiny_tokenizer):
    rows = TextRows(TEXTS, tiny_tokenizer, 6, pairs=TEXTS)
    assert rows.lengths.max() == 6
    assert all(len(rows[0, i]["input_ids"]) <= 6 for i in range(4))


def test_collate_pads_to_the_longest_of_the_batch_and_masks_the_rest(rows, tiny_tokenizer):
    batch = rows.collate([rows[0, 1], rows[0, 2]])
    short, long = len(rows[0, 1]["input_ids"]), len(rows[0, 2]["input_ids"])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape == (2, long)
    assert batch["attention_mask"].tolist() == [[1] * short + [0] * (long - short), [1] * long]
    assert (batch["input_ids"][0, short:] == tiny_tokenizer.pad_token_id).all()
    assert batch["input_ids"][0, :short].tolist() == rows[0, 1]["input_ids"]
    assert batch["labels"].tolist() == [0, 1] and batch["labels"].dtype == torch.long
    assert batch["gold"].tolist() == [1, 1]


def test_scores_of_a_regression_stay_floating(tiny_tokenizer):
    rows = TextRows(TEXTS, tiny_tokenizer, 32, labels=[0.5, 1.0, 2.25, 5.0])
    batch = rows.collate([rows[0, i] for i in range(4)])
    assert batch["labels"].tolist() == [0.5, 1.0, 2.25, 5.0] and batch["labels"].dtype == torch.float32


def test_rows_without_labels_can_be_read(tiny_tokenizer):
    rows = TextRows(TEXTS, tiny_tokenizer, 32)
    assert rows.collate([rows[0, 0]])["labels"].tolist() == [0]


def test_batches_give_every_row_once_with_its_number(rows):
    seen = list(rows.batches(3))
    assert sorted(number for numbers, _ in seen for number in numbers) == [0, 1, 2, 3]
    for numbers, batch in seen:
        for number, ids, mask in zip(numbers, batch["input_ids"], batch["attention_mask"], strict=True):
            assert ids[mask.bool()].tolist() == rows[0, number]["input_ids"]


# Augmented copies -----------------------------------------------------------------------------------------------------


class Recorder:
    """An augmentation that answers with its key."""

    def __init__(self):
        self.calls: list[tuple] = []

    def __call__(self, text: str, key: tuple, ngram: bool) -> str:
        self.calls.append((text, key, ngram))
        return "good " * (1 + key[1] + key[2]) + text


def test_augmented_rows_follow_the_originals_and_have_no_gold_label(tiny_tokenizer):
    rows = TextRows(TEXTS, tiny_tokenizer, 64, labels=[1, 0, 1, 0], augment=Recorder(), copies=2, seed=3)
    assert len(rows) == 12 and len(rows.lengths) == 12
    assert [rows[0, i]["gold"] for i in range(12)] == [1] * 4 + [0] * 8
    assert rows[0, 1]["input_ids"] == tiny_tokenizer(TEXTS[1])["input_ids"]
    assert rows.lengths.tolist() == rows.lengths.tolist()[:4] * 3


def test_an_augmented_row_is_keyed_by_seed_epoch_and_row(tiny_tokenizer):
    recorder = Recorder()
    rows = TextRows(TEXTS, tiny_tokenizer, 64, augment=recorder, copies=2, seed=3)
    for index in ((0, 5), (0, 9), (1, 5)):
        rows[index]
    assert recorder.calls == [
        (TEXTS[1], (3, 0, 5), True),
        (TEXTS[1], (3, 0, 9), True),
        (TEXTS[1], (3, 1, 5), True),
    ]
    ids = [tuple(rows[index]["input_ids"]) for index in ((0, 5), (0, 9), (1, 5))]
    assert len(set(ids)) == 3, "another copy and another epoch give another variant"
    assert tuple(rows[0, 5]["input_ids"]) == ids[0], "the same row of the same epoch gives the same"


def test_the_texts_of_a_pair_are_augmented_apart_and_never_cut(tiny_tokenizer):
    recorder = Recorder()
    rows = TextRows(["good"], tiny_tokenizer, 64, pairs=["bad"], augment=recorder, copies=1, seed=3)
    row = rows[2, 1]
    assert {text for text, _, _ in recorder.calls} == {"good", "bad"}
    assert {ngram for _, _, ngram in recorder.calls} == {False}
    assert len({key for _, key, _ in recorder.calls}) == 2, "two texts, two keys"
    assert set(row["token_type_ids"]) == {0, 1}


def test_texts_without_labels_follow_the_copies(tiny_tokenizer):
    more = TextRows(["so very good", "we have seen it"], tiny_tokenizer, 64, labels=[1, 1])
    rows = TextRows(TEXTS, tiny_tokenizer, 64, labels=[1, 0, 1, 0], augment=Recorder(), copies=1, unlabelled=more)
    assert len(rows) == 10 and rows.lengths.tolist()[8:] == more.lengths.tolist()
    assert [rows[0, i]["gold"] for i in range(10)] == [1] * 4 + [0] * 6
    assert rows.collate([rows[0, i] for i in range(10)])["again"].tolist() == [1] * 4 + [0] * 4 + [1] * 2
    assert [rows[0, 8 + i]["input_ids"] for i in range(2)] == more.ids
    plain = TextRows(TEXTS, tiny_tokenizer, 64, labels=[1, 0, 1, 0], augment=Recorder(), copies=1)
    assert [rows[2, i] for i in range(8)] == [plain[2, i] for i in range(8)]


def test_copies_without_an_augmentation_are_none(tiny_tokenizer):
    assert len(TextRows(TEXTS, tiny_tokenizer, 32, copies=5)) == 4
