"""Floor 0: more texts for stage 2, by masking, part-of-speech replacement and n-grams (Tang et al. 2019, section 4).

For each word one uniform draw u decides: u < p_mask masks it, u < p_mask + p_pos replaces it by a word of the same
part of speech drawn from the training texts, else it stays. Then, with p_ngram, a random n-gram, n in 1..5, is kept.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Tagger = Callable[[list[str]], list[str]]


class Augmenter:
    """Texts of a training set -> variants of them. The same key always gives the same variant.

    texts fill the pool of replacement words; mask_token is the tokenizer's; tagger gives the part of speech of each
    word, None leaves replacement out.
    Raises ValueError for probabilities outside 0..1 or p_mask + p_pos above 1.
    """

    def __init__(
        self,
        texts: Iterable[str],
        mask_token: str,
        tagger: Tagger | None,
        p_mask: float = 0.1,
        p_pos: float = 0.1,
        p_ngram: float = 0.25,
    ):
        if not (p_mask >= 0 and p_pos >= 0 and p_mask + p_pos <= 1 and 0 <= p_ngram <= 1):
            raise ValueError(
                f"augmentation: expected p_mask, p_pos, p_ngram in 0..1 with p_mask + p_pos up to 1, got {p_mask}, "
                f"{p_pos}, {p_ngram}"
            )
        self.mask_token, self.tagger = mask_token, tagger
        self.p_mask, self.p_pos, self.p_ngram = p_mask, p_pos, p_ngram
        self.tags: dict[str, list[str]] = {}  # text -> the tag of each word
        self.pool: dict[str, list[str]] = {}  # tag -> words, as often as they occur
        if tagger is not None:
            pool = defaultdict(list)
            for text in texts:
                words = text.split()
                self.tags[text] = tagger(words)
                for word, tag in zip(words, self.tags[text], strict=True):
                    pool[tag].append(word)
            self.pool = dict(pool)

    def __call__(self, text: str, key: tuple, ngram: bool = True) -> str:
        """One variant of a text; ngram=False (pairs) never cuts it. A text that would become empty stays as it is."""
        draw = random.Random(repr(key))
        words = text.split()
        tags: Sequence[str | None] = self.tags.get(text) or [None] * len(words)
        changed = [self._replace(word, tag, draw) for word, tag in zip(words, tags, strict=True)]
        if ngram and changed and draw.random() < self.p_ngram:
            size = min(draw.randint(1, 5), len(changed))
            start = draw.randint(0, len(changed) - size)
            changed = changed[start : start + size]
        return " ".join(changed) or text

    def _replace(self, word: str, tag: str | None, draw: random.Random) -> str:
        u, choice = draw.random(), draw.random()
        if u < self.p_mask:
            return self.mask_token
        if u < self.p_mask + self.p_pos and tag in self.pool:
            words = self.pool[tag]
            return words[int(choice * len(words))]
        return word


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
