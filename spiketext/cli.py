"""The top floor: the command line. A command is a parser and a function; nothing heavy is imported before the work."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from spiketext import __version__
from spiketext.machine import keep_memory
from spiketext.options import (
    BenchOptions,
    ConvertOptions,
    DataOptions,
    DistillOptions,
    PretrainOptions,
    TeacherOptions,
    TrainOptions,
)

STAGES: dict[str, tuple[str, type, str, str]] = {
    "teacher": ("training", TeacherOptions, "fine-tune a BERT-type teacher on labelled texts",
                "spiketext teacher --data reviews.csv --model minilm --out runs/teacher"),
    "pretrain": ("distillation", PretrainOptions, "stage 1: learn a teacher's features from unlabelled text",
                 "spiketext pretrain --teacher minilm --corpus texts/ --tokens 1000000 --out runs/stage1"),
    "distill": ("distillation", DistillOptions, "stage 2: learn a task from its teacher",
                "spiketext distill --teacher runs/teacher --student runs/stage1 --data reviews.csv --out runs/spiking"),
    "train": ("training", TrainOptions, "train a classifier without a teacher",
              "spiketext train --data reviews.csv --model tailored-textcnn --vectors glove.txt.gz --out runs/tailored"),
    "convert": ("conversion", ConvertOptions, "make a spiking TextCNN of a tailored one",
                "spiketext convert --model runs/tailored --normalize data --data reviews.csv --out runs/converted"),
}  # fmt: skip
_RENAMED = {"start": "from"}  # a field that is a Python keyword on the command line


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. A flag left out is None here: --config comes next, then the default of the field."""
    parser = argparse.ArgumentParser(prog="spiketext", description="Spiking text classifiers.")
    parser.add_argument("--version", action="version", version=f"spiketext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str, example: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}" if example else None)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON for programs")
        return sub

    demo = command("demo", _demo, "train, evaluate and use a spiking classifier in five minutes", "spiketext demo")
    demo.add_argument("--out", default="runs/demo", help="folder of the models")
    data = command("data", _data, "list the built-in sets, or check one", "spiketext data check --data mr")
    data.add_argument("action", choices=("list", "check"))
    _add_fields(data, DataOptions)
    data.add_argument("--corpus", help="unlabelled text: prove that no test text of the set is in it")
    info = command("info", _info, "versions, machine, back ends; with --model, what a folder holds")
    info.add_argument("--model", help="folder of a model")
    for name, (_, options, text, example) in STAGES.items():
        stage = command(name, _stage, text, example)
        stage.add_argument("--config", help="TOML file with fields of this command; flags win")
        _add_fields(stage, options)
    evaluate = command("evaluate", _evaluate, "scores and firing rates of a model",
                       "spiketext evaluate --model runs/spiking --data reviews.csv")  # fmt: skip
    evaluate.add_argument("--model", required=True, help="folder of the model")
    evaluate.add_argument("--split", default="validation", help="train, validation (default) or test; test is logged")
    evaluate.add_argument("--time-steps", type=int, help="another T than the model was saved with")
    evaluate.add_argument("--confidence", type=float, help="stop a text at the first time step that is this sure")
    evaluate.add_argument("--precision", default="float32", help="float32, bf16 or int8 (weights)")
    evaluate.add_argument("--batch-size", type=int, default=64, help="texts at once")
    _add_fields(evaluate, DataOptions)
    predict = command("predict", _predict, "labels and probabilities of texts",
                      'spiketext predict --model runs/spiking --top-k 2 "Not bad at all."')  # fmt: skip
    predict.add_argument("texts", nargs="*", metavar="TEXT")
    predict.add_argument("--model", required=True, help="folder of the model")
    predict.add_argument("--file", help="one text a line (a tab separates a pair); - is standard input")
    predict.add_argument("--precision", default="float32", help="float32, bf16 or int8 (weights)")
    predict.add_argument("--top-k", type=int, default=1, help="how many labels of each text")
    energy = command("energy", _energy, "operations and millijoules of a model, or of the shape of a dense BERT",
                     "spiketext energy --model runs/spiking --data reviews.csv")  # fmt: skip
    energy.add_argument(
        "--reference", metavar="NAME", help="a dense shape (bert-base, ...) in place of a model, or all"
    )
    energy.add_argument("--length", type=int, help="pad or cut texts to so many tokens; default: their own lengths")
    energy.add_argument("--time-steps", type=int, help="another T than the model was saved with")
    energy.add_argument("--measure", action="store_true", help="measure joules too, where a meter exists")
    energy.add_argument("--layers", action="store_true", help="print every layer")
    energy.add_argument("--plot", metavar="FILE", help="picture of energy and firing rate by layer and step")
    audit = command("audit", _audit, "is it spiking: what every layer reads; dead and saturated neurons",
                    "spiketext audit --model runs/spiking --data reviews.csv --strict")  # fmt: skip
    audit.add_argument("--strict", action="store_true", help="exit code 2 when a layer that must be spiking is not")
    for counted, texts in ((energy, None), (audit, 64)):
        counted.add_argument("--model", required=counted is audit, help="folder of the model")
        counted.add_argument(
            "--split", default="validation", help="train, validation (default) or test; labels are unread"
        )
        texts_help = f"so many texts, spread over the split (default {texts or 'all'})"
        counted.add_argument("--limit", type=int, default=texts, help=texts_help)
        counted.add_argument("--batch-size", type=int, default=32, help="texts at once")
        _add_fields(counted, DataOptions)
    bench = command("bench", _bench, "measure speed and memory, or list what can be measured",
                    "spiketext bench linear neuron")  # fmt: skip
    bench.add_argument("names", nargs="*", metavar="NAME", help="names of benchmarks, or list; all when none is given")
    bench.add_argument("--folder", default="benchmarks", help="where the scripts are")
    bench.add_argument("--out", help="folder of the JSON results; default: results in that folder")
    _add_fields(bench, BenchOptions)
    reproduce = command("reproduce", _reproduce, "run an experiment of experiments/, or list them",
                        "spiketext reproduce sst2")  # fmt: skip
    reproduce.add_argument("names", nargs="+", metavar="NAME", help="names of experiments, or list")
    reproduce.add_argument("--seeds", type=int, help="how many seeds, 0..n-1; default: the experiment's")
    reproduce.add_argument("--folder", default="experiments", help="where the TOML files are")
    reproduce.add_argument("--data-dir", help="folder of the built-in sets; default: SPIKETEXT_DATA")
    return parser


