"""Augmentation: the stated probabilities, and nothing that the key does not decide."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from spiketext.augmentation import Augmenter, Word, english_reader, english_tagger
from spiketext.words import chinese_reader

TEXTS = ["the cat sees a dog", "the dog bites a small cat", "a very small dog sees the bird"]
WORDS = {"the": "D", "a": "D", "cat": "N", "dog": "N", "bird": "N", "sees": "V", "bites": "V"}
DRAWS = 4000


def tagger(words: list[str]) -> list[str]:
    return [WORDS.get(word, "A") for word in words]


def tagged(text: str) -> list[Word]:
    return [Word(word, tag, " ") for word, tag in zip(text.split(), tagger(text.split()), strict=True)]


def plain(text: str) -> list[Word]:
    return [Word(word, None, " ") for word in text.split()]


def augmenter(**changes) -> Augmenter:
    settings = {"texts": TEXTS, "mask_token": "[MASK]", "read": tagged, "p_ngram": 0.0, **changes}
    return Augmenter(**settings)


def near(count: int, trials: int, p: float) -> None:
    """Within four and a half standard deviations of a binomial count."""
    assert abs(count - trials * p) <= 4.5 * (trials * p * (1 - p)) ** 0.5, (count, trials * p)


def variants(augment: Augmenter, text: str, ngram: bool = True) -> list[str]:
    return [augment(text, (0, 0, row), ngram) for row in range(DRAWS)]


# Masks and replacements -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p_mask", [0.0, 0.1, 0.5, 1.0])
def test_each_word_is_masked_with_its_probability(p_mask):
    words = " ".join(variants(augmenter(read=plain, p_mask=p_mask, p_pos=0.0), TEXTS[0])).split()
    assert len(words) == 5 * DRAWS
    near(words.count("[MASK]"), len(words), p_mask)


@pytest.mark.parametrize("p_pos", [0.0, 0.1, 0.6])
def test_each_word_is_replaced_with_its_probability_by_one_of_its_kind(p_pos):
    pool = Counter(word for text in TEXTS for word in text.split() if WORDS.get(word) == "N")
    cat = [variant.split()[1] for variant in variants(augmenter(p_mask=0.2, p_pos=p_pos), TEXTS[0])]
    assert set(cat) <= {*pool, "[MASK]"}
    near(cat.count("[MASK]"), DRAWS, 0.2)
    for word in ("dog", "bird"):
        near(cat.count(word), DRAWS, p_pos * pool[word] / pool.total())


def test_a_word_is_never_replaced_by_one_of_another_kind():
    for variant in variants(augmenter(p_mask=0.0, p_pos=1.0), TEXTS[2]):
        assert tagger(variant.split()) == tagger(TEXTS[2].split())


def test_neighbouring_words_are_drawn_independently():
    both = [v.split()[:2].count("[MASK]") == 2 for v in variants(augmenter(read=plain, p_mask=0.5, p_pos=0), TEXTS[0])]
    near(sum(both), DRAWS, 0.25)


def test_without_a_tagger_no_word_is_replaced():
    augment = augmenter(read=plain, p_mask=0.1, p_pos=0.9)
    assert {word for variant in variants(augment, TEXTS[0]) for word in variant.split()} <= {
        *TEXTS[0].split(),
        "[MASK]",
    }


# N-grams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p_ngram", [0.0, 0.25, 1.0])
def test_an_ngram_is_kept_with_its_probability(p_ngram):
    text = " ".join(f"w{i}" for i in range(20))
    cut = [len(v.split()) < 20 for v in variants(augmenter(p_mask=0.0, p_pos=0.0, p_ngram=p_ngram), text)]
    near(sum(cut), DRAWS, p_ngram)


def test_an_ngram_has_one_to_five_words_that_stand_together_anywhere():
    text = " ".join(f"w{i}" for i in range(20))
    cut = [v.split() for v in variants(augmenter(p_mask=0.0, p_pos=0.0, p_ngram=1.0), text)]
    for size, count in Counter(map(len, cut)).items():
        assert 1 <= size <= 5
        near(count, DRAWS, 0.2)
    for words in cut:
        first = int(words[0][1:])
        assert words == [f"w{first + i}" for i in range(len(words))]
    assert {"w0", "w19"} <= {word for words in cut for word in words}


def test_an_ngram_of_a_short_text_is_not_longer_than_it():
    assert {len(v.split()) for v in variants(augmenter(p_mask=0.0, p_pos=0.0, p_ngram=1.0), "two words")} == {1, 2}


def test_pairs_are_never_cut():
    texts = variants(augmenter(p_mask=0.0, p_pos=0.0, p_ngram=1.0), TEXTS[0], ngram=False)
    assert set(texts) == {TEXTS[0]}


# Keys and edges -------------------------------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_variant_from_another_augmenter_too():
    one, other = augmenter(p_mask=0.3, p_pos=0.3, p_ngram=0.3), augmenter(p_mask=0.3, p_pos=0.3, p_ngram=0.3)
    keys = [(seed, epoch, row) for seed in range(3) for epoch in range(3) for row in range(3)]
    ours = [one(TEXTS[2], key) for key in keys]
    assert [other(TEXTS[2], key) for key in reversed(keys)] == ours[::-1], "no draw depends on those before it"
    assert len(set(ours)) > 15, "other keys give other variants"


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_a_text_without_words_stays_as_it_is(text):
    assert augmenter(p_mask=0.5, p_ngram=1.0)(text, (0,)) == text


def test_no_variant_is_empty():
    assert all(variants(augmenter(p_mask=0.5, p_pos=0.5, p_ngram=1.0), "word"))


@pytest.mark.parametrize(
    "wrong", [{"p_mask": -0.1}, {"p_pos": -0.1}, {"p_mask": 0.6, "p_pos": 0.6}, {"p_ngram": 1.1}, {"p_ngram": -0.1}]
)
def test_probabilities_out_of_range_are_refused_with_their_values(wrong):
    with pytest.raises(ValueError, match=re.escape(str(next(iter(wrong.values()))))):
        augmenter(**wrong)


def test_the_english_tagger_tags_each_word_or_says_that_it_is_not_installed():
    tag = english_tagger()
    if tag is not None:
        assert len(tag(["a", "good", "film"])) == 3
        assert tag([]) == []


# Chinese --------------------------------------------------------------------------------------------------------------

REVIEWS = ["酒店的房间很大，服务也很好。", "早餐不错 but 停车场太小", "这家餐厅的味道非常好"]


def test_chinese_words_are_jiebas_with_their_parts_of_speech_and_no_letter_is_lost():
    read = chinese_reader()
    words = {word.text: word.tag for word in read(REVIEWS[0])}
    assert words["酒店"] == "n" and words["房间"] == "n" and words["很"] == "d"
    for text in (*REVIEWS, " 两边有空白\t", ""):
        assert "".join(word.text + word.after for word in read(text)) == text.lstrip()
    assert all(not word.text.isspace() for word in read(REVIEWS[1]))


def test_chinese_texts_are_masked_and_replaced_by_words_of_their_kind_without_new_blanks():
    read = chinese_reader()
    augment = augmenter(texts=REVIEWS, read=read, p_mask=0.0, p_pos=1.0)
    tags = [word.tag for word in read(REVIEWS[0])]
    kinds = {(word.tag, word.text) for text in REVIEWS for word in read(text)}
    for row in range(20):
        variant = augment(REVIEWS[0], (0, 0, row))
        assert " " not in variant
        rest = variant
        for tag in tags:  # whatever jieba reads in the new text: it is made of words of the old kinds, in their order
            rest = next(rest[len(word) :] for kind, word in sorted(kinds, key=lambda k: -len(k[1]))
                        if kind == tag and rest.startswith(word))  # fmt: skip
        assert rest == ""
    masked = variants(augmenter(texts=REVIEWS, read=read, p_mask=0.1, p_pos=0.0), REVIEWS[1])
    near(sum(text.count("[MASK]") for text in masked), len(read(REVIEWS[1])) * DRAWS, 0.1)
    assert any(" [MASK] 停车场" in text for text in masked)


def test_an_ngram_of_a_chinese_text_is_cut_at_words():
    read = chinese_reader()
    words = [word.text for word in read(REVIEWS[2])]
    pieces = {"".join(words[i : i + n]) for n in range(1, 6) for i in range(len(words))}
    assert set(variants(augmenter(texts=REVIEWS, read=read, p_mask=0, p_pos=0, p_ngram=1.0), REVIEWS[2])) <= pieces


def test_without_nltks_data_english_words_have_no_part_of_speech(monkeypatch):
    monkeypatch.setattr("spiketext.augmentation.english_tagger", lambda data_dir: None)
    assert english_reader()("a good  film") == [Word("a", None, " "), Word("good", None, " "), Word("film", None, " ")]
