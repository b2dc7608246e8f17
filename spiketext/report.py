"""Floor 9: one self-contained HTML page that shows a model. Figures need matplotlib (the extra `plots`).

The page holds its styles and pictures (inline SVG), asks nothing of a network, and leaves out what does not apply to a
model. Scores are of the split that was asked for; test is read only when it is, and then logged. The page is written in
English; report.LANGUAGE.toml has its sentences in another language.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from markupsafe import Markup, escape

from spiketext import portraits
from spiketext.about import describe_model, machine
from spiketext.attacks import VICTIM, marked, require_same, saved
from spiketext.audit import Say, advice, audit
from spiketext.checkpoints import label_names, load_classifier, load_tokenizer, weights_hash
from spiketext.data import Split, TextSet
from spiketext.energy import energy
from spiketext.evaluation import (
    at_least_one,
    in_order,
    labels_for,
    note_test_reading,
    read_split,
    scores,
)
from spiketext.figures import capped, require_drawable, save
from spiketext.insight import Reading, answers_by_step, calibration, confusion, legible, look_inside
from spiketext.runs import read_json, readings_of_test, write_whole
from spiketext.sharing import settings_of, without_folders
from spiketext.substitutes import Sentence

SHOWN = 4  # examples of each kind
LANGUAGES = {"english": "en", "chinese": "zh-CN"}
_HERE = Path(__file__).parent


def report(
    model: str,
    data: str | TextSet,
    out: str,
    split: str = "validation",
    *,
    limit: int | None = 64,
    text: str | None = None,
    attack: str | None = None,
    figures: str | None = None,
    language: str = "english",
    batch_size: int = 32,
    progress: bool = False,
    **reading: Any,
) -> dict[str, Any]:
    """Write the page of a saved classifier, spiking or dense, and return where it is with the scores.

    Scores, calibration and examples are of all texts of the split; energy and audit of `limit` of them, spread evenly.
    text: whose spikes and attention are shown (None: one of the split); attack: the folder of an attack; figures: a
    folder for the pictures as SVG; language: english or chinese, of the page itself; reading: see `data.load`.
    A reading of the test split is counted in the model's folder.
    Raises ValueError for an out that is not .html, files where folders must be, another language, without matplotlib,
    for an attack on another model, and as `evaluate`; FileNotFoundError when the attack's folder has no such file.
    """
    if Path(out).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out}: expected the name of a page, FILE.html")
    _require_places(Path(out), Path(figures or "."))
    at_least_one(limit=limit, batch_size=batch_size)
    say = sayer(language)  # or it raises, before anything is read
    require_drawable()
    attacked = saved(Path(attack)) if attack else []
    text_set, part = read_split(data, split, **reading)
    network, tokenizer = load_classifier(model), load_tokenizer(model)
    if attack:
        _require_attacked(Path(attack), model, network)
    labels = labels_for(network, text_set, part, model)
    start = time.perf_counter()
    steps = answers_by_step(network, tokenizer, part.texts, part.pairs, batch_size, progress)
    seconds = time.perf_counter() - start
    found = scores(text_set.task, in_order(network, text_set, steps[-1]), np.asarray(part.labels))
    result = {"model": model, "data": text_set.name, "split": split, "rows": len(part), **found, "report": out,
              "figures": figures, "data_hash": text_set.hash,
              "time_steps": getattr(network.config, "time_steps", None)}  # fmt: skip
    if split == "test":
        result["test_reads"] = note_test_reading(Path(model), result)
    about = describe_model(model)
    own: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "progress": progress}
    page: dict[str, Any] = {
        "about": about | without_folders({name: about[name] for name in ("model", "made_by")}),
        "run": settings_of(read_json(Path(model) / "run.json") or {}),
        "result": without_folders(read_json(Path(model) / "result.json")),
        "data": {"name": text_set.name, "split": split, "rows": len(part), "hash": text_set.hash},
        "scores": found,
        "speed": {"texts_per_second": len(part) / seconds, "batch_size": batch_size, **machine()},
        "energy": energy(model, text_set, split, **own),
        "audit": audit(model, text_set, split, **own),
        "attacked": attacked,
    }
    if text_set.task != "regression":
        names = label_names(network)
        page |= _answers(names, part, labels, steps[-1])
    shown, pair = (text, None) if text is not None else _legible(part, steps[-1], labels, tokenizer, text_set.task)
    inside = look_inside(network, tokenizer, shown, pair)
    page |= {"text": shown, "pair": pair, "classes": label_names(network)}
    drawn = dict(_figures(page, inside, read_json(Path(model) / "history.json") or [], steps, labels, text_set.task))
    for figure in drawn.values():
        portraits.relabel(figure, say)
    if figures:
        for name, figure in drawn.items():
            save(figure, str(Path(figures) / f"{name}.svg"))
    page["figures"] = {name: Markup(portraits.inline(figure, name)) for name, figure in drawn.items()}
    page["test_reads"] = readings_of_test(Path(model))
    write_whole(Path(out), render(page, language))
    return result


def _require_places(page: Path, figures: Path) -> None:
    """Raises ValueError where the page is a folder, or a file is where a folder must be."""
    if page.is_dir():
        raise ValueError(f"--out {page}: is a folder, expected FILE.html; name a file in it")
    for option, folder in (("--out", page.parent), ("--figures", figures)):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise ValueError(f"{option}: {there} is a file, expected a folder; name another")


def _require_attacked(folder: Path, model: str, network: Any) -> None:
    """Raises ValueError when an attack's folder says that it attacked another model."""
    run = read_json(folder / "run.json") or {}
    if (folder / VICTIM).exists():
        require_same(folder, {"weights": weights_hash(network)})
    elif Path(run.get("model", model)).resolve() != Path(model).resolve():
        raise ValueError(f"--attack {folder}: attacked {run['model']}, expected {model}; name an attack on this model")


