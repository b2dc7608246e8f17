"""What is seen inside a model is what it did, and the page of a model is whole, escaped and asks for nothing."""

from __future__ import annotations

import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import transformers
from conftest import classifier
from markupsafe import escape

from spiketext import portraits
from spiketext.attacks import ATTACKS
from spiketext.audit import audit
from spiketext.checkpoints import load_classifier, load_tokenizer
from spiketext.cli import main
from spiketext.evaluation import logits_of, sends
from spiketext.figures import save
from spiketext.insight import answers_by_step, calibration, confusion, look_inside
from spiketext.report import LANGUAGES, _short, report
from spiketext.substitutes import Sentence

HERE = Path(portraits.__file__).parent
TEXTS = ["A fine film.", "Not good, not bad, just long and <b>long</b> & long.", "很 好"]


class Page(HTMLParser):
    """Open tags at the end, sections, and addresses that a browser would fetch."""

    VOID = {"meta", "br", "link", "img", "input"}

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.open += [] if tag in self.VOID else [tag]
        self.ids += [given["id"]] if "id" in given else []
        self.sections += [given["id"]] if tag == "h2" else []
        links = [given.get(name) or "" for name in ("src", "href", "xlink:href")]
        self.fetched += [link for link in links if link and not link.startswith(("#", "data:"))]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(saved) -> str:
    """A spiking classifier with random weights."""
    return saved()


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> str:
    """Texts that would break a page that does not escape them."""
    path = tmp_path_factory.mktemp("own") / "own.csv"
    lines = [f"Wonderful {i} <script>alert({i})</script> & 很好,positive\nAwful {i} film,negative" for i in range(20)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("preset", ["ternary", "binary", "signed", "paper", "authors-stage2"])
def test_the_answer_after_the_last_step_is_the_answer(preset, tiny_tokenizer):
    model = classifier(tiny_tokenizer, preset)
    steps = answers_by_step(model, tiny_tokenizer, TEXTS)
    assert steps.shape == (model.config.time_steps, 3, 2)
    np.testing.assert_allclose(steps[-1], logits_of(model, tiny_tokenizer, TEXTS), atol=1e-5)


def test_the_answer_after_two_steps_is_that_of_a_run_of_two(tiny_tokenizer):
    long, short = classifier(tiny_tokenizer), classifier(tiny_tokenizer, time_steps=2)
    steps = answers_by_step(long, tiny_tokenizer, TEXTS)
    np.testing.assert_allclose(steps[1], logits_of(short, tiny_tokenizer, TEXTS), atol=1e-5)


def test_what_is_seen_inside_is_what_the_network_does(tiny_tokenizer):
    model = classifier(tiny_tokenizer)
    seen = look_inside(model, tiny_tokenizer, TEXTS[0])
    length = len(seen.tokens)
    assert seen.tokens[0] == "[CLS]" and seen.tokens[-1] == "[SEP]"
    block = "spikebert.layers.1.attention"
    qkv = seen.spikes[f"{block}.qkv_spikes"]  # [T, L, 3 D]
    assert qkv.shape == (4, length, 96) and set(np.unique(qkv)) == {0, 1}
    q, k = (part.reshape(length, 4, 8).transpose(1, 0, 2) for part in np.split(qkv[-1].astype(int), 3, axis=1)[:2])
    assert np.array_equal(seen.attention, q @ k.transpose(0, 2, 1))  # figure 4: last block, last step
    assert list(seen.spikes)[-1] == "head_spikes" and seen.logits.shape == (4, 2)


def test_the_map_of_a_dense_bert_sums_to_one(tiny_teacher):
    seen = look_inside(load_classifier(tiny_teacher), load_tokenizer(tiny_teacher), TEXTS[0])
    assert seen.spikes == {} and seen.logits.shape == (1, 2)
    np.testing.assert_allclose(seen.attention.sum(-1), 1, atol=1e-5)


def test_confusion_and_calibration_by_hand():
    assert confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist() == [[1, 1], [0, 1]]
    probabilities = np.array([[0.85, 0.15], [0.85, 0.15], [0.4, 0.6], [0.0, 1.0]])
    found = calibration(probabilities, np.array([0, 1, 1, 1]))
    assert [row["texts"] for row in found["bins"]] == [1, 2, 1]
    assert found["error"] == pytest.approx((0.4 * 1 + 0.35 * 2 + 0.0) / 4)


def test_the_page_of_a_spiking_model_is_whole_and_needs_no_network(folder, own, tmp_path, capsys):
    attack = tmp_path / "attack"
    attack.mkdir()
    early, late = "Fine <i>{}</i>" + " and so on" * 100, "so on and " * 100 + "it was {}"
    turned = {text: Sentence.of(text.format("flick")).pieces for text in (early, late)}
    lines = [{"text": text.format("film"), "status": "succeeded", "changed": [pieces.index("flick") // 2],
              "pieces": pieces} for text, pieces in turned.items()]  # fmt: skip
    lines.append({"text": "Bad", "status": "skipped"})
    (attack / ATTACKS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, drawn = tmp_path / "page.html", tmp_path / "figures"
    argv = ["report", "--model", folder, "--data", own, "--out", str(out), "--limit", "3", "--json",
            "--attack", str(attack), "--figures", str(drawn)]  # fmt: skip
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.fetched == []
    assert len(page.ids) == len(set(page.ids))
    assert page.sections == ["answers", "energy", "spikes", "purity", "attention", "attack", "origin"]
    assert "<script>" not in text and "&lt;script&gt;" in text
    for word in ("film", "flick"):
        assert (
            f'">Fine &lt;i&gt;<mark>{word}</mark>&lt;/i&gt; and' in text and f"it was <mark>{word}</mark></div>" in text
        )
    assert " and so on" * 40 not in text and text.count(" …</div>") == text.count(">… ") == 2
    assert "2 texts were attacked, 2 answers turned. 1 more were misread" in text
    assert text.count('<svg role="img" aria-label="') == text.count("<svg") > 0 and "<th>" not in text
    assert "binary, T = 4, default design" in text
    assert f"{100 * found['accuracy']:.1f} %" in text
    assert {file.stem for file in drawn.iterdir()} >= {"attention", "raster-1", "rates", "calibration", "anytime"}
    assert not (Path(folder) / "test_reads.jsonl").exists()


def test_the_page_of_a_dense_model_leaves_out_what_does_not_apply(tiny_teacher, own, tmp_path):
    out = tmp_path / "page.html"
    folder = tmp_path / "dense"
    transformers.AutoModelForSequenceClassification.from_pretrained(tiny_teacher).save_pretrained(folder)
    load_tokenizer(tiny_teacher).save_pretrained(folder)
    argv = ["report", "--model", str(folder), "--data", own, "--out", str(out), "--limit", "2", "--split", "test"]
    asked = {"command": "teacher", "out": "/home/me/很好", "model": "/home/me/bert & co"}
    (folder / "run.json").write_text(json.dumps(asked))
    (folder / "result.json").write_text(json.dumps({"of": ["/home/me/很好"], "parameters": 1}))
    (folder / "history.json").write_text(json.dumps([{"eval_loss": 1.0, "eval_accuracy": 0.5, "step": 3}]))
    assert main([*argv, "--text", "很好 <3"]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert page.sections == ["answers", "training", "energy", "attention", "origin"]
    text = out.read_text(encoding="utf-8")
    assert "很好 &lt;3" in text and "<h3>Validation</h3>" in text and "Loss terms" not in text
    assert "/home/me" not in text and str(tmp_path) not in text  # no folder of this machine
    assert "&#34;bert &amp; co&#34;" in text and "&#34;很好&#34;" in text and "\\u" not in text
    assert len((folder / "test_reads.jsonl").read_text().splitlines()) == 1
    assert "was read with this model: 1, last on" in out.read_text(encoding="utf-8")


def test_the_page_of_scores_names_no_class(saved, tmp_path):
    folder = saved(id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0}, problem_type="regression")
    rows = tmp_path / "scores.csv"
    rows.write_text("text,label\n" + "".join(f"film {i},{i / 10}\n" for i in range(40)))
    out = tmp_path / "page.html"
    asked = ["--data", str(rows), "--task", "regression", "--limit", "2"]
    assert main(["report", "--model", folder, "--out", str(out), *asked]) == 0
    page = out.read_text(encoding="utf-8")
    assert "It answers one number." in page and "Classes:" not in page


def phrases() -> set[str]:
    """The sentences of the page, and those of the audit's advice."""
    found = re.findall(r'_\("([^"]*)"', (HERE / "report.html").read_text(encoding="utf-8"))
    return {*found, *re.findall(r'say\("([^"]*)"', (HERE / "audit.py").read_text(encoding="utf-8"))}


def test_every_sentence_of_the_page_has_its_chinese_with_the_same_names_in_it():
    known = tomllib.loads((HERE / "report.chinese.toml").read_text(encoding="utf-8"))
    own = phrases()
    assert len(own) > 60 and not own - set(known)
    assert {key for key in known if " {" in key or key.endswith(".")} <= own  # no sentence that nobody says
    for english, chinese in known.items():
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", chinese)), english


@pytest.mark.parametrize("preset", ["ternary", "signed"])
def test_the_page_in_chinese_says_nothing_in_english_and_the_same_numbers(preset, saved, own, tmp_path, capsys):
    model, pages = saved(preset, change=mute), []
    for language in LANGUAGES:
        out = tmp_path / f"{language}.html"
        argv = ["report", "--model", model, "--data", own, "--out", str(out), "--limit", "3", "--language", language]
        assert main([*argv, "--json"]) == 0
        pages.append(out.read_text(encoding="utf-8"))
    english, chinese = pages
    assert '<html lang="en">' in english and '<html lang="zh-CN">' in chinese
    both = Page(english), Page(chinese)
    assert both[0].sections == both[1].sections and both[1].open == []
    for whole in (phrase for phrase in phrases() if len(phrase) > 12):
        parts = [part for part in re.split(r"{\w+}", str(escape(whole))) if len(part) > 8]
        assert not [part for part in parts if part in chinese], whole
    assert "ternary, T = 1, default design" in english if preset == "ternary" else "integer -2 to 2, T = 1" in english
    assert ("三值, T = 1" if preset == "ternary" else "整数 -2 至 2，T = 1") in chinese and "default 结构" in chinese
    meaning = "of opposite signs counts -1" if preset == "ternary" else "sums of products of the codes"
    assert meaning in english and "an ON/OFF pair is one neuron" in english
    for row in audit(model, own, limit=3)["layers"]:  # both tables say the same of a layer
        density = "–" if row["density"] is None else f"{100 * row['density']:.1f} %"
        assert f"<td>{_short(row['layer'])}</td><td>{row['reads']}</td><td>{density}</td>" in english
    assert "没有该模型读取测试集的记录" in chinese and ">被注视</text>" in chinese and "沉默：" in chinese
    assert "alert(" in chinese and "<script>" not in chinese

    def numbers(page: str) -> list[str]:
        rows = "".join(re.findall(r"<table>.*?</table>", page, flags=re.DOTALL))
        return re.findall(r">([\d.,]+(?: %)?)<", rows)

    assert numbers(english) == numbers(chinese) and len(numbers(chinese)) > 50


def mute(model) -> None:
    """Neurons of one layer that never fire, so that the doctor has something to say."""
    norm = model.spikebert.layers[0].feed_forward.input
    norm.weight.fill_(1e-3)


@pytest.mark.parametrize(("preset", "said"), [
    ("ternary", "ternary, T = 1, default design"), ("integer", "integer 0 to 4, T = 1, default design; `unroll`"),
    ("signed", "integer -2 to 2, T = 1"), ("paper", "binary, T = 4, paper design"),
])  # fmt: skip
def test_neurons_name_what_they_send(preset, said, tiny_tokenizer, tiny_teacher):
    assert sends(classifier(tiny_tokenizer, preset)).startswith(said)
    assert sends(load_classifier(tiny_teacher)) is None


def test_a_reading_of_test_is_counted_before_anything_shows_its_scores(saved, own, tmp_path, monkeypatch):
    def full(figure, path: str) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("spiketext.report.save", full)
    folder, out = saved(), str(tmp_path / "page.html")
    with pytest.raises(OSError, match="no space left"):
        report(folder, own, out, "test", limit=1, figures=str(tmp_path))
    assert len((Path(folder) / "test_reads.jsonl").read_text().splitlines()) == 1


def test_what_a_report_refuses(folder, own, tmp_path, capsys, monkeypatch):
    def refused(*argv: str) -> str:
        assert main(["report", "--model", folder, "--data", own, *argv]) == 2
        return capsys.readouterr().err

    assert "FILE.html" in refused("--out", str(tmp_path / "page.pdf"))
    assert "expected english or chinese" in refused("--out", str(tmp_path / "page.html"), "--language", "klingon")
    page = str(tmp_path / "page.html")
    assert "no attacks.jsonl" in refused("--out", page, "--attack", str(tmp_path))
    (tmp_path / ATTACKS).write_text("")
    (tmp_path / "run.json").write_text('{"model": "another"}')
    assert "attacked another, expected" in refused("--out", page, "--attack", str(tmp_path))
    (tmp_path / "d.html").mkdir()
    assert "is a folder, expected FILE.html" in refused("--out", str(tmp_path / "d.html"))
    assert "--out: " in refused("--out", f"{tmp_path / ATTACKS}/page.html")
    assert f"--figures: {tmp_path / ATTACKS} is a file" in refused(
        "--out", page, "--figures", f"{tmp_path / ATTACKS}/a"
    )
    assert "limit: expected at least 1, got 0" in refused("--out", page, "--limit", "0")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert "spiketext[plots]" in refused("--out", page, "--limit", "1")
    assert not Path(page).exists()


def test_pictures_refuse_what_does_not_fit_and_show_every_loss_term():
    with pytest.raises(ValueError, match="expected scores"):
        portraits.attention_map(["a", "b"], np.zeros((1, 3, 3)))
    with pytest.raises(ValueError, match="expected spikes"):
        portraits.raster(["a"], np.zeros((2, 2)))
    with pytest.raises(ValueError, match="no layer"):
        portraits.firing_rates({})
    history = [{"loss": 3.0, "features": 1.0, "over_budget": 2.0, "learning_rate": 1e-4, "step": 10},
               {"eval_loss": 1.0, "eval_accuracy": 0.5, "eval_runtime": 1.0, "step": 10}]  # fmt: skip
    curves = portraits.learning_curves(history)
    training, validation = curves["losses"], curves["validation"]
    assert list(portraits.learning_curves(history[1:])) == ["validation"]
    assert [text.get_text() for text in training.axes[0].get_legend().get_texts()] == [
        "loss",
        "features",
        "over_budget",
    ]
    assert [text.get_text() for text in validation.axes[0].get_legend().get_texts()] == ["loss", "accuracy"]


def test_pictures_keep_chinese_and_dollars_as_they_are(tmp_path, recwarn):
    figure = portraits.attention_map(["很好", r"$\no$", "$"], np.zeros((1, 3, 3)), title=r"$a$ \% $b$")
    save(figure, str(tmp_path / "a.svg"))
    for svg in (portraits.inline(figure, "a"), (tmp_path / "a.svg").read_text(encoding="utf-8")):
        assert ">很好</text>" in svg and r">$\no$</text>" in svg and r">$a$ \% $b$</text>" in svg
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    history = [{"loss": 100.0, "step": 1}, {"loss": 1.0, "step": 2}]
    assert r">$\mathdefault" not in portraits.inline(portraits.learning_curves(history)["losses"], "a")  # 10 to a power


def test_a_raster_draws_every_spike_of_both_signs():
    spikes = np.zeros((2, 3, 5), dtype=np.int8)
    spikes[0, 1, 2], spikes[1, 2, 4], spikes[1, 0, 0] = 1, 1, -2
    on, off = portraits.raster(["a", "b", "c"], spikes).axes[0].collections
    assert sorted(map(tuple, on.get_offsets().tolist())) == [(2.0, 2.0), (5.0, 4.0)]
    assert off.get_offsets().tolist() == [[1.0, 0.0]]
