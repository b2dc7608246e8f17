"""Floor 1: the lines of unlabelled text out of files, folders, archives and the Hugging Face Hub.

Everything is a stream: what is held in memory does not grow with the corpus, nor with its longest line; a record of
JSON lines or Parquet is held whole, and so is a table that was named.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, NamedTuple

from spiketext.hubsets import HUB, listed, not_reached
from spiketext.tables import half_character, read_texts

SUFFIXES = (".txt", ".gz", ".tgz", ".tar", ".jsonl", ".parquet")
_TABLES = (".csv", ".tsv")  # named themselves: a folder's are not read
_PACKED_TABLES = (".csv.gz", ".tsv.gz")
_TARS = (".tar.gz", ".tgz", ".tar")
_LONGEST_LINE = 2**20  # bytes; a longer line is read in pieces
_TWO_HIGH = re.compile(rb"[\x80-\xff]{2}")  # as in UTF-8, GB18030 and Big5; an accent of Latin-1 stands alone
_LOOKED_AT = 8000  # bytes in which a zero says that a file is not text


def _has_text(name: str) -> bool:
    """Whether a file of a folder, an archive or the Hub is one of the corpus."""
    return name.lower().endswith(SUFFIXES) and not name.lower().endswith(_PACKED_TABLES)


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


def files(corpus: str) -> list[Source]:
    """The text files of a corpus, folders opened. Raises FileNotFoundError."""
    found: list[Source] = []
    for part in filter(None, (piece.strip() for piece in corpus.split(","))):
        path = Path(part)
        if part.startswith(HUB):
            found += _hub_files(part)
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _has_text(p.name))
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
    chosen = sorted(file for file in every if _has_text(file) and fnmatch(file, pattern))
    if not chosen:
        raise FileNotFoundError(
            f"corpus {part}: no file of that data set matches {pattern!r} and ends in {', '.join(SUFFIXES)}; it has "
            f"{', '.join(sorted(every)[:5]) or 'none'}"
        )
    return [Source(file, repository, column or None) for file in chosen]


def _missing(repository: str, error: Exception) -> FileNotFoundError:
    advice = "Check its name, or fetch its files yourself and name their folder."
    return not_reached(f"corpus {HUB}{repository}", repository, error, advice)


def lines(source: Source, encoding: str) -> Iterator[str]:
    """The lines of a file, unpacked and decoded; an empty one ends a paragraph or record. Raises as `sentences`."""
    path = source.path()
    if path.name.lower().endswith(_PACKED_TABLES):
        raise ValueError(f"corpus {path}: a compressed table, expected a plain one; unpack it with gunzip first")
    if path.suffix.lower() in _TABLES:
        for text in read_texts(path, encoding):
            yield from _apart(text)
        return
    try:
        with path.open("rb") as stream:
            yield from _read(str(path), path.name.lower(), stream, source.column, encoding)
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"corpus {path}: damaged or not what its name says ({error}); fetch it again") from error


def _read(where: str, name: str, stream: IO[bytes], column: str | None, encoding: str) -> Iterator[str]:
    """The lines of a file or an archive's member, read as its name (in lower case) says; `where` is for errors."""
    if name.endswith(_TARS):
        with tarfile.open(fileobj=stream) as archive:
            if not any(_has_text(member.name) for member in archive):
                raise ValueError(f"corpus {where}: none of its members ends in {', '.join(SUFFIXES)}; rename them")
            for member in archive:
                inside, kind = archive.extractfile(member) if _has_text(member.name) else None, member.name.lower()
                if inside is not None:
                    inner = _read(f"{where}, {member.name}", kind, inside, column, encoding)
                    yield from _paragraphs(inner) if kind.endswith((".txt", ".txt.gz")) else inner
    elif name.endswith(".gz"):
        with gzip.open(stream) as unpacked:
            yield from _read(where, name.removesuffix(".gz"), unpacked, column, encoding)  # type: ignore[arg-type]
    elif name.endswith(".parquet"):
        yield from _parquet(where, stream, column)
    elif name.endswith(".jsonl"):
        yield from _records(where, _decoded(stream, where, encoding, whole=True), column)
    else:
        yield from _decoded(stream, where, encoding)


def _decoded(stream: IO[bytes], where: str, encoding: str, whole: bool = False) -> Iterator[str]:
    """The lines of a stream; unless `whole`, one longer than a mebibyte in pieces, cut at a blank where it has one."""
    try:
        wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
        "".encode(encoding)
    except LookupError:
        raise ValueError(
            f"corpus {where}: {encoding!r} is no text encoding; use for example utf-8 or gb18030"
        ) from None
    if wide:
        raise ValueError(f"corpus {where}: {encoding} cannot be read line by line; convert it to UTF-8 first, with "
                         f"iconv -f {encoding} -t utf-8")  # fmt: skip
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, number, seen = "", 1, 0
    while piece := stream.readline(-1 if whole else _LONGEST_LINE):
        if seen < _LOOKED_AT and b"\0" in piece[:_LOOKED_AT]:
            raise ValueError(f"corpus {where}: binary, or UTF-16; expected text, converted to UTF-8 first")
        ended, pending = piece.endswith(b"\n") or whole or len(piece) < _LONGEST_LINE, decoder.getstate()[0]
        try:
            text = decoder.decode(piece, ended)
        except UnicodeDecodeError as error:
            if encoding.lower() not in ("utf-8", "utf8") or _TWO_HIGH.search(pending + piece):
                raise ValueError(
                    f"corpus {where}: line {number} is not {encoding} ({error.reason}); name its encoding with "
                    "--corpus-encoding, for example gb18030, or convert it to UTF-8"
                ) from None
            text = _western(pending + piece)
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


def _western(raw: bytes) -> str:
    """Windows-1252, which is Latin-1 with quotation marks in place of controls; Latin-1 with bytes it doesn't know."""
    try:
        return raw.decode("windows-1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _records(where: str, lines: Iterator[str], column: str | None) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"corpus {where}: line {number} is not JSON ({error}); expected an object a line"
            ) from None
        name = _text_column(where, record if isinstance(record, dict) else {}, column)
        if not isinstance(record[name], str | None):
            raise _no_text(where, name, f"{type(record[name]).__name__} in line {number}")
        if half := half_character(record[name] or ""):
            raise _no_text(where, name, f"{half!r} in line {number}, half a character")
        yield from _apart(record[name] or "")


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
            yield from _apart(text or "")


def _apart(text: str) -> list[str]:
    """The lines of a record, and an empty one: no text of a corpus goes on in the next record."""
    return [*text.splitlines(), ""]


def _text_column(where: str, names: Iterable[str], column: str | None) -> str:
    every, wanted = list(names), column or "text"
    if every.count(wanted) != 1:
        raise ValueError(f"corpus {where}: expected one column {wanted!r}, it has {', '.join(every) or 'none'}; "
                         f"name one as {HUB}OWNER/NAME:COLUMN, or rename it")  # fmt: skip
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
