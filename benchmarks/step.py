"""Where the time of a training step of stage 2 goes, and what it keeps in memory.

Each variant is a process of its own (kernels on or off by SPIKETEXT_KERNELS, memory kept or given back); they take
turns step by step. A step is tokenise and collate, teacher, student, alignment, losses, backward, clipping and AdamW;
the loop is ours and not the Trainer's, so its bookkeeping is not in it. The student is our default with random weights;
with --model and --teacher these two are measured and nothing else.

The parts come from one profiled step of each variant, by torch.profiler: each operator's own time goes to data, teacher
or optimiser where it runs inside of these, else to matrix products, spike sums, neurons and norms, or the rest;
`outside operators` is Python. `ratio` of a part is its seconds / the matrix products of that step; `everything else` is
what is neither product nor sum (the teacher and the data are in it). `ratio` of a step is its seconds / those of the
same step with kernels and kept memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.networks import Step, batch_of, distillation, rate_of, resident_peak, student, teacher
from spiketext import checkpoints
from spiketext.batching import LengthBuckets
from spiketext.bench import Row, Say, elsewhere, measure, serve
from spiketext.data import load
from spiketext.distillation import augmenter
from spiketext.machine import keep_memory
from spiketext.options import BenchOptions, DistillOptions
from spiketext.training import rows_of

PARTS = ("matrix products", "spike sums", "neurons and norms", "optimiser", "teacher", "data", "rest",
         "outside operators")  # fmt: skip
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::linear"}
VARIANTS = {"kernels, memory kept": (True, True), "kernels": (True, False), "no kernels, memory kept": (False, True),
            "no kernels": (False, False)}  # fmt: skip
TURNS = {"tiny": 1, "short": 3, "full": 7}


def run(options: BenchOptions, say: Say) -> list[Row]:
    """Rows: seconds and memory of each variant and size, then the parts of its step."""
    reading = {"data": options.data, "data_dir": options.data_dir}
    data_dir = options.data_dir or os.environ.get("SPIKETEXT_DATA")
    small = {"layers": 6, "width": 384, "texts": 32, "length": 64, **reading}
    few = list(VARIANTS)[::2]
    cases: list[tuple[dict[str, Any], list[str]]]
    if options.scale == "tiny":
        cases = [({"layers": 1, "width": 32, "texts": 2, "length": 8, **reading}, few[:1])]
    elif options.model and options.teacher:
        trained = {"length": 0 if data_dir else 64, "data_dir": data_dir, "model": options.model,
                   "teacher": options.teacher}  # fmt: skip
        cases = [({**small, **trained}, list(VARIANTS))]
    else:
        full = options.scale == "full"
        cases = [({**small, "texts": 32 if full else 16}, list(VARIANTS)),
                 ({**small, "layers": 12, "width": 768, "texts": 32 if full else 4}, few)]  # fmt: skip
        if data_dir:
            cases.insert(1, ({**small, "length": 0, "data_dir": data_dir}, few))
    steps: list[Row] = []
    parts: list[Row] = []
    for settings, variants in cases:
        found = _case(settings, variants, options, say)
        steps += found[0]
        parts += found[1]
    return steps + parts


def _case(settings: dict[str, Any], names: list[str], options: BenchOptions, say: Say) -> tuple[list[Row], list[Row]]:
    size = f"{settings['layers']}x{settings['width']}" if "model" not in settings else settings["model"]
    size += f", B {settings['texts']}, L {settings['length'] or 'of ' + settings['data']}"
    say(f"step: {size}")
    with ExitStack() as processes:
        ask: dict[str, Callable[[Any], Any]] = {}
        for name in names:
            kernels, kept = VARIANTS[name]
            own = {**settings, "keep": kept, "threads": torch.get_num_threads()}
            environment = {"SPIKETEXT_KERNELS": None if kernels else "0", "THP_MEM_ALLOC_ENABLE": None}
            ask[name] = processes.enter_context(elsewhere(worker, own, environment, options.scale == "tiny"))
        about = {name: answer("about") for name, answer in ask.items()}
        work = {name: lambda answer=answer: answer("step") for name, answer in ask.items()}
        samples = measure(work, options.repeats or TURNS[options.scale], warm=1)
        profiles = {name: answer("profile") for name, answer in ask.items()}
        peak = {name: answer("resident") for name, answer in ask.items()}
    first = names[0]
    steps = [samples.row(name, first, table="steps", size=size, variant=name) | about[name]
             | {"resident_mib": peak[name]} for name in names]  # fmt: skip
    parts: list[Row] = []
    for name in names:
        found = profiles[name]
        products = found["matrix products"]
        parts += [{"table": "parts of a step", "size": size, "variant": name, "part": part, "seconds": seconds,
                   "share": seconds / found["step"], "ratio": seconds / products, "against": "matrix products"}
                  for part, seconds in found.items() if part != "largest"]  # fmt: skip
        parts[-1]["largest of the rest"] = found["largest"]
    return steps, parts + _summary(size, profiles)


def _summary(size: str, profiles: dict[str, dict[str, Any]]) -> list[Row]:
    """Of each profiled step: what is neither product nor sum, and the whole against the products without kernels."""
    rows = []
    dense = next((found["matrix products"] for name, found in profiles.items() if name.startswith("no kernels")), None)
    for name, found in profiles.items():
        both = found["matrix products"] + found["spike sums"]
        rows.append({"table": "everything else", "size": size, "variant": name, "against": "products and sums",
                     "seconds": found["step"] - both, "ratio": (found["step"] - both) / both,
                     "step / products without kernels": dense and found["step"] / dense})  # fmt: skip
    return rows


def worker(settings: dict[str, Any]) -> Callable[[Any], Any]:
    """The process of a variant: answers about (memory, rate), step, profile (seconds by part) and resident (MiB)."""
    if settings["keep"]:
        keep_memory()
    torch.set_num_threads(settings["threads"])
    if "model" in settings:
        model, dense = checkpoints.load_classifier(settings["model"]), checkpoints.load_classifier(settings["teacher"])
    else:
        model = student(settings["layers"], settings["width"])
        dense = teacher(settings["layers"], settings["width"])
    batches = _real(settings) if not settings["length"] else _fixed(settings)
    step = Step(distillation(model, dense.eval().requires_grad_(False)))
    handles: list[Any] = []
    dense.register_forward_pre_hook(lambda *_: handles.append(record_function("teacher").__enter__()))
    dense.register_forward_hook(lambda *_: handles.pop().__exit__(None, None, None))

    def one() -> None:
        with record_function("data"):
            batch = next(batches)
        step(batch)

    def answer(question: str) -> Any:
        if question == "about":
            batch = next(batches)
            return {"saved_mib": step.saved_bytes(batch) / 2**20, "firing_rate": rate_of(model, batch),
                    "tokens": int(batch["attention_mask"].sum())}  # fmt: skip
        if question == "resident":
            return resident_peak()
        return one() if question == "step" else parts_of(one)

    return answer


def _fixed(settings: dict[str, Any]) -> Any:
    return cycle([batch_of(settings["texts"], settings["length"])])


def _real(settings: dict[str, Any]) -> Any:
    """Batches of a set as stage 2 reads them: length buckets, one augmented copy of each text."""
    text_set = load(settings["data"], settings["data_dir"])
    tokenizer = checkpoints.load_tokenizer(settings.get("teacher", "minilm"))
    options = DistillOptions(data_dir=settings["data_dir"])
    train = text_set.splits["train"]
    augment = augmenter(options, [*train.texts, *(train.pairs or [])], tokenizer)
    rows = rows_of(text_set, "train", tokenizer, options.max_length, augment=augment, copies=options.copies)
    # one batch of the mean length, collated anew for every step, so that all steps are the same work
    buckets = list(LengthBuckets(rows.lengths, settings["texts"], 0))
    mean = rows.lengths.mean()
    chosen = min(buckets, key=lambda bucket: abs(rows.lengths[[row for _, row in bucket]].mean() - mean))
    return (rows.collate([rows[index] for index in chosen]) for _ in cycle([0]))


def parts_of(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of one call by part, profiled; `step` is all of it, `largest` names the largest operators of the rest."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        started = time.perf_counter()
        work()
        step = time.perf_counter() - started
    found: dict[str, Any] = {"step": step} | dict.fromkeys(PARTS, 0.0)
    rest: dict[str, float] = {}
    for event in seen.events():
        seconds = event.self_cpu_time_total / 1e6
        part = part_of(event)
        found[part] += seconds
        if part == "rest":
            rest[event.name] = rest.get(event.name, 0.0) + seconds
    found["outside operators"] += step - sum(found[part] for part in PARTS)
    largest = sorted(rest, key=lambda name: -rest[name])[:4]
    return found | {"largest": ", ".join(f"{name} {rest[name] / step:.1%}" for name in largest)}


def part_of(event: Any) -> str:
    """The part of a step that a profiled operator belongs to."""
    above = [event.name]
    parent = event.cpu_parent
    while parent is not None:
        above.append(parent.name)
        parent = parent.cpu_parent
    for name in above:
        if name in ("data", "teacher", "optimiser"):
            return name
    if event.name in PRODUCTS:
        return "matrix products"
    if event.name.startswith("spiketext::spike_"):
        return "spike sums"
    if any("LIF" in name or "layer_norm" in name.lower() or "spiketext::norm_lif" in name for name in above):
        return "neurons and norms"
    return "rest"


if __name__ == "__main__":
    serve(worker)
