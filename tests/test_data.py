"""The data sets: reading, cutting once and for good, and errors that say where to look."""

import csv
import json
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from conftest import missing

from spiketext.data import check, describe, load, names
from spiketext.datasets import BUILT_IN, KNOWN_DEFECTS, phrase_key, read_trees
from spiketext.splits import draw, sentence_groups
from spiketext.tables import Row


def write_csv(path: Path, rows, header=("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def polar(count: int, prefix: str = "film") -> list[tuple[str, str]]:
    return [(f"{prefix} number {n}", ("bad", "good")[n % 2]) for n in range(count)]


def write_folder(path: Path, **parts) -> Path:
    path.mkdir()
    for split in ("train", "validation", "test"):
        write_csv(path / f"{split}.csv", parts.get(split, polar(6, split)))
    return path


def raises(message: str, error=ValueError):
    return pytest.raises(error, match=re.compile(message))


# The cut --------------------------------------------------------------------------------------------------------------


def test_a_file_is_cut_into_tenths_by_class(tmp_path):
    text_set = load(write_csv(tmp_path / "films.csv", polar(200)))
    assert (text_set.name, text_set.task, text_set.metric) == ("films", "classification", "accuracy")
    assert text_set.labels == ["bad", "good"]
    assert {split: len(part) for split, part in text_set.splits.items()} == {
        "train": 162, "validation": 18, "test": 20,
    }  # fmt: skip
    for part in text_set.splits.values():
        assert part.labels.count(0) == part.labels.count(1)


def test_the_cut_is_the_same_every_time_and_everywhere(tmp_path):
    assert sorted(draw(["a"] * 60)) == [4, 6, 14, 34, 38, 44]  # the first by sha256sum of '0 N'
    path = write_csv(tmp_path / "films.csv", polar(100))
    first, again = load(path), load(path)
    assert first == again
    assert first.hash == again.hash


def test_the_hash_follows_texts_pairs_labels_and_order(tmp_path):
    rows = polar(40)
    hashes = {
        load(write_csv(tmp_path / f"{name}.csv", changed)).hash
        for name, changed in {
            "plain": rows,
            "text": [("another text", rows[0][1]), *rows[1:]],
            "order": rows[::-1],
            "label": [(rows[0][0], "good"), *rows[1:]],
        }.items()
    }
    paired = load(write_csv(tmp_path / "p.csv", [(t, "b", n) for t, n in rows], ("text", "text_pair", "label")))
    assert len(hashes | {paired.hash}) == 5


def test_draw_takes_a_tenth_of_each_stratum_and_at_least_one():
    strata = ["a"] * 200 + ["b"] * 44 + ["c"] * 3
    assert Counter(strata[n] for n in draw(strata)) == {"a": 20, "b": 4, "c": 1}


def test_copies_of_test_and_validation_rows_leave_the_lower_splits(tmp_path):
    rows = [(text, label) for text, label in polar(60) for text in (text, text.upper() + " ", text)]
    text_set = load(write_csv(tmp_path / "copies.csv", rows))
    report = check(text_set)
    assert set(report["shared"].values()) == {0}
    left = 180 - sum(part["rows"] for part in report["splits"].values())
    assert left > 0
    assert f"{left} copies of test or validation rows left train or validation" in text_set.notes


def test_groups_are_rows_that_share_a_sentence_through_any_chain():
    pairs = [("a", "b"), ("c", "d"), ("B", "e"), ("f", "g"), ("e", "f"), ("h", "i")]
    groups = sentence_groups([Row(n, one, other, "x") for n, (one, other) in enumerate(pairs)])
    assert groups[0] == groups[2] == groups[3] == groups[4]
    assert len(set(groups)) == 3


def test_pairs_of_a_file_that_share_a_sentence_stay_on_one_side_where_that_can_be(tmp_path):
    rows = [(f"premise {n // 5}", f"hypothesis {n}", ("no", "yes")[n % 2]) for n in range(300)]
    text_set = load(write_csv(tmp_path / "nli.csv", rows, ("text", "text_pair", "label")))
    texts = {split: set(part.texts) for split, part in text_set.splits.items()}
    assert not texts["test"] & texts["train"] and not texts["validation"] & texts["train"]
    assert len(text_set.splits["test"]) > 20 and "rows sharing a sentence stay on one side" in text_set.notes
    rows = [(f"review {n}", "the food", label) for n, (_, _, label) in enumerate(rows)]
    text_set = load(write_csv(tmp_path / "aspects.csv", rows, ("text", "text_pair", "label")))
    assert [len(part) for part in text_set.splits.values()] == [242, 28, 30]
    assert text_set.notes[-2:] == [
        "28 validation rows share a sentence with train", "30 test rows share a sentence with train"
    ]  # fmt: skip


def test_rows_without_second_text_form_no_common_group():
    assert len(set(sentence_groups([Row(1, "a", None, "x"), Row(2, "b", None, "x")]))) == 2


def test_a_group_is_drawn_whole_or_not_at_all():
    groups = [n // 3 for n in range(300)]
    drawn = draw([str(n % 2) for n in range(300)], groups)
    assert 24 <= len(drawn) <= 30
    assert {groups[n] for n in drawn}.isdisjoint(groups[n] for n in range(300) if n not in drawn)


# A user's files -------------------------------------------------------------------------------------------------------


def test_tsv_csv_and_jsonl_hold_the_same_set(tmp_path):
    rows = polar(30)
    write_csv(tmp_path / "a.csv", rows)
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in rows))
    assert load(tmp_path / "a.csv") == load(tmp_path / "a.tsv") == load(str(tmp_path / "a.jsonl"))


def test_a_folder_keeps_its_splits_and_counts_overlaps(tmp_path):
    train = polar(6)
    text_set = load(write_folder(tmp_path / "mine", train=train, test=[train[0], train[1], ("new", "bad")]))
    assert text_set.name == "mine"
    assert [len(text_set.splits[split]) for split in ("train", "validation", "test")] == [6, 6, 3]
    assert text_set.notes == ["2 test rows also occur in train (counted, none dropped)"]
    assert check(text_set)["shared"] == {"train/validation": 0, "train/test": 2, "validation/test": 0}


def test_integer_labels_are_sorted_as_numbers(tmp_path):
    rows = [(f"text {n}", str(n % 11)) for n in range(66)]
    assert load(write_csv(tmp_path / "a.csv", rows)).labels == [str(n) for n in range(11)]


def test_json_labels_may_be_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"sentence": f"text {n}", "label": n % 2}) + "\n" for n in range(20)))
    assert load(path).labels == ["0", "1"]


