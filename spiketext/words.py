"""Floor 1: texts to words, words to ids, ids to vectors.

One rule for unknown words, in training, evaluation and under attack: a word that is not in the vocabulary is the word
[UNK], whose vector starts as the mean of all vectors and is trained where the embedding is trained. It is a word: it
spikes and counts in every mean. [PAD] is none: silent, and in no mean. A text without any word is one [UNK].
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizer

from spiketext.augmentation import Reader, Word
from spiketext.vectors import read_vectors

LANGUAGES = ("english", "chinese")
PAD, UNKNOWN = "[PAD]", "[UNK]"
RANDOM = "random"
_FEWEST = 0.1  # a file that knows less than this share of the words that are read is the wrong one
_HAN = re.compile(r"[\u3400-\u9fff]")
# A clitic stands apart as in the Penn Treebank (do n't, it 's), a hyphenated word is one, all else is a sign.
_ENGLISH = re.compile(r"n't\b|'(?:s|re|ve|ll|m|d)\b|\w+?(?=n't\b)|\w+(?:[-.,]\w+)*|[^\w\s]")


def segment(text: str, language: str) -> list[str]:
    """The words of a text, lower-cased. English: words, clitics and signs by a pattern; Chinese: jieba's words.

    Raises ValueError for another language, FileNotFoundError when jieba is not installed.
    """
    if language == "english":
        return _ENGLISH.findall(text.lower().replace("’", "'"))
    if language == "chinese":
        return [word for word in _jieba().cut(text.lower()) if not word.isspace()]
    raise ValueError(f"language: expected {' or '.join(LANGUAGES)}, got {language!r}")


@cache
def _jieba() -> Any:
    try:
        import jieba
    except ImportError:
        raise FileNotFoundError("Chinese words need the package jieba; pip install 'spiketext[chinese]'") from None
    segmenter = jieba.Tokenizer()  # filled here: its own start would read a cache that anybody may have written
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter


@cache
def chinese_reader() -> Reader:
    """jieba's words and parts of speech; blanks are no words, and a text without blanks has none between its words.

    Raises FileNotFoundError when jieba is not installed.
    """
    jieba = _jieba()
    from jieba.posseg import POSTokenizer

    tagger = POSTokenizer(jieba)

    def read(text: str) -> list[Word]:
        found: list[Word] = []
        for text_of, tag in tagger.cut(text):
            if not text_of.isspace():
                found.append(Word(text_of, tag, ""))
            elif found:
                found[-1] = found[-1]._replace(after=found[-1].after + text_of)
        return found

    return read


def language_of(texts: Iterable[str]) -> str:
    """chinese when at least a fifth of the signs are Han characters, else english."""
    joined = "".join(texts)
    return "chinese" if 5 * len(_HAN.findall(joined)) > len(joined) else "english"


class WordTokenizer(PreTrainedTokenizer):
    """Texts to ids of whole words: id 0 is [PAD], id 1 is [UNK], then the words. Saved as vocab.txt, a word a line."""

    vocab_files_names = {"vocab_file": "vocab.txt"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, language: str = "english", **kwargs: Any):
        words = Path(vocab_file).read_bytes().decode("utf-8").split("\n")  # a word may hold any other end of a line
        self.words, self.language = words, language
        self.ids = {word: number for number, word in enumerate(words)}
        segment("", language)
        own = {"language": language, "split_special_tokens": True}  # a [PAD] that somebody wrote is signs and a word
        super().__init__(**{"pad_token": PAD, "unk_token": UNKNOWN, **kwargs, **own})

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        """Word -> id."""
        return dict(self.ids)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return segment(text, self.language)

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, self.ids[UNKNOWN])

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None):
        """A text without any word is one unknown word. Raises ValueError for a pair of texts."""
        if token_ids_1 is not None:
            raise ValueError("a TextCNN reads single texts, and these are pairs; take --model spikebert")
        return token_ids_0 or [self.ids[UNKNOWN]]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """None."""
        return 0

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write vocab.txt."""
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}vocab.txt"
        path.write_text("\n".join(self.words), encoding="utf-8", newline="\n")
        return (str(path),)


def lexicon(
    texts: Sequence[str],
    source: str | None,
    language: str | None = None,
    *,
    data_dir: str | None = None,
    most: int = 50_000,
    dimension: int = 300,
    seed: int = 0,
) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    """The words of a network, their vectors as the file has them, float32 [V, D], and what the file covers.

    source is a file of vectors (as it is, or below data_dir or SPIKETEXT_DATA): its first `most` words and those of
    the texts. None or "random": the words of the texts, normally distributed vectors of deviation 0.3. Row 0 is [PAD],
    zeros; row 1 is [UNK], the mean of all others. Coverage: the share of the texts' words, and of the different ones,
    with a vector.
    Raises: as `read_vectors`; ValueError when less than a tenth of the words have a vector.
    """
    language = language or language_of(texts)
    counts = Counter(word for text in texts for word in segment(text, language))
    if source in (None, RANDOM):
        words = sorted(counts)
        vectors = np.random.default_rng(seed).normal(0, 0.3, (len(words), dimension)).astype(np.float32)
    else:
        path = Path(str(source))
        folder = data_dir or os.environ.get("SPIKETEXT_DATA")
        path = path if path.exists() or not folder else Path(folder) / path
        words, vectors = read_vectors(path, most, counts.keys())
    known = counts.keys() & set(words)
    share = sum(counts[word] for word in known) / max(sum(counts.values()), 1)
    if share < _FEWEST:
        raise ValueError(
            f"word vectors {source}: know {share:.1%} of the {language} words of the training texts, expected at least "
            f"{_FEWEST:.0%}; are they of another language, or not lower-cased?"
        )
    taken = [number for number, word in enumerate(words) if word not in (PAD, UNKNOWN)]
    vectors = vectors[taken]
    special = np.stack([np.zeros_like(vectors[0]), vectors.mean(0)])
    coverage = {
        "vectors": source or RANDOM,
        "language": language,
        "vocabulary": len(taken) + 2,
        "covered_words": round(share, 4),
        "covered_types": round(len(known) / max(len(counts), 1), 4),
    }
    return [PAD, UNKNOWN, *(words[number] for number in taken)], np.concatenate([special, vectors]), coverage
