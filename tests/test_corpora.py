"""Unlabelled text: every kind of file, every kind of sentence, and which test texts are in it."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import textwrap
from pathlib import Path

import pytest
from conftest import missing

from spiketext.corpora import TestTexts, left_out, overlap, sentences
from spiketext.data import Split, TextSet, load
from spiketext.options import MlmOptions
from spiketext.passages import draw, passages
from spiketext.runs import Run
from spiketext.textfiles import files

ONE, TWO = "The first sentence is here.", "And this is the second one."


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    raw = text.encode(encoding)
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    path.write_bytes(raw)
    return path


def pack(path: Path, mode: str, **members: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    return path


def read(*paths: Path, **options) -> list[str]:
    return list(sentences(",".join(map(str, paths)), **options))


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain.txt", "squeezed.txt.gz", "no_suffix"])
def test_a_plain_or_gzip_file_gives_its_sentences(tmp_path, name):
    assert read(write(tmp_path / name, f"{ONE} {TWO}\n")) == [ONE, TWO]


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_an_archive_gives_those_of_its_text_members_with_hard_wrapped_lines_joined(tmp_path, name, mode):
    archive = pack(
        tmp_path / name,
        mode,
        **{
            "one.txt": "The first sentence\nis here.\n\nAnother paragraph without end\n",
            "two.jsonl": f'{{"text": "{TWO}"}}\n',
            "readme.md": "This member is not of the corpus at all.",
        },
    )
    assert read(archive) == [ONE, "Another paragraph without end", TWO]


def test_an_archive_without_text_members_says_which_it_expects(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tar: none of its members ends in \.txt, \.gz"):
        read(pack(tmp_path / "a.tar", "w", wiki_00=ONE))


def test_a_folder_gives_its_text_files_in_the_order_of_their_paths(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "x.txt.gz", TWO)
    write(tmp_path / "a.txt", ONE)
    write(tmp_path / "readme.md", "This file is not a corpus at all.")
    assert read(tmp_path) == [ONE, TWO]
    assert [Path(source.name).name for source in files(str(tmp_path))] == ["a.txt", "x.txt.gz"]


def test_several_paths_are_read_in_the_order_given(tmp_path):
    one, two = write(tmp_path / "z.txt", ONE), write(tmp_path / "a.txt", TWO)
    assert read(one, two) == [ONE, TWO]
    assert list(sentences(f" {two} , {one},")) == [TWO, ONE]


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*no such file or folder"):
        read(tmp_path / "nowhere")


def test_a_folder_without_text_files_says_which_it_expects(tmp_path):
    write(tmp_path / "a.md", ONE)
    with pytest.raises(FileNotFoundError, match=re.escape("expected .txt, .gz")):
        read(tmp_path)


def test_an_empty_corpus_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no sentence of 4 words or more"):
        read(write(tmp_path / "a.txt", "\n\n too short \n"))


# Lines and sentences --------------------------------------------------------------------------------------------------


def lines(tmp_path: Path, text: str, written: str = "utf-8", **options) -> list[str]:
    return read(write(tmp_path / "corpus.txt", text, written), **options)


def test_a_line_ends_a_sentence_and_blank_lines_are_nothing(tmp_path):
    assert lines(tmp_path, "no full stop on this line\n\n   \r\nnor is there one here\r\n") == [
        "no full stop on this line",
        "nor is there one here",
    ]


def test_headings_of_wikitext_are_left_out(tmp_path):
    text = f" = A Heading of Four = \n = = A Section of Five Words = = \n {ONE} \n x = y = z = w\n"
    assert lines(tmp_path, text) == [ONE, "x = y = z = w"]


def test_document_tags_are_left_out(tmp_path):
    text = f'<doc id="1" url="https://example.org" title="A Title of Words">\n{ONE}\n</doc>\n<doc>{TWO}</doc>\n'
    assert lines(tmp_path, text) == [ONE, TWO]


@pytest.mark.parametrize(
    "text",
    [
        "It cost about 3.5 million dollars in all.",
        "Look at www.example.org for more of that.",
        "He asked e.g. for this and that.",
        "Is that so... and then what happened?",
    ],
)
def test_a_point_within_a_sentence_ends_none(tmp_path, text):
    assert lines(tmp_path, text) == [text]


@pytest.mark.parametrize("mark", [".", "!", "?", "...", "?!"])
def test_a_mark_before_a_capital_ends_one(tmp_path, mark):
    assert lines(tmp_path, f"There it goes again{mark} {TWO}") == [f"There it goes again{mark}", TWO]


@pytest.mark.parametrize(
    "parts",
    [
        ['He said "please go away now."', "Then he left the room."],
        ["(This was the end of it.)", "Then he left the room."],
        ["They called it 'a bit of fun.'", '"So we all went home," she said.'],
    ],
)
def test_no_letter_or_mark_of_a_text_is_lost_where_sentences_part(tmp_path, parts):
    assert lines(tmp_path, " ".join(parts)) == parts


@pytest.mark.parametrize(
    "parts",
    [
        ["Он пришёл домой поздно вечером.", "Её там уже не было."],
        ["Das ist nun wirklich alles!", "Über den Rest reden wir noch."],
        ["Ήρθε και ο αδελφός του.", "Έφυγε μετά από μία ώρα."],
        ["Vino a la casa ayer.", "¿Qué quería de todos nosotros?"],
        ["هل جاء إلى البيت أمس؟", "لا أعرف من كان هناك."],
        ["वह कल घर आया था।", "मैं उसे नहीं जानता हूँ।"],
    ],
)
def test_a_sentence_of_any_script_ends_before_a_letter_that_is_not_small(tmp_path, parts):
    assert lines(tmp_path, " ".join(parts)) == parts
    assert lines(tmp_path, "Das kostet ca. drei Mio. über das hinaus, was было. но нет") == [
        "Das kostet ca. drei Mio. über das hinaus, was было. но нет"
    ]


def test_chinese_sentences_end_without_a_blank(tmp_path):
    assert lines(tmp_path, "今天的天气真的很好。我们一起去公园散步吧！你觉得这样可以吗？好") == [
        "今天的天气真的很好。",
        "我们一起去公园散步吧！",
        "你觉得这样可以吗？",
    ]


def test_a_closing_quotation_mark_belongs_to_the_chinese_sentence_before_it(tmp_path):
    assert lines(tmp_path, "他说：“今天的天气真的很好。”然后他就走出去了。") == [
        "他说：“今天的天气真的很好。”",
        "然后他就走出去了。",
    ]


def test_short_sentences_are_left_out(tmp_path):
    assert lines(tmp_path, "One two three. Four five six seven.\n很好。") == ["Four five six seven."]
    assert lines(tmp_path, "One two three. Four five six seven.", least_words=1) == [
        "One two three.",
        "Four five six seven.",
    ]


def test_an_accent_does_not_make_a_short_sentence_long_enough(tmp_path):
    assert lines(tmp_path, f"Le café rouge\n{ONE}") == [ONE]


def test_latin_1_is_read_where_a_line_is_not_utf_8(tmp_path):
    assert lines(tmp_path, "The café on the corner.\n", "latin-1") == ["The café on the corner."]
    assert lines(tmp_path, "The café on the corner.\n", "utf-8") == ["The café on the corner."]


def test_quotation_marks_of_windows_1252_are_read_and_bytes_that_it_does_not_know_kept(tmp_path):
    assert lines(tmp_path, "So we don’t like it… at all.\n", "windows-1252") == ["So we don’t like it… at all."]
    assert lines(tmp_path, "The caf\xe9 \x81 on the corner.\n", "latin-1") == ["The café \x81 on the corner."]
    corpus = write(tmp_path / "a.txt", f"They don’t say {LONG}.\n", "windows-1252")
    assert overlap(str(corpus), text_set(f"they do n't say {LONG}"))["test_texts_found"] == 1


def test_utf_16_is_to_be_converted_first(tmp_path):
    with pytest.raises(ValueError, match=r"corpus\.txt: binary, or UTF-16; expected text, converted to UTF-8"):
        lines(tmp_path, ONE, "utf-16")
    with pytest.raises(ValueError, match=r"utf-16 cannot be read line by line; convert it to UTF-8 first, with iconv"):
        lines(tmp_path, ONE, "utf-16", encoding="utf-16")


def test_another_encoding_is_an_error_that_names_line_and_option_until_it_is_given(tmp_path):
    text = f"{ONE}\n今天的天气真的很好。我们一起去公园散步吧！\n"
    message = r"corpus\.txt: line 2 is not utf-8 .*--corpus-encoding, for example gb18030"
    with pytest.raises(ValueError, match=message):
        lines(tmp_path, text, "gb18030")
    expected = [ONE, "今天的天气真的很好。", "我们一起去公园散步吧！"]
    assert lines(tmp_path, text, "gb18030", encoding="gb18030") == expected
    with pytest.raises(ValueError, match="'utf-9' is no text encoding"):
        lines(tmp_path, text, "utf-8", encoding="utf-9")
    with pytest.raises(ValueError, match="line 1 is not ascii"):
        lines(tmp_path, "The café on the corner.", "utf-8", encoding="ascii")


def test_a_training_reads_a_corpus_in_the_encoding_that_was_asked_for(tmp_path, tiny_tokenizer):
    corpus = write(tmp_path / "corpus.txt", "今天的天气真的很好。\n我们一起去公园散步吧！\n" * 20, "gb18030")
    asked = {"corpus": str(corpus), "tokens": 100, "quiet": True}
    with pytest.raises(ValueError, match="--corpus-encoding"):
        passages(Run("mlm", MlmOptions(out=str(tmp_path / "one"), **asked)), tiny_tokenizer, MlmOptions(**asked))
    asked["corpus_encoding"] = "gb18030"
    run = Run("mlm", MlmOptions(out=str(tmp_path / "two"), **asked))
    assert passages(run, tiny_tokenizer, MlmOptions(**asked)).tokens >= 100


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_line_of_more_than_a_mebibyte_is_read_in_pieces_without_losing_a_character(tmp_path, encoding):
    text = "天气真的很好" * 100_000
    assert "".join(lines(tmp_path, f"x{text}\n{ONE}", encoding, encoding=encoding)) == f"x{text}{ONE}"


def test_a_record_of_more_than_a_mebibyte_is_read_whole(tmp_path):
    text = "one more word " * 100_000
    assert read(write(tmp_path / "long.jsonl", json.dumps({"text": text}) + "\n")) == [text.strip()]


def test_a_column_that_holds_no_texts_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="column 'text' holds int in line 2, expected texts"):
        read(write(tmp_path / "a.jsonl", f'{{"text": "{ONE}"}}\n{{"text": 3}}\n'))
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        missing("pyarrow is not installed; pip install 'spiketext[parquet]'")
    parquet.write_table(pyarrow.table({"text": [1, 2], "body": [ONE, TWO]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: column 'text' holds int64, expected texts"):
        read(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table([[ONE], [TWO]], names=["text", "text"]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: expected one column 'text', it has text, text; .*rename"):
        read(tmp_path / "b.parquet")


def test_empty_lines_of_json_are_left_out_and_what_is_no_text_is_one_line(tmp_path):
    assert read(write(tmp_path / "a.jsonl", f'{{"text": "{ONE}"}}\n\n{{"text": "{TWO}"}}\n \n')) == [ONE, TWO]
    with pytest.raises(ValueError, match=r"line 1 is not JSON .*expected an object a line"):
        read(write(tmp_path / "b.jsonl", "[" * 100_000))
    with pytest.raises(ValueError, match=r"column 'text' holds '\\ud83d' in line 1, half a character"):
        read(write(tmp_path / "c.jsonl", r'{"text": "half \ud83d of one is here"}'))


def test_a_suffix_may_be_written_in_capitals_and_a_compressed_table_is_no_text(tmp_path):
    write(tmp_path / "A.TXT", ONE)
    pack(tmp_path / "B.TAR", "w", **{"C.TXT": f"{TWO}\n", "d.csv.gz": "no text"})
    packed = write(tmp_path / "e.csv.gz", f"text,label\n{TWO},1\n")
    assert read(tmp_path) == [ONE, TWO]
    assert read(write(tmp_path / "T.CSV", f"text,label\n{TWO},1\n")) == [TWO]
    with pytest.raises(ValueError, match=r"e\.csv\.gz: a compressed table, .*unpack it"):
        read(packed)


def test_a_table_that_is_named_gives_its_texts_and_a_folder_reads_none(tmp_path):
    quoted = write(tmp_path / "a.csv", f'label,review\n1,"{ONE}\n{TWO}"\n0,\n')
    assert read(quoted) == [ONE, TWO]
    assert read(write(tmp_path / "a.tsv", f'sentence\tlabel\n"{ONE}\t1\n')) == [f'"{ONE}']  # a quote is literal
    with pytest.raises(ValueError, match=r"b\.csv has no column text or .*; its columns are opinion, label\. Rename"):
        read(write(tmp_path / "b.csv", f"opinion,label\n{ONE},1\n"))
    write(tmp_path / "c.txt", TWO)
    assert read(tmp_path) == [TWO]


# Test texts in a corpus -----------------------------------------------------------------------------------------------


LONG = "a film that is so much more than the sum of its parts"


def text_set(*test: str, pairs: tuple[str, ...] | None = None) -> TextSet:
    part = Split(list(test), list(pairs) if pairs else None, [0] * len(test))
    return TextSet("set", "classification", ["a"], "accuracy", {"train": part, "validation": part, "test": part}, [])


def found(tmp_path: Path, corpus: str, *test: str) -> dict:
    return overlap(str(write(tmp_path / "corpus.txt", f"{ONE}\n{corpus}\n{TWO}\n")), text_set(*test))


def test_a_corpus_without_test_texts_says_so(tmp_path):
    result = found(tmp_path, "Nothing of the kind is here.", LONG, "another text")
    assert (result["test_texts"], result["test_texts_found"], result["first"]) == (2, 0, None)
    assert result["lines"] == 3


@pytest.mark.parametrize(
    "corpus",
    [
        LONG,
        LONG.upper() + " !",
        LONG.replace(" ", "   ").replace("film", "film,"),
        f"They called it {LONG}, and they were right.",
        f"Here is one more. {LONG.capitalize()}. And here is another one.",
    ],
)
def test_a_long_test_text_is_found_wherever_it_stands(tmp_path, corpus):
    assert found(tmp_path, corpus, LONG)["test_texts_found"] == 1


def test_a_short_test_text_is_found_as_a_line_or_a_sentence_but_not_within_one(tmp_path):
    assert found(tmp_path, "a very good film", "A very good film .")["test_texts_found"] == 1
    assert found(tmp_path, "So it was. A very good film. Then we left.", "a very good film")["test_texts_found"] == 1
    assert found(tmp_path, "It was a very good film in my eyes.", "a very good film")["test_texts_found"] == 0


def test_a_text_of_two_words_stands_everywhere_by_chance_and_is_only_counted(tmp_path):
    result = found(tmp_path, "No more! Then we left the house.\nNo more.", "no more .", "好吃", "", "no more of it")
    assert (result["test_texts"], result["too_short"], result["test_texts_found"]) == (3, 2, 0)


def test_test_texts_are_left_out_and_nothing_else(tmp_path):
    corpus = write(tmp_path / "corpus.txt", f"{ONE}\nThey said {LONG}, as you know. {TWO}\nSo it was with us. "
                   f"A very good film. Then we left the house.\n{TWO}\n{LONG.upper()}\n")  # fmt: skip
    known = text_set(LONG, "a very good film")
    kept = list(sentences(str(corpus), without=TestTexts([known])))
    assert kept == [ONE, "So it was with us.", "Then we left the house.", TWO]
    cleaned = str(write(tmp_path / "cleaned.txt", "\n".join(kept)))
    assert overlap(str(corpus), known)["test_texts_found"] == 2 and overlap(cleaned, known)["test_texts_found"] == 0
    joined = list(sentences(str(corpus), size=20, without=TestTexts([known])))
    assert "So it was with us. Then we left the house." in joined and not any("good film" in text for text in joined)


def test_of_a_set_that_is_its_own_corpus_the_training_texts_are_read(tmp_path):
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    rows = (f'"Room {one} {two} was {how}.\nWe came from {two} {one}, and it was {how}.",{how}\n' for one in numbers
            for two in numbers for how in ("cold", "warm"))  # fmt: skip
    table = str(write(tmp_path / "rooms.csv", "text,label\n" + "".join(rows)))
    training = load(table).splits["train"].texts
    read_ones = list(sentences(table, without=left_out(table, None)))
    assert len(training) < 200 and sorted(read_ones) == sorted("\n".join(training).splitlines())


def test_a_file_to_leave_out_may_be_in_the_encoding_of_the_corpus(tmp_path):
    rows = "".join(f"这个房间很干净也很安静{n}号,{n % 2}\n" for n in range(20))
    tables = [write(tmp_path / f"{code}.csv", f"text,label\n{rows}", code) for code in ("gb18030", "utf-8")]
    for table in tables:
        assert left_out(str(table), None, "gb18030").texts == left_out(str(tables[1]), None).texts
    with pytest.raises(ValueError, match="is not utf-8"):
        left_out(str(tables[0]), None)


@pytest.mark.parametrize("width", [20, 40, 70])
def test_texts_are_found_over_the_seams_of_wrapped_lines(tmp_path, width):
    texts = [f"So {LONG} as seen by {who} in a small town." for who in ("him", "her", "us")]
    texts.append("It is not a good film.")
    body = " ".join([ONE, *texts, "Then nobody came home."])
    corpus = write(tmp_path / "corpus.txt", f"{TWO}\n\n{textwrap.fill(body, width)}\n\n{TWO}\n")
    assert overlap(str(corpus), text_set(*texts))["test_texts_found"] == 4
    kept = read(corpus, without=TestTexts([text_set(*texts)]), least_words=1)
    assert kept[0] == kept[-1] == TWO and not set(" ".join(kept).split()) & {"sum", "parts", "small", "good"}
    apart = write(tmp_path / "apart.txt", LONG[:20] + "\n\n" + LONG[20:])
    assert overlap(str(apart), text_set(LONG))["test_texts_found"] == 0


def test_a_text_that_occurs_twice_is_counted_once(tmp_path):
    assert found(tmp_path, f"{LONG}\n{LONG}", LONG, LONG)["test_texts_found"] == 1


def test_the_first_text_found_is_shown(tmp_path):
    assert found(tmp_path, LONG, LONG)["first"] == LONG


def test_a_text_of_several_lines_is_found_by_each_of_them(tmp_path):
    known = text_set(f"So it was.\n{LONG}", "So it was.", "No.\nMore.")
    corpus = write(tmp_path / "corpus.txt", f"{ONE}\nSo it was.\nThey said {LONG}.\n{TWO}\n")
    result = overlap(str(corpus), known)
    assert (result["test_texts"], result["too_short"], result["test_texts_found"]) == (3, 1, 2)
    assert list(sentences(str(corpus), without=TestTexts([known]))) == [ONE, TWO]
    table = write(tmp_path / "table.csv", f'text\n"So it was.\n{LONG}"\n{ONE}\n')
    assert list(sentences(str(table), without=TestTexts([known]))) == [ONE]


@pytest.mark.parametrize(
    ("corpus", "test", "times"),
    [
        ("我们去了。房间很干净也很安静。以后还来。", "房间很干净也很安静", 1),
        ("朋友说房间很干净，也很安静，以后还来", "房间很干净也很安静", 1),
        ("我们去了。味道很好！以后还来。", "味道很好", 1),
        ("朋友说味道很好，以后还来", "味道很好", 0),
    ],
)
def test_of_chinese_each_character_is_a_word(tmp_path, corpus, test, times):
    assert found(tmp_path, corpus, test)["test_texts_found"] == times


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("i do n't think it 's bad", "I don't think it's bad!"),
        ("a film ( the second ) of his", "a film -lrb- the second -rrb- of his"),
        ("it can not be wo n't", "It cannot be won’t"),
        ("he didn 't go _very_ far", "He didn't go very far"),
    ],
)
def test_spellings_of_tokenised_text_hide_nothing(tmp_path, one, other):
    for corpus, test in ((one, other), (other, one)):
        result = found(tmp_path, f"Here it is. {corpus[0].upper()}{corpus[1:]}. That was it.", test)
        assert (result["test_texts_found"], result["first"]) == (1, test)


def test_the_second_texts_of_pairs_are_looked_for_too(tmp_path):
    corpus = write(tmp_path / "corpus.txt", f"They called it {LONG}.\n{ONE}\n")
    known = text_set("something else", pairs=(LONG,))
    assert overlap(str(corpus), known)["test_texts_found"] == 1
    assert read(corpus, without=TestTexts([known])) == [ONE]
    table = write(tmp_path / "pairs.csv", f"sentence1,sentence2,label\n{ONE},{LONG},1\n")
    write(table, table.read_text() + f"They said {LONG[:20]},{LONG[20:]},1\n")
    assert read(table, without=TestTexts([known])) == [ONE, f"They said {LONG[:20]}", LONG[20:]]
    assert read(table)[:2] == [ONE, LONG] and overlap(str(table), known)["test_texts_found"] == 1


# Passages -------------------------------------------------------------------------------------------------------------


def test_passages_are_drawn_evenly_over_a_corpus(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("spiketext.passages._WINDOW", 100)
    first, second = ("A good film, good film.\n" * 1000, "The bad plot, bad plot.\n" * 1000)
    corpus = write(tmp_path / "corpus.txt", first + second)
    rows = list(draw(str(corpus), tiny_tokenizer, 2000, 32))
    texts = [tiny_tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert 2000 <= sum(map(len, rows)) < 2032
    counts = [sum(text == texts[place] for text in texts) for place in (0, -1)]
    assert texts[0] != texts[-1] and abs(counts[0] - counts[1]) <= 2


def test_pairs_are_neighbours_and_no_sentence_is_in_two(tmp_path, tiny_tokenizer):
    sentences_of = [f"good film {' '.join(['very'] * n)} bad" for n in range(2, 12)]
    corpus = write(tmp_path / "corpus.txt", "\n".join(sentences_of))
    rows = list(draw(str(corpus), tiny_tokenizer, 10_000, 64, pairs=True))
    expected = tiny_tokenizer(sentences_of[::2], sentences_of[1::2])["input_ids"]
    assert sorted(rows) == sorted(expected)
    with pytest.raises(ValueError, match="one sentence is no pair"):
        list(draw(str(write(tmp_path / "one.txt", ONE)), tiny_tokenizer, 100, 64, pairs=True))


def test_a_run_goes_on_with_the_passages_it_had_whatever_becomes_of_the_corpus(tmp_path, tiny_tokenizer):
    corpus = write(tmp_path / "corpus.txt", f"{ONE}\n{TWO}\n" * 20)
    options = MlmOptions(corpus=str(corpus), out=str(tmp_path / "run"), tokens=200, quiet=True)
    before = passages(Run("mlm", options), tiny_tokenizer, options)
    write(corpus, "Nothing of all that is left here.\n" * 50)
    after = passages(Run("mlm", options), tiny_tokenizer, options)
    assert [after.train[0, row] for row in range(len(after.train))] == [
        before.train[0, row] for row in range(len(before.train))
    ]
