"""Floor 0: word vectors in the text format of GloVe (`word v1 ... vD`) and word2vec (the same below a line `N D`).

SNN-TextCNN 3.1.2 wants rates: `unit_range` clips to mean +- 3 standard deviations, standardises and maps to [0, 1].
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

FILE = "vectors.txt.gz"  # in the folder of a training of word vectors
CLIP = 3.0  # standard deviations, the authors' program
_LEAST = 0.01  # standard deviation of rates; it is 1/6 where none is clipped


def read_vectors(
    path: str | Path, most: int | None = None, wanted: Collection[str] = (), dimension: int | None = None
) -> tuple[list[str], np.ndarray]:
    """Words in file order and their vectors, float32 [N, D], from a text file, its .gz, or a folder with FILE.

    most keeps the first so many words (files are sorted by frequency) and those of `wanted`; None keeps all. Every row
    is checked, kept or not. dimension: the D that is expected. A word may hold blanks after the first row, as some of
    GloVe do.
    Raises: FileNotFoundError; ValueError naming the line of a ragged row, a word that stands twice, a value that is no
            finite number, another dimension, a header that the rows contradict, or bytes that are no UTF-8 or gzip.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"word vectors {path}: no such file; expected lines `word v1 v2 ...`, plain or .gz")
    first_line: dict[str, int] = {}
    words: list[str] = []
    rows: list[np.ndarray] = []
    promised: int | None = None
    for number, line in _lines(path):
        word, *values = line.rstrip(" ").split(" ")
        if dimension is not None and len(values) > dimension and not _are_numbers(values[:-dimension]):
            word, values = " ".join([word, *values[:-dimension]]), values[-dimension:]  # a word with blanks in it
        if number == 1 and len(values) == 1 and word.isdigit() and values[0].isdigit():
            promised, dimension = int(word), _agree(path, 1, int(values[0]), dimension)
            continue
        dimension = _agree(path, number, len(values), dimension)
        if word in first_line:
            raise ValueError(f"word vectors {path}: line {number} has {word!r}, which line {first_line[word]} has too; "
                             "remove one of them")  # fmt: skip
        first_line[word] = number
        vector = _numbers(path, number, values)
        if most is None or len(first_line) <= most or word in wanted:
            words.append(word)
            rows.append(vector)
    if not words:
        raise ValueError(f"word vectors {path}: no row; expected lines `word v1 v2 ...`")
    if promised is not None and promised != len(first_line):
        raise ValueError(f"word vectors {path}: the first line promises {promised} words, {len(first_line)} follow; "
                         "the file is not complete")  # fmt: skip
    return words, np.stack(rows)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"word vectors {path}: line {number} is not UTF-8; convert the file first") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"word vectors {path}: broken after line {number} ({error}); fetch the file again") from None


def _agree(path: Path, number: int, found: int, expected: int | None) -> int:
    if found < 1 or (expected is not None and found != expected):
        wanted = "a word and its values" if expected is None else f"{expected} as above or as asked for"
        raise ValueError(f"word vectors {path}: line {number} has {found} values, expected {wanted}")
    return found


def _are_numbers(values: list[str]) -> bool:
    try:
        return bool(np.isfinite(np.array(values, dtype=np.float32)).all())
    except ValueError:
        return False


def _numbers(path: Path, number: int, values: list[str]) -> np.ndarray:
    vector = np.array(values, dtype=np.float32) if _are_numbers(values) else np.array([np.nan])
    if not np.isfinite(vector).all():
        raise ValueError(f"word vectors {path}: line {number} has a value that is no finite number; correct the line")
    return vector


def unit_range(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] of any unit -> rates in [0, 1]: 0.5 is the mean of all entries, 0 and 1 are 3 deviations off.

    Raises ValueError for values that are all equal, or nearly so beside a few huge ones.
    """
    mean, deviation = float(vectors.mean(dtype=np.float64)), float(vectors.std(dtype=np.float64))
    if deviation == 0:
        raise ValueError(f"word vectors: all values are {vectors.flat[0]}; expected different ones")
    rates = ((vectors - mean) / deviation).clip(-CLIP, CLIP) / (2 * CLIP) + 0.5
    if rates.std() < _LEAST:
        raise ValueError(f"word vectors: values from {vectors.min():.3g} to {vectors.max():.3g} make nearly equal "
                         "rates; take the rows with the huge ones out")  # fmt: skip
    return rates
