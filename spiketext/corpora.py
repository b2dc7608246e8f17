"""Floor 1: unlabelled text, sentence by sentence, out of plain, gzip and tar files."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spiketext.data import TextSet

SUFFIXES = (".txt", ".gz", ".tgz", ".tar")
# after .!? and closing marks, before a blank and a capital; after the Chinese stops and their closing marks
_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s+[\"'(\[]?[A-Z0-9])|(?<=[.!?][\"')\]])(?=\s+[\"'(\[]?[A-Z0-9])"
                           r"|(?<=[。！？])(?![。！？”’」』）])|(?<=[。！？][”’」』）])")  # fmt: skip
_HAN = re.compile(r"[\u3400-\u9fff]")
_DOCUMENT_TAG = re.compile(r"</?doc\b[^>]*>")


def sentences(corpus: str, least_words: int = 4) -> Iterator[str]:
    """Sentences of `least_words` words or more of every file of the corpus, in the order of the paths.

    corpus: files and folders separated by commas. A line ends a sentence; headings of WikiText (`= x =`) and document
    tags are left out; UTF-8, or Latin-1 where it is not UTF-8.
    Raises FileNotFoundError for a path that is not there, ValueError when nothing could be read.
    """
    found = False
    for path in files(corpus):
        for line in _lines(path):
            line = _DOCUMENT_TAG.sub("", line).strip()
            if line.startswith("= ") and line.endswith(" ="):
                continue
            for sentence in _SENTENCE_END.split(line):
                sentence = sentence.strip()
                if len(sentence.split()) >= least_words or len(_HAN.findall(sentence)) >= 2 * least_words:
                    found = True
                    yield sentence
    if not found:
        raise ValueError(f"corpus {corpus}: no sentence of {least_words} words or more in it; expected plain text")


def files(corpus: str) -> list[Path]:
    """The text files of a corpus, folders opened. Raises FileNotFoundError."""
    paths: list[Path] = []
    for part in filter(None, (piece.strip() for piece in corpus.split(","))):
        path = Path(part)
        if path.is_dir():
            paths += sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
        elif path.is_file():
            paths.append(path)
        else:
            raise FileNotFoundError(f"corpus {part}: no such file or folder; expected {', '.join(SUFFIXES)}")
    if not paths:
        raise FileNotFoundError(f"corpus {corpus!r}: no text files in it; expected {', '.join(SUFFIXES)}")
    return paths


def _lines(path: Path) -> Iterator[str]:
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    yield from _paragraphs(content.read())
    elif path.suffix == ".gz":
        with gzip.open(path) as stream:
            yield from map(_decode, stream)
    else:
        with path.open("rb") as stream:
            yield from map(_decode, stream)


def _paragraphs(raw: bytes) -> Iterator[str]:
    """Hard-wrapped books: lines are joined until an empty one."""
    gathered: list[str] = []
    for line in io.BytesIO(raw):
        text = _decode(line).strip()
        if text:
            gathered.append(text)
        elif gathered:
            yield " ".join(gathered)
            gathered = []
    yield " ".join(gathered)


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def overlap(corpus: str, text_set: TextSet, least_words: int = 8) -> dict[str, Any]:
    """Which test texts of a set are in a corpus: as a whole line or sentence, or, if long enough, anywhere.

    Texts are compared by their letters and digits in lower case, so spacing, case and punctuation hide nothing.
    Returns counts and the first text found. Raises as `sentences`.
    """
    words = {_letters(text) for text in text_set.splits["test"].texts}
    keys = {key for key in words if key}
    by_start: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for key in keys:
        if len(key.split()) >= least_words:
            parts = tuple(key.split())
            by_start.setdefault(parts[:least_words], []).append(parts)
    found: set[str] = set()
    lines = 0
    for path in files(corpus):
        for line in _lines(path):
            lines += 1
            plain = _letters(_DOCUMENT_TAG.sub("", line))
            if plain in keys:
                found.add(plain)
            parts = tuple(plain.split())
            for i in range(len(parts) - least_words + 1):
                for candidate in by_start.get(parts[i : i + least_words], ()):
                    if parts[i : i + len(candidate)] == candidate:
                        found.add(" ".join(candidate))
    found |= {_letters(s) for s in sentences(corpus) if _letters(s) in keys}
    return {"corpus": corpus, "lines": lines, "test_texts": len(keys), "test_texts_found": len(found),
            "first": min(found) if found else None}  # fmt: skip


def _letters(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
