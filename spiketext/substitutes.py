"""Floor 5: what may stand in the place of a word, and how like two texts are. English words only.

A source is called with a sentence and a place in it and answers words, best first, in lower case where it has no case
of its own. Every source works offline; what it stands for in the papers of the attacks is said in its name.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from spiketext import checkpoints
from spiketext.augmentation import english_tagger, nltk_below
from spiketext.batching import TextRows
from spiketext.vectors import read_vectors

_WORD = re.compile(r"(n't\b|\w+(?:[-'’]\w+)*)")
_PARTS = {"NN": "n", "VB": "v", "JJ": "a", "RB": "r"}  # first letters of Penn Treebank tags -> WordNet's
_LOOKS_LIKE = str.maketrans("aoiels", "@01€1$")  # TextBugger's sub-C: signs that look alike
_ROWS = 16  # variants of a text that a masked language model reads at once
_NEGATIONS = ("n't", "ca", "wo", "sha", "can't", "cannot")  # and their halves, which NLTK's stop words lack
_NLTK_DATA = "put NLTK's data into nltk_data below --data-dir, or run python -m nltk.downloader wordnet stopwords"


@dataclass(frozen=True)
class Sentence:
    """A text as words with what stands between them, byte for byte: separators at even places of pieces, then words."""

    pieces: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Sentence:
        """A word is a run of letters and digits, hyphens and apostrophes inside it; the clitic n't is one."""
        return cls(tuple(_WORD.split(text)))

    @property
    def words(self) -> tuple[str, ...]:
        """The words in order."""
        return self.pieces[1::2]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)

    def with_word(self, place: int, word: str) -> Sentence:
        """The sentence with another word at a place; an empty one deletes it. A capital letter is kept."""
        word = word.capitalize() if self.words[place][:1].isupper() and word.islower() else word
        return Sentence((*self.pieces[: 2 * place + 1], word, *self.pieces[2 * place + 2 :]))


class Source(Protocol):
    """What gives words for a place of a sentence; digest is of all that decides which."""

    name: str
    digest: str

    def __call__(self, sentence: Sentence, place: int) -> list[str]:
        """Words that may stand there."""

    def knows(self, word: str) -> bool:
        """Whether it has the word at all, in lower case."""


class WordNet:
    """Stop words, synonyms and antonyms of NLTK's data, parts of speech of its tagger.

    Raises FileNotFoundError naming what is missing and how to get it.
    """

    def __init__(self, data_dir: str | None = None):
        nltk = nltk_below(data_dir)
        try:
            self.net = nltk.corpus.wordnet
            self.name = self.digest = f"wordnet-{self.net.get_version()}"
            self.stop_words = frozenset(nltk.corpus.stopwords.words("english")).union(_NEGATIONS)
        except LookupError as error:
            missing = re.search(r"Resource\s.*?(\w+).*? not found", str(error))
            raise FileNotFoundError(
                f"WordNet: NLTK finds no {missing[1] if missing else 'data'}; {_NLTK_DATA}"
            ) from None
        tagger = english_tagger(data_dir)
        if tagger is None:
            raise FileNotFoundError(f"WordNet: NLTK finds no averaged_perceptron_tagger_eng; {_NLTK_DATA} "
                                    "averaged_perceptron_tagger_eng")  # fmt: skip
        self.tagger = tagger
        self.antonyms = cache(self._antonyms)

    def is_stop(self, word: str) -> bool:
        """Whether a word, in any case and with either apostrophe, is a stop word."""
        return word.lower().replace("’", "'") in self.stop_words

    def knows(self, word: str) -> bool:
        """Whether it has a sense of the word."""
        return bool(self.net.synsets(word))

    def part(self, words: Sequence[str], place: int) -> str | None:
        """Part of speech of a word in its sentence: n, v, a or r; None for the others."""
        return _PARTS.get(self.tagger(list(words))[place][:2])

    def __call__(self, sentence: Sentence, place: int) -> list[str]:
        """Synonyms of the word of the same part of speech, single words, most frequent sense first (PWWS)."""
        word, part = sentence.words[place].lower(), self.part(sentence.words, place)
        if part is None:
            return []
        found = [name.lower() for synset in self.net.synsets(word, part) for name in synset.lemma_names()]
        return [name for name in dict.fromkeys(found) if name != word and name.isalpha()]

    def opposite(self, word: str, other: str) -> bool:
        """Whether one is an antonym of the other, directly or by a word like it (great: bad, awful)."""
        return other.lower() in self.antonyms(word.lower()) or word.lower() in self.antonyms(other.lower())

    def _antonyms(self, word: str) -> frozenset[str]:
        heads = {head for synset in self.net.synsets(word) for head in (synset, *synset.similar_tos())}
        direct = {antonym for head in heads for lemma in head.lemmas() for antonym in lemma.antonyms()}
        like = {
            name for antonym in direct for synset in antonym.synset().similar_tos() for name in synset.lemma_names()
        }
        return frozenset({antonym.name().lower() for antonym in direct} | {name.lower() for name in like})


