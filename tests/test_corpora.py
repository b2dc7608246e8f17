"""Unlabelled text: every kind of file, every kind of sentence, and which test texts are in it."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from pathlib import Path

import pytest

from spiketext.corpora import TestTexts, files, overlap, sentences
from spiketext.data import Split, TextSet

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
def test_an_archive_gives_those_of_all_its_members_with_hard_wrapped_lines_joined(tmp_path, name, mode):
    archive = pack(
        tmp_path / name, mode, one="The first sentence\nis here.\n\nAnother paragraph without end\n", two=TWO
    )
    assert read(archive) == [ONE, "Another paragraph without end", TWO]


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


def lines(tmp_path: Path, text: str, encoding: str = "utf-8", **options) -> list[str]:
    return read(write(tmp_path / "corpus.txt", text, encoding), **options)


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


# Test texts in a corpus -----------------------------------------------------------------------------------------------


LONG = "a film that is so much more than the sum of its parts"


def text_set(*test: str) -> TextSet:
    part = Split(list(test), None, [0] * len(test))
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


def test_a_text_that_occurs_twice_is_counted_once(tmp_path):
    assert found(tmp_path, f"{LONG}\n{LONG}", LONG, LONG)["test_texts_found"] == 1


def test_the_first_text_found_is_shown(tmp_path):
    assert found(tmp_path, LONG, LONG)["first"] == LONG


def test_a_chinese_test_text_is_found_as_a_sentence(tmp_path):
    assert found(tmp_path, "我们去了。房间很干净也很安静。以后还来。", "房间很干净也很安静")["test_texts_found"] == 1
