"""Floor 5: word vectors of a corpus, trained by gensim (skip-gram with negative sampling, Mikolov et al. 2013)."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from spiketext.corpora import left_out, sentences
from spiketext.options import VectorOptions
from spiketext.runs import CHECKPOINTS, Run
from spiketext.vectors import FILE
from spiketext.words import language_of, segment

_LOOKED_AT = 200  # sentences that say which language a corpus is in


def vectors(options: VectorOptions) -> dict[str, Any]:
    """The command: options.out/vectors.txt.gz, in the text format of word2vec, the most frequent word first.

    The words are those of `words.segment`, which the TextCNNs read too. They are written into a file first, so memory
    holds the vectors and not the corpus. With more than one thread two trainings differ slightly.
    Returns words, sentences, tokens and seconds. Raises as `corpora.sentences`; ValueError for options out of range or
    a corpus without a word that is frequent enough, FileNotFoundError without gensim.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError:
        raise FileNotFoundError("word vectors need the package gensim; pip install 'spiketext[vectors]'") from None
    for name in ("dimension", "window", "epochs", "least"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
    run = Run("vectors", options)
    if run.result is not None:
        return run.result
    started = time.monotonic()
    (run.out / CHECKPOINTS).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run.out / CHECKPOINTS, prefix=".corpus-") as folder:  # one of `runs._CACHES`
        path, language = Path(folder) / "words.txt", options.language
        without = left_out(options.leave_out, options.data_dir, options.corpus_encoding)
        read = partial(sentences, options.corpus, encoding=options.corpus_encoding)
        language = language or language_of(islice(read(), _LOOKED_AT))
        count = _write(path, read(without=without), language, options.quiet)
        try:
            model = Word2Vec(
                corpus_file=str(path), vector_size=options.dimension, window=options.window, epochs=options.epochs,
                min_count=options.least, sg=1, negative=5, seed=options.seed,
                workers=options.threads or os.cpu_count() or 1,
            )  # fmt: skip
        except RuntimeError as error:
            if "build vocabulary" not in str(error):
                raise
            raise ValueError(f"corpus {options.corpus}: no word occurs {options.least} times; give more text, or a "
                             "smaller --least") from None  # fmt: skip
    result = {"language": language, "words": len(model.wv), "dimension": options.dimension, "sentences": count,
              "tokens": model.corpus_total_words, "validation": {},
              "wall_s": round(time.monotonic() - started, 1)}  # fmt: skip
    return run.finish(lambda folder: model.wv.save_word2vec_format(str(Path(folder) / FILE)), result)


def _write(path: Path, texts: Iterator[str], language: str, quiet: bool) -> int:
    """One sentence a line, a blank between words; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for text in tqdm(texts, desc="words of the corpus", unit=" sentences", disable=quiet):
            count += 1
            stream.write(" ".join(" ".join(segment(text, language)).split()) + "\n")
    return count
