"""Floor 4: unlabelled text, sentence by sentence, out of files, folders, archives and the Hugging Face Hub.

Everything is a stream: what is held in memory does not grow with the corpus, nor with its longest line; a record of
JSON lines or Parquet is held whole, and so is a table that was named.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from spiketext.data import TextSet, load
from spiketext.hubsets import HUB, listed, not_reached
from spiketext.tables import read_texts

SUFFIXES = (".txt", ".gz", ".tgz", ".tar", ".jsonl", ".parquet")
_TABLES = (".csv", ".tsv")  # named themselves: a folder's are not read
_TARS = (".tar.gz", ".tgz", ".tar")
_LONGEST_LINE = 2**20  # bytes; a longer line is read in pieces
_TWO_HIGH = re.compile(rb"[\x80-\xff]{2}")  # as in UTF-8, GB18030 and Big5; an accent of Latin-1 stands alone
_LOOKED_AT = 8000  # bytes in which a zero says that a file is not text
# after .!? and closing marks, before a blank and a capital; after the Chinese stops and their closing marks
_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s+[\"'(\[]?[A-Z0-9])|(?<=[.!?][\"')\]])(?=\s+[\"'(\[]?[A-Z0-9])"
                           r"|(?<=[。！？])(?![。！？”’」』）])|(?<=[。！？][”’」』）])")  # fmt: skip
_HAN = re.compile(r"[\u3400-\u9fff]")
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_SPELLINGS = ((re.compile(r"-[lr][rsc]b-"), " "), (re.compile(r"n ?['\u2019] ?t\b"), " nt"),
              (re.compile(r"\b(can|gon|got|wan|gim|lem)(not|na|ta|me)\b"), r"\1 \2"))  # fmt: skip
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
    corpus: str,
    least_words: int = 4,
    size: int | None = None,
    without: TestTexts | None = None,
    encoding: str = "utf-8",
) -> Iterator[str]:
    """Sentences of `least_words` words or more of every file of the corpus, in the order of the paths.

    corpus: files, folders and `hub:OWNER/NAME[/FILES][:COLUMN]`, separated by commas; of a CSV or TSV that is named
    its column of texts (`tables.read_texts`), of an archive the members that have the name of a text file. A line ends
    a sentence; headings of WikiText (`= x =`) and document tags are left out.
    size: join neighbouring sentences of a line while they have at most so many words and Han characters together.
    without: leave out the lines and sentences that are or hold one of these texts.
    encoding: of all files; a line of "utf-8" that is none is Latin-1 if each of its accents stands alone.
    Raises FileNotFoundError for a path that is not there, ValueError for a file that is not text, has another encoding
    or is damaged, and when nothing could be read.
    """
    found = False
    for source in files(corpus):
        for line in _lines(source, encoding):
            parts = _parts(line)
            if parts and parts[0].startswith("= ") and parts[-1].endswith(" ="):
                continue
            if without:
                _, parts = without.within(parts)
            for sentence in parts if size is None else _joined(parts, size):
                if len(sentence.split()) >= least_words or len(_HAN.findall(sentence)) >= 2 * least_words:
                    found = True
                    yield sentence
    if not found:
        raise ValueError(f"corpus {corpus}: no sentence of {least_words} words or more in it; expected plain text")


def _parts(line: str) -> list[str]:
    """The sentences of a line, document tags left out."""
    return [part for part in map(str.strip, _SENTENCE_END.split(_DOCUMENT_TAG.sub("", line))) if part]


def _joined(parts: Iterable[str], size: int) -> Iterator[str]:
    together, held = "", 0
    for part in parts:
        han, words = len(_HAN.findall(part)), words_in(part)
        if together and held + words > size:
            yield together
            together, held = "", 0
        together += (" " if together and not han else "") + part
        held += words
    if together:
        yield together


def words_in(text: str) -> int:
    """Words and Han characters together."""
    return len(_HAN.findall(text)) + len(_HAN.sub(" ", text).split())


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
    """`hub:OWNER/NAME[/FILES][:COLUMN]`: the data files of a Hub data set whose path matches FILES.

    Offline they are those that were fetched before.
    """
    where, _, column = part.removeprefix(HUB).partition(":")
    owner, name, *rest = [*where.split("/", 2), ""][:3] if "/" in where else ("", where, "")
    if not owner or not name:
        raise ValueError(f"corpus {part}: expected {HUB}OWNER/NAME, then /FILES and :COLUMN if you like")
    repository, pattern = f"{owner}/{name}", (rest[0] if rest else "") or "*"
    try:
        every = listed(repository)
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


def _lines(source: Source, encoding: str) -> Iterator[str]:
    path = source.path()
    if path.suffix in _TABLES:
        for text in read_texts(path, encoding):
            yield from text.splitlines()
        return
    try:
        with path.open("rb") as stream:
            yield from _read(str(path), path.name, stream, source.column, encoding)
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"corpus {path}: damaged or not what its name says ({error}); fetch it again") from error


def _read(where: str, name: str, stream: IO[bytes], column: str | None, encoding: str) -> Iterator[str]:
    """The lines of a file or of a member of an archive, read as its name says; `where` is for errors."""
    if name.endswith(_TARS):
        with tarfile.open(fileobj=stream) as archive:
            if not any(member.name.endswith(SUFFIXES) for member in archive):
                raise ValueError(f"corpus {where}: none of its members ends in {', '.join(SUFFIXES)}; rename them")
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith(SUFFIXES) else None
                if content is not None:
                    lines = _read(f"{where}, {member.name}", member.name, content, column, encoding)
                    yield from _paragraphs(lines) if member.name.endswith((".txt", ".txt.gz")) else lines
    elif name.endswith(".gz"):
        with gzip.open(stream) as inside:
            yield from _read(where, name.removesuffix(".gz"), inside, column, encoding)  # type: ignore[arg-type]
    elif name.endswith(".parquet"):
        yield from _parquet(where, stream, column)
    elif name.endswith(".jsonl"):
        yield from _records(where, _decoded(stream, where, encoding, whole=True), column)
    else:
        yield from _decoded(stream, where, encoding)


def _decoded(stream: IO[bytes], where: str, encoding: str, whole: bool = False) -> Iterator[str]:
    """The lines of a stream; unless `whole`, one longer than a mebibyte in pieces, cut at a blank where it has one."""
    try:
        "".encode(encoding)
    except LookupError:
        raise ValueError(
            f"corpus {where}: {encoding!r} is no text encoding; use for example utf-8 or gb18030"
        ) from None
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, number, seen = "", 1, 0
    while piece := stream.readline(-1 if whole else _LONGEST_LINE):
        if seen < _LOOKED_AT and b"\0" in piece[:_LOOKED_AT]:
            raise ValueError(f"corpus {where}: binary, or UTF-16; expected text, in UTF-8 for example")
        ended, pending = piece.endswith(b"\n") or whole or len(piece) < _LONGEST_LINE, decoder.getstate()[0]
        try:
            text = decoder.decode(piece, ended)
        except UnicodeDecodeError as error:
            if encoding.lower() not in ("utf-8", "utf8") or _TWO_HIGH.search(pending + piece):
                raise ValueError(
                    f"corpus {where}: line {number} is not {encoding} ({error.reason}); name its encoding with "
                    "--corpus-encoding, for example gb18030, or convert it to UTF-8"
                ) from None
            text = (pending + piece).decode("latin-1")
            decoder.reset()
        line, rest = rest + (text if seen else text.removeprefix("\ufeff")), ""
        seen += len(piece)
        number += ended
        if not ended:
            cut = line.rfind(" ") + 1 or len(line)
            line, rest = line[:cut], line[cut:]
        yield line
    if rest:
        yield rest


def _records(where: str, lines: Iterator[str], column: str | None) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"corpus {where}: line {number} is not JSON ({error}); expected an object a line"
            ) from None
        name = _text_column(where, record if isinstance(record, dict) else {}, column)
        if not isinstance(record[name], str | None):
            raise _no_text(where, name, f"{type(record[name]).__name__} in line {number}")
        yield from (record[name] or "").splitlines()


def _parquet(where: str, stream: IO[bytes], column: str | None) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise FileNotFoundError(
            f"corpus {where}: Parquet files need the package pyarrow; pip install pyarrow"
        ) from None
    try:
        table = parquet.ParquetFile(stream)
    except ArrowException as error:
        raise ValueError(f"corpus {where}: damaged or no Parquet file ({error}); fetch it again") from None
    name = _text_column(where, table.schema_arrow.names, column)
    kind = table.schema_arrow.field(name).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise _no_text(where, name, str(kind))
    for batch in table.iter_batches(1000, columns=[name]):
        for text in batch.column(0).to_pylist():
            yield from (text or "").splitlines()


def _text_column(where: str, names: Iterable[str], column: str | None) -> str:
    wanted = column or "text"
    if wanted not in names:
        raise ValueError(f"corpus {where}: no column {wanted!r}, it has {', '.join(names) or 'none'}; name one as "
                         f"{HUB}OWNER/NAME:COLUMN, or rename it")  # fmt: skip
    return wanted


def _no_text(where: str, column: str, found: str) -> ValueError:
    return ValueError(f"corpus {where}: column {column!r} holds {found}, expected texts; name another one as "
                      f"{HUB}OWNER/NAME:COLUMN, or rename it")  # fmt: skip


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """Hard-wrapped books: lines are joined until an empty one, or until a mebibyte of them."""
    gathered: list[str] = []
    size = 0
    for line in lines:
        text = line.strip()
        if text:
            gathered.append(text)
            size += len(text)
        if gathered and (not text or size > _LONGEST_LINE):
            yield " ".join(gathered)
            gathered, size = [], 0
    yield " ".join(gathered)


class TestTexts:
    """The test texts of some sets (or of other splits), second texts of pairs too, to be found in a corpus.

    Texts are compared by their words in lower case, so spacing, punctuation and the spellings of tokenised text
    (do n't, -lrb-) hide nothing; a Chinese character is a word. A text of `least_words` words or more is found wherever
    it stands in a line; a shorter one, which anybody may write within another, as a whole line or sentence only. One of
    fewer than three words ("No more.") stands in every book by chance: it is counted as too short and not looked for.
    As a corpus is read by lines, a text of several is found by any of its lines.
    """

    __test__ = False  # no test of ours, whatever its name

    def __init__(self, text_sets: Iterable[TextSet], least_words: int = 8, splits: Sequence[str] = ("test",)):
        tests = [text_set.splits[split] for text_set in text_sets for split in splits]
        texts = [text for test in tests for text in (*test.texts, *(test.pairs or ()))]
        every = {key: text for text in texts if (key := " ".join(_words(text)))}
        lines = {" ".join(_words(line)): text for text in every.values() for line in text.splitlines()}
        self.texts = {key: text for key, text in (lines | every).items() if key.count(" ") >= 2}
        self.number = len(every)
        self.too_short = len(every) - len(set(self.texts.values()))
        self.least_words = least_words
        self.by_start: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for words in (tuple(key.split()) for key in self.texts):
            if len(words) >= least_words:
                self.by_start.setdefault(words[:least_words], []).append(words)

    def within(self, parts: Sequence[str]) -> tuple[set[str], list[str]]:
        """What is found in a line, given as its sentences: keys of `texts`; and the sentences to keep without them.

        None is kept when the line is one of the texts or a long one stands in it.
        """
        each = [_words(part) for part in parts]
        keys = [" ".join(words) for words in each]
        line, least = tuple(chain.from_iterable(each)), self.least_words
        found = {" ".join(line)} & self.texts.keys()
        for i in range(len(line) - least + 1):
            for candidate in self.by_start.get(line[i : i + least], ()):
                if line[i : i + len(candidate)] == candidate:
                    found.add(" ".join(candidate))
        kept = [part for part, key in zip(parts, keys, strict=True) if key not in self.texts]
        return found | (self.texts.keys() & set(keys)), [] if found else kept


def left_out(names: str, data_dir: str | None) -> TestTexts | None:
    """The test and validation texts of sets, names separated by commas; None without a name. Raises as `data.load`."""
    sets = [load(name.strip(), data_dir) for name in names.split(",") if name.strip()]
    return TestTexts(sets, splits=("validation", "test")) if sets else None


def overlap(corpus: str, text_set: TextSet, encoding: str = "utf-8") -> dict[str, Any]:
    """Which test texts of a set are in a corpus (`TestTexts`): counts, and as `first` the longest that was found.

    Raises as `sentences`.
    """
    texts, found, lines = TestTexts([text_set]), set[str](), 0
    for source in files(corpus):
        for line in _lines(source, encoding):
            lines += 1
            found |= {texts.texts[key] for key in texts.within(_parts(line))[0]}
    if not lines:
        raise ValueError(f"corpus {corpus}: there is no line in it; expected plain text")
    return {"corpus": corpus, "lines": lines, "test_texts": texts.number,
            "too_short": texts.too_short, "test_texts_found": len(found),
            "first": max(found, key=len, default=None)}  # fmt: skip


def _words(text: str) -> list[str]:
    """The words of a text, in lower case, as they are compared: don't and do n't are both [do, nt]."""
    text = unicodedata.normalize("NFKC", text).lower()
    for spelling, one in _SPELLINGS:
        text = spelling.sub(one, text)
    return _WORD.findall(text)
