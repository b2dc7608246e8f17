"""Tables of labelled texts: CSV, TSV and JSON lines into rows, with errors that name file, row and remedy.

Files are cut into lines at "\\n" and nowhere else, rows of .csv at a lone "\\r" too: byte 0x85 of Windows-1252 is an
ellipsis, and `str.splitlines` on another decoding of it would break the line. Texts keep case and spelling and lose
only the white space at both ends.
"""

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

TEXT_COLUMNS = ("text", "sentence", "sentence1", "review")
PAIR_COLUMNS = ("text_pair", "sentence2")
LABEL_COLUMNS = ("label",)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_CARRIAGE_RETURN = re.compile(r"\r(?!\n)")

csv.field_size_limit(2**31 - 1)  # a text may be longer than the 131,072 characters that Python allows


class Row(NamedTuple):
    """One labelled text: its row in the file (from 1, after the header), text, second text, class name or score."""

    number: int
    text: str
    pair: str | None
    label: str | float


def text_key(row: Row) -> tuple[str, str]:
    """Return what two rows share when one is a copy of the other: both texts without case and spacing."""
    return " ".join(row.text.lower().split()), " ".join((row.pair or "").lower().split())


def contradictory(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """Return the keys (`text_key`) of the texts that occur with more than one label."""
    labels = defaultdict(set)
    for row in rows:
        labels[text_key(row)].add(row.label)
    return {key for key, found in labels.items() if len(found) > 1}


def shown(value: object) -> str:
    """Return a value as an error shows it: its repr, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:56] + "..." + text[-1]


def listing(names: Iterable[str], limit: int = 10) -> str:
    """Return names as "a, b, c", with a count in place of those beyond the limit."""
    names = [shown(name)[1:-1] for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a file without a byte-order mark.

    Raises:  ValueError if the bytes are not in this encoding (names the first offset), the encoding is unknown, or
             the file is empty.
    """
    data = path.read_bytes()
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte 0x{data[error.start]:02x} at offset {error.start} is not {encoding}. "
            f"Name the file's encoding, for example --encoding windows-1252, gb18030 or utf-16."
        ) from None
    except LookupError:
        raise ValueError(f"{encoding!r} is no text encoding; use for example utf-8, windows-1252 or gb18030.") from None
    if not text.strip():
        raise ValueError(f"{path} is empty, expected one labelled text per row.")
    return text


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Return the lines of a file, cut at "\\n" only, each without a final "\\r"; raises as `read_text`."""
    lines = read_text(path, encoding).split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def read_records(path: Path, delimiter: str | None = None, encoding: str = "utf-8") -> list[tuple[int, dict]]:
    """Return the rows of a table as (row number, {column: value}); blank lines are counted and left out.

    .csv has commas and quoted fields, .jsonl one object per line, .parquet is a table of its own; in all other files
    the fields are separated by tabs and quotes are literal. `delimiter` replaces comma or tab.
    Raises:  ValueError as `read_text`, and for a file without rows, two columns of one name, a row with too many or too
             few fields, unbalanced quotes, or a line that is no JSON object; each names the row.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        records = _parquet_records(path)
    else:
        text = read_text(path, encoding).lstrip("\r\n")
        records = _json_records(path, text) if kind == ".jsonl" else _table_records(path, text, delimiter)
    if not records:
        raise ValueError(f"{path} is empty: it has a header and no rows, expected one labelled text per row.")
    return records


