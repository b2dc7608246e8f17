"""The four attacks: searches against brute force, constraints, noise, resumption after a kill, bad input."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import missing

from spiketext import attacks, ledger, processes, reproduce, results, substitutes
from spiketext.checkpoints import load_classifier, load_tokenizer
from spiketext.cli import main
from spiketext.data import load
from spiketext.evaluation import Diverged, logits_of
from spiketext.models import (
    SpikingTextCnnConfig,
    SpikingTextCnnForSequenceClassification,
    TextCnnConfig,
    TextCnnForSequenceClassification,
)
from spiketext.options import AttackOptions
from spiketext.recipes import OWN, SETTINGS, Attack, budget, by_deletion, by_deletion_and_turn, recipe_of
from spiketext.substitutes import Bugs, MaskedLM, Neighbours, Sentence, Similarity, WordNet, calibrated
from spiketext.wordmodels import tokenizer_of
from spiketext.words import segment

TEXTS = load("demo").splits["validation"].texts
WORDS = sorted({word for text in load("demo").splits["train"].texts for word in segment(text, "english")})
LABELS = ("negative", "positive")


# Sentences and searches, with a victim that adds up words -------------------------------------------------------------


def test_a_text_is_its_words_and_what_stands_between_them():
    for text in [*TEXTS, "", " ", "It 's n't, ok?!", "a\tb  c", "don't well-made 3.5"]:
        assert Sentence.of(text).text == text
    assert Sentence.of("it 's Good, is n't it?").with_word(2, "nice").text == "it 's Nice, is n't it?"
    assert Sentence.of("one").with_word(0, "").text == ""


def plan(weights: dict[str, float], text: str, most: int, candidates: list[str], gold: int = 1) -> Attack:
    """An attack on a victim whose logit of class 1 is the sum of the weights of its words."""

    def ask(texts: list[str]) -> np.ndarray:
        sums = np.array([sum(weights.get(word, 0.0) for word in Sentence.of(text).words) for text in texts])
        right = 1 / (1 + np.exp(-sums))
        return np.stack([1 - right, right], 1)

    def allowed(sentence: Sentence, place: int) -> tuple[list[Sentence], np.ndarray]:
        found = [sentence.with_word(place, word) for word in candidates]
        return found, np.ones(len(found))

    sentence = Sentence.of(text)
    return Attack(ask, sentence, gold, list(range(len(sentence.words))), most, allowed, "[UNK]")


def lowest_by_brute_force(task: Attack, candidates: list[str]) -> float:
    """The lowest probability of the true class that `budget` changes can reach."""
    lowest = 1.0
    for places in itertools.combinations(task.places, task.budget):
        for words in itertools.product(candidates, repeat=task.budget):
            sentence = task.original
            for place, word in zip(places, words, strict=True):
                sentence = sentence.with_word(place, word)
            lowest = min(lowest, task.ask([sentence.text])[0, task.gold])
    return lowest


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_search_finds_the_best_change_of_a_victim_that_adds_up(name, most):
    draw = np.random.default_rng(most)
    for _ in range(5):
        words = [f"w{i}" for i in range(6)]
        weights = dict(zip(words, draw.normal(0.5, 1, 6), strict=True)) | {"c0": -0.3, "c1": -0.1, "c2": 0.0}
        task = plan(weights, " ".join(words), most, ["c0", "c1", "c2"])
        base = task.ask([task.original.text])[0]
        if base.argmax() != task.gold:
            continue
        recipe = OWN[name]
        final, turned = recipe.search(recipe, task, base)
        reached = task.ask([final.text])[0]
        lowest = lowest_by_brute_force(task, ["c0", "c1", "c2"])
        assert turned == (reached.argmax() != task.gold) == (lowest < 0.5)
        if not turned:
            assert reached[task.gold] == pytest.approx(lowest)


def test_textfooler_takes_the_most_similar_candidate_that_turns():
    task = plan({"good": 1.0, "a": -1.0, "b": -2.0, "c": 0.5}, "good", 1, ["c", "b", "a"])
    similar = {"a": 0.9, "b": 0.85, "c": 0.99}
    allowed = task.allowed
    task.allowed = lambda sentence, place: (
        allowed(sentence, place)[0],
        np.array([similar[other.text] for other in allowed(sentence, place)[0]]),
    )
    base = task.ask(["good"])[0]
    assert OWN["textfooler"].search(OWN["textfooler"], task, base)[0].text == "a"
    assert OWN["textbugger"].search(OWN["textbugger"], task, base)[0].text == "b"


def test_importance_of_a_deletion_is_what_the_true_class_loses():
    task = plan({"x": 2.0, "y": -1.0}, "x y z", 1, [])
    base = task.ask(["x y z"])[0]
    expected = [base[1] - 1 / (1 + math.exp(1)), base[1] - 1 / (1 + math.exp(-2)), 0.0]
    assert by_deletion(task, base) == pytest.approx(expected)


def test_importance_counts_the_rise_of_the_class_that_the_answer_turns_to():
    """TextFooler eq. 2 with three classes: true 0.5, without x still 0.4; without y class 2 rises from 0.2 to 0.6."""
    answers = {"x y": [0.3, 0.5, 0.2], " y": [0.35, 0.4, 0.25], "x ": [0.1, 0.3, 0.6]}
    task = plan({}, "x y", 1, [])
    task.ask = lambda texts: np.array([answers[text] for text in texts])
    base = task.ask(["x y"])[0]
    assert by_deletion_and_turn(task, base) == pytest.approx([0.5 - 0.4, (0.5 - 0.3) + (0.6 - 0.2)])
    assert by_deletion(task, base) == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(("masked", "first"), [({"x": 0.0, "y": 0.0}, "x c"), ({"x": 0.9, "y": 0.1}, "c y")])
def test_pwws_weighs_the_gain_by_the_saliency(masked, first):
    """y gains more (0.3 to 0.2); it goes first where saliencies are equal, and x where exp(0.8) is worth more."""
    answers = {"x y": 0.9, "c y": 0.7, "x c": 0.6, "[UNK] y": 0.9 - masked["x"], "x [UNK]": 0.9 - masked["y"]}
    task = plan({}, "x y", 1, ["c"])
    task.ask = lambda texts: np.array([[1 - answers[text], answers[text]] for text in texts])
    final, turned = OWN["pwws"].search(OWN["pwws"], task, task.ask(["x y"])[0])
    assert final.text == first and not turned


def test_at_least_one_word_may_change_and_at_most_the_share():
    assert [budget(["w"] * n, 0.1) for n in (0, 1, 19, 20, 30)] == [1, 1, 1, 2, 3]
    assert budget(["w"] * 10, 0.7) == 7  # 0.7 * 10 is below 7 in binary


@pytest.mark.parametrize(
    "changes",
    [{"max_changed": 0.0}, {"similarity": 1.5}, {"candidates": 0}, {"candidates": 51}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_constant_out_of_range_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        recipe_of("pwws", "own", **changes)


def test_paper_setting_makes_the_constants_of_all_recipes_equal():
    found = {name: recipe_of(name, "paper") for name in OWN}
    assert {(r.candidates, r.max_changed, r.similarity) for r in found.values()} == {(15, 0.1, 0.8)}
    assert {name: r.source for name, r in found.items()} == dict.fromkeys(OWN, "vectors") | {"bert-attack": "masked-lm"}
    assert all(recipe_of(name, "own") == OWN[name] for name in OWN) and SETTINGS == ("paper", "own")


# Measures -------------------------------------------------------------------------------------------------------------


def test_wilson_interval_is_the_formula():
    for k, n in ((0, 10), (3, 10), (100, 100), (87, 200)):
        z, p = 1.959963984540054, k / n
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        expected = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
        value, interval = attacks.share(k, n)
        assert value == p and interval == pytest.approx(expected, abs=1e-4)
    assert attacks.share(0, 0) == (None, None)


def test_texts_that_were_wrong_count_against_accuracy_and_not_for_success():
    failed = {"status": "failed", "queries": 10, "words": 10, "changed": []}
    won = {"status": "succeeded", "queries": 20, "words": 10, "changed": [3]}
    found = attacks.measures([{"status": "skipped", "queries": 1}, failed, failed, won])
    assert found["clean_accuracy"] == 0.75 and found["accuracy_under_attack"] == 0.5
    assert found["success_rate"] == pytest.approx(1 / 3) and found["changed_share"] == 0.1
    assert found["mean_queries"] == pytest.approx(40 / 3) and found["queries"] == 41


def test_calibration_lets_as_many_pairs_pass_as_people_do():
    draw = np.random.default_rng(0)
    cosines, judged = draw.uniform(-0.2, 1, 2000), draw.uniform(0, 1, 2000)
    for level, cosine in zip((0.2, 0.8), calibrated(cosines, judged, (0.2, 0.8)), strict=True):
        assert (cosines >= cosine).mean() == pytest.approx((judged >= level).mean(), abs=2e-3)


# Noise ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spiking(tmp_path_factory) -> str:
    """The folder of a spiking TextCNN of random weights, Poisson-coded, whose answers hang on the noise."""
    torch.manual_seed(0)
    config = SpikingTextCnnConfig(vocab_size=len(WORDS) + 2, hidden_size=8, num_filters=4, neurons_per_class=1,
                                  time_steps=6, id2label=dict(enumerate(LABELS)))  # fmt: skip
    model = SpikingTextCnnForSequenceClassification(config)
    model.classifier.weight.data = model.classifier.weight.data.abs()
    folder = str(tmp_path_factory.mktemp("spiking"))
    model.save_pretrained(folder)
    tokenizer_of(["[PAD]", "[UNK]", *WORDS], "english").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wavering(tmp_path_factory) -> str:
    """The folder of a dense TextCNN of random weights whose answers to the texts are half this, half that."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(["[PAD]", "[UNK]", *WORDS], "english")
    config = TextCnnConfig(vocab_size=len(tokenizer), hidden_size=8, num_filters=4, id2label=dict(enumerate(LABELS)))
    model = TextCnnForSequenceClassification(config)
    rows = logits_of(model, tokenizer, TEXTS)
    with torch.no_grad():
        model.classifier.bias[1] -= float(np.median(rows[:, 1] - rows[:, 0]))
    folder = str(tmp_path_factory.mktemp("wavering"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def victim_of(folder: str, noise: str, **settings) -> attacks.Victim:
    return attacks.Victim(load_classifier(folder), load_tokenizer(folder), noise, **settings)


def test_fixed_noise_repeats_itself_and_fresh_noise_does_not(spiking):
    texts = TEXTS[:20]
    fixed, fresh = victim_of(spiking, "fixed"), victim_of(spiking, "fresh")
    first = fixed(texts)
    fixed.known.clear()
    assert (fixed(texts) == first).all()
    assert (fresh(texts) != fresh(texts)).any() and fresh.queries == 40
    fixed.begin(1)
    assert (fixed(texts) != first).any()  # another text under attack, another noise
    fresh.begin(0)
    again = fresh(texts)
    fresh.begin(0)
    assert (fresh(texts) == again).all()  # fresh noise is new at each query and still reproducible


def test_fixed_noise_is_shared_by_a_text_and_its_changes(spiking):
    """A word that the vocabulary does not know, put for another such: the same spikes, so the same answer."""
    fixed, fresh = victim_of(spiking, "fixed"), victim_of(spiking, "fresh")
    same = [f"a good film and xq{i}" for i in range(20)]
    assert len(np.unique(fixed(same), axis=0)) == 1
    assert len(np.unique(fresh(same), axis=0)) > 1


def test_expectation_is_the_mean_over_its_draws(spiking):
    victim = victim_of(spiking, "expectation", draws=5)
    texts = TEXTS[:7]
    each = np.stack([victim._logits(texts, np.full(7, number)) for number in range(1, 6)])
    mean = np.exp(each.mean(0))
    assert victim(texts) == pytest.approx(mean / mean.sum(1, keepdims=True), abs=1e-6)
    assert each.std(0).max() > 0 and victim.queries == 7


@pytest.mark.parametrize("noise", attacks.NOISES)
def test_batched_queries_answer_as_single_ones(spiking, noise):
    many, one = victim_of(spiking, noise, draws=3), victim_of(spiking, noise, draws=3, batch_size=1)
    assert many(TEXTS[:12]) == pytest.approx(np.concatenate([one([text]) for text in TEXTS[:12]]), abs=1e-6)


def test_a_text_asked_twice_is_one_query(tiny_teacher):
    victim = victim_of(tiny_teacher, "fresh")
    assert victim.noise == "none"  # a dense network draws none
    answers = victim(["a", "b", "a"])
    assert victim.queries == 2 and (answers[0] == answers[2]).all()
    assert (victim(["b"])[0] == answers[1]).all() and victim.queries == 2


def test_a_model_that_answers_nan_withstands_nothing(wavering):
    victim = victim_of(wavering, "fixed")
    torch.nn.init.constant_(victim.model.classifier.bias, math.nan)
    with pytest.raises(Diverged, match="answers NaN or infinity to row 3 of the split"):
        victim.begin(3)
        victim(TEXTS[:2])


# Whole attacks --------------------------------------------------------------------------------------------------------


STOP_WORDS = frozenset(["a", "an", "the", "is", "it", "of", "and", "to", "in", "was", "this", "not", "n't"])


class Lexicon(WordNet):
    """WordNet without its data: a few stop words, every word a noun, good and bad opposite."""

    name = "toy"

    def __init__(self, data_dir=None):
        self.stop_words, self.digest = STOP_WORDS, self.name

    def knows(self, word):
        return True

    def part(self, words, place):
        return "n"

    def __call__(self, sentence, place):
        return ["It", "good", "film"]

    def opposite(self, word, other):
        return {word, other} == {"good", "bad"}


@pytest.fixture
def toy_wordnet(monkeypatch):
    monkeypatch.setattr(attacks, "WordNet", Lexicon)


def options(model: str, near: str, out: Path, **asked) -> AttackOptions:
    usual = {"model": model, "data": "demo", "out": str(out), "limit": 12, "similarity": 0.0}
    if recipe_of(asked.get("recipe", "textfooler").partition("[")[0], asked.get("setting", "paper")).source in (
        "vectors",
        "bugs",
    ):
        usual["vectors"] = near
    return AttackOptions(**(usual | {"threads": 1, "quiet": True} | asked))


def records_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / attacks.ATTACKS).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("recipe", ["textfooler", "textbugger", "pwws"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_adversarial_text_keeps_the_constraints(wavering, tiny_vectors, tmp_path, toy_wordnet, recipe, setting):
    taken = len(processes._TAKEN)
    result = attacks.attack(options(wavering, tiny_vectors, tmp_path / "a", recipe=recipe, setting=setting))
    assert len(processes._TAKEN) == taken
    rows = records_of(tmp_path / "a")
    assert len(rows) == result["texts"] == 12 and result["succeeded"] > 0
    constants, stop = recipe_of(recipe, setting), Lexicon().stop_words
    for row in (row for row in rows if row["status"] != "skipped"):
        before, after = Sentence.of(row["text"]), Sentence(tuple(row["pieces"]))
        differ = [p for p, (a, b) in enumerate(zip(before.words, after.words, strict=True)) if a != b]
        assert after.text == row["adversarial"] and differ == row["changed"] and before.pieces[::2] == after.pieces[::2]
        assert len(differ) <= budget(before.words, constants.max_changed)
        assert len(differ) >= (row["status"] == "succeeded")
        assert not stop & {words[place].lower() for place in differ for words in (before.words, after.words)}
    text = (tmp_path / "a" / attacks.PAGE).read_text(encoding="utf-8")
    assert text.count("<mark>") == 2 * sum(len(row["changed"]) for row in rows if row["status"] == "succeeded")


def test_similarity_is_kept(spiking, tiny_vectors, tmp_path, toy_wordnet, monkeypatch):
    monkeypatch.setattr(attacks, "Similarity", lambda name: ByLength())
    asked = options(spiking, tiny_vectors, tmp_path / "a", similarity=0.9, encoder="by-length", recipe="textfooler")
    result = attacks.attack(asked)
    assert result["row"] == "textfooler[tiny, by-length]"
    assert result["notes"] == ["similarity is judged by the first 256 tokens, and 3 of the texts are longer"]
    changed = [row for row in records_of(tmp_path / "a") if row.get("changed")]
    assert changed and all(row["similarity"] >= 0.9 for row in changed)


class ByLength:
    """Texts are as similar as they are long."""

    name, digest = "by-length", "0"

    def cut(self, texts):
        return 3

    def __call__(self, original, texts):
        return np.array([1 - abs(len(text) - len(original)) / 20 for text in texts])


def test_texts_without_a_word_to_change_are_attempted_and_hold(spiking, tiny_vectors, toy_wordnet):
    asked = options(spiking, tiny_vectors, Path("unused"), recipe="textfooler")
    attacker = attacks.Attacker(replace(OWN["textfooler"], similarity=0.0), asked)
    for text in ("it was the", "...", "film"):
        victim = victim_of(spiking, "fixed")
        gold = int(victim([text])[0].argmax())
        victim.begin(0)
        record = attacker(victim, text, gold)
        assert record["status"] == "failed" or (text == "film" and record["changed"] == [0])
        assert attacker(victim, text, 1 - gold)["status"] == "skipped"


def test_antonyms_and_stop_words_are_no_neighbours(tiny_vectors, tmp_path):
    near = Neighbours(tiny_vectors, Lexicon())
    everything = [near(Sentence.of(word), 0) for word in near.words if word.isalpha()]
    assert any(everything) and not Lexicon().stop_words & set(itertools.chain(*everything))
    assert not near.wordnet.opposite("good", "film")
    (tmp_path / "three.txt").write_text("good 1 0 0\nbad 0 1 0\nfilm 0 0 1\n")
    near = Neighbours(str(tmp_path / "three.txt"), Lexicon())
    near(Sentence.of("good"), 0).append("changed by the caller")
    assert near(Sentence.of("good"), 0) == ["film"] and near(Sentence.of("xq"), 0) == []


def test_neighbours_are_those_of_a_whole_sort(tmp_path):
    """With many ties, at the 200th place too, which go by their number in the file; from a folder as from a file."""
    draw = np.random.default_rng(0)
    rows = draw.integers(1, 4, (600, 2))
    names = ["".join(chr(97 + int(digit)) for digit in f"{number:03}") for number in range(600)]
    text = "\n".join(f"{name} {a} {b}" for name, (a, b) in zip(names, rows, strict=True))
    (tmp_path / "en").mkdir()
    with gzip.open(tmp_path / "en" / "vectors.txt.gz", "wt") as stream:
        stream.write(text)
    near = Neighbours(str(tmp_path / "en"), Lexicon())
    assert near.name == "en"
    for word in names[:5]:
        order = np.argsort(-(near.unit @ near.unit[near.number[word]]), kind="stable")[:200]
        assert near(Sentence.of(word), 0) == [names[n] for n in order if names[n] != word][:50]


@pytest.mark.parametrize("rows", [1, 16])
def test_a_masked_language_model_is_read_where_the_word_is(tiny_tokenizer, tmp_path, monkeypatch, rows):
    """It expects the piece after the one it reads: a whole word itself, a word of several pieces masked as one."""
    monkeypatch.setattr(substitutes, "_ROWS", rows)
    monkeypatch.setattr(substitutes.checkpoints, "load_masked_lm", lambda name: NextPiece(len(tiny_tokenizer)))
    monkeypatch.setattr(substitutes.checkpoints, "load_tokenizer", lambda name: tiny_tokenizer)
    source, ids = MaskedLM("next", Lexicon(), most=1), tiny_tokenizer.get_vocab()
    piece = {number: name for name, number in ids.items()}
    [split, other] = [word for word in ("zzq", "qqzz") if len(tiny_tokenizer.tokenize(word)) > 1]
    sentence = Sentence.of(f"film, {split} good {other}")
    assert [len(tiny_tokenizer.tokenize(word)) > 1 for word in sentence.words] == [False, True, False, True]
    after = [piece[ids[name] + 1] for name in ("film", "[MASK]", "good", "[MASK]")]
    assert source.whole(sentence) == [[name] for name in after]
    assert source(sentence, 0) == [after[0]] and source.knows("film") and not source.knows("電")


class NextPiece(torch.nn.Module):
    """A masked language model that expects the piece whose number is one higher than what stands there."""

    def __init__(self, pieces: int):
        super().__init__()
        self.pieces = pieces

    def forward(self, input_ids, **others):
        return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids + 1, self.pieces + 1).float())


def test_similarity_says_how_many_texts_it_does_not_read_whole(tiny_teacher):
    assert Similarity(tiny_teacher).cut(["film " * 300, "film", "good " * 250]) == 1


def test_bugs_keep_the_ends_of_a_word_and_repeat_themselves():
    bugs = Bugs(SimpleNamespace(name="none", digest=""), 0)  # type: ignore[arg-type]
    bugs.near = lambda sentence, place: []  # type: ignore[assignment]
    sentence = Sentence.of("wonderful")
    found = bugs(sentence, 0)
    assert found == bugs(sentence, 0) and len(found) == len(set(found)) == 4 and "wonderful" not in found
    spaced, shorter, swapped, alike = found
    assert spaced.replace(" ", "") == "wonderful" and len(shorter) == 8 and sorted(swapped) == sorted("wonderful")
    assert all(other[0] == "w" and other[-1] == "l" for other in (spaced, shorter, swapped)) and len(alike) == 9
    assert bugs(Sentence.of("x"), 0) == []


# Resumption -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import test_attacks as t
from spiketext import attacks
attacks.WordNet = t.Lexicon
ask = attacks.Victim.begin
def slow(self, row):
    time.sleep({pause})
    ask(self, row)
attacks.Victim.begin = slow
attacks.attack(t.options({model!r}, {vectors!r}, t.Path({out!r}), noise="fresh", recipe="pwws"))
"""


@pytest.mark.slow
def test_a_killed_attack_ends_with_the_same_bytes(spiking, tiny_vectors, tmp_path, toy_wordnet):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    asked = {"noise": "fresh", "recipe": "pwws"}
    attacks.attack(options(spiking, tiny_vectors, whole, **asked))
    root = str(Path(__file__).parent.parent)
    script = SCRIPT.format(
        tests=str(Path(__file__).parent), pause=0.3, model=spiking, vectors=tiny_vectors, out=str(killed)
    )
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    file = killed / attacks.ATTACKS
    deadline = time.monotonic() + 120
    while not (file.exists() and file.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        assert process.poll() is None, "the attack ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= file.read_bytes().count(b"\n") < 12 and not (killed / "result.json").exists()
    with file.open("ab") as stream:
        stream.write(b'{"row": 1, "te')  # a kill in the middle of a line
    attacks.attack(options(spiking, tiny_vectors, killed, **asked))
    assert file.read_bytes() == (whole / attacks.ATTACKS).read_bytes()
    results = [json.loads((out / "result.json").read_text()) for out in (whole, killed)]
    assert results[0] | {"wall_s": 0} == results[1] | {"wall_s": 0}


def test_a_folder_of_another_model_or_data_is_not_continued(tmp_path):
    asked = {"weights": "a" * 64, "data_hash": "b" * 64}
    attacks.require_same(tmp_path, asked)  # an older folder says nothing
    (tmp_path / attacks.VICTIM).write_text(json.dumps(asked))
    attacks.require_same(tmp_path, asked)
    for name in asked:
        with pytest.raises(ValueError, match=f"holds an attack with {name} "):
            attacks.require_same(tmp_path, asked | {name: "c" * 64})


def test_lines_end_at_newlines_only(tmp_path):
    record = {"text": "one\u2028two\x85three"}
    (tmp_path / attacks.ATTACKS).write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert attacks.saved(tmp_path) == [record]


def test_a_damaged_or_foreign_file_is_named(spiking, tiny_vectors, tmp_path, toy_wordnet):
    file, asked = tmp_path / attacks.ATTACKS, options(spiking, tiny_vectors, tmp_path, recipe="pwws", limit=2)
    attacks.attack(asked)
    (tmp_path / "result.json").unlink()
    whole = file.read_bytes()
    for lines, says in (
        (whole * 2, "its lines are not of the first 4 of the 2 texts asked"),
        (b"\n".join(reversed(whole.splitlines())) + b"\n", "its lines are not of the first 2 of the 2 texts asked"),
        (whole[:40] + b"\n" + whole, "line 1 is damaged"),
        (b"[1]\n" + whole, "line 1 is damaged"),
    ):
        file.write_bytes(lines)
        with pytest.raises(ValueError, match=f"{file}: {says}"):
            attacks.attack(asked)
        assert file.read_bytes() == lines
    file.write_bytes(whole[:-9])  # a kill in the middle of a line
    (tmp_path / attacks.SECONDS).write_text("")
    assert len(attacks.saved(tmp_path)) == 1
    with pytest.raises(ValueError, match=f"{attacks.SECONDS}: is damaged"):
        attacks.attack(asked)
    (tmp_path / attacks.SECONDS).write_text("1.5")
    assert attacks.attack(asked)["wall_s"] >= 1.5 and file.read_bytes() == whole


def test_an_attack_with_other_vectors_of_the_same_name_is_not_continued(spiking, tiny_vectors, tmp_path, toy_wordnet):
    vectors = tmp_path / "v.txt"
    lines = Path(tiny_vectors).read_text(encoding="utf-8").splitlines(keepends=True)
    for shown in (lines, lines[:-1]):
        vectors.write_text("".join(shown), encoding="utf-8")
        asked = options(spiking, str(vectors), tmp_path / "a", recipe="pwws", limit=2)
        if shown is lines:
            attacks.attack(asked)
    with pytest.raises(ValueError, match="another content of vectors "):
        attacks.attack(asked)


def test_test_is_logged_once_however_often_a_run_is_asked_for(spiking, tiny_vectors, tmp_path, toy_wordnet):
    log = Path(spiking) / "test_reads.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    for _ in range(2):
        attacks.attack(options(spiking, tiny_vectors, tmp_path / "a", recipe="pwws", split="test", limit=2))
    assert len(log.read_text().splitlines()) == before + 1


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--recipe", "nope"], "recipe: expected one of textfooler"),
        (["--setting", "mine"], "setting: expected paper or own"),
        (["--noise", "loud"], "noise: expected one of fixed"),
        (["--limit", "0"], "limit: expected a whole number, at least 1; got 0"),
        (["--split", "dev"], "split: expected one of"),
        (["--data-dir", "/nowhere"], "WordNet: NLTK finds no"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line(tiny_teacher, tiny_vectors, tmp_path, capsys, monkeypatch, flags, says):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk.corpus, "wordnet", unread(nltk))
    out = str(tmp_path / "x")
    assert (
        main(["attack", "--model", tiny_teacher, "--data", "demo", "--vectors", tiny_vectors, "--out", out, *flags])
        == 2
    )
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and says in line and not Path(out).exists()


def unread(nltk):
    """NLTK's reader of WordNet as it is before its first use."""
    return nltk.corpus.util.LazyCorpusLoader("wordnet", nltk.corpus.reader.WordNetCorpusReader, None)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"vectors": "nowhere.txt"}, "word vectors .*nowhere.txt: no such file; .*--vectors"),
        ({"recipe": "bert-attack"}, "--masked-lm"),
        ({"vectors": "chinese.txt"}, "chinese knows 0.0% of the words that may change, expected at least 10%"),
        ({"recipe": "bert-attack", "vectors": "nowhere.txt"}, "vectors: got 'nowhere.txt', but recipe bert-attack"),
        ({"masked_lm": "nowhere"}, "masked_lm: got 'nowhere', but recipe textfooler in setting paper"),
        ({"encoder": "nowhere"}, "encoder: got 'nowhere', but .* similarity 0, does not read it; leave it out"),
        ({"recipe": "pwws[glove]"}, r"asked is 'pwws\[glove\]', but the resources make it 'pwws\[tiny\]'"),
        ({"recipe": "bert-attack", "masked_lm": "./nowhere"}, "model ./nowhere: cannot be read"),
        ({"similarity": 0.8, "encoder": "./nowhere"}, "model ./nowhere: cannot be read"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_resource_that_is_missing_foreign_or_idle_is_named(
    spiking, tiny_vectors, tmp_path, toy_wordnet, monkeypatch, asked, says
):
    monkeypatch.chdir(tmp_path)
    Path("chinese.txt").write_text("很 1 0\n好 0 1\n电影 1 1\n", encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        attacks.attack(options(spiking, tiny_vectors, tmp_path / "x", **asked))
    assert not (tmp_path / "x").exists()


def test_noise_is_refused_where_none_is_drawn(wavering, tiny_vectors, tmp_path, toy_wordnet):
    for asked in ({"noise": "fresh"}, {"draws": 3}):
        with pytest.raises(ValueError, match=f"{next(iter(asked))}: got .* draws no noise; leave it out"):
            attacks.attack(options(wavering, tiny_vectors, tmp_path / "x", **asked))


# In an experiment -----------------------------------------------------------------------------------------------------


def experiment_files(vectors: str, encoder: str) -> Path:
    """Experiments with a victim, a masked language model and three attacks of two texts on the victim."""
    small = "epochs = 1\nquiet = true\nmax_length = 16\nthreads = 1\n"
    head = 'title = "t"\nscale = "s"\ndata = "demo"\nseeds = [0]\n'
    texts = Path("texts.txt")
    texts.write_text("\n".join(["a plain sentence about nothing at all"] * 40), encoding="utf-8")
    row = '[[rows]]\nrow = "snn"\nkind = "attack"\nfrom = { demo = "first:snn" }\nrun = "snn"\nencoder = "lm"\n'
    usual = "limit = 2\nsimilarity = 0.0\nthreads = 1\nquiet = true\n[rows.grid]\n"
    files = {
        "first": head + f'[[rows]]\nrow = "dense"\nkind = "train"\nrun = "dense"\n[rows.options]\n{small}'
        f'model = "tailored-textcnn"\nvectors = "{vectors}"\n'
        '[[rows]]\nrow = "snn"\nkind = "convert"\nrun = "snn"\nfrom = "dense"\n[rows.options]\ntime_steps = 4\n',
        "lm": f'title = "t"\nscale = "s"\n[mlm]\nmodel = "{encoder}"\ncorpus = "{texts.resolve()}"\n'
        f"tokens = 300\nevals_per_epoch = 1\n{small}",
        "table": head + f'{row}cost_s = [7, 8]\n[rows.options]\nvectors = "{vectors}"\n{usual}'
        f'recipe = ["pwws[tiny]", "textfooler[tiny]"]\n{row}cost_s = 9\n[rows.options]\n{usual}'
        'recipe = ["bert-attack[lm]"]\n',
    }  # fmt: skip
    Path("experiments").mkdir()
    for name, text in files.items():
        Path(f"experiments/{name}.toml").write_text(text, encoding="utf-8")
    return Path("experiments")


def test_an_experiment_attacks_is_interrupted_and_goes_on(
    tiny_teacher, tiny_vectors, tmp_path, monkeypatch, toy_wordnet
):
    monkeypatch.chdir(tmp_path)
    folder, begin, begun = experiment_files(tiny_vectors, tiny_teacher), attacks.Victim.begin, []

    def stop(victim, row):
        begun.append(row)
        if len(begun) == 6:  # each attack begins once and then for each of its texts
            raise KeyboardInterrupt
        begin(victim, row)

    monkeypatch.setattr(attacks.Victim, "begin", stop)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(folder, "table")
    runs = {name: Path(f"runs/table/snn-recipe-{name}-0") for name in ("pwws", "textfooler", "bert-attack")}
    pwws, [kept] = records_of(runs["pwws"]), records_of(runs["textfooler"])
    assert not Path("runs/lm").exists()  # made for bert-attack alone
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "| snn, recipe textfooler[tiny] |  |  |  |  |  |  | (about 8) | empty |" in page
    done = reproduce.reproduce(folder, "table")
    assert records_of(runs["pwws"]) == pwws and records_of(runs["textfooler"])[0] == kept and len(begun) == 6 + 2 + 3
    for name, out in runs.items():
        found = json.loads((out / "result.json").read_text())
        cells = {cell["metric"]: cell for cell in done["json"]["cells"] if cell["row"] == f"snn, recipe {found['row']}"}
        assert found["split"] == "test" and found["texts"] == 2 and found["recipe"] == name
        assert all(cell["status"] == "done" and cell["test_reads"] == 1 for cell in cells.values())
        assert cells["mean_queries"]["values"] == [found["mean_queries"] and round(found["mean_queries"], 3)]
        [[low, high]] = cells["accuracy_under_attack"]["intervals"]
        assert [low, high] == pytest.approx([100 * end for end in found["accuracy_under_attack_interval"]])
        shown = f"{100 * found['accuracy_under_attack']:.1f} ({low:.1f} to {high:.1f})"
        [line] = [line for line in done["table"].splitlines() if line.startswith(f"| snn, recipe {found['row']} |")]
        assert line.split(" | ")[2] == shown
    assert reproduce.reproduce(folder, "table")["json"]["cells"] == done["json"]["cells"] and len(begun) == 11
    [line] = results.compare(folder, "table:snn, recipe pwws", "table:snn, recipe textfooler")
    kept = [[r["status"] == "failed" for r in records_of(runs[name])] for name in ("pwws", "textfooler")]
    assert line["texts"] == 2 and line["difference"] == 50 * (sum(kept[0]) - sum(kept[1]))
    assert done["json"]["pictures"] == ["figures/table-demo.png"] and (folder / "figures/table-demo.png").stat().st_size


def test_a_table_of_attacks_shows_intervals_and_no_number_where_there_is_none():
    won = {"status": "succeeded", "queries": 20, "words": 10, "changed": [3]}
    noisy = won | {"unseen_wrong": 0.75, "original_unseen_wrong": 0.0}
    for record, holds in ((noisy, "75.00"), (won, "")):
        outcome = results.attacked(attacks.measures([record] * 2) | {"wall_s": 4.2})
        cell = {"row": "r", "column": "d", "split": "test", "test_reads": 0, "status": "empty"}
        cells = [cell | {"metric": metric, "unit": unit, "values": [], "seeds": [], "wall_s": []}
                 for metric, unit in results.ATTACKED.items()]  # fmt: skip
        for cell in cells:
            ledger.fill({"machines": []}, cell, 0, outcome, 9.0)
        shown = results.table({"name": "t", "scale": "s", "cells": cells}).splitlines()[-1].split(" | ")[1:]
        whole = "100.0 (34.2 to 100.0)"
        assert shown == [whole, "0.0 (0.0 to 65.8)", whole, "20.00", "10.00", holds, "4", "0 |"]


def test_a_picture_of_attacks_shows_the_mean_of_the_seeds_over_any_grid(monkeypatch):
    drawn = []
    monkeypatch.setattr(results, "grouped_intervals", lambda title, across, groups, path: drawn.append(groups))
    cell = {"metric": "accuracy_under_attack", "curve": "c", "at": {"max_changed": 0.1, "recipe": "pwws[tiny]"}}
    cells = [cell | {"values": [10.0, None, 30.0], "intervals": [[5.0, 20.0], None, [25.0, 40.0]]}]
    assert results.attack_picture(cells, "t", Path("unused"))
    assert drawn == [{"pwws, 0.1": {"c": (20.0, 15.0, 30.0)}}]


# With the real WordNet ------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_wordnet_knows_synonyms_and_indirect_antonyms():
    if not os.environ.get("SPIKETEXT_DATA"):
        missing("SPIKETEXT_DATA is not set")
    net = WordNet()
    assert "movie" in net(Sentence.of("a film about it"), 1)
    assert net.opposite("great", "awful") and net.opposite("good", "bad") and not net.opposite("good", "great")
    assert all(net.is_stop(word) for word in ("Not", "n't", "n’t", "don’t", "isn’t", "can't", "can’t", "Cannot", "ca"))
    assert not net.is_stop("film") and net.knows("film") and not net.knows("電影")
