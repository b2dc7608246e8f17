"""Floor 10: what each command does: flags to a call, its result to a table or JSON. Heavy imports wait for the call."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from spiketext.options import AttackOptions, BenchOptions, DataOptions
from spiketext.processes import is_first
from spiketext.runs import write_whole

RENAMED = {"start": "from"}  # a field that is a Python keyword on the command line


def options_from(options: type, args: argparse.Namespace) -> Any:
    """Options out of the flags that were given."""
    known = {field.name for field in fields(options)}
    return options(**{name: getattr(args, name) for name in known if getattr(args, name, None) is not None})


def read_toml(path: str) -> dict[str, Any]:
    """A TOML file. Raises ValueError with file and place for a syntax error, or bytes that are no text."""
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; expected a TOML file") from None


def _show(result: Any, args: argparse.Namespace, table: Callable[[], str]) -> None:
    if is_first():
        print(json.dumps(result, ensure_ascii=False) if args.json else table())


def _pairs_table(result: dict[str, Any]) -> str:
    shown = {name: value for name, value in result.items() if not isinstance(value, dict) and value is not None}
    width = max(map(len, shown))
    lines = []
    for name, value in shown.items():
        text = f"{value:.4f}" if isinstance(value, float) and abs(value) < 100 else str(value)
        lines.append(f"{name:<{width}}  {text}")
    return "\n".join(lines)


def stage(args: argparse.Namespace) -> None:
    """A training stage, or a conversion: its result as a table."""
    options = options_from(args.options, args)
    result = getattr(importlib.import_module(f"spiketext.{args.module}"), args.command)(options)
    flat = result | {f"validation_{name}": value for name, value in result["validation"].items()}
    for name, known in result.get("beside", {}).items():
        flat[f"validation of {name}"] = ", ".join(f"{metric} {value:.4f}" for metric, value in known.items())
    for name, law in result.get("limit_law", {}).items():
        flat[f"difference, {name}"] = ", ".join(f"{layer} T^{power:.2f}" for layer, power in law["exponents"].items())
    _show(result, args, lambda: _pairs_table(flat) + f"\nsaved in {options.out}")


def _reading(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that say how to read --data."""
    asked = {field.name: getattr(args, field.name) for field in fields(DataOptions) if field.name != "data"}
    return {name: value for name, value in asked.items() if value is not None}


def evaluate(args: argparse.Namespace) -> None:
    """Scores and firing rates of a split."""
    from spiketext.evaluation import evaluate

    result = evaluate(args.model, args.data or "", args.split, time_steps=args.time_steps, batch_size=args.batch_size,
                      confidence=args.confidence, precision=args.precision, progress=not args.json,
                      **_reading(args))  # fmt: skip
    _show(result, args, lambda: _pairs_table(result))


def energy(args: argparse.Namespace) -> None:
    """Operations and millijoules of a model, or of reference shapes."""
    from spiketext.energy import SHAPES, energy, reference
    from spiketext.figures import columns, energy_by_layer, energy_text, require_drawable

    if args.reference:
        others = ("model", "data", "limit", "time_steps", "measure", "layers", "plot", "save")
        asked = {name: getattr(args, name) for name in others}
        given = [
            f"--{name.replace('_', '-')}" for name, value in asked.items() if value is not None and value is not False
        ]
        if given:
            raise ValueError(f"--reference needs no {' and no '.join(given)}; give one or the other")
        names = list(SHAPES) if args.reference == "all" else [args.reference]
        rows = [reference(name, 128 if args.length is None else args.length) for name in names]
        _show(rows, args, lambda: columns(rows))
        return
    if not args.model:
        raise ValueError("give --model DIR with --data D, or --reference NAME with --length L")
    _require_home(args)
    if args.plot:
        require_drawable(args.plot)
    result = energy(args.model, args.data or "", args.split, limit=args.limit, length=args.length,
                    time_steps=args.time_steps, batch_size=args.batch_size, meter=args.measure,
                    progress=not args.json, **_reading(args))  # fmt: skip
    _keep(result, args, "energy.json")
    if args.plot:
        energy_by_layer(result, args.plot)
    _show(result, args, lambda: energy_text(result, args.layers))


