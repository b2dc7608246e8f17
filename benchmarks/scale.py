"""How cost grows: a training step in T, L, D and B, over processes, memory over a corpus, and 3 billion words.

Curves: one of T, L, D, B changes, the others stay; a step of ours without a teacher (forward, backward, AdamW) on
random ids, 6 blocks, binary spikes. `ratio` is seconds / those of the curve's first point, `per_unit` that ratio / the
growth of the letter: 1 is proportional, below 1 something is shared. The word embedding (30,522 x D) is in every step.

Processes: one step of our default, 32 texts of 32 tokens, cross-entropy alone, in one process of two threads or of one,
and in two of one thread that halve the texts and average the gradients (DistributedDataParallel, gloo). `ratio` is
seconds / those of one process with one thread: half of it is perfect.

Memory: the resident peak above that before reading, in a process of its own for each corpus and reader: `sentences`
alone, and `draw`, which stage 1 calls. `ratio` is growth / size of the corpus: 0 is flat.

Stage 1 on 3 billion words, our default: operations and bytes are computed from the shapes, the time from the measured
step of stage 1 on this machine and no other. The tokens of a word are counted on texts that we ship.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.networks import READS, Labels, Step, batch_of, resident_peak, student, teacher
from spiketext import checkpoints
from spiketext.bench import Row, Say, elsewhere, measure, serve
from spiketext.corpora import sentences
from spiketext.data import load
from spiketext.distillation import Alignment, Distillation, pairs_of
from spiketext.options import BenchOptions, PretrainOptions
from spiketext.passages import draw

BASE = {"T": 4, "L": 32, "D": 384, "B": 16}
CURVES = {"T": (1, 2, 4, 8), "L": (16, 32, 64, 128, 256), "D": (192, 384, 768), "B": (8, 16, 32, 64)}
TINY = {"T": (1, 2), "L": (4, 8), "D": (32, 48), "B": (1, 2)}
TURNS = {"tiny": 1, "short": 2, "full": 5}
CORPORA = {"tiny": (1,), "short": (50, 500), "full": (50, 500)}  # MB
WORDS = 3_000_000_000
SENTENCE = "The {} reader of number {} takes a line, cuts it after the stop and gives every sentence away at once. "


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: the points of four curves, the readers, stage 1 on WORDS words."""
    tiny = options.scale == "tiny"
    turns = options.repeats or TURNS[options.scale]
    rows: list[Row] = []
    for letter, points in (TINY if tiny else CURVES).items():
        say(f"scale: {letter} in {points}")
        rows += _curve(letter, points, {"T": 2, "L": 8, "D": 32, "B": 2} if tiny else BASE, turns)
    say("scale: one process and two")
    rows += _processes(tiny, turns)
    for size in CORPORA[options.scale]:
        say(f"scale: a corpus of {size} MB")
        rows += _memory(size)
    return rows + stage_one(6, 384, tiny, turns, say)


def _curve(letter: str, points: tuple[int, ...], base: dict[str, int], turns: int) -> list[Row]:
    layers = 6 if base["D"] >= 192 else 1
    work, sizes = {}, {}
    for point in points:
        at = base | {letter: point}
        step, batch = Step(Labels(student(layers, at["D"], time_steps=at["T"]))), batch_of(at["B"], at["L"])
        sizes[f"{point}"] = at
        work[f"{point}"] = lambda step=step, batch=batch: step(batch)
    samples = measure(work, turns, warm=0)
    first = f"{points[0]}"
    rows = []
    for name, at in sizes.items():
        row = samples.row(name, first, table="cost of a step", curve=letter, **at)
        rows.append(row | {"tokens_per_s": at["B"] * at["L"] / row["seconds"],
                           "per_unit": row["ratio"] * points[0] / at[letter]})  # fmt: skip
    return rows


