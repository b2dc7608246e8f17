"""Texts a second and milliseconds a text: ours, the dense BERT of the same shape, the SpikingJelly-built network.

Texts in, logits out, tokenising included, at the texts' real lengths. Throughput: batches of 64, in length buckets or
in the order of the file. Latency: one text after the other, median and 95th percentile. `ratio` is seconds / those of
the dense BERT in float32 with buckets; a factor row compares ours with one thing changed to ours. Accuracy is that on
the timed texts; `agrees` is the share of equal predictions with the same network in float32.

int8: weights and, at every call, activations of every Linear (`to_precision`); bf16: autocast, only where the processor
computes in it. "stops at 90 %": a text leaves at the first time step that is so sure of its label (`anytime_logits`),
with the mean number of steps beside it. SpikingJelly's LIFNode takes beta * threshold at a soft reset: where the model
has one its speed counts, its accuracy is that of another neuron.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spiketext import checkpoints
from spiketext.about import machine
from spiketext.batching import TextRows
from spiketext.bench import Row, Samples, Say, absent, elsewhere, installed, measure, serve
from spiketext.evaluation import (
    anytime_logits,
    labels_for,
    logits_of,
    longest,
    model_inputs,
    note_test_reading,
    read_split,
)
from spiketext.models.streaming import Stepper
from spiketext.options import BenchOptions
from spiketext.precision import to_precision

TURNS = {"tiny": 1, "short": 3, "full": 5}
TEXTS = {"tiny": 8, "short": 192, "full": 1 << 30}
SINGLES = {"tiny": 3, "short": 40, "full": 200}
CONFIDENCES = (0.8, 0.9, 0.97)
DENSE, OURS = "dense BERT, float32", "ours, float32"
Answer = Callable[[list[str]], np.ndarray]


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: throughput of every network, factors of ours, latency. A reading of test is logged in both folders."""
    if not options.model or not options.teacher:
        return [absent("not measured: name the saved models with --model and --teacher")]
    text_set, part = read_split(options.data, options.split, data_dir=options.data_dir)
    count = min(len(part), options.limit or TEXTS[options.scale])
    chosen = np.linspace(0, len(part) - 1, count).round().astype(int)
    texts = [part.texts[i] for i in chosen]
    ours, dense = (checkpoints.load_classifier(name).eval() for name in (options.model, options.teacher))
    if not hasattr(ours.config, "code"):
        raise ValueError(f"model: expected the folder of a spikebert, got {options.model} ({ours.config.model_type})")
    truth = {"ours": labels_for(ours, text_set, part, options.model)[chosen],
             "dense": labels_for(dense, text_set, part, options.teacher)[chosen]}  # fmt: skip
    if options.split == "test":
        for folder, network in ((options.model, ours), (options.teacher, dense)):
            read = {"data": text_set.name, "data_hash": text_set.hash,
                    "time_steps": getattr(network.config, "time_steps", None)}  # fmt: skip
            say(f"inference: reading {note_test_reading(Path(checkpoints.resolve(folder)), read)} of test by {folder}")
    answers, reasons = networks(ours, dense, options)
    orders = {f"{name}, no buckets": answer for name, answer in unordered(ours, dense, options).items()}
    settings = {"model": options.model, "threads": torch.get_num_threads()}
    with elsewhere(bare, settings, {"SPIKETEXT_KERNELS": "0"}, options.scale == "tiny") as ask:
        answers["ours, no kernels"] = lambda texts: np.asarray(ask(texts))
        say(f"inference: {count} texts of {text_set.name} {options.split}, {len(answers) + len(orders)} networks")
        everything = {**answers, **orders}
        guesses: dict[str, np.ndarray] = {}

        def guess(name: str) -> None:
            guesses[name] = everything[name](texts).argmax(-1)

        work = {name: partial(guess, name) for name in everything}
        samples = measure(work, options.repeats or TURNS[options.scale], warm=0)
        say("inference: single texts")
        single = latency(answers, texts, SINGLES[options.scale])
    rows = [_throughput(name, samples, guesses, truth, count) for name in everything]
    mine = checkpoints.load_tokenizer(options.model)
    for confidence in confidences(ours):
        row = next(row for row in rows if row["network"] == f"ours, stops at {confidence:.0%}")
        row["mean_steps"] = float(anytime_logits(Stepper(ours), mine, texts, confidence=confidence)[1].mean())
    rows += [absent(reason, table="throughput", network=name) for name, reason in reasons.items()]
    rows += [{"table": "factors of ours", "changed": name.removeprefix("ours, ")} | samples.ratio(name, OURS)
             for name in everything if name.startswith("ours") and name != OURS]  # fmt: skip
    rows.append({"table": "factors of ours", "changed": "float32, no buckets, against SpikingJelly's"}
                | samples.ratio("ours, float32, no buckets", "SpikingJelly, no buckets")
                if "SpikingJelly, no buckets" in samples.seconds else absent(no_spikingjelly(ours),
                table="factors of ours", changed="against SpikingJelly's"))  # fmt: skip
    for name in answers:
        row = single.row(name, DENSE, table="latency of one text", network=name)
        rows.append(row | {"p95": float(np.percentile(single.seconds[name], 95))})
    return rows