def audit(args: argparse.Namespace) -> None:
    """What every layer reads; with --strict it must be spikes."""
    from spiketext.audit import audit, require_spiking
    from spiketext.figures import audit_text

    _require_home(args)
    result = audit(args.model, args.data or "", args.split, limit=args.limit, batch_size=args.batch_size,
                   progress=not args.json, **_reading(args))  # fmt: skip
    _keep(result, args, "audit.json")
    _show(result, args, lambda: audit_text(result))
    if args.strict:
        require_spiking(result)


def _require_home(args: argparse.Namespace) -> None:
    """With --save the model must be a folder: one made here would hide a model of that name on the Hub."""
    if args.save and not Path(args.model).is_dir():
        raise ValueError(f"--save: {args.model} is no folder, expected one that holds the model; leave --save out")


def _keep(result: dict[str, Any], args: argparse.Namespace, name: str) -> None:
    """With --save: the result in the model's folder, where `sharing.model_card` finds it."""
    if args.save:
        write_whole(Path(args.model) / name, json.dumps(result, indent=2))


def export(args: argparse.Namespace) -> None:
    """A folder for people without spiketext."""
    from spiketext.sharing import export

    result = export(args.model, args.out)
    _show(result, args, lambda: f"{', '.join(result['files'])}\nsaved in {args.out}")


def push(args: argparse.Namespace) -> None:
    """A model on the Hub, or with --dry-run what it would be."""
    from spiketext.sharing import push

    result = push(args.model, args.repo, private=args.private, dry_run=args.dry_run)
    listed = f"{result['card']}\nfiles: {', '.join(result['files'])}"
    _show(result, args, lambda: f"{listed}\nnothing was uploaded" if args.dry_run else f"uploaded to {result['url']}")


def report(args: argparse.Namespace) -> None:
    """A page about a model; prints where it is and the scores on it."""
    from spiketext.report import report

    result = report(args.model, args.data or "", args.out, args.split, limit=args.limit, batch_size=args.batch_size,
                    text=args.text, attack=args.attack, figures=args.figures, language=args.language,
                    progress=not args.json, **_reading(args))  # fmt: skip
    _show(result, args, lambda: _pairs_table(result))


def attack(args: argparse.Namespace) -> None:
    """Measures of an attack; the texts are in its folder."""
    from spiketext.attacks import PAGE, attack

    options = options_from(AttackOptions, args)
    result = attack(options)
    _show(result, args, lambda: _pairs_table(result) + f"\ntexts in {options.out}/{PAGE}")


def predict(args: argparse.Namespace) -> None:
    """A line for each text: labels with probabilities, or the value of a regression."""
    from spiketext.evaluation import predict

    texts = list(args.texts)
    if args.file:
        texts += _lines(args.file)
    if not texts:
        raise ValueError("no texts: give them as arguments, with --file FILE, or with --file - for standard input")
    split = [text.split("\t", 1) for text in texts]
    single = [number for number, parts in enumerate(split, 1) if len(parts) == 1]
    if 0 < len(single) < len(texts):
        raise ValueError(f"text {single[0]} of {len(texts)} has no tab and others have one: expected pairs or single "
                         "texts; put a tab between the two texts of every pair, or take all tabs out")  # fmt: skip
    pairs = None if single else [parts[1] for parts in split]
    answers = predict(args.model, [p[0] for p in split] if pairs else texts, pairs, top_k=args.top_k,
                      precision=args.precision)  # fmt: skip

    def line(answer: dict[str, Any]) -> str:
        read = "\t".join(answer[name] for name in ("text", "pair") if name in answer)
        if "value" in answer:
            return f"{answer['value']:.4f}\t{read}"
        ranked = zip(answer["labels"], answer["probabilities"], strict=True)
        return "  ".join(f"{label} {probability:.3f}" for label, probability in ranked) + f"\t{read}"

    _show(answers, args, lambda: "\n".join(map(line, answers)))


def _lines(path: str) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = content.decode("utf-8").removeprefix("\ufeff")
        return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    except UnicodeDecodeError as error:
        raise ValueError(f"--file {path}: byte {error.start} is not UTF-8; convert the file first") from None