def _parquet_records(path: Path) -> list[tuple[int, dict]]:
    """Rows of a Parquet file; the numbers of a column that the Hub knows as classes become their names, -1 no label."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet files need pyarrow; pip install 'spiketext[parquet]'.") from None
    try:
        table = parquet.ParquetFile(path).read()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: is damaged or no Parquet file ({' '.join(str(error).split())[:100]}).") from None
    _require_one_of_a_name(path, table.column_names)
    columns = table.to_pydict()
    for name, names in _hub_classes((table.schema.metadata or {}).get(b"huggingface", b"{}")).items():
        if name in columns:
            classes = dict(enumerate(names))
            columns[name] = [classes.get(number) for number in columns[name]]
    rows = zip(*columns.values(), strict=True)
    return [(number, dict(zip(columns, row, strict=True))) for number, row in enumerate(rows, 1)]


def _hub_classes(metadata: bytes) -> dict[str, list[str]]:
    """The class names of each column of classes, as the Hub notes them; none where the note is no such one."""
    try:
        features = json.loads(metadata)["info"]["features"].items()
        return {name: one["names"] for name, one in features if one.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _require_one_of_a_name(path: Path, names: Sequence[str]) -> None:
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise ValueError(f"{path}: has more than one column {listing(twice)}; rename or remove all but one of a name.")


def _json_records(path: Path, text: str) -> list[tuple[int, dict]]:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: row {number} is not valid JSON ({error}); expected one object a line.") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}: row {number} is a JSON {type(record).__name__}, expected an object.")
        records.append((number, record))
    return records


def _table_records(path: Path, text: str, delimiter: str | None) -> list[tuple[int, dict]]:
    if delimiter is not None and len(delimiter) != 1:
        raise ValueError(f"--delimiter must be one character, got {delimiter!r}.")
    quoted = path.suffix.lower() == ".csv"
    source = io.StringIO(text, newline="") if quoted else text.split("\n")
    separator = delimiter or ("," if quoted else "\t")
    rows: list[list[str]] = []
    try:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        for fields in csv.reader(source, delimiter=separator, quoting=quoting, strict=True):
            rows.append(fields)
    except csv.Error as error:
        raise ValueError(f"{path}: row {len(rows)} cannot be read ({error}); check the quotes in it.") from None
    header = [name.strip() for name in rows[0]]
    _require_one_of_a_name(path, header)
    ended = (
        " It holds a carriage return, which ends a row: quote or remove it." if _CARRIAGE_RETURN.search(text) else ""
    )
    for number, fields in enumerate(rows[1:], 1):
        if fields and len(fields) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(fields)} fields, expected {len(header)} ({listing(header)}). "
                f"Quote a text that holds the separator, or name another one with --delimiter.{ended}"
            )
    return [(number, dict(zip(header, fields, strict=True))) for number, fields in enumerate(rows[1:], 1) if fields]


def _column(path: Path, found: list[str], asked: str | None, usual: Sequence[str], flag: str) -> str | None:
    """Return the column asked for, or else the first usual one that is there, or None."""
    if asked is not None and asked not in found:
        hint = " If they are in one piece, name the separator with --delimiter." if len(found) == 1 else ""
        raise ValueError(f"{path} has no column {asked!r} (given by {flag}); its columns are {listing(found)}.{hint}")
    return asked or next((name for name in usual if name in found), None)


def read_table(
    path: Path,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> list[Row]:
    """Read a table with a header, or JSON lines; a text or label that is missing comes as "".

    Columns not named: text is the first of TEXT_COLUMNS that is there, pair of PAIR_COLUMNS (none is fine), label is
    `label`. Labels come as strings; where all are numbers, 1.0 is the class 1 and nan is no label.
    Raises:  ValueError as `read_records`; for a missing column, with those found and the flag; for one that is asked
             for twice; for a value that is no text.
    """
    records = read_records(path, delimiter, encoding)
    found = list({name: None for _, record in records for name in record})
    text = _column(path, found, text_column, TEXT_COLUMNS, "--text-column")
    label = _column(path, found, label_column, LABEL_COLUMNS, "--label-column")
    usual_pair = [name for name in PAIR_COLUMNS if name not in (text, label)]
    pair = _column(path, found, pair_column, usual_pair, "--pair-column")
    for column, usual, flag in ((text, TEXT_COLUMNS, "--text-column"), (label, LABEL_COLUMNS, "--label-column")):
        if column is None:
            raise ValueError(
                f"{path} has no column {' or '.join(usual)}; its columns are {listing(found)}. "
                f"Name the right one with {flag}" + (", or the separator with --delimiter." if len(found) == 1 else ".")
            )
    assert text is not None and label is not None
    if len({text, pair, label}) < 3:  # None, if there is no pair, is the third
        raise ValueError(
            f"{path}: expected a column each for text, second text and label, got {text!r}, {pair!r} and {label!r}; "
            f"name another one with --text-column, --pair-column or --label-column."
        )
    rows = [
        Row(
            number,
            _text_value(path, number, record, text),
            _text_value(path, number, record, pair) if pair else None,
            _label_value(path, number, record, label),
        )
        for number, record in records
    ]
    return _whole_numbers(rows)


def _whole_numbers(rows: list[Row]) -> list[Row]:
    """Labels that are all numbers, or nan, written in one way: 1.0 as 1, nan as ""; others as they are."""
    written = {row.label: "" if str(row.label).lower() == "nan" else str(row.label) for row in rows}
    if not any(written.values()) or not all(_NUMBER.fullmatch(label) for label in written.values() if label):
        return rows
    return [row._replace(label=re.sub(r"(?<=[0-9])\.0*$", "", written[row.label])) for row in rows]


def read_texts(path: Path, encoding: str = "utf-8") -> list[str]:
    """Return the texts of a table, second ones too, whose labels are not asked for; raises as `read_table`."""
    records = read_records(path, None, encoding)
    found = list(records[0][1])
    column = _column(path, found, None, TEXT_COLUMNS, "")
    if column is None:
        raise ValueError(f"{path} has no column {' or '.join(TEXT_COLUMNS)}; its columns are {listing(found)}. "
                         "Rename the one with the texts.")  # fmt: skip
    pair = _column(path, found, None, PAIR_COLUMNS, "")
    columns = [column, pair] if pair else [column]
    return [_text_value(path, number, record, name) for number, record in records for name in columns]


def _text_value(path: Path, number: int, record: dict, column: str) -> str:
    value = record.get(column)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{path}: row {number} has {shown(value)} in column {column!r}, expected a text.")
    return _whole(path, number, column, value or "").strip()


def _whole(path: Path, number: int, column: str, text: str) -> str:
    if half := half_character(text):
        raise ValueError(f"{path}: row {number} has {half!r} in column {column!r}, half a character; write whole ones.")
    return text


def half_character(text: str) -> str | None:
    """A surrogate, half of a pair, that stands alone in a text, which no tokenizer reads; None without one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def _label_value(path: Path, number: int, record: dict, column: str) -> str:
    value = record.get(column)
    if isinstance(value, list | dict | bytes):
        raise ValueError(f"{path}: row {number} has {shown(value)} as its label, expected one string or number.")
    if isinstance(value, float):  # 1.0 is the class 1, and NaN is how tables of numbers say that there is none
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    text = "" if value is None else _whole(path, number, column, str(value))
    if text[:1].isspace() and text.lstrip().startswith('"'):
        raise ValueError(f"{path}: row {number} has label {shown(text)}, a quote after a blank; remove the blanks "
                         "after the separators, so that quotes are read as such.")  # fmt: skip
    return text.strip()


