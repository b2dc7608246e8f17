"""What a teacher answered is read again, exactly, for its own texts only, and after any kind of end."""

from __future__ import annotations

import json

import pytest
import torch

from spiketext import checkpoints, distillation
from spiketext.answers import Teacher
from spiketext.batching import TextRows
from spiketext.options import DistillOptions

LAYERS = (0, 2)


@pytest.fixture(scope="module")
def network(tiny_teacher):
    return checkpoints.teacher_of_task(tiny_teacher)


@pytest.fixture(scope="module")
def rows(demo, tiny_tokenizer) -> TextRows:
    return TextRows(demo.splits["train"].texts[:20], tiny_tokenizer, 24)


def batch(rows: TextRows, *numbers: int) -> dict[str, torch.Tensor]:
    found = rows.collate([rows[0, number] for number in numbers])
    return {name: found[name] for name in ("input_ids", "token_type_ids", "attention_mask")}


def remembering(network, path, most: float = 1e9, layers=LAYERS) -> tuple[Teacher, list[int]]:
    """A teacher with a file, and how many texts each call of its network read."""
    teacher, asked = Teacher(network, layers), []
    ask = teacher._ask
    teacher._ask = lambda inputs: asked.append(len(inputs["input_ids"])) or ask(inputs)  # type: ignore[method-assign]
    teacher.remember(path, most)
    return teacher, asked


def equal(found, expected, mask, near: float = 0.0) -> bool:
    real = mask[..., None]
    features = all(torch.allclose(found[0][n] * real, expected[0][n] * real, atol=near, rtol=0) for n in expected[0])
    return features and torch.allclose(found[1], expected[1], atol=near, rtol=0)


def test_known_and_new_texts_together_answer_as_the_teacher_does(network, rows, tmp_path):
    teacher, asked = remembering(network, tmp_path / "a")
    often = torch.tensor([1, 1, 0, 1])
    for numbers, new in (((0, 1, 2, 3), 4), ((0, 1, 2, 3), 1), ((3, 7, 9, 0), 2), ((9, 7, 3, 1), 0)):
        asked.clear()
        inputs = batch(rows, *numbers)
        found = teacher(inputs, often if numbers[0] == 0 else torch.ones(4))
        assert equal(found, Teacher(network, LAYERS)(inputs, often), inputs["attention_mask"], 1e-5)
        assert sum(asked) == new


def test_a_pair_is_not_its_two_halves_swapped_and_no_layers_need_no_room(network, rows, tmp_path):
    teacher, asked = remembering(network, tmp_path / "a", layers=())
    inputs = batch(rows, 0, 1)
    teacher(inputs, torch.ones(2))
    turned = inputs | {"token_type_ids": 1 - inputs["token_type_ids"]}
    features, _ = teacher(turned, torch.ones(2))
    assert asked == [2, 2] and not features and (tmp_path / "a").stat().st_size < 500


def test_a_file_survives_a_restart_and_a_group_cut_short_is_dropped_whole(network, rows, tmp_path):
    path = tmp_path / "deep" / "a"
    first, second = batch(rows, 0, 1, 2), batch(rows, 3, 4)
    teacher, _ = remembering(network, path)
    before = [teacher(inputs, torch.ones(len(inputs["input_ids"]))) for inputs in (first, second)]
    content = path.read_bytes()
    for missing, new in ((0, []), (1, [2]), (1500, [2]), (len(content) - 60, [3, 2]), (len(content) - 10, [3, 2])):
        path.write_bytes(content[: len(content) - missing])
        teacher, asked = remembering(network, path)
        for inputs, known in zip((first, second), before, strict=True):
            assert equal(teacher(inputs, torch.ones(len(inputs["input_ids"]))), known, inputs["attention_mask"])
        assert asked == new and path.read_bytes() == content


