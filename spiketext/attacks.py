"""Floor 8: `attack`: a recipe against a model, text by text; what is resumed, measured, saved and shown.

Noise of Poisson spikes, where a network draws them (the others are deterministic):

fixed        one noise for a text and all its changes: the network is a function, and only the words make a difference
fresh        new noise at every query: the attacker's comparisons are noisy, and a lucky draw counts as a success
expectation  every query is the mean of the logits over `draws` noises, the same for all changes of a text

In each of them the final text is asked again under `draws` noises that the attack did not see; so is the original.
"""

from __future__ import annotations

import html
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from scipy.stats import binomtest
from tqdm.auto import tqdm

from spiketext import checkpoints
from spiketext.data import Split
from spiketext.evaluation import Diverged, labels_for, logits_of, note_test_reading, read_split
from spiketext.options import AttackOptions, DataOptions
from spiketext.recipes import Attack, Recipe, budget, recipe_of
from spiketext.runs import Run, read_json, write_whole
from spiketext.substitutes import Bugs, MaskedLM, Neighbours, Sentence, Similarity, Source, WordNet
from spiketext.words import language_of

NOISES = ("fixed", "fresh", "expectation")
ATTACKS, SECONDS, VICTIM, PAGE = "attacks.jsonl", "seconds.json", "victim.json", "attacks.html"
# Cosines of MiniLM that stand for the levels of the recipes: `python benchmarks/similarity.py`, STS-B dev, 1,500 pairs.
MINILM_COSINE = {0.0: -1.0, 0.2: 0.336, 0.5: 0.621, 0.7: 0.784, 0.8: 0.845, 0.84: 0.870, 0.9: 0.911, 1.0: 1.0}
_FEWEST = 0.1  # a source that knows less than this share of the words that may change is of another language
_UNSEEN = 1 << 20  # numbers of the noises that no query of an attack has


