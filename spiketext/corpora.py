"""Floor 4: unlabelled text, sentence by sentence, out of files, folders, archives and the Hugging Face Hub.

Everything is a stream: what is held in memory does not grow with the corpus, nor with its longest line.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, NamedTuple

from spiketext.data import TextSet, load
from spiketext.hubsets import HUB, not_reached

SUFFIXES = (".txt", ".gz", ".tgz", ".tar", ".jsonl", ".parquet")
_TARS = (".tar.gz", ".tgz", ".tar")
_LONGEST_LINE = 2**20  # bytes; a longer line is read in pieces
_LOOKED_AT = 8000  # bytes in which a zero says that a file is not text
# after .!? and closing marks, before a blank and a capital; after the Chinese stops and their closing marks
_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s+[\"'(\[]?[A-Z0-9])|(?<=[.!?][\"')\]])(?=\s+[\"'(\[]?[A-Z0-9])"
                           r"|(?<=[。！？])(?![。！？”’」』）])|(?<=[。！？][”’」』）])")  # fmt: skip
_HAN = re.compile(r"[\u3400-\u9fff]")
_DOCUMENT_TAG = re.compile(r"</?doc\b[^>]*>")


class Source(NamedTuple):
    """A file of a corpus: a path, or a file of a Hub data set, which is fetched when it is opened; its text column."""

    name: str
    repository: str | None = None
    column: str | None = None

    def path(self) -> Path:
        """Where the file is. Raises FileNotFoundError when the Hub does not give it."""
        if self.repository is None:
            return Path(self.name)
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.repository, self.name, repo_type="dataset"))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise _missing(self.repository, error) from error


def sentences(
    corpus: str, least_words: int = 4, size: int | None = None, without: TestTexts | None = None
) -> Iterator[str]:
    """Sentences of `least_words` words or more of every file of the corpus, in the order of the paths.

    corpus: files, folders and `hub:OWNER/NAME[/FILES][:COLUMN]`, separated by commas. A line ends a sentence; headings
    of WikiText (`= x =`) and document tags are left out; UTF-8, or Latin-1 where it is not UTF-8.
    size: join neighbouring sentences of a line while they have at most so many words and Han characters together.
    without: leave out the lines and sentences that are or hold one of these texts.
    Raises FileNotFoundError for a path that is not there, ValueError for a file that is not text or is damaged, and
    when nothing could be read.
    """
    found = False
    for source in files(corpus):
        for line in _lines(source):
            line = _DOCUMENT_TAG.sub("", line).strip()
            if (line.startswith("= ") and line.endswith(" =")) or (without and without.within(line)):
                continue
            parts: Iterable[str] = (part for part in map(str.strip, _SENTENCE_END.split(line)) if part)
            if without:
                parts = [part for part in parts if not without.within(part)]
            for sentence in parts if size is None else _joined(parts, size):
                if len(sentence.split()) >= least_words or len(_HAN.findall(sentence)) >= 2 * least_words:
                    found = True
                    yield sentence
    if not found:
        raise ValueError(f"corpus {corpus}: no sentence of {least_words} words or more in it; expected plain text")


def _joined(parts: Iterable[str], size: int) -> Iterator[str]:
    together, held = "", 0
    for part in parts:
        han = len(_HAN.findall(part))
        words = han + len(_HAN.sub(" ", part).split())
        if together and held + words > size:
            yield together
            together, held = "", 0
        together += (" " if together and not han else "") + part
        held += words
    if together:
        yield together


def files(corpus: str) -> list[Source]:
    """The text files of a corpus, folders opened. Raises FileNotFoundError."""
    found: list[Source] = []
    for part in filter(None, (piece.strip() for piece in corpus.split(","))):
        path = Path(part)
        if part.startswith(HUB):
            found += _hub_files(part)
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
            found += [Source(str(p)) for p in inside]
        elif path.is_file():
            found.append(Source(part))
        else:
            raise FileNotFoundError(f"corpus {part}: no such file or folder; expected {', '.join(SUFFIXES)}")
    if not found:
        raise FileNotFoundError(f"corpus {corpus!r}: no text files in it; expected {', '.join(SUFFIXES)}")
    return found


def _hub_files(part: str) -> list[Source]:
    """`hub:OWNER/NAME[/FILES][:COLUMN]`: the data files of a Hub data set whose path matches FILES."""
    from huggingface_hub import HfApi

    where, _, column = part.removeprefix(HUB).partition(":")
    owner, name, *rest = [*where.split("/", 2), ""][:3] if "/" in where else ("", where, "")
    if not owner or not name:
        raise ValueError(f"corpus {part}: expected {HUB}OWNER/NAME, then /FILES and :COLUMN if you like")
    repository, pattern = f"{owner}/{name}", (rest[0] if rest else "") or "*"
    try:
        every = HfApi().list_repo_files(repository, repo_type="dataset")
    except Exception as error:  # the Hub's own errors, and every error of the network below it
        raise _missing(repository, error) from error
    chosen = sorted(file for file in every if file.endswith(SUFFIXES) and fnmatch(file, pattern))
    if not chosen:
        raise FileNotFoundError(
            f"corpus {part}: no file of that data set matches {pattern!r} and ends in {', '.join(SUFFIXES)}; it has "
            f"{', '.join(sorted(every)[:5]) or 'none'}"
        )
    return [Source(file, repository, column or None) for file in chosen]


def _missing(repository: str, error: Exception) -> FileNotFoundError:
    advice = "Check its name, or fetch its files yourself and name their folder."
    return not_reached(f"corpus {HUB}{repository}", repository, error, advice)


def _lines(source: Source) -> Iterator[str]:
    path = source.path()
    try:
        if path.name.endswith(_TARS):
            with tarfile.open(path) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content is not None:
                        yield from _paragraphs(_raw_lines(content, f"{path}, {member.name}"))
        elif path.suffix == ".parquet":
            yield from _parquet(path, source.column)
        else:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                lines = _raw_lines(stream, str(path))  # type: ignore[arg-type]
                yield from _records(path, lines, source.column) if ".jsonl" in path.suffixes else map(_decode, lines)
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"corpus {path}: damaged or not what its name says ({error}); fetch it again") from error


def _raw_lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """The lines of a stream; one longer than a mebibyte in pieces, cut at a blank or between characters."""
    rest, seen = b"", 0
    while piece := stream.readline(_LONGEST_LINE):
        if seen < _LOOKED_AT and b"\0" in piece[:_LOOKED_AT]:
            raise ValueError(f"corpus {name}: binary, or not UTF-8; expected text (UTF-8 or Latin-1)")
        seen += len(piece)
        line, rest = rest + piece, b""
        if len(piece) == _LONGEST_LINE and not piece.endswith(b"\n"):
            cut = line.rfind(b" ") + 1 or _last_start(line)
            line, rest = line[:cut], line[cut:]
        yield line
    if rest:
        yield rest


def _last_start(line: bytes) -> int:
    """Where the last UTF-8 character of a line starts; its end for bytes that are none."""
    return next((i for i in range(len(line) - 1, len(line) - 5, -1) if line[i] & 0xC0 != 0x80), len(line))


def _records(path: Path, lines: Iterator[bytes], column: str | None) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"corpus {path}: line {number} is not JSON ({error}); expected an object a line") from None
        name = _text_column(path, record if isinstance(record, dict) else {}, column)
        yield from str(record[name] or "").splitlines()


def _parquet(path: Path, column: str | None) -> Iterator[str]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise FileNotFoundError(f"corpus {path}: Parquet files need the package pyarrow; pip install pyarrow") from None
    with parquet.ParquetFile(path) as table:
        name = _text_column(path, table.schema_arrow.names, column)
        for batch in table.iter_batches(1000, columns=[name]):
            for text in batch.column(0).to_pylist():
                yield from (text or "").splitlines()


def _text_column(path: Path, names: Iterable[str], column: str | None) -> str:
    wanted = column or "text"
    if wanted not in names:
        raise ValueError(f"corpus {path}: no column {wanted!r}, it has {', '.join(names) or 'none'}; name one as "
                         f"{HUB}OWNER/NAME:COLUMN, or rename it")  # fmt: skip
    return wanted


def _paragraphs(lines: Iterator[bytes]) -> Iterator[str]:
    """Hard-wrapped books: lines are joined until an empty one, or until a mebibyte of them."""
    gathered: list[str] = []
    size = 0
    for line in lines:
        text = _decode(line).strip()
        if text:
            gathered.append(text)
            size += len(text)
        if gathered and (not text or size > _LONGEST_LINE):
            yield " ".join(gathered)
            gathered, size = [], 0
    yield " ".join(gathered)


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


class TestTexts:
    """The test texts of some sets, to be found in a corpus: as a whole line or sentence, or, if long enough, anywhere.

    Texts are compared by their letters and digits in lower case, so spacing, case and punctuation hide nothing.
    """

    __test__ = False  # no test of ours, whatever its name

    def __init__(self, text_sets: Iterable[TextSet], least_words: int = 8):
        words = {_letters(text) for text_set in text_sets for text in text_set.splits["test"].texts}
        self.keys = {key for key in words if key}
        self.least_words = least_words
        self.by_start: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for parts in (tuple(key.split()) for key in self.keys):
            if len(parts) >= least_words:
                self.by_start.setdefault(parts[:least_words], []).append(parts)

    def within(self, line: str) -> set[str]:
        """Those that a line is, or that stand in it, as their letters."""
        plain = _letters(line)
        found, parts, least = {plain} & self.keys, tuple(plain.split()), self.least_words
        for i in range(len(parts) - least + 1):
            for candidate in self.by_start.get(parts[i : i + least], ()):
                if parts[i : i + len(candidate)] == candidate:
                    found.add(" ".join(candidate))
        return found


def left_out(names: str, data_dir: str | None) -> TestTexts | None:
    """The test texts of sets, names separated by commas; None without a name. Raises as `data.load`."""
    sets = [load(name.strip(), data_dir) for name in names.split(",") if name.strip()]
    return TestTexts(sets) if sets else None


def overlap(corpus: str, text_set: TextSet) -> dict[str, Any]:
    """Which test texts of a set are in a corpus (`TestTexts`): counts, and the first text found.

    Raises as `sentences`.
    """
    texts, found, lines = TestTexts([text_set]), set[str](), 0
    for source in files(corpus):
        for line in _lines(source):
            lines += 1
            found |= texts.within(_DOCUMENT_TAG.sub("", line))
    for sentence in sentences(corpus):
        found |= {_letters(sentence)} & texts.keys
    return {"corpus": corpus, "lines": lines, "test_texts": len(texts.keys), "test_texts_found": len(found),
            "first": min(found) if found else None}  # fmt: skip


def _letters(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