class Neighbours:
    """The nearest words of a file of vectors by cosine, its antonyms and stop words left out: good and bad are near.

    path is a file or a folder of `spiketext vectors`, as it is, or below data_dir or SPIKETEXT_DATA. Raises as
    `vectors.read_vectors`.
    """

    def __init__(self, path: str, wordnet: WordNet, least: float = 0.0, data_dir: str | None = None):
        folder, where = data_dir or os.environ.get("SPIKETEXT_DATA"), Path(path)
        where = where if where.exists() or not folder else Path(folder) / where
        if not where.exists():
            raise FileNotFoundError(
                f"word vectors {where}: no such file; name one in GloVe's text format with --vectors"
            )
        self.words, vectors = read_vectors(where)
        self.unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        self.number = {word: number for number, word in enumerate(self.words)}
        self.wordnet, self.least = wordnet, least
        self.digest = hashlib.sha256("\n".join(self.words).encode() + self.unit.tobytes()).hexdigest()
        kept = [part for part in where.name.removesuffix(".gz").split(".")
                if part != "txt" and not re.fullmatch(r"\d+d", part)]  # fmt: skip
        self.name = "-".join(kept)
        self.near = cache(self._near)

    def __call__(self, sentence: Sentence, place: int) -> list[str]:
        """Neighbours with a cosine of at least `least`, up to 50, nearest first; none for an unknown word."""
        return list(self.near(sentence.words[place].lower()))

    def knows(self, word: str) -> bool:
        """Whether the word has a vector."""
        return word in self.number

    def _near(self, word: str) -> tuple[str, ...]:
        if word not in self.number:
            return ()
        cosines = self.unit @ self.unit[self.number[word]]
        most = min(200, len(cosines))
        near = np.flatnonzero(cosines >= np.partition(cosines, -most)[-most])  # a sort of all words takes far longer
        nearest = near[np.argsort(-cosines[near], kind="stable")][:most]
        found = [self.words[n] for n in nearest if cosines[n] >= self.least and self.words[n] != word]
        return tuple(other for other in found if self._fits(word, other))[:50]

    def _fits(self, word: str, other: str) -> bool:
        return other.isalpha() and not self.wordnet.is_stop(other) and not self.wordnet.opposite(word, other)


class MaskedLM:
    """What a masked language model expects in a place of a text that it reads whole (BERT-Attack).

    A word of several pieces is masked as one; the paper combines pieces instead. Raises as `load_masked_lm`.
    """

    def __init__(self, name: str, wordnet: WordNet, most: int = 48):
        self.model = checkpoints.load_masked_lm(name).eval()
        self.tokenizer = checkpoints.load_tokenizer(name)
        if not self.tokenizer.is_fast or self.tokenizer.mask_token is None:
            raise ValueError(f"masked language model {name}: expected a fast tokenizer with a mask token")
        self.wordnet, self.most = wordnet, most
        self.name, self.digest = Path(name).name, checkpoints.weights_hash(self.model)
        self.whole = cache(self._whole)

    def __call__(self, sentence: Sentence, place: int) -> list[str]:
        """Whole words, most probable first, without stop words and antonyms."""
        word = sentence.words[place].lower()
        found = [other.lower() for other in self.whole(sentence)[place]]
        return [other for other in dict.fromkeys(found)
                if other.isalpha() and other != word and not self.wordnet.is_stop(other)
                and not self.wordnet.opposite(word, other)]  # fmt: skip

    def knows(self, word: str) -> bool:
        """Whether it can spell the word with its pieces."""
        return self.tokenizer.unk_token not in self.tokenizer.tokenize(word)

    @torch.inference_mode()
    def _whole(self, sentence: Sentence) -> list[list[str]]:
        """For every word of the sentence the most probable pieces, of the text and its variants with a masked word."""
        pieces = [piece.strip() for piece in sentence.pieces]
        rows: list[list[str]] = [pieces]
        read: list[list[int]] = [[]]  # places whose word is read in each row
        for place in range(len(sentence.words)):
            if len(self.tokenizer.tokenize(pieces[2 * place + 1])) <= 1:
                read[0].append(place)
            else:
                read.append([place])
                rows.append([*pieces[: 2 * place + 1], self.tokenizer.mask_token, *pieces[2 * place + 2 :]])
        longest = min(self.tokenizer.model_max_length, 512)
        batch = self.tokenizer(rows, is_split_into_words=True, padding=True, truncation=True, max_length=longest,
                               return_tensors="pt")  # fmt: skip
        found: list[list[str]] = [[] for _ in sentence.words]
        for first in range(0, len(rows), _ROWS):
            logits = self.model(**{name: ids[first : first + _ROWS] for name, ids in batch.items()}).logits
            for row, answers in enumerate(logits, first):
                numbers = batch.word_ids(row)
                for place in (place for place in read[row] if 2 * place + 1 in numbers):
                    answer = answers[numbers.index(2 * place + 1)]
                    top = answer.topk(min(self.most, len(answer))).indices.tolist()
                    found[place] = [str(piece) for piece in self.tokenizer.convert_ids_to_tokens(top)]
        return found