class Victim:
    """A classifier that is asked for probabilities, counts the queries of a text and remembers answers that stay.

    noise is one of NOISES; draws is how many noises an expectation has. A network without Poisson spikes has none.
    """

    def __init__(self, model: Any, tokenizer: Any, noise: str = "fixed", draws: int = 8, batch_size: int = 64):
        self.model, self.tokenizer, self.batch_size, self.draws = model, tokenizer, batch_size, draws
        self.noisy = getattr(model.config, "coding", None) == "poisson"
        self.noise = noise if self.noisy else "none"
        self.unknown = tokenizer.mask_token or tokenizer.unk_token
        self.begin(0)

    def begin(self, row: int) -> None:
        """The next text: noises of its own, no answer remembered, no query counted."""
        self.row, self.queries = row, 0
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Probabilities [N, K]; a text that has its answer already is no query, except with fresh noise.

        Raises Diverged when a logit is not a number.
        """
        if self.noise == "fresh":
            numbers = np.arange(1, len(texts) + 1) + self.queries
            self.queries += len(texts)
            return softmax(self._logits(texts, numbers), 1)
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        self.queries += len(new)
        if new:
            first = 1 if self.noise == "expectation" else 0
            answers = self._mean_logits(new, range(first, first + (self.draws if first else 1)))
            self.known.update(zip(new, softmax(answers, 1), strict=True))
        return np.stack([self.known[text] for text in texts])

    def unseen(self, text: str) -> np.ndarray:
        """Classes [draws] of a text under noises that no query had; these are no queries."""
        return self._logits([text] * self.draws, _UNSEEN + np.arange(self.draws)).argmax(1)

    def _mean_logits(self, texts: list[str], numbers: range) -> np.ndarray:
        repeated = self._logits(texts * len(numbers), np.repeat(np.array(numbers), len(texts)))
        return repeated.reshape(len(numbers), len(texts), -1).mean(0)

    def _logits(self, texts: list[str], numbers: np.ndarray) -> np.ndarray:
        noise = (self.row << 24) + numbers.astype(np.int64) if self.noisy else None
        logits = logits_of(self.model, self.tokenizer, texts, batch_size=self.batch_size, noise=noise)
        if not np.isfinite(logits).all():
            raise Diverged(f"attack: the model answers NaN or infinity to row {self.row} of the split; it diverged: "
                           "train again with a lower --learning-rate")  # fmt: skip
        return logits.astype(np.float64)


class Attacker:
    """A recipe with its sources: (victim, text, gold) -> a record of the attack.

    row_name is the recipe with what its words and similarities come from, "textfooler[enwiki-sgns, minilm]". Raises as
    the sources, and ValueError when options.recipe is such a name and not this one, or for a resource that the recipe
    does not read.
    """

    def __init__(self, recipe: Recipe, options: AttackOptions):
        self.recipe = recipe
        this = f"recipe {options.recipe} in setting {options.setting}, similarity {recipe.similarity:g},"
        require_default(options, f"{this} does not read it", {
            "vectors": recipe.source in ("vectors", "bugs"), "masked_lm": recipe.source == "masked-lm",
            "encoder": recipe.similarity > 0})  # fmt: skip
        self.wordnet = WordNet(options.data_dir)
        self.source = self._source(options)
        self.similarity = Similarity(options.encoder) if recipe.similarity else None
        self.cosine = cosine_for(options.encoder, recipe.similarity)
        used: list[Source | Similarity] = [self.source, *([self.similarity] if self.similarity else [])]
        self.digests = {part: each.digest for part, each in zip(("words", "similarity"), used, strict=False)}
        self.row_name = f"{options.recipe.partition('[')[0]}[{', '.join(each.name for each in used)}]"
        if "[" in options.recipe and options.recipe != self.row_name:
            raise ValueError(
                f"recipe: asked is {options.recipe!r}, but the resources make it {self.row_name!r}; name it so, "
                "or change vectors, masked_lm or encoder"
            )

    def _source(self, options: AttackOptions) -> Source:
        if self.recipe.source == "wordnet":
            return self.wordnet
        if self.recipe.source == "masked-lm":
            if not options.masked_lm:
                raise FileNotFoundError(
                    "bert-attack needs a masked language model; name one with --masked-lm (bert-base-uncased, or the "
                    "folder of spiketext mlm)"
                )
            return MaskedLM(options.masked_lm, self.wordnet)
        near = Neighbours(options.vectors, self.wordnet, self.recipe.nearest, options.data_dir)
        return near if self.recipe.source == "vectors" else Bugs(near, options.seed)

    def require_known(self, texts: Sequence[str]) -> None:
        """Raises ValueError when less than a tenth of the words that may change are known where words come from."""
        words = [word for text in texts for word in Sentence.of(text).words if not self.wordnet.is_stop(word)]
        known = sum(self.source.knows(word.lower()) for word in words)
        if known < _FEWEST * len(words):
            raise ValueError(
                f"recipe {self.row_name}: {self.source.name} knows {known / len(words):.1%} of the words that may "
                f"change, expected at least {_FEWEST:.0%}; is it of another language, or not lower-cased?"
            )

    def __call__(self, victim: Victim, text: str, gold: int) -> dict[str, Any]:
        """status is skipped (wrong before the attack, as the literature counts it), failed or succeeded."""
        original = Sentence.of(text)
        base = victim([text])[0]
        record: dict[str, Any] = {"text": text, "label": gold, "status": "skipped"}
        if base.argmax() != gold:
            return record | {"queries": victim.queries}
        plan = self._plan(victim, original, gold)
        final, turned = self.recipe.search(self.recipe, plan, base) if plan.places else (original, False)
        changed = [p for p, (a, b) in enumerate(zip(original.words, final.words, strict=True)) if a != b]
        record |= {"status": "succeeded" if turned else "failed", "queries": victim.queries,
                   "words": len(original.words), "changed": changed, "adversarial": final.text,
                   "pieces": list(final.pieces), "original_words": [original.words[p] for p in changed]}  # fmt: skip
        if self.similarity is not None and changed:
            record["similarity"] = round(float(self.similarity(text, [final.text])[0]), 4)
        if victim.noisy:
            record |= {"unseen_wrong": float((victim.unseen(final.text) != gold).mean()),
                       "original_unseen_wrong": float((victim.unseen(text) != gold).mean())}  # fmt: skip
        return record

    def _plan(self, victim: Victim, original: Sentence, gold: int) -> Attack:
        places = [p for p, word in enumerate(original.words) if not self.wordnet.is_stop(word)]
        most = budget(original.words, self.recipe.max_changed)

        def allowed(sentence: Sentence, place: int) -> tuple[list[Sentence], np.ndarray]:
            words = [word for word in self.source(original, place) if not self.wordnet.is_stop(word)]
            found = [sentence.with_word(place, word) for word in words[: self.recipe.candidates]]
            if self.recipe.same_part:
                part = self.wordnet.part(original.words, place)
                found = [other for other in found if self.wordnet.part(other.words, place) == part]
            if self.similarity is None:
                return found, np.ones(len(found))
            similar = self.similarity(original.text, [other.text for other in found])
            near = similar >= self.cosine
            return [other for other, is_near in zip(found, near, strict=True) if is_near], similar[near]

        return Attack(victim, original, gold, places, most, allowed, victim.unknown)


def cosine_for(encoder: str, level: float) -> float:
    """The least cosine of an encoder for a level of similarity: calibrated for minilm, else the level itself."""
    if encoder != "minilm":
        return level
    return float(np.interp(level, list(MINILM_COSINE), list(MINILM_COSINE.values())))


def attack(options: AttackOptions) -> dict[str, Any]:
    """The command: attack a sample of a split, save every text in options.out, return the measures.

    A killed run goes on behind the last text that was saved. Raises ValueError for options or data that do not fit,
    FileNotFoundError for a missing resource; then the folder is not touched. ValueError also for a folder that is
    damaged or whose texts were attacked with other weights, data or resources, Diverged for answers that are no number.
    """
    if options.noise not in NOISES:
        raise ValueError(f"noise: expected one of {', '.join(NOISES)}; got {options.noise!r}")
    changes = {name: getattr(options, name) for name in ("max_changed", "candidates", "similarity")}
    name = options.recipe.partition("[")[0]
    recipe = recipe_of(name, options.setting, **changes)
    reading = {name: getattr(options, name) for name in DataOptions.__dataclass_fields__ if name != "data"}
    checkpoints.quiet()
    if options.threads:
        torch.set_num_threads(options.threads)
    text_set, part = read_split(options.data, options.split, **reading)
    require_attackable(part, text_set.task)
    model = checkpoints.on_gpu(checkpoints.load_classifier(options.model))
    labels = labels_for(model, text_set, part, options.model)
    tokenizer = checkpoints.load_tokenizer(options.model)
    victim = Victim(model, tokenizer, options.noise, options.draws, options.batch_size)
    require_default(options, f"{options.model} draws no noise", {"noise": victim.noisy, "draws": victim.noisy})
    attacker = Attacker(recipe, options)
    rows = sample(len(part), options.limit, options.seed)
    attacker.require_known([part.texts[row] for row in rows])
    run = Run("attack", options)
    made_with = {"weights": checkpoints.weights_hash(model), "data_hash": text_set.hash} | attacker.digests
    require_same(run.out, made_with)
    if run.result is not None:
        return run.result
    about = {"model": options.model, "data": text_set.name, "split": options.split, "data_hash": text_set.hash,
             "time_steps": getattr(model.config, "time_steps", None)}  # fmt: skip
    if options.split == "test" and not (run.out / ATTACKS).exists():
        note_test_reading(Path(options.model), about)
    if not (run.out / ATTACKS).exists():
        write_whole(run.out / VICTIM, json.dumps(made_with, indent=2))
    records, seconds = _attack_all(run.out, rows, part, labels, attacker, victim, options.quiet)
    notes = _notes(options, attacker, records)
    result = about | {"row": attacker.row_name, "recipe": name, "setting": options.setting,
                      "noise": victim.noise, "draws": options.draws if victim.noisy else None,
                      "max_changed": recipe.max_changed, "candidates": recipe.candidates,
                      "similarity_level": recipe.similarity, "least_cosine": attacker.cosine,
                      **measures(records), "wall_s": round(seconds, 1), "notes": notes}  # fmt: skip
    return run.finish(lambda folder: write_whole(Path(folder) / PAGE, page(result, records)), result)


def require_default(options: AttackOptions, why_not: str, read: dict[str, bool]) -> None:
    """Raises ValueError for an option (name: whether it is read) that is given and not read."""
    for name, is_read in read.items():
        if not is_read and getattr(options, name) != AttackOptions.__dataclass_fields__[name].default:
            raise ValueError(f"{name}: got {getattr(options, name)!r}, but {why_not}; leave it out")


def require_same(folder: Path, asked: dict[str, str]) -> None:
    """Raises ValueError when an attack's folder says that it was made with another of these; older ones say nothing."""
    made = read_json(folder / VICTIM) or {}
    for name, value in asked.items():
        if made.get(name, value) != value:
            raise ValueError(
                f"{folder}: holds an attack with {name} {made[name][:12]}, got {value[:12]}: what it was made with is "
                "another one by now; take another folder"
            )


