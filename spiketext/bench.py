"""Floor 9: how measurements are made and written down. What is measured stands in benchmarks/NAME.py.

A comparison is a ratio within one run: the candidates take turns (A B A B ...), the ratio is taken turn by turn, and
what is stated is the median with the smallest and the largest. First calls (compiling, loading, filling of caches) are
clocked apart and never among the repetitions.

benchmarks/NAME.py has a docstring, and `run(options, say) -> rows`; the rows go into benchmarks/results/NAME.json.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from spiketext.about import machine, versions
from spiketext.checkpoints import quiet
from spiketext.options import BenchOptions
from spiketext.runs import write_whole

SCALES = ("tiny", "short", "full")
RIVALS = ("spikingjelly", "snntorch")  # measured beside ours where they are installed
Row = dict[str, Any]
Say = Callable[[str], None]


def listing(folder: Path) -> list[dict[str, str]]:
    """Name and title of every benchmark of a folder, and whether it has a result. Raises FileNotFoundError for none."""
    found = []
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            name = path.stem.replace("_", "-")
            state = "measured" if (folder / "results" / f"{name}.json").exists() else "not run"
            found.append({"name": name, "title": (ast.get_docstring(tree) or "").split("\n")[0], "state": state})
    if not found:
        raise FileNotFoundError(f"folder: {folder} holds no benchmark, expected the repository's benchmarks; start "
                                "from the repository or name them with --folder")  # fmt: skip
    return found


def chosen(folder: Path, names: Sequence[str] = ()) -> list[str]:
    """These names of benchmarks, all of the folder where none is given. Raises FileNotFoundError for an unknown one."""
    known = [entry["name"] for entry in listing(folder)]
    for name in names:
        if name not in known:
            raise FileNotFoundError(f"benchmark {name}: no {folder / name}.py; known are {', '.join(known)}")
    return list(names) or known


def bench(
    folder: Path, name: str, options: BenchOptions, out: Path | None = None, say: Say = lambda text: None
) -> dict[str, Any]:
    """Run a benchmark and write out/NAME.json (out: folder/results when None, where no tiny run is kept).

    A file with measured rows stays as it is when this run measured nothing.
    Returns {"json": name, command, machine, versions, options, load, rows; "table": text}.
    Raises FileNotFoundError for an unknown name, ValueError for a scale that is none or what the benchmark refuses.
    """
    chosen(folder, [name])
    if options.scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {options.scale!r}")
    quiet()
    if options.threads:
        torch.set_num_threads(options.threads)
    parent = str(folder.resolve().parent)
    if parent not in sys.path:
        sys.path.insert(0, parent)
    script = importlib.import_module(f"{folder.resolve().name}.{name.replace('-', '_')}")
    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    started = time.monotonic()
    rows = script.run(options, say)
    asked = {key: value for key, value in asdict(options).items() if value != getattr(BenchOptions(), key)}
    flags = "".join(f" --{key.replace('_', '-')} {value}" for key, value in asked.items())
    result = {
        "name": name,
        "command": f"spiketext bench {name}{flags}",
        "machine": machine(),
        "versions": versions() | {rival: _version(rival) for rival in RIVALS},
        "load_before": before,  # mean of running processes over the last minute: near 0 on an idle machine
        "wall_s": round(time.monotonic() - started, 1),
        "rows": rounded(rows),
    }
    target = (out or folder / "results") / f"{name}.json"
    if out is None and options.scale == "tiny":
        say(f"{name}: a tiny run shows that it runs and is not kept; --out FOLDER keeps it")
    elif not _measured(rows) and target.exists() and _measured(json.loads(target.read_text(encoding="utf-8"))["rows"]):
        say(f"{name}: nothing was measured, {target} stays as it is")
    else:
        write_whole(target, json.dumps(result, indent=1) + "\n")
    return {"json": result, "table": table(result)}


def _measured(rows: list[Row]) -> bool:
    return any(row.get("seconds") is not None for row in rows)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def installed(package: str) -> bool:
    """Whether a rival can be measured here."""
    return importlib.util.find_spec(package) is not None


class Samples:
    """Seconds of each candidate in each turn, and of its first call."""

    def __init__(self, first: dict[str, float], seconds: dict[str, list[float]]):
        self.first, self.seconds = first, seconds

    def median(self, name: str) -> float:
        """Seconds of a candidate."""
        return statistics.median(self.seconds[name])

    def row(self, name: str, against: str | None = None, **more: Any) -> Row:
        """Seconds with their spread and, turn by turn, seconds / seconds of `against`: below 1 is faster than it."""
        mine = self.seconds[name]
        row = {"seconds": self.median(name), "low": min(mine), "high": max(mine), "first_s": self.first[name]}
        return more | row | (self.ratio(name, against) if against else {})

    def ratio(self, name: str, against: str) -> Row:
        """The median, the smallest and the largest of seconds / seconds of `against` over the turns."""
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[against], strict=True)]
        return {"against": against, "ratio": statistics.median(ratios), "ratio_low": min(ratios),
                "ratio_high": max(ratios)}  # fmt: skip


def absent(note: str, **more: Any) -> Row:
    """The row of something that could not be measured, with the reason."""
    return more | {"seconds": None, "ratio": None, "note": note}


def measure(work: dict[str, Callable[[], Any]], repeats: int, warm: int = 1) -> Samples:
    """Clock the candidates in turn: the first call of each, `warm` rounds that do not count, `repeats` that do."""
    first = {name: _clock(candidate) for name, candidate in work.items()}
    for _ in range(warm):
        for candidate in work.values():
            candidate()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        gc.collect()
        for name, candidate in work.items():
            seconds[name].append(_clock(candidate))
    return Samples(first, seconds)


def _clock(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Worker:
    """The same work in a process of its own, under another environment; it answers one line to one line.

    module ends in `if __name__ == "__main__": serve(...)`; environment: variables to set, None to take one away.
    """

    def __init__(self, module: str, settings: dict[str, Any], environment: dict[str, str | None]):
        self.module = module
        around = {name: value for name, value in os.environ.items() if name not in environment}
        around |= {name: value for name, value in environment.items() if value is not None}
        around["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self.process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=around
        )
        self._send(settings)

    def ask(self, question: Any) -> Any:
        """Send a question, wait for its answer. Raises RuntimeError when the process has ended."""
        self._send(question)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.module} ended with {self.process.wait()}; its error stands above")
        return json.loads(line)

    def _send(self, message: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer is what tells
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def elsewhere(
    build: Callable[[Any], Callable[[Any], Any]],
    settings: dict[str, Any],
    environment: dict[str, str | None],
    here: bool = False,
) -> Iterator[Callable[[Any], Any]]:
    """What `build(settings)` answers, from a Worker of the module that build stands in; here: from this process."""
    if here:
        yield build(settings)
    else:
        with Worker(build.__module__, settings, environment) as worker:
            yield worker.ask


def serve(build: Callable[[Any], Callable[[Any], Any]]) -> None:
    """The other end of a Worker: build the work from the settings, then answer questions until the pipe is closed."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is not an answer
    quiet()
    work = build(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        channel.write(json.dumps(work(json.loads(line))) + "\n")
        channel.flush()


def rounded(value: Any) -> Any:
    """Floats to four digits that count, in rows and lists too."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


def table(result: dict[str, Any]) -> str:
    """A result as Markdown tables, one for each kind of row, under machine and versions."""
    of = result["machine"]
    lines = [f"{result['name']}: {of['processor']}, {of['threads']} of {of['cores']} cores, {of['vectors']}, "
             f"{of['memory_gib']} GiB; load {result['load_before']} before; {result['wall_s']} s",
             ", ".join(f"{name} {version}" for name, version in result["versions"].items())]  # fmt: skip
    for _, rows in groupby(result["rows"], key=lambda row: row.get("table")):
        lines += ["", *_lines(list(rows))]
    return "\n".join(lines)


def _lines(rows: Sequence[Row]) -> Iterable[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "table"))
    title = rows[0].get("table")
    if title:
        yield f"**{title}**\n"
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_cell(row.get(name)) for name in columns) + " |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.4g}"
    return str(value)