@pytest.mark.parametrize("header", [("sentence1", "sentence2", "label"), ("text", "text_pair", "label")])
def test_pairs_are_found_by_the_usual_names(tmp_path, header):
    rows = [(f"first {n}", f"second {n}", str(n % 2)) for n in range(20)]
    part = load(write_csv(tmp_path / "a.csv", rows, header)).splits["train"]
    assert [text.replace("first", "second") for text in part.texts] == part.pairs


def test_columns_can_be_named(tmp_path):
    rows = [(f"q {n}", f"a {n}", ("no", "yes")[n % 2]) for n in range(20)]
    path = write_csv(tmp_path / "a.csv", rows, ("question", "answer", "right"))
    text_set = load(path, text_column="question", pair_column="answer", label_column="right")
    assert text_set.labels == ["no", "yes"]
    assert text_set.splits["test"].pairs[0].startswith("a ")


def test_csv_quotes_hold_commas_and_line_breaks_and_tsv_quotes_are_literal(tmp_path):
    rows = [(f'he said "{n}",\nand left', str(n % 2)) for n in range(20)]
    assert 'he said "' in load(write_csv(tmp_path / "a.csv", rows)).splits["train"].texts[0]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f'"open {n}\t{n % 2}\n' for n in range(20)))
    assert all(text.startswith('"open') for text in load(tmp_path / "a.tsv").splits["train"].texts)


def test_byte_order_mark_crlf_and_next_line_are_no_trap(tmp_path):
    path = tmp_path / "a.tsv"
    lines = [f"wait\x85 {n}\t{n % 2}" for n in range(20)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["text\tlabel", *lines]).encode())
    text_set = load(path)
    assert sum(map(len, text_set.splits.values())) == 20
    assert text_set.labels == ["0", "1"]


def test_a_delimiter_and_an_encoding_can_be_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("".join(["text;label\n", *(f"café {n};{n % 2}\n" for n in range(20))]).encode("windows-1252"))
    text_set = load(path, delimiter=";", encoding="windows-1252")
    assert text_set.splits["train"].texts[0].startswith("café")


def test_regression_is_cut_unstratified_into_scores(tmp_path):
    path = write_csv(tmp_path / "a.csv", [(f"text {n}", n / 4) for n in range(40)])
    text_set = load(path, task="regression")
    assert (text_set.task, text_set.labels, text_set.metric) == ("regression", [], "spearman")
    assert [len(part) for part in text_set.splits.values()] == [32, 4, 4]
    assert all(isinstance(score, float) for score in text_set.splits["test"].labels)


