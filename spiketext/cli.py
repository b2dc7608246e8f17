"""The top floor: the command line. A command is a parser and a function; nothing heavy is imported before the work."""

from __future__ import annotations

import argparse
import errno
import os
import select
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from spiketext import __version__, commands, processes
from spiketext.machine import keep_memory
from spiketext.options import (
    AttackOptions,
    BenchOptions,
    ConvertOptions,
    DataOptions,
    DistillOptions,
    MlmOptions,
    PretrainOptions,
    TeacherOptions,
    TrainOptions,
    VectorOptions,
)

STAGES: dict[str, tuple[str, type, str, str]] = {
    "teacher": ("training", TeacherOptions, "fine-tune a BERT-type teacher on labelled texts",
                "spiketext teacher --data reviews.csv --model minilm --out runs/teacher"),
    "mlm": ("maskedlm", MlmOptions, "train an encoder to find hidden tokens of unlabelled text",
            "spiketext mlm --corpus texts/ --vocab vocab.txt --tokens 8000000 --out runs/encoder"),
    "vectors": ("skipgram", VectorOptions, "train word vectors on unlabelled text, for a TextCNN",
                "spiketext vectors --corpus texts/ --out runs/vectors"),
    "pretrain": ("distillation", PretrainOptions, "stage 1: learn a teacher's features from unlabelled text",
                 "spiketext pretrain --teacher minilm --corpus texts/ --tokens 1000000 --out runs/stage1"),
    "distill": ("distillation", DistillOptions, "stage 2: learn a task from its teacher",
                "spiketext distill --teacher runs/teacher --student runs/stage1 --data reviews.csv --out runs/spiking"),
    "train": ("training", TrainOptions, "train a classifier without a teacher",
              "spiketext train --data reviews.csv --model tailored-textcnn --vectors glove.txt.gz --out runs/tailored"),
    "convert": ("conversion", ConvertOptions, "make a spiking TextCNN of a tailored one",
                "spiketext convert --model runs/tailored --normalize data --data reviews.csv --out runs/converted"),
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. A flag left out is what --config says, else None here, and the default of the field."""
    parser = argparse.ArgumentParser(prog="spiketext", description="Spiking text classifiers.")
    parser.add_argument("--version", action="version", version=f"spiketext {__version__}")
    groups = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str, example: str = "") -> argparse.ArgumentParser:
        sub = groups.add_parser(name, help=text, description=text, epilog=f"example: {example}" if example else None)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON for programs")
        sub.add_argument(
            "--config", action=_Config, metavar="FILE", help="TOML file with flags of this command; flags win"
        )
        return sub

    demo = command(
        "demo", commands.demo, "train, evaluate and use a spiking classifier in four minutes", "spiketext demo"
    )
    demo.add_argument("--out", default="runs/demo", help="folder of the models")
    data = command("data", commands.data, "list the built-in sets, or check one", "spiketext data check --data mr")
    data.add_argument("action", choices=("list", "check"))
    _add_fields(data, DataOptions)
    data.add_argument("--corpus", help="unlabelled text: prove that no test text of the set is in it")
    data.add_argument("--corpus-encoding", default="utf-8", help="encoding of the corpus (utf-8)")
    info = command("info", commands.info, "versions, machine, back ends; with --model, what a folder holds")
    info.add_argument("--model", help="folder of a model")
    for name, (module, options, text, example) in STAGES.items():
        stage = command(name, commands.stage, text, example)
        stage.set_defaults(module=module, options=options)
        _add_fields(stage, options)
    evaluate = command("evaluate", commands.evaluate, "scores and firing rates of a model",
                       "spiketext evaluate --model runs/spiking --data reviews.csv")  # fmt: skip
    evaluate.add_argument("--model", required=True, help="folder of the model")
    evaluate.add_argument("--split", default="validation", help="train, validation (default) or test; test is logged")
    evaluate.add_argument("--time-steps", type=int, help="another T than the model was saved with")
    evaluate.add_argument("--confidence", type=float, help="stop a text at the first time step that is this sure")
    evaluate.add_argument("--precision", default="float32", help="float32, bf16 or int8 (weights)")
    evaluate.add_argument("--batch-size", type=int, default=64, help="texts at once")
    _add_fields(evaluate, DataOptions)
    predict = command("predict", commands.predict, "labels and probabilities of texts",
                      'spiketext predict --model runs/spiking --top-k 2 "Not bad at all."')  # fmt: skip
    predict.add_argument("texts", nargs="*", metavar="TEXT", help="a text; a tab in it separates a pair")
    predict.add_argument("--model", required=True, help="folder of the model")
    predict.add_argument("--file", help="one TEXT a line; - is standard input")
    predict.add_argument("--precision", default="float32", help="float32, bf16 or int8 (weights)")
    predict.add_argument("--top-k", type=int, default=1, help="how many labels of each text")
    energy = command("energy", commands.energy, "operations and millijoules of a model or of a dense shape",
                     "spiketext energy --model runs/spiking --data reviews.csv")  # fmt: skip
    energy.add_argument(
        "--reference", metavar="NAME", help="a dense shape (bert-base, ...) in place of a model, or all"
    )
    energy.add_argument("--length", type=int, help="pad or cut texts to so many tokens; default: their own lengths")
    energy.add_argument("--time-steps", type=int, help="another T than the model was saved with")
    energy.add_argument("--measure", action="store_true", help="measure joules too, where a meter exists")
    energy.add_argument("--layers", action="store_true", help="print every layer")
    energy.add_argument("--plot", metavar="FILE", help="picture of energy and firing rate by layer and step")
    audit = command("audit", commands.audit, "is it spiking: what every layer reads; dead and saturated neurons",
                    "spiketext audit --model runs/spiking --data reviews.csv --strict")  # fmt: skip
    audit.add_argument("--strict", action="store_true", help="exit code 2 when a layer that must be spiking is not")
    for kept in (energy, audit):
        kept.add_argument("--save", action="store_true", help="keep the result in the model's folder, for its card")
    report = command("report", commands.report, "one HTML page that shows a model: scores, energy, spikes, attention",
                     "spiketext report --model runs/spiking --data reviews.csv --out report.html")  # fmt: skip
    report.add_argument("--out", required=True, metavar="FILE", help="the page, .html; needs nothing beside it")
    report.add_argument("--text", help="the text whose spikes and attention are shown; default: one of the split")
    report.add_argument("--attack", metavar="DIR", help="folder of an attack on this model: its texts are shown too")
    report.add_argument("--language", default="english", help="of the page itself: english (default) or chinese")
    report.add_argument("--figures", metavar="DIR", help="write each figure there too, as SVG")
    for counted, texts in ((energy, None), (audit, 64), (report, 64)):
        counted.add_argument("--model", required=counted is not energy, help="folder of the model")
        reads = "test is logged" if counted is report else "labels are unread"
        counted.add_argument("--split", default="validation", help=f"train, validation (default) or test; {reads}")
        what = "energy and audit read so many texts" if counted is report else "so many texts"
        texts_help = f"{what}, spread over the split (default {texts or 'all'})"
        counted.add_argument("--limit", type=int, default=texts, help=texts_help)
        counted.add_argument("--batch-size", type=int, default=32, help="texts at once")
        _add_fields(counted, DataOptions)
    export = command("export", commands.export, "a folder of a model for people without spiketext, with its card",
                     "spiketext export --model runs/spiking --out for-others")  # fmt: skip
    export.add_argument("--out", required=True, help="a new folder")
    push = command("push", commands.push, "export a model and upload it to the Hub",
                   "spiketext push --model runs/spiking --repo owner/name --dry-run")  # fmt: skip
    push.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where on the Hub; made when it is not there")
    push.add_argument("--private", action="store_true", help="make it so that only you can see it")
    push.add_argument("--dry-run", action="store_true", help="print the card and the files, upload nothing")
    for shared in (export, push):
        shared.add_argument("--model", required=True, help="folder of the model")
    attack = command("attack", commands.attack, "attack a model by substituting words",
                     "spiketext attack --model runs/spiking --data mr --recipe pwws --out runs/attack")  # fmt: skip
    _add_fields(attack, AttackOptions)
    bench = command("bench", commands.bench, "measure speed and memory, or list what can be measured",
                    "spiketext bench linear neuron")  # fmt: skip
    bench.add_argument("names", nargs="*", metavar="NAME", help="names of benchmarks, or list; all when none is given")
    bench.add_argument("--folder", default="benchmarks", help="where the scripts are")
    bench.add_argument("--out", help="folder of the JSON results; default: results in that folder")
    _add_fields(bench, BenchOptions)
    reproduce = command("reproduce", commands.reproduce, "run an experiment of experiments/, or list them",
                        "spiketext reproduce sst2")  # fmt: skip
    reproduce.add_argument("names", nargs="+", metavar="NAME",
                           help="experiments; or list [NAME...]; or compare RESULT:ROW RESULT:ROW")  # fmt: skip
    reproduce.add_argument("--scale", help="another size that the experiment has; its results stay apart")
    reproduce.add_argument("--data", help="only these of its data sets, separated by commas")
    reproduce.add_argument(
        "--rows", nargs="+", default=[], help="only rows with one of these names, or that contain one"
    )
    reproduce.add_argument("--seeds", type=int, help="how many seeds, 0..n-1; default: the experiment's")
    reproduce.add_argument("--jobs", type=int, default=1, help="train so many models side by side, on one GPU say")
    reproduce.add_argument("--folder", default="experiments", help="where the TOML files are")
    reproduce.add_argument("--data-dir", help="folder of the built-in sets; default: SPIKETEXT_DATA")
    return parser


class _Config(argparse.Action):
    """Take flags from a TOML file, as if they stood here. Raises ValueError for an unknown one, or another type."""

    def __call__(self, parser: Any, namespace: Any, path: Any, option_string: Any = None) -> None:
        """Called by argparse at --config FILE."""
        known = {action.option_strings[0].lstrip("-").replace("-", "_"): action for action in parser._actions
                 if action.option_strings and action.dest not in ("help", "config")}  # fmt: skip
        for name, value in commands.read_toml(path).items():
            action = known.get(name.replace("-", "_"))
            if action is None:
                choices = ", ".join(sorted(known))
                raise ValueError(f"--config {path}: unknown key {name!r}; expected one of {choices}")
            kind = bool if action.nargs == 0 else list if action.nargs else action.type or str
            fits = isinstance(value, (kind, int) if kind is float else kind)
            if not fits or isinstance(value, bool) != (kind is bool):
                raise ValueError(f"--config {path}: {name} = {value!r}, expected {kind.__name__}")
            setattr(namespace, action.dest, kind(value))
            action.required = False


def _config_first(argv: Sequence[str]) -> list[str]:
    """Arguments with --config FILE right behind the command, so that the flags, which come later, win."""
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    found, rest = config.parse_known_args(argv)
    return [*rest[:1], "--config", found.config, *rest[1:]] if found.config is not None else list(argv)


def _add_fields(parser: argparse.ArgumentParser, options: type) -> None:
    types = get_type_hints(options)
    for field in fields(options):
        flag = "--" + commands.RENAMED.get(field.name, field.name).replace("_", "-")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 when it worked, 2 with one line on standard error when the user can mend it.

    130 on Ctrl-C, 141 when the reader of standard output has left, as `head` does.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = build_parser().parse_args(_config_first(argv))
    except (ValueError, OSError) as error:  # of --config
        return _refuse(argv[0], error)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_memory()
    warnings.filterwarnings("ignore", category=FutureWarning)
    processes.stop_with_the_others()
    try:
        args.run(args)
        sys.stdout.flush()
        return 0
    except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        return _refuse(args.command, error)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        advice = "free space and repeat" if full else "choose another path"
        return _refuse(args.command, f"{error.strerror or error}: {error.filename or 'the disk'}; {advice}")
    except KeyboardInterrupt:
        goes_on = args.command in (*STAGES, "attack", "demo", "reproduce")
        print(f"\nspiketext {args.command}: interrupted{'; the same command again resumes' * goes_on}", file=sys.stderr)
        return 130
    except Exception as error:
        if processes.another_ended(error):
            return _refuse(args.command, "another process ended, so this one stops; the same command again resumes")
        if type(error).__name__.startswith("StrictDataclass"):
            return _refuse(args.command, error)
        if _failed_to_write(error):
            return _refuse(args.command, f"cannot write ({error}); free space and repeat, whole checkpoints are kept")
        raise


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that was closed; what is left to be printed then goes nowhere."""
    out = select.poll()
    out.register(sys.stdout, select.POLLOUT)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in out.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def _refuse(command: str, error: object) -> int:
    print(f"spiketext {command}{processes.name()}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _failed_to_write(error: BaseException) -> bool:
    """safetensors and torch.save hide the OSError of a full disk in errors of their own."""
    return any(sign in str(error) for sign in ("I/O error", "No space left", "PytorchStreamWriter failed"))
