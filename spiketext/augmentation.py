"""Floor 0: more texts for stage 2, by masking, part-of-speech replacement and n-grams (Tang et al. 2019, section 4).

For each word one uniform draw u decides: u < p_mask masks it, u < p_mask + p_pos replaces it by a word of the same
part of speech drawn from the training texts, else it stays. Then, with p_ngram, a random n-gram, n in 1..5, is kept.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

Tagger = Callable[[list[str]], list[str]]


class Word(NamedTuple):
    """A word of a text, its part of speech (None: not known) and the blanks that follow it."""

    text: str
    tag: str | None
    after: str


Reader = Callable[[str], list[Word]]  # a text -> its words


class Augmenter:
    """Texts of a training set -> variants of them. The same key always gives the same variant.

    texts fill the pool of replacement words; mask_token is the tokenizer's; read gives the words of a text, of which
    only those with a part of speech are replaced.
    Raises ValueError for probabilities outside 0..1 or p_mask + p_pos above 1.
    """

    def __init__(
        self,
        texts: Iterable[str],
        mask_token: str,
        read: Reader,
        p_mask: float = 0.1,
        p_pos: float = 0.1,
        p_ngram: float = 0.25,
    ):
        if not (p_mask >= 0 and p_pos >= 0 and p_mask + p_pos <= 1 and 0 <= p_ngram <= 1):
            raise ValueError(
                f"augmentation: expected p_mask, p_pos, p_ngram in 0..1 with p_mask + p_pos up to 1, got {p_mask}, "
                f"{p_pos}, {p_ngram}"
            )
        self.mask_token = mask_token
        self.p_mask, self.p_pos, self.p_ngram = p_mask, p_pos, p_ngram
        self.read = cache(read)  # a tagger is slow, and each text is asked for in every epoch
        pool = defaultdict(list)
        for text in texts:
            for word in self.read(text):
                if word.tag is not None:
                    pool[word.tag].append(word.text)
        self.pool = dict(pool)  # tag -> words, as often as they occur

    def __call__(self, text: str, key: tuple, ngram: bool = True) -> str:
        """One variant of a text; ngram=False (pairs) never cuts it. A text that would become empty stays as it is."""
        draw = random.Random(repr(key))
        changed = [self._replace(word, draw) + word.after for word in self.read(text)]
        if ngram and changed and draw.random() < self.p_ngram:
            size = min(draw.randint(1, 5), len(changed))
            start = draw.randint(0, len(changed) - size)
            changed = changed[start : start + size]
        return "".join(changed).rstrip() or text

    def _replace(self, word: Word, draw: random.Random) -> str:
        u, choice = draw.random(), draw.random()
        if u < self.p_mask:
            return self.mask_token
        if u < self.p_mask + self.p_pos and word.tag in self.pool:
            words = self.pool[word.tag]
            return words[int(choice * len(words))]
        return word.text


def english_reader(data_dir: str | None = None) -> Reader:
    """Words between blanks, with NLTK's part of speech where its tagger's data are installed (`english_tagger`)."""
    tagger = english_tagger(data_dir)

    def read(text: str) -> list[Word]:
        words = text.split()
        tags = tagger(words) if tagger else [None] * len(words)
        return [Word(word, tag, " ") for word, tag in zip(words, tags, strict=True)]

    return read


def english_tagger(data_dir: str | None = None) -> Tagger | None:
    """NLTK's perceptron tagger, or None where its data (averaged_perceptron_tagger_eng) is not installed.

    Besides NLTK's own places it looks into nltk_data below data_dir (default: SPIKETEXT_DATA).
    """
    nltk = nltk_below(data_dir)
    try:
        nltk.pos_tag(["test"])
    except LookupError:
        return None
    return lambda words: [tag for _, tag in nltk.pos_tag(words)]


def nltk_below(data_dir: str | None = None) -> Any:
    """NLTK, which looks into nltk_data below data_dir (default: SPIKETEXT_DATA) after its own places."""
    import nltk

    data_dir = data_dir or os.environ.get("SPIKETEXT_DATA")
    if data_dir and (folder := os.path.join(data_dir, "nltk_data")) not in nltk.data.path:
        nltk.data.path.append(folder)
    return nltk