def require_attackable(part: Split, task: str) -> None:
    """Single English texts with classes; raises ValueError for others."""
    if task != "classification" or part.pairs is not None:
        raise ValueError("attack: expected single texts with classes, got pairs or a regression; take another set")
    if language_of(part.texts) != "english":
        raise ValueError("attack: the recipes know English words only, and these texts are Chinese; take another set")


def sample(rows: int, limit: int, seed: int) -> list[int]:
    """Row numbers of the texts to attack, in order: `limit` of them drawn at random, or all."""
    return sorted(random.Random(seed).sample(range(rows), min(limit, rows)))


def _attack_all(
    out: Path, rows: list[int], part: Split, labels: np.ndarray, attacker: Attacker, victim: Victim, quiet: bool
) -> tuple[list[dict[str, Any]], float]:
    """Records of all rows, those that are saved already first; and the seconds over all resumptions."""
    file, clock = out / ATTACKS, out / SECONDS
    records = saved(out) if file.exists() else []
    if [record.get("row") for record in records] != rows[: len(records)]:
        raise ValueError(f"{file}: its lines are not of the first {len(records)} of the {len(rows)} texts asked, one a "
                         "line; restore the file, or remove its folder and attack again")  # fmt: skip
    before = read_json(clock) or 0.0
    since = time.monotonic()
    bar = tqdm(rows[len(records) :], initial=len(records), total=len(rows), unit="text", disable=quiet, leave=False)
    with file.open("a", encoding="utf-8", newline="\n") as stream:
        stream.truncate(file.read_bytes().rfind(b"\n") + 1)
        for row in bar:
            victim.begin(row)
            records.append({"row": row} | attacker(victim, part.texts[row], int(labels[row])))
            stream.write(json.dumps(records[-1], ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
            write_whole(clock, json.dumps(before + time.monotonic() - since))
    return records, before + time.monotonic() - since


def saved(folder: Path) -> list[dict[str, Any]]:
    """The records of an attack's folder, without a last line that a kill has torn.

    Raises FileNotFoundError when it is none, ValueError naming a line that is damaged.
    """
    path = folder / ATTACKS
    if not path.exists():
        raise FileNotFoundError(f"{folder}: no {ATTACKS} there; name the --out of spiketext attack")
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            records.append({**json.loads(line)})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: line {number} is damaged ({error}); restore the file, or remove its folder and "
                             "attack again") from None  # fmt: skip
    return records


def measures(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares with Wilson intervals (95 %) and means.

    clean_accuracy and accuracy_under_attack (Boa) are over all texts, success_rate (Suc) over those attempted, which
    were right before; queries over the attempted, changed_share and similarity over the successes. With Poisson spikes
    also, under noises that the attack did not see: how often a success and its original are misread, and the accuracy.
    """
    attempted = [r for r in records if r["status"] != "skipped"]
    won = [r for r in attempted if r["status"] == "succeeded"]
    found: dict[str, Any] = {"texts": len(records), "attempted": len(attempted), "succeeded": len(won)}
    for name, k, n in (("clean_accuracy", len(attempted), len(records)),
                       ("accuracy_under_attack", len(attempted) - len(won), len(records)),
                       ("success_rate", len(won), len(attempted))):  # fmt: skip
        found[name], found[f"{name}_interval"] = share(k, n)
    found["mean_queries"] = _mean([r["queries"] for r in attempted])
    found["queries"] = sum(r["queries"] for r in records)
    found["changed_share"] = _mean([len(r["changed"]) / r["words"] for r in won])
    if any("similarity" in r for r in won):
        found["mean_similarity"] = _mean([r["similarity"] for r in won])
    if attempted and "unseen_wrong" in attempted[0]:
        found["success_holds"] = _mean([r["unseen_wrong"] for r in won])
        found["original_misread"] = _mean([r["original_unseen_wrong"] for r in attempted])
        found["unseen_accuracy_under_attack"] = sum(1 - r["unseen_wrong"] for r in attempted) / len(records)
    return found


def share(k: int, n: int) -> tuple[float | None, list[float] | None]:
    """k of n and its Wilson interval (95 %); None of none."""
    if not n:
        return None, None
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return k / n, [round(float(interval.low), 4), round(float(interval.high), 4)]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _notes(options: AttackOptions, attacker: Attacker, records: list[dict[str, Any]]) -> list[str]:
    notes = []
    cut = attacker.similarity.cut([r["text"] for r in records]) if attacker.similarity else 0
    if cut:
        notes.append(f"similarity is judged by the first 256 tokens, and {cut} of the texts are longer")
    if attacker.similarity and options.encoder == "minilm" and _comes_from(options.model, "minilm"):
        notes.append("the encoder that judges similarity, minilm, is also what the victim was made from")
    return notes


def _comes_from(model: str, name: str) -> bool:
    """Whether a folder's run, or one of those that it started from, names a model."""
    run = Path(model) / "run.json"
    if model == name or not run.exists():
        return model == name
    asked = read_json(run)
    above = {asked.get(field) for field in ("model", "teacher", "student", "start")} - {None, model}
    return any(_comes_from(other, name) for other in above)


def page(result: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """An HTML page: the measures, then every success beside its original, changed words marked."""
    head = "".join(f"<tr><th>{html.escape(name)}<td>{html.escape(str(value))}" for name, value in result.items())
    rows = "".join(f"<tr><td>{r['row']}<td>{marked(Sentence.of(r['text']).pieces, r['changed'])}"
                   f"<td>{marked(r['pieces'], r['changed'])}"
                   for r in records if r["status"] == "succeeded")  # fmt: skip
    return (f"<!doctype html><meta charset=utf-8><title>{html.escape(result['row'])}</title>"
            "<style>body{font:15px sans-serif;max-width:75em;margin:2em auto}td,th{text-align:left;padding:.3em;"
            "vertical-align:top;border-bottom:1px solid #ddd}mark{background:#fd8}</style>"
            f"<h1>{html.escape(result['row'])}</h1><table>{head}</table>"
            f"<h2>Successes</h2><table><tr><th>row<th>original<th>adversarial{rows}</table>\n")  # fmt: skip


def marked(pieces: Sequence[str], changed: Sequence[int]) -> str:
    """The pieces of a sentence as HTML, its changed words (by their number) marked."""
    at = {2 * place + 1 for place in changed}
    return "".join(f"<mark>{html.escape(p)}</mark>" if i in at else html.escape(p) for i, p in enumerate(pieces))
