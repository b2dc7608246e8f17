"""Word vectors, words and vocabularies: what is read, what is refused, and that a tokenizer comes back as it was."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from conftest import missing

from spiketext import reproduce, skipgram
from spiketext.cli import main
from spiketext.options import VectorOptions
from spiketext.vectors import read_vectors, unit_range
from spiketext.wordmodels import tokenizer_of
from spiketext.words import PAD, UNKNOWN, language_of, lexicon, segment

ROWS = "the 1 2 3\na -1 0.5 2e-1\nfilm 0 0 7\n"
TABLE = np.array([[1, 2, 3], [-1, 0.5, 0.2], [0, 0, 7]], dtype=np.float32)


@pytest.fixture
def write(tmp_path):
    def to_file(content: str | bytes, name: str = "vectors.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


@pytest.mark.parametrize("content", [ROWS, "3 3\n" + ROWS, ROWS.replace("\n", " \r\n"), "\ufeff" + ROWS])
@pytest.mark.parametrize("packed", [False, True])
def test_glove_word2vec_and_gzip_hold_the_same_vectors(content, packed, write):
    path = write(gzip.compress(content.encode()), "vectors.gz") if packed else write(content)
    words, vectors = read_vectors(path)
    assert words == ["the", "a", "film"] and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, TABLE)


def test_the_first_words_and_those_that_are_wanted_are_kept(write):
    words, vectors = read_vectors(write(ROWS), most=1, wanted={"film", "nothing"})
    assert words == ["the", "film"]
    np.testing.assert_array_equal(vectors, TABLE[[0, 2]])


def test_a_word_may_hold_blanks(write):
    words, vectors = read_vectors(write(ROWS + ". . . 7 8 9\nat name@domain.com 1 2 3\n"))
    assert words[3:] == [". . .", "at name@domain.com"]
    np.testing.assert_array_equal(vectors[3:], [[7, 8, 9], [1, 2, 3]])


BAD = {
    "a value too many": (ROWS + "long 1 2 3 4\n", "line 4 has 4 values, expected 3"),
    "ragged": (ROWS + "short 1 2\n", "line 4 has 2 values, expected 3"),
    "twice": (ROWS + "a 1 2 3\n", "line 4 has 'a', which line 2 has too"),
    "nan": (ROWS + "x 1 nan 3\n", "line 4 has a value that is no finite number"),
    "infinite": (ROWS + "x 1 inf 3\n", "line 4 has a value that is no finite number"),
    "no number": (ROWS + "x 1 one 3\n", "line 4 has a value that is no finite number"),
    "dimension": ("3 4\n" + ROWS, "line 2 has 3 values, expected 4"),
    "cut off": ("4 3\n" + ROWS, "promises 4 words, 3 follow"),
    "no rows": ("\n", "no row"),
    "words only": ("the\na\n", "line 1 has 0 values"),
    "latin-1": (ROWS.encode() + b"caf\xe9 1 2 3\n", "line 4 is not UTF-8"),
    "broken gzip": (gzip.compress(ROWS.encode() * 1)[:-9], "broken after line"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_that_says_where(case, write, tmp_path, capsys):
    content, expected = BAD[case]
    path = write(content, "vectors.gz" if case == "broken gzip" else "vectors.txt")
    argv = ["train", "--model", "textcnn", "--data", "demo", "--vectors", str(path), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert str(path) in error and expected in error and error.count("\n") == 1


def test_another_dimension_than_asked_for_is_refused(write):
    with pytest.raises(ValueError, match="line 1 has 3 values, expected 300"):
        read_vectors(write(ROWS), dimension=300)


def test_vectors_that_cover_almost_nothing_are_refused_with_the_share(write, tmp_path, capsys):
    path = write("der 1 2 3\ndie 4 5 6\n")
    argv = ["train", "--model", "textcnn", "--data", "demo", "--vectors", str(path), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "of the english words" in error and "%" in error and error.count("\n") == 1


def test_rates_are_in_the_unit_range_with_the_mean_in_the_middle():
    vectors = np.random.default_rng(0).normal(2, 0.5, (400, 50))
    vectors[0, 0], vectors[0, 1] = 100, -100
    rates, mean, deviation = unit_range(vectors), vectors.mean(), vectors.std()
    assert rates[0, 0] == 1 and rates[0, 1] == 0
    inside = np.abs(vectors - mean) < 3 * deviation
    np.testing.assert_allclose(rates[inside], ((vectors - mean) / deviation / 6 + 0.5)[inside])


def test_vectors_that_are_all_equal_are_refused():
    with pytest.raises(ValueError, match="all values are 2"):
        unit_range(np.full((3, 2), 2.0))


def test_a_huge_value_among_others_is_refused_and_one_that_the_clip_takes_is_not():
    vectors = np.random.default_rng(0).normal(0, 1, (400, 50)).astype(np.float32)
    vectors[0, 0] = 30
    assert 0.15 < unit_range(vectors).std() < 1 / 6
    vectors[0, 0] = 1e20
    with pytest.raises(ValueError, match=r"values from -\d.* to 1e\+20 make nearly equal rates"):
        unit_range(vectors)


@pytest.mark.parametrize(("text", "words"), [
    ("It's well-made, isn't it?", "it 's well-made , is n't it ?"),
    ("They can't and WON’T", "they ca n't and wo n't"),
    ("do n't", "do n't"),
    ("3.5 stars...", "3.5 stars . . ."),
    ("naïve 🙂", "naïve 🙂"),
    ("  \n", ""),
])  # fmt: skip
def test_english_words(text, words):
    assert segment(text, "english") == words.split()


def test_chinese_words_are_those_of_jieba():
    try:
        import jieba
    except ImportError:
        missing("jieba is not installed; pip install 'spiketext[chinese]'")
    text = "味道不错，送餐也快 A组"
    assert segment(text, "chinese") == [word for word in jieba.lcut(text.lower()) if word != " "]


@pytest.mark.parametrize(
    ("text", "language"), [("味道 OK 不错", "chinese"), ("A fine film 好", "english"), ("", "english")]
)
def test_the_language_is_seen(text, language):
    assert language_of([text]) == language


def test_another_language_is_refused():
    with pytest.raises(ValueError, match="expected english or chinese, got 'klingon'"):
        segment("x", "klingon")


def test_a_tokenizer_comes_back_with_its_words_and_its_rules(tmp_path):
    import spiketext.models

    before = tokenizer_of([PAD, UNKNOWN, "do", "n't", "a\rb", "\u2028odd"], "english")
    before.save_pretrained(tmp_path)
    spiketext.models.TextCnnConfig(vocab_size=6).save_pretrained(tmp_path)
    after = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert after.get_vocab() == before.get_vocab() and after.language == "english"
    assert after("Don't do that")["input_ids"] == [2, 3, 2, 1]
    assert after("")["input_ids"] == [1]
    assert after("do [PAD][UNK]")["input_ids"] == [2, *[1] * 6]  # signs and words as others, no padding
    with pytest.raises(ValueError, match="reads single texts"):
        after("do", "do")
    assert (after.pad_token_id, after.unk_token_id) == (0, 1)
    assert after("do do do", truncation=True, max_length=2)["input_ids"] == [2, 2]


def test_a_lexicon_says_what_the_vectors_cover(write):
    words, vectors, coverage = lexicon(["The film.", "a a film"], str(write(ROWS)))
    assert words == [PAD, UNKNOWN, "the", "a", "film"]
    np.testing.assert_array_equal(vectors[2:], TABLE)
    np.testing.assert_array_equal(vectors[0], 0)
    np.testing.assert_allclose(vectors[1], TABLE.mean(0))
    assert coverage["covered_words"] == pytest.approx(5 / 6, abs=1e-4)
    assert coverage["covered_types"] == pytest.approx(3 / 4)


def test_random_vectors_are_those_of_their_seed():
    one, again, other = (lexicon(["a film"], None, seed=seed)[1] for seed in (0, 0, 1))
    assert one.shape == (4, 300) and (one == again).all() and (one != other).any()


def test_a_file_is_looked_up_in_the_data_folder_too(write, tmp_path):
    write(ROWS, "found.txt")
    assert lexicon(["a"], "found.txt", data_dir=str(tmp_path))[0][2:] == ["the", "a", "film"]
    with pytest.raises(FileNotFoundError, match="no such file"):
        lexicon(["a"], "lost.txt", data_dir=str(tmp_path))


# Trained by us --------------------------------------------------------------------------------------------------------

CORPUS = "The film was good and the actors were good too.\nThe film was bad and the actors were bad too.\n" * 40


@pytest.fixture
def gensim():
    try:
        import gensim
    except ImportError:
        missing("gensim is not installed; pip install 'spiketext[vectors]'")
    return gensim


def trained(write, out: Path, corpus: str = CORPUS, **asked) -> dict:
    options = {"dimension": 12, "threads": 1, "quiet": True, "epochs": 2} | asked
    return skipgram.vectors(VectorOptions(corpus=str(write(corpus, "corpus.txt")), out=str(out), **options))


def test_vectors_of_a_corpus_are_trained_once_and_read_from_their_folder(write, tmp_path, gensim, monkeypatch):
    result = trained(write, tmp_path / "one")
    words, vectors = read_vectors(tmp_path / "one", dimension=12)
    assert sorted(words) == [".", "actors", "and", "bad", "film", "good", "the", "too", "was", "were"]
    assert words[0] == "the"
    assert (result["words"], result["sentences"], result["language"]) == (10, 80, "english")
    assert vectors.std() > 0 and not (tmp_path / "one" / "checkpoints").exists()
    trained(write, tmp_path / "two")
    assert (read_vectors(tmp_path / "two")[1] == vectors).all()
    found, _, coverage = lexicon(["The film was fine."], str(tmp_path / "one"))
    assert coverage["covered_types"] == pytest.approx(4 / 5) and "good" in found
    monkeypatch.setattr(skipgram, "_write", None)  # a finished run is not made again
    assert trained(write, tmp_path / "one") == result
    with pytest.raises(ValueError, match="holds a run with dimension = 12"):
        trained(write, tmp_path / "one", dimension=13)


def test_chinese_vectors_are_of_jiebas_words(write, tmp_path, gensim):
    trained(write, tmp_path / "zh", "我们去了那家饭店，味道非常不错。送餐的速度也很快，以后还会再来。\n" * 10)
    assert {"味道", "不错", "速度"} <= set(read_vectors(tmp_path / "zh")[0])


def test_vectors_that_cannot_be_trained_are_one_line(write, tmp_path, capsys, gensim):
    corpus = str(write(CORPUS, "corpus.txt"))
    for flags, message in (
        (["--least", "500"], "no word occurs 500 times"),
        (["--dimension", "0"], "dimension: expected at least 1, got 0"),
        (["--leave-out", "nowhere"], "nowhere"),
    ):
        assert main(["vectors", "--corpus", corpus, "--out", str(tmp_path / flags[0]), "--quiet", *flags]) == 2
        assert message in capsys.readouterr().err


def test_after_a_kill_or_an_error_of_gensim_other_vectors_can_be_asked_for(write, tmp_path, gensim, monkeypatch):
    def fail(*rest, corpus_file, **more):
        folder = Path(corpus_file).parent
        shutil.copytree(folder, f"{folder}-killed")  # as a kill leaves it
        raise RuntimeError("of another kind")

    with monkeypatch.context() as patch:
        patch.setattr("gensim.models.Word2Vec", fail)
        with pytest.raises(RuntimeError, match="of another kind"):
            trained(write, tmp_path / "out")
    assert trained(write, tmp_path / "out", dimension=6)["dimension"] == 6


def test_an_experiment_trains_its_word_vectors_first(tmp_path, monkeypatch, gensim):
    monkeypatch.chdir(tmp_path)
    folder = Path("experiments")
    folder.mkdir()
    Path("corpus.txt").write_text(CORPUS + "A fine story, well told and never dull.\n" * 20)
    (folder / "words.toml").write_text(
        f'title = "words"\nscale = "8"\n[vectors]\ncorpus = "{tmp_path / "corpus.txt"}"\ndimension = 8\nquiet = true\n'
    )
    (folder / "use.toml").write_text(
        'title = "t"\nscale = "s"\ndata = "demo"\nseeds = [0]\n[[rows]]\nrow = "r"\nkind = "train"\nrun = "r"\n'
        'vectors = "words"\n[rows.options]\nmodel = "textcnn"\nepochs = 1\nquiet = true\nmax_length = 16\n'
    )
    assert reproduce.reproduce(folder, "use")["json"]["cells"][0]["status"] == "done"
    assert '"vectors": "runs/words"' in Path("runs/use/r-0/config.json").read_text()
