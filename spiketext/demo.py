"""Floor 9: the main job in four minutes, on texts that ship with the package."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spiketext import baseline, distillation, training
from spiketext.data import load
from spiketext.evaluation import evaluate, predict
from spiketext.options import DistillOptions, PretrainOptions, TeacherOptions, TrainOptions
from spiketext.runs import write_whole

TEXTS = (
    "Not once in three hours did I look at my watch.",
    "Great, another update that loses all my notes.",
    "I expected rubbish and got a gem.",
    "A beautiful room, if you can sleep through the lift all night.",
)


def demo(out: str = "runs/demo", say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Teacher, direct training, stage 1, stage 2; then scores on the test part, a table and predictions.

    Everything is saved below `out`; a second call uses what is there. Returns the table's rows and the seconds.
    """
    started = time.monotonic()
    root = Path(out)
    texts = load("demo")
    learn, test = len(texts.splits["train"]), len(texts.splits["test"])
    say(f"demo: {learn} reviews to learn from, {test} written apart for the test")
    say("1/4 a teacher: the packaged MiniLM encoder learns the labels")
    teacher = str(root / "teacher")
    training.teacher(TeacherOptions(data="demo", out=teacher, epochs=3, learning_rate=2e-4))
    say("2/4 a spiking classifier without a teacher")
    direct = str(root / "direct")
    training.train(TrainOptions(data="demo", out=direct, layers=2, epochs=4))
    say("3/4 SpikeBERT, stage 1: the teacher's features on unlabelled text")
    first = str(root / "stage1")
    corpus = _unlabelled(root)
    distillation.pretrain(
        PretrainOptions(
            teacher="minilm", corpus=corpus, out=first, layers=2, epochs=4, batch_size=32, evals_per_epoch=1
        )
    )
    say("4/4 SpikeBERT, stage 2: the task")
    spiking = str(root / "spikebert")
    distillation.distill(DistillOptions(teacher=teacher, student=first, data="demo", out=spiking, epochs=3, copies=1))
    rows = [{"model": baseline.NAME, "accuracy": baseline.tfidf(texts)["accuracy"], "firing_rate": None}]
    for name, folder in (("teacher (MiniLM)", teacher), ("spiking, trained directly", direct), ("SpikeBERT", spiking)):
        scored = evaluate(folder, texts, "test")
        rows.append({"model": name, **{key: scored[key] for key in ("accuracy", "firing_rate", "test_reads")}})
    say(_table(rows))
    answers = predict(spiking, TEXTS)
    for answer in answers:
        say(f"{answer['labels'][0]:<9} {answer['probabilities'][0]:.2f}  {answer['text']}")
    seconds = time.monotonic() - started
    say(f'\n{seconds:.0f} s. Saved in {spiking}; try: spiketext predict --model {spiking} "Your own review."')
    return {"rows": rows, "predictions": answers, "seconds": round(seconds, 1), "model": spiking}


def _unlabelled(root: Path) -> str:
    """The training texts without their labels, as the corpus of stage 1."""
    path, text = root / "unlabelled.txt", "\n".join(load("demo").splits["train"].texts)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"--out {root}: holds an unlabelled.txt that is not the demo's; choose another folder")
    write_whole(path, text)
    return str(path)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["", f"{'model':<30} {'test accuracy':>14} {'firing rate':>12}"]
    for row in rows:
        rate = "-" if row["firing_rate"] is None else f"{100 * row['firing_rate']:.1f} %"
        lines.append(f"{row['model']:<30} {100 * row['accuracy']:>12.1f} % {rate:>12}")
    return "\n".join([*lines, ""])