def test_bad_rows_are_dropped_and_counted_when_asked(tmp_path):
    path = write_csv(tmp_path / "a.csv", [*polar(20), ("", "good"), ("text", " ")])
    text_set = load(path, skip_bad_rows=True)
    assert sum(map(len, text_set.splits.values())) == 20
    assert "2 of 22 rows of a.csv dropped: without text or label" in text_set.notes


def test_rows_that_contradict_each_other_are_an_error_or_dropped(tmp_path):
    path = write_csv(tmp_path / "a.csv", [*polar(20), ("So it is.", "good"), ("so  it is.", "bad")])
    with raises(r"a\.csv: row 21 has label 'good' and row 22 with the same text 'bad' .*--skip-bad-rows"):
        load(path)
    text_set = load(path, skip_bad_rows=True)
    assert sum(map(len, text_set.splits.values())) == 20
    assert "2 of 22 rows of a.csv dropped: contradictory" in text_set.notes
    scores = write_csv(tmp_path / "b.csv", [("So it is.", n) for n in range(3)] + [(f"text {n}", n) for n in range(30)])
    assert load(scores, task="regression")  # two people may give two scores


def test_a_text_may_be_longer_than_python_lets_a_field_be(tmp_path):
    text = "word " * 40_000
    found = load(write_csv(tmp_path / "a.csv", [(f"{n} {text}", label) for n, (_, label) in enumerate(polar(6))]))
    assert len(found.splits["train"].texts[0]) > 131_072


def test_check_counts_what_a_user_should_know(tmp_path):
    train = [("a b c", "bad"), ("A  b c", "bad"), ("味道还可以。", "good")]
    report = check(load(write_folder(tmp_path / "mine", train=train, test=[("a b c", "good")])))
    found = report["splits"]["train"]
    assert (found["rows"], found["duplicates"], found["max_words"]) == (3, 1, 6)
    assert found["classes"] == {"bad": 2, "good": 1}
    assert found["mean_words"] == 4
    assert report["contradictions"] == 1


# Errors ---------------------------------------------------------------------------------------------------------------


def test_an_unknown_set_suggests_the_nearest():
    with raises(r"no set, file or folder 'glue/mprc'\. Did you mean 'glue/mrpc'\? Built-in sets: mr, sst2"):
        load("glue/mprc")


@pytest.mark.parametrize("name", ["", " "])
def test_no_data_is_not_the_current_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path / "mine"))
    with raises(r"no data is named; name a built-in set, a file, .* with --data"):
        load(name)


def test_a_missing_file_is_named():
    with raises(
        r"nowhere\.csv does not exist, expected a \.csv, \.tsv, \.jsonl, \.parquet file or a folder", FileNotFoundError
    ):
        load("nowhere.csv")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network may be asked, and the cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SPIKETEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPIKETEXT_DATA", raising=False)
    return tmp_path / "cache"


def test_a_set_without_data_folder_names_flag_variable_cache_and_address(offline):
    with raises(rf"set 'mr' is missing: no data folder was given, not in the cache {offline}, .*"
                r"forbids https://raw\.githubusercontent\.com/.*rt-polarity\.neg\. Put MR/rt-polarity\.neg, "
                r"MR/rt-polarity\.pos into one folder and name that with --data-dir FOLDER or set SPIKETEXT_DATA",
                FileNotFoundError):  # fmt: skip
        load("mr")


def test_a_missing_benchmark_file_names_the_layout(tmp_path, offline):
    with raises(r"not in the data folder .* Put Subj/subj\.objective, Subj/subj\.subjective", FileNotFoundError):
        load("subj", tmp_path)
    with raises(r"no public address of exactly this file is known", FileNotFoundError):
        load("glue/rte", tmp_path)


def test_options_of_a_file_are_refused_for_a_built_in_set(tmp_path):
    with raises(r"text_column, task cannot be set for the built-in set 'mr'"):
        load("mr", tmp_path, text_column="text", task="regression")


def test_a_folder_without_a_split_names_it(tmp_path):
    folder = write_folder(tmp_path / "mine")
    (folder / "validation.csv").unlink()
    with raises(
        r"mine has no validation file, expected validation\.csv, \.tsv, \.jsonl or \.parquet", FileNotFoundError
    ):
        load(folder)


def test_a_folder_with_two_files_for_a_split_is_ambiguous(tmp_path):
    folder = write_folder(tmp_path / "mine")
    (folder / "test.tsv").write_text("text\tlabel\n")
    with raises(r"mine has test\.csv, test\.tsv, expected one test file"):
        load(folder)


def test_a_label_unknown_to_train_names_file_and_row(tmp_path):
    folder = write_folder(tmp_path / "mine", test=[("fine", "good"), ("odd", "nge")])
    with raises(r"test\.csv: row 2 has label 'nge', expected one of those in train\.csv: bad, good"):
        load(folder)