def networks(ours: Any, dense: Any, options: BenchOptions) -> tuple[dict[str, Answer], dict[str, str]]:
    """Every network in length buckets by name, and the reason why one is missing."""
    assert options.model and options.teacher
    mine, theirs = checkpoints.load_tokenizer(options.model), checkpoints.load_tokenizer(options.teacher)
    found = {
        DENSE: _buckets(dense, theirs),
        "dense BERT, int8": _buckets(to_precision(copy.deepcopy(dense), "int8"), theirs),
    }
    found |= {OURS: _buckets(ours, mine), "ours, int8": _buckets(to_precision(copy.deepcopy(ours), "int8"), mine)}
    for steps in range(1, ours.config.time_steps):
        short = checkpoints.load_classifier(options.model, time_steps=steps)
        found[f"ours, T = {steps}"] = _buckets(short, mine)
    if confidences(ours):
        stepper = Stepper(ours)
        found |= {f"ours, stops at {sure:.0%}": _anytime(stepper, mine, sure) for sure in confidences(ours)}
    missing: dict[str, str] = {}
    if machine()["bf16"]:
        found |= {"dense BERT, bf16": _buckets(dense, theirs, True), "ours, bf16": _buckets(ours, mine, True)}
    else:
        missing |= dict.fromkeys(("dense BERT, bf16", "ours, bf16"), "this processor does not compute in bf16")
    reason = no_spikingjelly(ours)
    if reason:
        missing["SpikingJelly"] = reason
    else:
        from benchmarks.plain import PlainSpikeBert

        found["SpikingJelly"] = _buckets(PlainSpikeBert(ours), mine)
    return found, missing


def confidences(ours: Any) -> tuple[float, ...]:
    """At which confidences a text may stop early: none where there is one step only, or no `Stepper` for the design."""
    return CONFIDENCES if ours.config.time_steps > 1 and ours.config.design == "default" else ()


def no_spikingjelly(ours: Any) -> str:
    """Why the network cannot be built from SpikingJelly's LIFNode; empty when it can."""
    if not installed("spikingjelly"):
        return "spikingjelly is not installed"
    if ours.config.design != "default":
        return f"the network of SpikingJelly's LIFNodes is that of the default design, not {ours.config.design}"
    code, steps = ours.config.code, ours.config.time_steps
    if code == "binary" or (code == "ternary" and steps == 1):
        return ""
    return f"two of SpikingJelly's LIFNodes are not our {code} neuron at T = {steps}"


def unordered(ours: Any, dense: Any, options: BenchOptions) -> dict[str, Answer]:
    """The networks that are also timed in the order of the file."""
    assert options.model and options.teacher
    mine, theirs = checkpoints.load_tokenizer(options.model), checkpoints.load_tokenizer(options.teacher)
    found = {DENSE: _in_order(dense, theirs), OURS: _in_order(ours, mine)}
    if not no_spikingjelly(ours):
        from benchmarks.plain import PlainSpikeBert

        found["SpikingJelly"] = _in_order(PlainSpikeBert(ours), mine)
    return found


def _buckets(network: Any, tokenizer: Any, bf16: bool = False) -> Answer:
    def answer(texts: list[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return logits_of(network, tokenizer, texts)

    return answer


def _anytime(stepper: Stepper, tokenizer: Any, confidence: float) -> Answer:
    return lambda texts: anytime_logits(stepper, tokenizer, texts, confidence=confidence)[0]


def _in_order(network: Any, tokenizer: Any) -> Answer:
    network.eval()

    def answer(texts: list[str]) -> np.ndarray:
        rows = TextRows(texts, tokenizer, longest(network, tokenizer))
        found = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                batch = rows.collate([rows[0, row] for row in range(start, min(start + 64, len(texts)))])
                found.append(network(**model_inputs(tokenizer, batch)).logits.float().numpy())
        return np.concatenate(found)

    return answer


def latency(answers: dict[str, Answer], texts: list[str], count: int) -> Samples:
    """Single texts: every turn is another text, the same one for all networks."""
    chosen = [texts[i] for i in np.linspace(0, len(texts) - 1, count).round().astype(int)]
    work = {}
    for name, answer in answers.items():
        following = cycle(chosen)
        work[name] = lambda answer=answer, following=following: answer([next(following)])
    return measure(work, count - 2 if count > 2 else 1, warm=1)


def _throughput(name: str, samples: Samples, guesses: dict, truth: dict, count: int) -> Row:
    dense = name.startswith("dense")
    base = DENSE if dense else OURS
    row = samples.row(name, DENSE, table="throughput", network=name, texts=count)
    row["texts_per_s"] = count / row["seconds"]
    row["accuracy"] = float((guesses[name] == truth["dense" if dense else "ours"]).mean())
    row["agrees"] = float((guesses[name] == guesses[base]).mean())
    return row


def bare(settings: dict[str, Any]) -> Callable[[Any], Any]:
    """The process without kernels: texts -> logits."""
    torch.set_num_threads(settings["threads"])
    network = checkpoints.load_classifier(settings["model"])
    answer = _buckets(network, checkpoints.load_tokenizer(settings["model"]))
    return lambda texts: answer(texts).tolist()


if __name__ == "__main__":
    serve(bare)
