"""Floor 4: unlabelled text, sentence by sentence, and which test texts are in it.

Everything is a stream, as the lines of `textfiles` are.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

from spiketext.data import TextSet, load
from spiketext.textfiles import files, lines

_SMALL = "".join(c for c in map(chr, (*range(0x590), *range(0x1E00, 0x2000))) if c.islower())  # scripts of two cases
_BEGINS = rf"(?=\s+[\"'(\[«„¿¡]?[^\W_{_SMALL}\u3400-\u9fff])"
# after .!?؟। and closing marks, before a blank and a letter that is not small; after the Chinese stops and theirs
_SENTENCE_END = re.compile(rf"(?<=[.!?؟।]){_BEGINS}|(?<=[.!?؟।][\"')\]»]){_BEGINS}"
                           r"|(?<=[。！？])(?![。！？”’」』）])|(?<=[。！？][”’」』）])")  # fmt: skip
_HAN = re.compile(r"[\u3400-\u9fff]")
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_SPELLINGS = ((re.compile(r"-[lr][rsc]b-"), " "), (re.compile(r"n ?['\u2019] ?t\b"), " nt"),
              (re.compile(r"\b(can|gon|got|wan|gim|lem)(not|na|ta|me)\b"), r"\1 \2"))  # fmt: skip
_DOCUMENT_TAG = re.compile(r"</?doc\b[^>]*>")


def sentences(
    corpus: str,
    least_words: int = 4,
    size: int | None = None,
    without: TestTexts | None = None,
    encoding: str = "utf-8",
) -> Iterator[str]:
    """Sentences of `least_words` words or more of every file of the corpus, in the order of the paths.

    corpus: files, folders and `hub:OWNER/NAME[/FILES][:COLUMN]`, separated by commas; of a CSV or TSV that is named
    its columns of texts (`tables.read_texts`), of an archive the members that have the name of a text file. A line ends
    a sentence; headings of WikiText (`= x =`) and document tags are left out.
    size: join neighbouring sentences of a line while they have at most so many words and Han characters together.
    without: leave out the lines and sentences that are or hold one of these texts.
    encoding: of all files; a line of "utf-8" that is none is Windows-1252 if each of its accents stands alone.
    Raises FileNotFoundError for a path that is not there, ValueError for a file that is not text, has another encoding
    or is damaged, and when nothing could be read.
    """
    found = False
    for source in files(corpus):
        each = map(_parts, lines(source, encoding))
        for _, parts in without.within(each) if without else zip(repeat(set[str]()), each):
            for sentence in parts if size is None else _joined(parts, size):
                if len(sentence.split()) >= least_words or len(_HAN.findall(sentence)) >= 2 * least_words:
                    found = True
                    yield sentence
    if not found:
        raise ValueError(f"corpus {corpus}: no sentence of {least_words} words or more in it; expected plain text")


def _parts(line: str) -> list[str]:
    """The sentences of a line, document tags left out; none of a heading."""
    parts = [part for part in map(str.strip, _SENTENCE_END.split(_DOCUMENT_TAG.sub("", line))) if part]
    return [] if parts and parts[0].startswith("= ") and parts[-1].endswith(" =") else parts


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


class TestTexts:
    """The test texts of some sets (or of other splits), second texts of pairs too, to be found in a corpus.

    Texts are compared by their words in lower case, so spacing, punctuation and the spellings of tokenised text
    (do n't, -lrb-) hide nothing; a Chinese character is a word. A text of `least_words` words or more is found wherever
    it stands in a line; a shorter one, which anybody may write within another, as a whole line or sentence only. One of
    fewer than three words ("No more.") stands in every book by chance: it is counted as too short and not looked for.
    As a corpus is read by lines, a text of several is found by any of its lines, and one that was wrapped into several
    lines without an empty one between them is found too.
    """

    __test__ = False  # no test of ours, whatever its name

    def __init__(self, text_sets: Iterable[TextSet], least_words: int = 8, splits: Sequence[str] = ("test",)):
        tests = [text_set.splits[split] for text_set in text_sets for split in splits]
        texts = [text for test in tests for text in (*test.texts, *(test.pairs or ()))]
        every = {key: text for text in texts if (key := " ".join(_words(text)))}
        each = {" ".join(_words(line)): text for text in every.values() for line in text.splitlines()}
        self.texts = {key: text for key, text in (each | every).items() if key.count(" ") >= 2}
        self.number = len(every)
        self.too_short = len(every) - len(set(self.texts.values()))
        self.least_words = least_words
        self.by_start: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for words in (tuple(key.split()) for key in self.texts):
            if len(words) >= least_words:
                self.by_start.setdefault(words[:least_words], []).append(words)
        self.longest = max((len(words) for each in self.by_start.values() for words in each), default=0)

    def within(self, lines: Iterable[Sequence[str]]) -> Iterator[tuple[set[str], list[str]]]:
        """What is found in each line, given as its sentences: keys of `texts`; and the sentences to keep without them.

        None is kept when the line is one of the texts or a long one stands in it, or in it and its neighbours.
        """
        held: deque[_Line] = deque()  # as many lines as the longest text may run over
        for parts in lines:
            each = [tuple(_words(part)) for part in parts]
            line = _Line(parts, tuple(chain.from_iterable(each)), each, set(), set())
            self._mark(line.words, *((line, place) for place in range(len(parts))))
            for place, words in enumerate(each):
                self._mark(words, (line, place))
            if held and each and held[-1].each:
                self._mark(held[-1].each[-1] + each[0], (held[-1], len(held[-1].each) - 1), (line, 0))
            held.append(line)
            while held and (not each or sum(len(one.words) for one in held) - len(held[0].words) >= self.longest > 0):
                yield self._first(held)
        while held:
            yield self._first(held)

    def _mark(self, words: tuple[str, ...], *places: tuple[_Line, int]) -> None:
        """If these words are one of the texts, the sentences at these places go."""
        if (key := " ".join(words)) in self.texts:
            for line, place in places:
                line.found.add(key)
                line.gone.add(place)

    def _first(self, held: deque[_Line]) -> tuple[set[str], list[str]]:
        """The first line, done with: the long texts that begin in it are marked in every line they stand in."""
        words, least = tuple(chain.from_iterable(line.words for line in held)), self.least_words
        for start in range(len(held[0].words)):
            for text in self.by_start.get(words[start : start + least], ()):
                if words[start : start + len(text)] == text:
                    begin = 0
                    for line in held:
                        if begin < start + len(text):
                            self._mark(text, *((line, place) for place in range(len(line.parts))))
                        begin += len(line.words)
        line = held.popleft()
        return line.found, [part for place, part in enumerate(line.parts) if place not in line.gone]


class _Line(NamedTuple):
    """A line of a corpus: its sentences, its words, those of each sentence, the sentences that go, what was found."""

    parts: Sequence[str]
    words: tuple[str, ...]
    each: list[tuple[str, ...]]
    gone: set[int]
    found: set[str]


def left_out(names: str, data_dir: str | None, encoding: str = "utf-8") -> TestTexts | None:
    """The test and validation texts of sets, names separated by commas; None without a name.

    encoding: of the sets that are files and not in UTF-8. Raises as `data.load`.
    """
    sets = [_in_either(name.strip(), data_dir, encoding) for name in names.split(",") if name.strip()]
    return TestTexts(sets, splits=("validation", "test")) if sets else None


def _in_either(name: str, data_dir: str | None, encoding: str) -> TextSet:
    try:
        return load(name, data_dir)
    except ValueError:
        if not Path(name).exists():
            raise
        return load(name, data_dir, encoding=encoding)


def overlap(corpus: str, text_set: TextSet, encoding: str = "utf-8") -> dict[str, Any]:
    """Which test texts of a set are in a corpus (`TestTexts`): counts, and as `first` the longest that was found.

    Raises as `sentences`.
    """
    texts, found, number = TestTexts([text_set]), set[str](), 0
    for source in files(corpus):
        for keys, kept in texts.within(map(_parts, lines(source, encoding))):
            number += bool(keys or kept)
            found |= {texts.texts[key] for key in keys}
    if not number:
        raise ValueError(f"corpus {corpus}: there is no line in it; expected plain text")
    return {"corpus": corpus, "lines": number, "test_texts": texts.number,
            "too_short": texts.too_short, "test_texts_found": len(found),
            "first": max(found, key=len, default=None)}  # fmt: skip


def _words(text: str) -> list[str]:
    """The words of a text, in lower case, as they are compared: don't and do n't are both [do, nt]."""
    text = unicodedata.normalize("NFKC", text).lower()
    for spelling, one in _SPELLINGS:
        text = spelling.sub(one, text)
    return _WORD.findall(text)