def test_a_second_text_in_one_split_only_is_an_error(tmp_path):
    folder = write_folder(tmp_path / "mine")
    write_csv(folder / "test.csv", [("a", "b", "bad")], ("text", "text_pair", "label"))
    with raises(r"train\.csv has no second text but .*test\.csv has one"):
        load(folder)


FILE_ERRORS = {
    "no text column": (b"body,label\na,b\n", {}, r"no column text or sentence or sentence1 or review; its columns are "
                       r"body, label\. Name the right one with --text-column"),
    "no label column": (b"text,class\na,b\n", {}, r"no column label; its columns are text, class\..*--label-column"),
    "wrong text column": (b"text,label\na,b\n", {"text_column": "x"}, r"no column 'x' \(given by --text-column\)"),
    "column twice": (b"text,label,text\na,b,c\n", {}, r"a\.csv: has more than one column text; rename or remove"),
    "wrong pair column": (b"text,label\na,b\n", {"pair_column": "x"}, r"no column 'x' \(given by --pair-column\)"),
    "pair is label": (b"text,label\na,b\n", {"pair_column": "label"}, r"a\.csv: expected a column each for text, "
                      r"second text and label, got 'text', 'label' and 'label'; name another one"),
    "text is label": (b"text,label\na,b\n", {"text_column": "label"}, r"got 'label', None and 'label'"),
    "quoted after a blank": (b'"text","label"\n"a", "b"\n', {}, r"row 1 has label ' \"b\"', a quote after a blank"),
    "not a number": (b"text,label\na,0\nb,nan\n", {}, r"a\.csv: row 2 has no label"),
    "carriage return": (b"text,label\na\rb,c\n", {}, r"row 1 has 1 fields.* It holds a carriage return"),
    "other delimiter": (b"text;label\na;b\n", {}, r"its columns are text;label\..*the separator with --delimiter"),
    "empty": (b"", {}, r"a\.csv is empty"),
    "only blanks": (b"\xef\xbb\xbf \n\n", {}, r"a\.csv is empty"),
    "only a header": (b"text,label\n", {}, r"a\.csv is empty: it has a header and no rows"),
    "no text": (b"text,label\na,b\n ,b\n", {}, r"a\.csv: row 2 has no text .*--skip-bad-rows"),
    "no label": (b"text,label\na,b\n\nc,\n", {}, r"a\.csv: row 3 has no label"),
    "no second text": (b"text,text_pair,label\na,,b\n", {}, r"row 1 has no text"),
    "nothing usable": (b"text,label\n,b\n", {"skip_bad_rows": True}, r"none of its 1 rows has both text and label"),
    "bytes": (b"text,label\ncaf\xe9,b\n", {}, r"byte 0xe9 at offset 14 is not utf-8\. .*--encoding windows-1252"),
    "encoding": (b"text,label\n", {"encoding": "utf-9"}, r"'utf-9' is no text encoding"),
    "ragged": (b"text,label\na,b\nc,d,e\n", {}, r"row 2 has 3 fields, expected 2 \(text, label\)"),
    "quotes": (b'text,label\na,b\n"c,d\n', {}, r"row 2 cannot be read \(unexpected end of data\); check the quotes"),
    "delimiter": (b"text,label\na,b\n", {"delimiter": "::"}, r"--delimiter must be one character, got '::'"),
    "one class": (b"text,label\na,b\nc,b\n", {}, r"one class, 'b', expected at least 2\..*--label-column"),
    "few rows": (b"text,label\n" + b"a,b\n" * 5 + b"c,d\n" * 2, {}, r"too few rows to cut: 2 of class 'd', expected at "
                 r"least 3"),
    "scores": (b"text,label\na,0.1\nb,0.2\n", {}, r"too few rows .* ask for --task regression"),
    "copies": (b"text,label\n" + b"a,b\n" * 5 + b"c,d\n" * 5, {}, r"too few different texts .*class 'b' has no row in"),
    "few scores": (b"text,label\na,1\nb,2\n", {"task": "regression"}, r"too few rows to cut: 2, expected at least 3"),
    "no score": (b"text,label\na,1\nb,high\n", {"task": "regression"}, r"row 2 has label 'high', expected a number"),
    "nan": (b"text,label\na,nan\n", {"task": "regression"}, r"row 1 has label 'nan', expected a number"),
    "task": (b"text,label\na,b\n", {"task": "ranking"}, r"task is 'ranking', expected classification or regression"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILE_ERRORS)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, case):
    data, options, message = FILE_ERRORS[case]
    (tmp_path / "a.csv").write_bytes(data)
    with raises(message) as caught:
        load(tmp_path / "a.csv", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"a\.jsonl: row 2 is not valid JSON"),
        ("[" * 100_000, r"a\.jsonl: row 2 is not valid JSON"),
        (r'{"text": "\ud83d a", "label": 1}', r"row 2 has '\\ud83d' in column 'text', half a character"),
        (r'{"text": "a", "label": "\ud83d"}', r"row 2 has '\\ud83d' in column 'label', half a character"),
        ('["text"]', r"row 2 is a JSON list, expected an object"),
        ('{"text": 3, "label": 1}', r"row 2 has 3 in column 'text', expected a text"),
        ('{"text": "a", "label": [1]}', r"row 2 has \[1\] as its label"),
        ('{"text": "a"}', r"row 2 has no label"),
        ('{"text": "a", "label": NaN}', r"row 2 has no label"),
        ('{"text": null, "label": 1}', r"row 2 has no text"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n' + line + "\n")
    with raises(message):
        load(tmp_path / "a.jsonl")


def test_a_whole_number_is_one_class_however_it_is_written(tmp_path):
    lines = [
        f'{{"text": "text {row}", "label": {label}}}'
        for row, label in enumerate(["0", "0.0", '"0"', "1", "1.0", '"1"'])
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines * 1) + "\n")
    assert load(tmp_path / "a.jsonl").labels == ["0", "1"]
    rows = [(f"text {row}", label) for row, label in enumerate(["0", "0.0", "0.00", "1", "1.0", "1.00"])]
    assert load(write_csv(tmp_path / "a.csv", rows)).labels == ["0", "1"]
    rows = [(f"text {row}", label) for row, label in enumerate(["1.0", "1.0", "1.0", "nan", "nan", "nan"])]
    with raises("row 4 has no label"):
        load(write_csv(tmp_path / "b.csv", rows))
    versions = [(f"text {row}", label) for row, label in enumerate(["v1", "1.0", "1", "nan"] * 3)]
    assert load(write_csv(tmp_path / "c.csv", versions)).labels == ["1", "1.0", "nan", "v1"]