def _add_fields(parser: argparse.ArgumentParser, options: type) -> None:
    types = get_type_hints(options)
    for field in fields(options):
        flag = "--" + _RENAMED.get(field.name, field.name).replace("_", "-")
        text = field.metadata["help"]
        if field.default not in (None, "", False, MISSING):
            text += f" (default {field.default})"
        if types[field.name] is bool:
            parser.add_argument(flag, dest=field.name, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            kind = next(t for t in (int, float, str) if t in (types[field.name], *_members(types[field.name])))
            parser.add_argument(flag, dest=field.name, type=kind, default=None, help=text.replace("%", "%%"))


def _members(hint: Any) -> tuple:
    return getattr(hint, "__args__", ())


def options_from(options: type, args: argparse.Namespace) -> Any:
    """Options out of the TOML file of --config and the flags, which win. Raises ValueError for an unknown key."""
    known = {field.name for field in fields(options)}
    asked: dict[str, Any] = {}
    config = getattr(args, "config", None)
    if config:
        asked = {name.replace("-", "_"): value for name, value in read_toml(config).items()}
        asked = {next((mine for mine, theirs in _RENAMED.items() if theirs == name), name): value
                 for name, value in asked.items()}  # fmt: skip
        for name in asked:
            if name not in known:
                raise ValueError(f"--config {config}: unknown key {name!r}; expected one of {', '.join(sorted(known))}")
    asked |= {name: getattr(args, name) for name in known if getattr(args, name, None) is not None}
    return options(**asked)


def read_toml(path: str) -> dict[str, Any]:
    """A TOML file. Raises ValueError with file and place for a syntax error."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML ({error})") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 when it worked, 2 with one line on standard error when the user can mend it, 130 on Ctrl-C."""
    args = build_parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_memory()
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        args.run(args)
        return 0
    except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        return _refuse(args.command, error)
    except OSError as error:
        return _refuse(
            args.command, f"{error.strerror or error}: {error.filename or 'the disk'}; free space and repeat"
        )
    except KeyboardInterrupt:
        print(f"\nspiketext {args.command}: interrupted; the same command again resumes", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__.startswith("StrictDataclass"):
            return _refuse(args.command, error)
        if _failed_to_write(error):
            return _refuse(args.command, f"cannot write ({error}); free space and repeat, whole checkpoints are kept")
        raise


def _refuse(command: str, error: object) -> int:
    print(f"spiketext {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _failed_to_write(error: BaseException) -> bool:
    """safetensors and torch.save hide the OSError of a full disk in errors of their own."""
    return any(sign in str(error) for sign in ("I/O error", "No space left", "PytorchStreamWriter failed"))


def _show(result: Any, args: argparse.Namespace, table: Callable[[], str]) -> None:
    print(json.dumps(result, ensure_ascii=False) if args.json else table())


def _pairs_table(result: dict[str, Any]) -> str:
    shown = {name: value for name, value in result.items() if not isinstance(value, dict) and value is not None}
    width = max(map(len, shown))
    lines = []
    for name, value in shown.items():
        text = f"{value:.4f}" if isinstance(value, float) and abs(value) < 100 else str(value)
        lines.append(f"{name:<{width}}  {text}")
    return "\n".join(lines)


def _stage(args: argparse.Namespace) -> None:
    import importlib

    module, kind, _, _ = STAGES[args.command]
    options = options_from(kind, args)
    result = getattr(importlib.import_module(f"spiketext.{module}"), args.command)(options)
    flat = result | {f"validation_{name}": value for name, value in result["validation"].items()}
    _show(result, args, lambda: _pairs_table(flat) + f"\nsaved in {options.out}")


def _reading(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that say how to read --data."""
    asked = {field.name: getattr(args, field.name) for field in fields(DataOptions) if field.name != "data"}
    return {name: value for name, value in asked.items() if value is not None}


def _evaluate(args: argparse.Namespace) -> None:
    from spiketext.evaluation import evaluate

    result = evaluate(args.model, args.data or "", args.split, time_steps=args.time_steps, batch_size=args.batch_size,
                      confidence=args.confidence, precision=args.precision, progress=not args.json,
                      **_reading(args))  # fmt: skip
    _show(result, args, lambda: _pairs_table(result))


def _energy(args: argparse.Namespace) -> None:
    from spiketext.energy import SHAPES, energy, reference
    from spiketext.figures import columns, energy_by_layer, energy_text

    if args.reference:
        if args.model or args.data:
            raise ValueError("--reference needs no --model and no --data; give one or the other")
        names = list(SHAPES) if args.reference == "all" else [args.reference]
        rows = [reference(name, 128 if args.length is None else args.length) for name in names]
        _show(rows, args, lambda: columns(rows))
        return
    if not args.model:
        raise ValueError("give --model DIR with --data D, or --reference NAME with --length L")
    result = energy(args.model, args.data or "", args.split, limit=args.limit, length=args.length,
                    time_steps=args.time_steps, batch_size=args.batch_size, meter=args.measure,
                    progress=not args.json, **_reading(args))  # fmt: skip
    if args.plot:
        energy_by_layer(result, args.plot)
    _show(result, args, lambda: energy_text(result, args.layers))


def _audit(args: argparse.Namespace) -> None:
    from spiketext.audit import audit, require_spiking
    from spiketext.figures import audit_text

    result = audit(args.model, args.data or "", args.split, limit=args.limit, batch_size=args.batch_size,
                   progress=not args.json, **_reading(args))  # fmt: skip

    _show(result, args, lambda: audit_text(result))
    if args.strict:
        require_spiking(result)


def _predict(args: argparse.Namespace) -> None:
    from spiketext.evaluation import predict

    texts = list(args.texts)
    if args.file:
        texts += _lines(args.file)
    if not texts:
        raise ValueError("no texts: give them as arguments, with --file FILE, or with --file - for standard input")
    split = [text.split("\t", 1) for text in texts]
    pairs = [parts[1] for parts in split] if all(len(parts) == 2 for parts in split) else None
    answers = predict(args.model, [p[0] for p in split] if pairs else texts, pairs, top_k=args.top_k,
                      precision=args.precision)  # fmt: skip

    def line(answer: dict[str, Any]) -> str:
        if "value" in answer:
            return f"{answer['value']:.4f}\t{answer['text']}"
        ranked = zip(answer["labels"], answer["probabilities"], strict=True)
        return "  ".join(f"{label} {probability:.3f}" for label, probability in ranked) + f"\t{answer['text']}"

    _show(answers, args, lambda: "\n".join(map(line, answers)))


def _lines(path: str) -> list[str]:
    try:
        text = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return [line.removesuffix("\r") for line in text.decode("utf-8").removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"--file {path}: byte {error.start} is not UTF-8; convert the file first") from None


def _data(args: argparse.Namespace) -> None:
    from spiketext.data import check, describe, load

    if args.action == "list":
        rows = describe(args.data_dir)
        _show(rows, args, lambda: "\n".join(_set_line(row) for row in rows))
        return
    if not args.data:
        raise ValueError("data check: name the set with --data")
    reading = {field.name: getattr(args, field.name) for field in fields(DataOptions)}
    text_set = load(reading.pop("data"), **{name: value for name, value in reading.items() if value is not None})
    found = check(text_set)
    if args.corpus:
        from spiketext.corpora import overlap

        found["corpus"] = overlap(args.corpus, text_set)
    _show(found, args, lambda: json.dumps(found, indent=2, ensure_ascii=False))
    if args.corpus and found["corpus"]["test_texts_found"]:
        raise ValueError(f"{args.corpus}: holds {found['corpus']['test_texts_found']} test texts of {text_set.name}, "
                         f"first: {found['corpus']['first'][:80]!r}; take them out before training on it")  # fmt: skip


def _set_line(row: dict[str, Any]) -> str:
    rows = row.get("rows") or {}
    counts = " / ".join(str(rows[split]) for split in ("train", "validation", "test")) if rows else row.get("problem")
    return f"{row['name']:<12} {row['task']:<15} {counts}"


def _info(args: argparse.Namespace) -> None:
    from spiketext.about import describe_machine, describe_model

    found = describe_model(args.model) if args.model else describe_machine()
    _show(found, args, lambda: json.dumps(found, indent=2, ensure_ascii=False))


def _demo(args: argparse.Namespace) -> None:
    from spiketext.demo import demo

    result = demo(args.out, say=(lambda text: None) if args.json else print)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))


def _reproduce(args: argparse.Namespace) -> None:
    from spiketext.reproduce import listing, reproduce

    folder = Path(args.folder)
    if args.names == ["list"]:
        rows = listing(folder)
        _show(rows, args, lambda: "\n".join(f"{r['name']:<14} {r['state']:<10} {r['title']}" for r in rows))
        return
    for name in args.names:
        result = reproduce(folder, name, args.data_dir, args.seeds, say=lambda text: print(text, file=sys.stderr))
        print(json.dumps(result["json"]) if args.json else result["table"])


def _bench(args: argparse.Namespace) -> None:
    from spiketext.bench import bench, listing

    folder = Path(args.folder)
    known = listing(folder)
    if args.names == ["list"]:
        _show(known, args, lambda: "\n".join(f"{r['name']:<18} {r['state']:<9} {r['title']}" for r in known))
        return
    options = options_from(BenchOptions, args)
    for name in args.names or [row["name"] for row in known]:
        result = bench(folder, name, options, Path(args.out) if args.out else None,
                       say=lambda text: print(text, file=sys.stderr))  # fmt: skip
        print(json.dumps(result["json"]) if args.json else result["table"] + "\n")