def data(args: argparse.Namespace) -> None:
    """The built-in sets, or what a check of one found."""
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
    if args.corpus is not None:
        from spiketext.corpora import overlap

        found["corpus"] = overlap(args.corpus, text_set, args.corpus_encoding)
    _show(found, args, lambda: json.dumps(found, indent=2, ensure_ascii=False))
    if args.corpus and found["corpus"]["test_texts_found"]:
        raise ValueError(f"{args.corpus}: holds {found['corpus']['test_texts_found']} test texts of {text_set.name}, "
                         f"first: {found['corpus']['first'][:80]!r}; take them out before training on it")  # fmt: skip


def _set_line(row: dict[str, Any]) -> str:
    rows = row.get("rows") or {}
    counts = " / ".join(str(rows[split]) for split in ("train", "validation", "test")) if rows else row.get("problem")
    return f"{row['name']:<12} {row['task']:<15} {row['state']:<17} {counts}"


def info(args: argparse.Namespace) -> None:
    """What is installed, or what a folder holds."""
    from spiketext.about import describe_machine, describe_model

    found = describe_model(args.model) if args.model else describe_machine()
    _show(found, args, lambda: json.dumps(found, indent=2, ensure_ascii=False))


def demo(args: argparse.Namespace) -> None:
    """The demo, which prints as it goes."""
    from spiketext.demo import demo

    result = demo(args.out, say=(lambda text: None) if args.json else print)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))


def reproduce(args: argparse.Namespace) -> None:
    """Experiments, the state of all of them or the cells of some, or two rows compared."""
    from spiketext.experiments import listing
    from spiketext.results import compare, compare_text

    folder = Path(args.folder)
    if args.names[0] == "compare":
        if len(args.names) != 3:
            raise ValueError("reproduce compare: expected two rows, RESULT:ROW RESULT:ROW")
        rows = compare(folder, *args.names[1:])
        _show(rows, args, lambda: compare_text(rows))
        return
    if args.names[0] == "list":
        rows = listing(folder, args.names[1:])
        _show(rows, args, lambda: _listing_text(rows, cells=len(args.names) > 1))
        return
    from spiketext.reproduce import reproduce

    results = (reproduce(folder, name, args.data_dir, args.seeds, lambda text: print(text, file=sys.stderr),
                         args.scale, args.data.split(",") if args.data else (), args.rows, args.jobs)
               for name in args.names)  # fmt: skip
    _show_each(results, args, len(args.names))


def _show_each(results: Iterable[dict[str, Any]], args: argparse.Namespace, count: int, between: str = "") -> None:
    """Tables one by one, as they come; or one JSON document: an object for one name, a list for several."""
    if args.json:
        found = [result["json"] for result in results]
        print(json.dumps(found[0] if count == 1 else found))
    else:
        for result in results:
            print(result["table"] + between)


def _listing_text(rows: list[dict[str, Any]], cells: bool) -> str:
    from spiketext.figures import columns

    if cells and all(row["cells"] for row in rows):
        shown = [{"experiment": row["name"], "scale": row["scale"] or "default"} | cell
                 for row in rows for cell in row["cells"]]  # fmt: skip
        return columns([cell | {"done": len(cell["done"]), "open": len(cell["open"])} for cell in shown])
    lines = [{"experiment": row["name"], "scale": row["scale"] or "", "state": row["state"],
              "hours to go": round(row["cost_s"] / 3600, 1), "title": row["title"]} for row in rows]  # fmt: skip
    return columns(lines) + "\nhours: of the open runs alone; models they start from that are not in runs/ come on top"


def bench(args: argparse.Namespace) -> None:
    """Benchmarks, or the list of them."""
    from spiketext.bench import bench, chosen, listing

    folder = Path(args.folder)
    if args.names == ["list"]:
        known = listing(folder)
        _show(known, args, lambda: "\n".join(f"{r['name']:<18} {r['state']:<9} {r['title']}" for r in known))
        return
    options = options_from(BenchOptions, args)
    names = chosen(folder, args.names)
    results = (bench(folder, name, options, Path(args.out) if args.out else None,
                     say=lambda text: print(text, file=sys.stderr)) for name in names)  # fmt: skip
    _show_each(results, args, len(names), between="\n")