def complete_rows(path: Path, rows: Sequence[Row], skip_bad_rows: bool = False) -> list[Row]:
    """Return the rows that have both text (and pair, where there is one) and label.

    Raises:  ValueError naming the first row that lacks one, unless skip_bad_rows.
    """
    bad = {row.number: "text" for row in rows if not row.text or row.pair == ""}
    bad = {row.number: "label" for row in rows if row.label == ""} | bad
    if bad and not skip_bad_rows:
        number = min(bad)
        raise ValueError(
            f"{path}: row {number} has no {bad[number]} (rows without text or label: {len(bad)}). "
            f"Complete such rows, or drop them with --skip-bad-rows."
        )
    return [row for row in rows if row.number not in bad]


def consistent_rows(path: Path, rows: Sequence[Row], skip_bad_rows: bool = False) -> list[Row]:
    """Return the rows without those whose text occurs with another label too.

    Raises:  ValueError naming the first such row and one that it contradicts, unless skip_bad_rows.
    """
    both = contradictory(rows)
    bad = [row for row in rows if text_key(row) in both]
    if bad and not skip_bad_rows:
        other = next(row for row in bad if text_key(row) == text_key(bad[0]) and row.label != bad[0].label)
        raise ValueError(
            f"{path}: row {bad[0].number} has label {shown(bad[0].label)} and row {other.number} with the same text "
            f"{shown(other.label)} (rows that contradict others: {len(bad)}). Correct such rows, or drop them with "
            f"--skip-bad-rows."
        )
    return [row for row in rows if text_key(row) not in both]


def number_of(path: Path, row: int, value: str | float) -> float:
    """Return a label as a finite number; raises ValueError naming file, row and value if it is none."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}: row {row} has label {shown(value)}, expected a number, as the task is regression.")
    return number


def class_names(path: Path, rows: Sequence[Row]) -> list[str]:
    """Return the labels that occur, sorted; as numbers if all are integers. Raises ValueError if it is one only."""
    labels = sorted({str(row.label) for row in rows})
    if len(labels) < 2:
        raise ValueError(
            f"{path} has one class, {shown(labels[0])}, expected at least 2. "
            f"Is another column the label? Name it with --label-column."
        )
    if all(re.fullmatch(r"[+-]?[0-9]+", label) for label in labels):
        labels.sort(key=int)
    return labels


def require_known_labels(path: Path, rows: Iterable[Row], train: Path, labels: list[str]) -> None:
    """Raise ValueError naming the first row whose label is none of those in the train file."""
    for row in rows:
        if row.label not in labels:
            raise ValueError(
                f"{path}: row {row.number} has label {shown(row.label)}, expected one of those in {train.name}: "
                f"{listing(labels)}. Correct the row, or add the class to {train.name}."
            )