@pytest.mark.parametrize("note", [b"no JSON", b'{"info": null}', b"[]", b'{"info": {"features": {"label": null}}}'])
def test_a_parquet_file_is_read_whatever_is_noted_in_it(tmp_path, note):
    pyarrow = parquet_of()
    labels = pyarrow.array([0.0, 1.0] * 6)
    table = pyarrow.table({"text": [f"text {n}" for n in range(12)], "label": labels})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": note}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").labels == ["0", "1"]


def test_parquet_with_two_columns_of_a_name_or_labels_of_bytes_is_refused(tmp_path):
    pyarrow = parquet_of()
    twice = pyarrow.table([["a"], ["b"], ["c"]], names=["text", "label", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "a.parquet")
    with raises(r"a\.parquet: has more than one column text"):
        load(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": [b"a"]}), tmp_path / "b.parquet")
    with raises(r"row 1 has b'a' as its label, expected one string or number"):
        load(tmp_path / "b.parquet")


def parquet_of():
    try:
        import pyarrow.parquet
    except ImportError:
        missing("pyarrow is not installed; pip install 'spiketext[parquet]'")
    return pyarrow


def test_another_type_of_file_is_refused(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with raises(r"a\.xlsx has type '\.xlsx', expected \.csv, \.tsv, \.jsonl, \.parquet or a folder"):
        load(tmp_path / "a.xlsx")


# The formats of the benchmark files, in small -------------------------------------------------------------------------


def write_bytes(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def all_texts(text_set) -> list[str]:
    return [text for part in text_set.splits.values() for text in part.texts]


def test_mr_is_windows_1252_and_cut_at_newlines_only(tmp_path):
    for kind in ("neg", "pos"):
        lines = b"".join(b"%s film %d\x85 caf\xe9 \n" % (kind.encode(), n) for n in range(10))
        write_bytes(tmp_path / f"MR/rt-polarity.{kind}", lines)
    text_set = load("mr", tmp_path)
    assert len(all_texts(text_set)) == 20
    assert "neg film 0… café" in all_texts(text_set)
    assert all(
        text.startswith(("neg", "pos")[label])
        for part in text_set.splits.values()
        for text, label in zip(part.texts, part.labels, strict=True)
    )


def test_known_defects_are_dropped_and_any_other_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN_DEFECTS, "ChnSentiCorp_htl_all.csv", ("without a review", (3,)))
    rows = [(n % 2, f"房间 {n}, “好”") for n in range(20)]
    path = tmp_path / "ChnSenti/ChnSentiCorp_htl_all.csv"
    path.parent.mkdir()
    write_csv(path, [*rows[:2], (1, ""), *rows[2:]], ("label", "review"))
    text_set = load("chnsenti", tmp_path)
    assert text_set.notes[0] == "1 of 21 rows dropped: without a review"
    assert len(all_texts(text_set)) == 20
    write_csv(path, [(1, ""), *rows], ("label", "review"))
    with raises(r"ChnSentiCorp_htl_all\.csv: row 1 has no text"):
        load("chnsenti", tmp_path)


def test_waimai_loses_reviews_with_both_labels(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN_DEFECTS, "waimai_10k.csv", ("with both labels", (1, 2, 3)))
    (tmp_path / "Waimai").mkdir()
    rows = [(1, "还是不错的"), (0, "还是不错的"), *((n % 2, f"送的挺快的 {n}") for n in range(20))]
    write_csv(tmp_path / "Waimai/waimai_10k.csv", rows, ("label", "review"))
    text_set = load("waimai", tmp_path)
    assert text_set.notes[0] == "2 of 22 rows dropped: with both labels"
    assert "还是不错的" not in all_texts(text_set)


def test_stsa_keeps_the_official_splits_and_names_a_bad_label(tmp_path):
    for part, lines in {"train": "1 a b\n0 c\n", "dev": "0 d\x85e\n", "test": "1 A B\n"}.items():
        write_bytes(tmp_path / f"SST/stsa/stsa.binary.{part}", lines.encode())
    text_set = load("sst2", tmp_path)
    assert [part.labels for part in text_set.splits.values()] == [[1, 0], [0], [1]]
    assert text_set.splits["validation"].texts == ["d\x85e"]
    assert text_set.notes == ["1 test rows also occur in train (counted, none dropped)"]
    write_bytes(tmp_path / "SST/stsa/stsa.binary.dev", b"0 d\n7 e\n")
    with raises(r"stsa\.binary\.dev: row 2 has label '7', expected one of 0, 1"):
        load("sst2", tmp_path)


def test_mrpc_reads_mark_crlf_and_stray_quotes(tmp_path):
    head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    body = "".join(f'{n % 2}\t1\t2\t"open {n}\tsaid "{n}\r\n' for n in range(30))
    write_bytes(tmp_path / "glue/MRPC/msr_paraphrase_train.txt", (head + body).encode())
    write_bytes(tmp_path / "glue/MRPC/msr_paraphrase_test.txt", (head + '1\t1\t2\t"a\tb"\r\n').encode())
    text_set = load("glue/mrpc", tmp_path)
    assert (text_set.metric, text_set.labels) == ("f1", ["not_equivalent", "equivalent"])
    assert (text_set.splits["test"].texts, text_set.splits["test"].pairs) == (['"a'], ['b"'])
    assert [len(part) for part in text_set.splits.values()] == [26, 4, 1]
    assert "MRPC (MSR test)" in text_set.notes[0]


def test_rte_rows_that_share_a_sentence_stay_on_one_side(tmp_path):
    head = "index\tsentence1\tsentence2\tlabel\n"
    label = ("entailment", "not_entailment")
    rows = "".join(f"{n}\tpremise {n // 2}\thypothesis {n}\t{label[n % 2]}\n" for n in range(80))
    write_bytes(tmp_path / "glue/RTE/train.tsv", (head + rows).encode())
    write_bytes(tmp_path / "glue/RTE/dev.tsv", (head + "0\ta\tb\tentailment\n").encode())
    splits = load("glue/rte", tmp_path).splits
    assert splits["test"].labels == [1]
    assert [len(part) for part in splits.values()] == [72, 8, 1]
    assert set(splits["train"].texts).isdisjoint(splits["validation"].texts)


def test_stsb_has_no_header_and_up_to_nine_fields(tmp_path):
    line = 'news\tMSR\t2012\t7\t{}\tA {}.\tThe "{}.{}\r\n'
    rows = "".join(line.format(n % 6, n, n, "\tlicence\tsource" if n % 3 == 0 else "") for n in range(30))
    write_bytes(tmp_path / "glue/STS-B/sts-train.csv", rows.encode())
    write_bytes(tmp_path / "glue/STS-B/sts-dev.csv", line.format("3.25", "x", "y", "").encode())
    text_set = load("glue/stsb", tmp_path)
    assert (text_set.task, text_set.metric) == ("regression", "spearman")
    assert text_set.splits["test"].labels == [3.25]
    assert text_set.splits["test"].pairs == ['The "y.']
    assert [len(part) for part in text_set.splits.values()] == [27, 3, 1]
    for bad, message in (("5.5\ta\tb", r"row 1 has score 5\.5, expected 0 to 5"), ("1\ta", r"row 1 has 6 fields")):
        write_bytes(tmp_path / "glue/STS-B/sts-dev.csv", f"a\tb\tc\td\t{bad}\r\n".encode())
        with raises(message):
            load("glue/stsb", tmp_path)


def test_tree_phrases_are_those_of_all_nodes_normalised(tmp_path):
    path = write_bytes(tmp_path / "t.txt", b"(3 (2 Good\\/Bad) (2 (2 -LRB-) (1 fun)))\n")
    (tree,) = read_trees(path)
    assert tree.label == "3"
    assert tree.phrases == ["good/bad", "(", "fun", "( fun", "good/bad ( fun"]


@pytest.mark.parametrize("line", ["(3 (2 good) (2 fun)", "(3 good))", "good", "(9 good)", "(3 good) (2 fun)", "(3 )"])
def test_a_broken_tree_is_named(tmp_path, line):
    path = write_bytes(tmp_path / "t.txt", f"(2 fine)\n{line}\n".encode())
    with raises(r"t\.txt: row 2 is no bracketed tree"):
        read_trees(path)


def write_glue_sst2(folder: Path) -> None:
    trees = [f"(3 (2 Film{n}) (4 (2 is) (3 Good{n})))" for n in range(20)]
    rows = [row for n in range(20) for row in (f"film{n} is good{n} ", f"is good{n} ", f"film{n} ")] + ["is ", "humor "]
    write_bytes(folder / "SST/trees/train.txt", "\n".join(trees).encode())
    write_bytes(folder / "glue/SST-2/train.tsv", "".join(f"{r}\t1\n" for r in ["sentence", *rows]).encode()
                .replace(b"sentence\t1", b"sentence\tlabel"))  # fmt: skip
    write_bytes(folder / "glue/SST-2/dev.tsv", b"sentence\tlabel\nnew \t0\n")


def test_glue_sst2_holds_out_whole_trees(tmp_path):
    write_glue_sst2(tmp_path)
    text_set = load("glue/sst2", tmp_path)
    train, validation = text_set.splits["train"].texts, text_set.splits["validation"].texts
    assert len(validation) == 2
    held = {word for text in validation for word in text.split()}
    assert held.isdisjoint(word for text in train for word in [text, *text.split()] if word != "is")
    assert "is" not in train
    assert "humor" not in train
    assert len(train) == 54
    assert text_set.notes[2:] == [
        "5 train rows are other phrases of a drawn tree and left train",
        "1 train rows are in no tree (spelling or tokens differ) and left train",
    ]


def test_describe_says_what_is_there_and_what_is_wrong(tmp_path, offline):
    write_glue_sst2(tmp_path)
    write_bytes(tmp_path / "MR/rt-polarity.neg", b"a\n")
    write_bytes(tmp_path / "MR/rt-polarity.pos", b"\n")
    entries = {entry["name"]: entry for entry in describe(tmp_path)}
    assert list(entries) == names()
    assert entries["glue/sst2"]["rows"] == {"train": 54, "validation": 2, "test": 1}
    assert (entries["subj"]["present"], entries["subj"]["rows"]) == (False, None)
    assert "subj.objective is missing" in entries["subj"]["problem"]
    assert entries["mr"]["present"]
    assert "rt-polarity.pos is empty" in entries["mr"]["problem"]


def test_a_truncated_set_is_an_error_and_no_crash(tmp_path):
    write_bytes(tmp_path / "MR/rt-polarity.neg", b"a\n")
    write_bytes(tmp_path / "MR/rt-polarity.pos", b"b\n")
    with raises(r"mr: no row is left for"):
        load("mr", tmp_path)


def test_the_demo_needs_no_data_folder(monkeypatch):
    monkeypatch.delenv("SPIKETEXT_DATA", raising=False)
    demo = load("demo")
    assert demo.labels == ["negative", "positive"]
    assert set(check(demo)["shared"].values()) == {0}


# The real sets --------------------------------------------------------------------------------------------------------

REAL_ROWS = {  # train, validation, test
    "mr": (8636, 960, 1066),
    "sst2": (6920, 872, 1821),
    "sst5": (8544, 1101, 2210),
    "subj": (8100, 900, 1000),
    "chnsenti": (6290, 699, 776),
    "waimai": (9699, 1077, 1197),
    "glue/sst2": (59223, 689, 872),
    "glue/rte": (2241, 249, 277),
    "glue/mrpc": (3669, 407, 1725),
    "glue/stsb": (5170, 575, 1500),
}
REAL_CLASSES = {  # of all rows
    "mr": (5331, 5331),
    "sst2": (3310 + 428 + 912, 3610 + 444 + 909),
    "sst5": (1092 + 139 + 279, 2218 + 289 + 633, 1624 + 229 + 389, 2322 + 279 + 510, 1288 + 165 + 399),
    "subj": (5000, 5000),
    "chnsenti": (2444 - 1, 5322),
    "waimai": (7987 - 7, 4000 - 7),
    "glue/rte": (1241 + 131, 1249 + 146),
    "glue/mrpc": (1323 + 578, 2753 + 1147),
}
REAL_HASHES = {  # a result says which of these it was measured on: a change here is a change of every table
    "mr": "397d4377168fa9fc",
    "sst2": "a011e5526fd886c6",
    "sst5": "2c1a17dd09e33d3a",
    "subj": "93f256ebe5d4e32b",
    "chnsenti": "3f0c1372e92844fc",
    "waimai": "9216ddcc07aa5749",
    "glue/sst2": "b45c952c6ad9965b",
    "glue/rte": "91d380628f39d96a",
    "glue/mrpc": "d606f3971df24f27",
    "glue/stsb": "93898a0a9fe38e12",
}


@pytest.fixture(scope="module")
def real():
    """Load a real set once, however many tests ask for it."""
    folder = os.environ.get("SPIKETEXT_DATA")
    if not folder:
        pytest.fail("the tests marked data read the benchmark files: set SPIKETEXT_DATA to their folder")
    return cache(lambda name: load(name, folder))


@pytest.mark.data
@pytest.mark.parametrize("name", REAL_ROWS)
def test_real_sets_have_their_published_sizes(real, name):
    text_set = real(name)
    assert tuple(len(text_set.splits[split]) for split in ("train", "validation", "test")) == REAL_ROWS[name]
    if name in REAL_CLASSES:
        counts = Counter(label for part in text_set.splits.values() for label in part.labels)
        assert tuple(counts[number] for number in range(len(text_set.labels))) == REAL_CLASSES[name]


@pytest.mark.data
@pytest.mark.parametrize("name", REAL_HASHES)
def test_real_splits_hold_the_same_texts_as_ever(real, name):
    assert real(name).hash == REAL_HASHES[name]


@pytest.mark.data
@pytest.mark.parametrize("name", ["mr", "subj", "chnsenti", "waimai", "glue/rte", "glue/mrpc", "glue/sst2"])
def test_real_cut_sets_share_no_text(real, name):
    assert set(check(real(name))["shared"].values()) == {0}


@pytest.mark.data
def test_real_class_names(real):
    assert real("mr").labels == real("waimai").labels == real("glue/sst2").labels == ["negative", "positive"]
    assert real("sst5").labels == ["very negative", "negative", "neutral", "positive", "very positive"]
    assert real("subj").labels == ["objective", "subjective"]
    assert real("glue/rte").labels == ["not_entailment", "entailment"]
    assert real("glue/mrpc").labels == ["not_equivalent", "equivalent"]


@pytest.mark.data
def test_real_known_defects_are_reported(real):
    assert real("chnsenti").notes[0] == "1 of 7766 rows dropped: without a review"
    assert real("waimai").notes[0].startswith("14 of 11987 rows dropped: with a review that occurs once with each")
    assert check(real("waimai"))["contradictions"] == 0


@pytest.mark.data
def test_real_sst_overlaps_are_counted_and_kept(real):
    assert real("sst2").notes == ["2 test rows also occur in train (counted, none dropped)"]
    assert check(real("sst5"))["shared"] == {"train/validation": 1, "train/test": 2, "validation/test": 0}


@pytest.mark.data
@pytest.mark.parametrize("name", ["glue/rte", "glue/mrpc"])
def test_real_pairs_sharing_a_sentence_stay_on_one_side(real, name):
    train, validation = (real(name).splits[split] for split in ("train", "validation"))
    assert {*train.texts, *train.pairs}.isdisjoint({*validation.texts, *validation.pairs})


@pytest.mark.data
def test_real_glue_sst2_holds_out_whole_trees(real):
    text_set = real("glue/sst2")
    trees = read_trees(Path(os.environ["SPIKETEXT_DATA"], BUILT_IN["glue/sst2"].files[2]))
    assert len(trees) == 8544
    validation = {phrase_key(text) for text in text_set.splits["validation"].texts}
    train = {phrase_key(text) for text in text_set.splits["train"].texts}
    held = {phrase for tree in trees if tree.phrases[-1] in validation for phrase in tree.phrases}
    assert validation <= {tree.phrases[-1] for tree in trees}
    assert train.isdisjoint(held)
    assert train <= {phrase for tree in trees for phrase in tree.phrases}
    assert text_set.notes[2].startswith("7198 train rows")
    assert text_set.notes[3].startswith("239 train rows")