def test_what_a_power_cut_left_of_a_group_is_dropped(network, rows, tmp_path):
    path, inputs = tmp_path / "a", batch(rows, 0, 1)
    teacher, _ = remembering(network, path)
    known, content = teacher(inputs, torch.ones(2)), path.read_bytes()
    begins = content.index(b"spiketext answers 1 ", 1) + 28
    for left in (bytes(len(content) - begins), b"\xff" * (len(content) - begins)):
        path.write_bytes(content[:begins] + left)
        teacher, asked = remembering(network, path)
        assert equal(teacher(inputs, torch.ones(2)), known, inputs["attention_mask"]) and asked == [2]
        assert path.read_bytes() == content


def test_what_a_disk_has_spoilt_is_asked_again(network, rows, tmp_path):
    teacher, _ = remembering(network, tmp_path / "a")
    inputs = batch(rows, 0, 1)
    known = teacher(inputs, torch.ones(2))
    content = bytearray((tmp_path / "a").read_bytes())
    content[-5] ^= 64
    (tmp_path / "a").write_bytes(content)
    teacher, asked = remembering(network, tmp_path / "a")
    assert equal(teacher(inputs, torch.ones(2)), known, inputs["attention_mask"], 1e-5) and asked == [1]


def test_another_teacher_or_other_layers_begin_anew_and_a_full_file_stays_as_it_is(network, rows, tmp_path):
    import copy

    inputs, path = batch(rows, 0, 1), tmp_path / "a"
    remembering(network, path)[0](inputs, torch.ones(2))
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.classifier.bias[0] += 1
    for stranger, layers in ((other, LAYERS), (network, (1, 2))):
        teacher, asked = remembering(stranger, path, layers=layers)
        teacher(inputs, torch.ones(2))
        assert asked == [2]
    teacher, asked = remembering(network, path, most=path.stat().st_size / 2)
    size = path.stat().st_size
    for _ in range(2):
        teacher(inputs, torch.ones(2))
    assert asked == [2, 2] and path.stat().st_size == size


@pytest.mark.parametrize(("copies", "cache", "reads"), [(0, 1.0, 1), (1, 1.0, 3), (0, 0.0, 2)])
def test_stage_2_asks_for_each_text_once_and_leaves_no_file(
    copies, cache, reads, network, tiny_teacher, demo, tmp_path, monkeypatch
):
    asked: list[int] = []
    ask = Teacher._ask
    monkeypatch.setattr(
        Teacher, "_ask", lambda self, inputs: asked.append(len(inputs["input_ids"])) or ask(self, inputs)
    )
    out = tmp_path / "out"
    distillation.distill(DistillOptions(
        teacher=tiny_teacher, data="demo", out=str(out), epochs=2, quiet=True, threads=1, max_length=16, layers=1,
        width=16, heads=2, copies=copies, teacher_cache=cache,
    ))  # fmt: skip
    train, validation = (len(demo.splits[name]) for name in ("train", "validation"))
    expected = reads * train + (1 if cache else 2) * validation
    assert expected - 10 < sum(asked) <= expected  # a few of 16 tokens are equal
    assert json.loads((out / "result.json").read_text())["steps"] > 0 and not list(out.rglob("*.answers"))


def test_texts_that_never_come_again_are_asked_alike_whatever_else_is_known(network, rows, tmp_path):
    """A resumed run knows the gold texts of a batch, another one asks for them: augmented ones see neither."""
    order = rows.lengths.argsort()
    inputs, again = batch(rows, int(order[-1]), int(order[0]), int(order[1])), torch.tensor([1, 0, 0])
    shapes, answers = [], []
    for _ in range(2):
        teacher = Teacher(network, LAYERS)
        ask = teacher._ask
        teacher._ask = lambda asked, ask=ask: shapes.append(tuple(asked["input_ids"].shape)) or ask(asked)  # type: ignore[method-assign]
        teacher.remember(tmp_path / "a", 1e9)
        answers.append(teacher(inputs, again))
    assert shapes == [(1, rows.lengths.max()), (2, rows.lengths[order[1]]), (2, rows.lengths[order[1]])]
    assert equal(*answers, inputs["attention_mask"])