class Bugs:
    """TextBugger's five: a blank inside, a letter left out, two letters swapped, a look-alike, a near word vector."""

    def __init__(self, near: Neighbours, seed: int = 0):
        self.near, self.seed, self.name, self.digest = near, seed, near.name, near.digest

    def knows(self, word: str) -> bool:
        """Whether the word has a vector; letters can be changed of any."""
        return self.near.knows(word)

    def __call__(self, sentence: Sentence, place: int) -> list[str]:
        """First and last letter stay, except for the look-alike; words of one letter have no bug of letters."""
        word = sentence.words[place]
        draw = random.Random(repr((self.seed, word)))
        found = self.near(sentence, place)[:5]
        if len(word) > 1:
            inside = draw.randrange(1, len(word))
            found.append(f"{word[:inside]} {word[inside:]}")
        if len(word) > 2:
            gone = draw.randrange(1, len(word) - 1)
            found.append(word[:gone] + word[gone + 1 :])
        if len(word) > 3:
            first = draw.randrange(1, len(word) - 2)
            found.append(word[:first] + word[first + 1] + word[first] + word[first + 2 :])
        alike = [i for i, letter in enumerate(word) if letter.translate(_LOOKS_LIKE) != letter]
        if alike:
            i = draw.choice(alike)
            found.append(word[:i] + word[i].translate(_LOOKS_LIKE) + word[i + 1 :])
        return [other for other in dict.fromkeys(found) if other != word]


class Similarity:
    """Cosine of the mean token vectors of an encoder, of the first 256 tokens. Raises as `checkpoints.load_encoder`."""

    def __init__(self, name: str, batch_size: int = 64):
        self.model, self.tokenizer = checkpoints.load_encoder(name).eval(), checkpoints.load_tokenizer(name)
        self.name, self.batch_size = name if name == "minilm" else Path(name).name, batch_size
        self.digest = checkpoints.weights_hash(self.model)
        self.of_original = cache(lambda text: self.vectors([text])[0])

    @cached_property
    def _inputs(self) -> list[str]:
        return self.tokenizer.model_input_names

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> unit vectors [N, D]."""
        rows = self._rows(texts)
        found = np.empty((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for numbers, batch in rows.batches(self.batch_size):
            inputs = {name: batch[name] for name in self._inputs if name in batch}
            mask = batch["attention_mask"][..., None].float()
            hidden = self.model(**inputs).last_hidden_state
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            found[numbers] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return found

    def cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than what is compared."""
        return self._rows(texts).truncated

    def _rows(self, texts: Sequence[str]) -> TextRows:
        return TextRows(texts, self.tokenizer, min(self.tokenizer.model_max_length, 256))

    def __call__(self, original: str, texts: Sequence[str]) -> np.ndarray:
        """Cosines [N] of the texts with the original."""
        return self.vectors(texts) @ self.of_original(original) if texts else np.empty(0, dtype=np.float32)


def calibrated(cosines: np.ndarray, judged: np.ndarray, levels: Sequence[float]) -> list[float]:
    """For each level the cosine that as many sentence pairs reach as people give that level (equipercentile linking).

    cosines [N] of sentence pairs, judged [N] in 0..1 (STS-B's scores / 5).
    """
    return [round(float(np.quantile(cosines, (judged < level).mean())), 3) for level in levels]