def _processes(tiny: bool, turns: int) -> list[Row]:
    cases = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread": (2, 1)}
    layers, width, texts, length = (1, 32, 2, 8) if tiny else (6, 384, 32, 32)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened, ThreadPoolExecutor(2) as pool:
        work = {}
        for number, (name, (processes, threads)) in enumerate(cases.items()):
            asked = [{"size": (layers, width, texts // processes, length), "threads": threads, "rank": rank,
                      "processes": processes, "meet": f"file://{folder}/{number}"}
                     for rank in range(processes)]  # fmt: skip
            alone = {"OMP_NUM_THREADS": f"{threads}"}
            asks = [opened.enter_context(elsewhere(worker, settings, alone)) for settings in asked]
            work[name] = lambda asks=asks: [done.result() for done in [pool.submit(ask, "step") for ask in asks]]
        samples = measure(work, turns, warm=1)
    first = next(iter(cases))
    return [samples.row(name, first, table="processes", what=name)
            | {"tokens_per_s": texts * length / samples.median(name)} for name in cases]  # fmt: skip


def _partner(settings: dict[str, Any]) -> Callable[[Any], None]:
    """One of some processes that make a step together."""
    torch.set_num_threads(settings["threads"])
    layers, width, texts, length = settings["size"]
    step, batch = Step(Labels(student(layers, width))), batch_of(texts, length)
    if settings["processes"] > 1:
        distributed.init_process_group(
            "gloo", init_method=settings["meet"], rank=settings["rank"], world_size=settings["processes"]
        )
        weights, step.objective = step.objective.weights, DistributedDataParallel(step.objective)
        step.objective.weights = weights
    return lambda question: step(batch)


def _memory(megabytes: int) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.txt"
        with path.open("w", encoding="utf-8") as stream:
            number = written = 0
            while written < megabytes * 10**6:
                line = "".join(SENTENCE.format(number % 97, number + i) for i in range(4)) + "\n"
                number += 4
                written += stream.write(line)
        for which in ("sentences", "draw"):
            settings = {"corpus": str(path), "reader": which}
            with elsewhere(worker, settings, {"OMP_NUM_THREADS": "1"}, here=megabytes < 10) as ask:
                found = ask("read")
            rows.append({"table": "memory over a corpus", "corpus_mb": megabytes, "reader": which, **found,
                         "ratio": found["growth_mib"] * 2**20 / path.stat().st_size})  # fmt: skip
    return rows


def worker(settings: dict[str, Any]) -> Callable[[Any], Any]:
    """A process of this benchmark: one that reads a corpus, or one that makes a step with others."""
    return _reader(settings) if "reader" in settings else _partner(settings)


def _reader(settings: dict[str, str]) -> Callable[[Any], Row]:
    """The process that reads a corpus: sentences, seconds, and growth of its resident peak in MiB."""
    tokenizer = checkpoints.load_tokenizer("minilm") if settings["reader"] == "draw" else None

    def answer(question: Any) -> Row:
        before, started = resident_peak(), time.perf_counter()
        if tokenizer is None:
            count = sum(1 for _ in sentences(settings["corpus"]))
        else:
            count = sum(1 for _ in draw(settings["corpus"], tokenizer, 10_000, 64))
        return {"sentences": count, "seconds": time.perf_counter() - started, "growth_mib": resident_peak() - before}

    return answer


def stage_one(layers: int, width: int, tiny: bool, turns: int, say: Say) -> list[Row]:
    """What stage 1 takes for WORDS words at B 32, L 32: operations, bytes, and seconds here."""
    layers, width, texts, length = (1, 32, 2, 8) if tiny else (layers, width, 32, 32)
    say(f"scale: a step of stage 1, {layers}x{width}")
    model, dense = student(layers, width), teacher(layers, width)
    options = PretrainOptions()
    alignment = Alignment(pairs_of(options, layers, layers), width, dense)
    step = Step(Distillation(model.spikebert, dense.base_model, READS, alignment, options))
    batch = batch_of(texts, length)
    saved = step.saved_bytes(batch) / (texts * length)
    samples = measure({"step": lambda: step(batch)}, turns, warm=0)
    per_second = texts * length / samples.median("step")
    words = tokens_per_word()
    tokens = WORDS * words
    block, steps = 12 * width**2 * layers, model.config.time_steps
    products = {"student": 3 * steps * block, "teacher": block, "alignment": 3 * (layers + 1) * width**2}
    weights = sum(p.numel() for p in step.parameters)
    updates = tokens / (options.batch_size * length)
    row: Row = {"table": f"stage 1 on {WORDS:,} words", "size": f"{layers}x{width}, T {steps}",
                "tokens_per_word": words, "tokens": tokens,
                "multiply_adds": tokens * sum(products.values()),
                **{f"of_{name}": tokens * each for name, each in products.items()},
                "text_bytes": 6.0 * WORDS, "saved_bytes_per_token": saved, "saved_bytes": saved * tokens,
                "optimiser_updates": updates, "optimiser_bytes": 28.0 * weights * updates,
                "tokens_per_s": per_second, "seconds": tokens / per_second,
                "days": tokens / per_second / 86400}  # fmt: skip
    return [row]


def tokens_per_word() -> float:
    """Pieces of MiniLM's tokenizer for each word of the shipped reviews; BERT's usual 1.3 where it is not installed."""
    try:
        tokenizer = checkpoints.load_tokenizer("minilm")
    except FileNotFoundError:
        return 1.3
    texts = load("demo").splits["train"].texts
    pieces = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    return pieces / sum(len(text.split()) for text in texts)


if __name__ == "__main__":
    serve(worker)