def sayer(language: str) -> Say:
    """A function that puts a sentence of the page, and the values of its {names}, escaped, into a language.

    What the language's file does not have stays as it is. Raises ValueError for a language that is not in `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise ValueError(f"--language {language}: expected {' or '.join(LANGUAGES)}")
    known = {} if language == "english" else tomllib.loads((_HERE / f"report.{language}.toml").read_text("utf-8"))

    def say(sentence: str, **values: Any) -> Markup:
        return Markup(escape(known.get(sentence, sentence))).format(**values)

    return say


def render(page: dict[str, Any], language: str = "english") -> str:
    """What `report` gathered as HTML; every text is escaped."""
    say = sayer(language)
    house = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    house.filters |= {"short": _short, "excerpt": _excerpt, "turned": _turned, "capped": capped, "json": _json,
                      "advice": partial(advice, say=say)}  # fmt: skip
    house.globals |= {"_": say, "language": LANGUAGES[language]}
    template = house.from_string((_HERE / "report.html").read_text(encoding="utf-8"))
    return template.render({"right": [], "wrong": [], "matrix": None, "calibration": None, **page})


def _short(layer: str) -> str:
    """The name of a layer without the name of the network in front."""
    for prefix in ("spikebert.", "textcnn.", "bert."):
        layer = layer.removeprefix(prefix)
    return layer.replace("layers.", "block ").replace("layer.", "block ")


def _excerpt(text: str, most: int = 320) -> str:
    return text if len(text) <= most else text[:most].rstrip() + " …"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _turned(row: dict[str, Any], before: int = 240, most: int = 320) -> list[Markup]:
    """An attacked text and what it became, changed words marked; both cut alike, around the first changed word."""
    place = len("".join(row["pieces"][: 2 * min(row["changed"], default=0) + 1]))  # up to it both are the same
    start = max(0, place - before // 3) if place > before else 0
    shown = []
    for pieces in (Sentence.of(row["text"]).pieces, row["pieces"]):
        ends = list(accumulate(map(len, pieces), initial=0))
        seen = [p[max(0, start - at) : max(0, start + most - at)] for p, at in zip(pieces, ends, strict=False)]
        words = Markup(marked(seen, [word for word in row["changed"] if seen[2 * word + 1]]))
        shown.append("… " * (start > 0) + words + " …" * (ends[-1] > start + most))
    return shown


def _answers(names: Sequence[str], part: Split, labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Confusion, calibration and the surest right and wrong answers of a classification."""
    probabilities = torch.tensor(logits).softmax(-1).numpy()
    answers, sure = probabilities.argmax(-1), probabilities.max(-1)

    def surest(rows: np.ndarray) -> list[dict[str, Any]]:
        order = rows[np.argsort(-sure[rows], kind="stable")][:SHOWN]
        return [{"text": part.texts[i], "pair": part.pairs[i] if part.pairs else None, "label": names[labels[i]],
                 "answer": names[answers[i]], "probability": float(sure[i])} for i in order]  # fmt: skip

    return {
        "matrix": confusion(labels, answers, len(names)).tolist(),
        "calibration": calibration(probabilities, labels),
        "right": surest(np.flatnonzero(answers == labels)),
        "wrong": surest(np.flatnonzero(answers != labels)),
    }


def _legible(part: Split, logits: np.ndarray, labels: np.ndarray, tokenizer: Any, task: str) -> tuple[str, str | None]:
    """A text that is neither long nor short and, if there is one, rightly classified."""
    right = np.arange(len(part)) if task == "regression" else np.flatnonzero(logits.argmax(-1) == labels)
    [best] = legible(part, tokenizer, right.tolist() or range(len(part)))
    return part.texts[best], part.pairs[best] if part.pairs else None


def _figures(
    page: dict[str, Any], inside: Reading, history: list[dict], steps: np.ndarray, labels: np.ndarray, task: str
) -> Iterator[tuple[str, Any]]:
    """Names and matplotlib figures of what applies to the model."""
    yield from portraits.learning_curves(history).items()
    if page.get("calibration"):
        yield "calibration", portraits.reliability(page["calibration"]["bins"])
    if len(steps) > 1:
        metric = next(iter(page["scores"]))
        yield "anytime", portraits.over_steps([scores(task, answer, labels)[metric] for answer in steps], metric)
    if inside.attention is not None:
        yield "attention", portraits.attention_map(inside.tokens, inside.attention)
    names = list(inside.spikes)
    for number, name in enumerate(dict.fromkeys((names[0], names[len(names) // 2], names[-1])) if names else ()):
        yield f"raster-{number + 1}", portraits.raster(inside.tokens, inside.spikes[name], _short(name))
    rates = {_short(row["layer"]): row["rate by step"] for row in page["energy"]["layers"] if row["rate by step"]}
    if rates:
        yield "rates", portraits.firing_rates(rates)
