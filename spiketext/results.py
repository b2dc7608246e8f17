"""Floor 2: result files, their tables and pictures, and two rows beside each other.

A result file holds cells: one row on one data set, one metric, a value for each seed, and of the main metrics what was
answered to each text (`spiketext.significance`).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spiketext.figures import columns, grouped_intervals, line_curves
from spiketext.runs import read_json, write_whole
from spiketext.significance import ANSWERED, RIGHT, paired, seeds_answered

ACCOUNTS = {  # metrics of a row of kind energy, for one text of the validation split, and their units
    "tokens": "",
    "additions": "M",
    "multiply-adds": "M",
    "v1": "mJ",
    "v1, rate as mean": "mJ",
    "dense of this shape": "mJ",
    "reduction": "%",
    "ours fp32": "mJ",
    "ours fp32, from cache": "mJ",
    "dense fp32, from cache": "mJ",
    "ours int8": "mJ",
    "dense int8": "mJ",
    "density": "%",
    "break-even int8": "%",
    "break-even int8, from cache": "%",
    "break-even int8, from DRAM": "%",
}
ATTACKED = {  # metrics of a row of kind attack (`attacks.measures`), and their units
    "clean_accuracy": "%",
    "accuracy_under_attack": "%",
    "success_rate": "%",
    "mean_queries": "",
    "changed_share": "%",
    "success_holds": "%",
}
UNITS = ACCOUNTS | ATTACKED | {"firing_rate": "%", "parameters": "M", "energy": "mJ"}  # all others are shares, in %
_BESIDE = ("firing_rate", "parameters", "energy")
_PAGE_HEAD = """# Results

Made by `spiketext reproduce`; do not edit. Every number comes from the JSON file of its name in `results/`, where each
cell also names its data hash, what its row asked for and, seed by seed, the machine and versions that filled it.
`paper` is the published number of the system of that row, at the paper's size and with its own data handling. A gap is
the mean over the seeds that both rows have, its interval a bootstrap over texts: of these models, not of other seeds.
± is the deviation over seeds of everything but stage 1, which all seeds share.
"""


def path_of(folder: Path, name: str, scale: str | None = None) -> Path:
    """The result file of an experiment; each scale that is not the default has one of its own."""
    return folder / "results" / (f"{name}-{scale}.json" if scale else f"{name}.json")


def load(folder: Path, name: str, scale: str | None = None) -> dict[str, Any] | None:
    """A result; None when there is none."""
    return read_json(path_of(folder, name, scale))


def save(folder: Path, result: dict[str, Any], scale: str | None = None) -> None:
    """Write a result file, and RESULTS.md anew."""
    write_whole(path_of(folder, result["name"], scale), json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / "RESULTS.md", results_page(folder))


def by_row(cells: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The cells of each row on each data set, (row, data set) -> one for each metric, the main one first."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        found.setdefault((cell["row"], cell["column"]), []).append(cell)
    return found


def complete(cells: Sequence[dict[str, Any]]) -> list[int]:
    """The seeds of which every metric of a row is known."""
    return [seed for seed in cells[0]["seeds"] if all(seed in cell["seeds"] for cell in cells)] if cells else []


def attacked(found: dict[str, Any]) -> dict[str, Any]:
    """What `attack` returns as the metrics of a row, `ATTACKED`, with intervals of those that have one."""
    factors = {name: 100 if unit == "%" else 1 for name, unit in ATTACKED.items()}
    known = {name: by * found[name] for name, by in factors.items() if found.get(name) is not None}
    ends = {name: found[f"{name}_interval"] for name in known if f"{name}_interval" in found}
    intervals = {name: [round(factors[name] * end, 2) for end in both] for name, both in ends.items()}
    return known | {"intervals": intervals, "wall_s": found["wall_s"]}


def account(found: dict[str, Any]) -> dict[str, Any]:
    """What `energy` returns as the metrics of a row, `ACCOUNTS`."""
    work, papers, ours = found["operations"], {row["as printed"]: row for row in found["papers"]}, found["ours"]
    first = found["papers"][0]
    told = {
        "tokens": found["tokens"],
        "additions": work["ac"] * 1e-6,
        "multiply-adds": work["mac"] * 1e-6,
        "v1": first["mJ"],
        "v1, rate as mean": papers.get("v1 eq. 16-18, rate as mean", first)["mJ"],
        "dense of this shape": first["dense mJ"],
        "reduction": 100 - first["of dense %"],
        "ours fp32": ours["fp32"]["sum"],
        "ours int8": ours["int8"]["sum"],
    }
    if found["spiking"]:
        rows = {(row["precision"], row["memory"]): row for row in found["comparisons"]}
        cached, bare = rows["fp32", "cache"], rows["int8", "none"]
        told |= {"ours fp32, from cache": cached["mJ"], "dense fp32, from cache": cached["dense mJ"],
                    "dense int8": bare["dense mJ"], "density": bare["density %"]}  # fmt: skip
        for name, memory in (("", "none"), (", from cache", "cache"), (", from DRAM", "DRAM")):
            told[f"break-even int8{name}"] = rows["int8", memory]["break-even density %"] or 0.0  # 0: always dearer
    return told


def compare(folder: Path, first: str, second: str) -> list[dict[str, Any]]:
    """Two rows, "RESULT:ROW" each, on every data set that both have: a line for each metric, with `paired`.

    RESULT is the name of a result file without its ending, ROW the row's name or the beginning of it.
    Raises ValueError when a row is not there or nothing can be compared, FileNotFoundError without the file.
    """
    mine, other = (_row(folder, name) for name in (first, second))
    shared = [where for where in mine if where in other]
    if not shared:
        raise ValueError(f"compare: {first} and {second} have no data set in common whose answers both hold; "
                         "rows of older files hold those of accuracies only: reproduce them again")  # fmt: skip
    rows = []
    for column, metric in shared:
        cells = [known[column, metric] for known in (mine, other)]
        found = paired(*cells)
        left, right = (_mean(cell, found["seeds"]) for cell in cells)
        found["seeds"] = " ".join(map(str, found["seeds"]))
        rows.append({"data": column, "metric": metric, "first %": left, "second %": right, **found})
    return rows


def _mean(cell: dict[str, Any], seeds: Sequence[int]) -> float:
    return statistics.mean(value for seed, value in zip(cell["seeds"], cell["values"], strict=True) if seed in seeds)


def _row(folder: Path, name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The cells of a row that hold answers, by data set and metric."""
    file, _, row = name.partition(":")
    if not row:
        raise ValueError(f"compare: expected RESULT:ROW, got {name!r}")
    result = load(folder, file)
    if result is None:
        raise FileNotFoundError(f"compare {name}: no {path_of(folder, file)}; run spiketext reproduce {file}")
    cells = [cell for cell in result["cells"] if cell["metric"] in RIGHT + ANSWERED and cell["values"]]
    names = list(dict.fromkeys(cell["row"] for cell in cells))
    found = [row] if row in names else [known for known in names if known.startswith(row)]
    if len(found) != 1:
        raise ValueError(f"compare {name}: expected the beginning of one of {'; '.join(names) or 'no measured row'}")
    return {
        (cell["column"], cell["metric"]): cell for cell in cells if cell["row"] == found[0] and seeds_answered(cell)
    }


def compare_text(rows: Sequence[dict[str, Any]]) -> str:
    """What `compare` returns, as text."""
    return columns(rows) + "\ndifference, low, high: points of the metric, first minus second, 95 % bootstrap interval"


def table(result: dict[str, Any]) -> str:
    """A result as a Markdown table for each data set: ours beside the paper's number, one line for each row."""
    parts = [_table_of(result, data) for data in dict.fromkeys(cell["column"] for cell in result["cells"])]
    parts += [f"{title}\n\n{markdown(rows)}" for title, rows in result.get("formulas", {}).items()]
    parts += [f"![{Path(path).stem}]({path})" for path in result.get("pictures", [])]
    return "\n\n".join(parts)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with equal keys as a Markdown table."""
    lines = [list(rows[0]), ["---" if isinstance(value, str) else "--:" for value in rows[0].values()]]
    lines += [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    head, rule, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, rule.replace(" ", ""), *body])


def _table_of(result: dict[str, Any], data: str) -> str:
    found = [cell for cell in result["cells"] if cell["column"] == data]
    rows: dict[str, dict[str, dict]] = {}
    for cell in found:
        rows.setdefault(cell["row"], {})[cell["metric"]] = cell
    measured = {"v1", "success_rate"} & {cell["metric"] for cell in found}
    shown = _account_columns(rows) if measured else _columns(result, rows)
    lines = [f"{result['name']} ({result['scale']}, {found[0]['split']} split of {data})", "",
             "| " + " | ".join(["row", *shown]) + " |", "|---|" + "--:|" * (len(shown) - 1) + "---|"]  # fmt: skip
    for row, cells in rows.items():
        lines.append("| " + " | ".join([row, *(value(cells) for value in shown.values())]) + " |")
    return "\n".join(lines)


Show = dict[str, Callable[[dict[str, dict]], str]]


def _columns(result: dict[str, Any], rows: dict[str, dict[str, dict]]) -> Show:
    """The columns of a table of accuracies; those of which nothing is known are left out."""
    main = next(iter(next(iter(rows.values()))))  # the metric of the data set
    against = rows.get(result.get("against", ""), {}).get(main)
    shown: Show = {f"{main} %": lambda c: _spread(c[main]), "paper %": lambda c: _paper(c[main])}
    if against and any(_gap(cells[main], against) for cells in rows.values()):
        shown["gap, points"] = lambda c: _gap(c[main], against)
    others = [m for m in dict.fromkeys(metric for cells in rows.values() for metric in cells) if m not in UNITS]
    for metric in others[1:]:
        shown[f"{metric} %"] = lambda c, m=metric: _spread(c.get(m))  # type: ignore[misc]
    for metric in _BESIDE:
        if metric == "firing_rate" or any(metric in cells for cells in rows.values()):
            head = f"{metric.replace('_', ' ')} {UNITS[metric]}"
            shown[head] = lambda c, m=metric: _spread(c.get(m)) + _of_seeds(c.get(m), c[main])  # type: ignore[misc]
    return shown | {"training s": lambda c: _seconds(c[main]), "seeds": lambda c: _seeds(c[main])}


def _account_columns(rows: dict[str, dict[str, dict]]) -> Show:
    """The columns of a table with rows of kind energy or attack: whatever was measured."""
    metrics = list(dict.fromkeys(metric for cells in rows.values() for metric in cells))
    heads = {m: f"{m.replace('_', ' ')} {UNITS.get(m, '%')}".strip() for m in metrics}
    shown: Show = {head: lambda c, m=m: _spread(c.get(m)) for m, head in heads.items()}  # type: ignore[misc]
    if "success_rate" in metrics:
        shown["seconds"] = lambda c: _seconds(next(iter(c.values())))
    return shown | {"seeds": lambda c: _seeds(next(iter(c.values())))}


def _gap(cell: dict[str, Any], against: dict[str, Any]) -> str:
    """How far a row is from the one that it is held against, with its interval; of which seeds, if not of all."""
    if cell is against or not set(seeds_answered(cell)) & set(seeds_answered(against)):
        return ""
    found = paired(cell, against)
    some = set(found["seeds"]) != set(cell["seeds"]) or set(found["seeds"]) != set(against["seeds"])
    of = f", {'seed' if len(found['seeds']) == 1 else 'seeds'} {', '.join(map(str, found['seeds']))}" if some else ""
    return f"{found['difference']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f}){of}"


def _paper(cell: dict[str, Any]) -> str:
    return "" if cell["paper"] is None else f"{cell['paper']:.2f}"


def computed_by(trained: dict[str, Any]) -> str | None:
    """What a training ran on, where that is not a processor in float32: its GPU, or a processor in bf16."""
    return trained.get("gpu") or ("CPU in bf16" if trained.get("precision") == "bf16" else None)


def _seconds(cell: dict[str, Any]) -> str:
    """Their mean, with what took them where that is not a processor in float32."""
    if not cell["wall_s"]:
        return f"(about {cell.get('cost_s')})"
    gpus = {name or "CPU" for name in cell.get("gpus", [])}
    return f"{statistics.mean(cell['wall_s']):.0f}" + (f" ({', '.join(sorted(gpus))})" if gpus else "")


def _of_seeds(cell: dict[str, Any] | None, main: dict[str, Any]) -> str:
    """The seeds of a metric where they are some of those that its row shows."""
    some = cell and 0 < len(cell["seeds"]) < len(main["seeds"])
    return f" (seeds {_seeds(cell)})" if cell and some else ""


def _seeds(cell: dict[str, Any]) -> str:
    return ", ".join(map(str, cell["seeds"])) or cell["status"]


def _spread(cell: dict[str, Any] | None) -> str:
    """Mean and standard deviation over seeds, or one value, with its interval if it has one.

    Nothing where there is no number, as of a success never seen. A break-even above any density is "> 100".
    """
    values = cell["values"] if cell else []
    numbers = [value for value in values if value is not None]
    if cell and cell["status"] == "diverged":
        return f"{len(values) - len(numbers)} of {len(values)} diverged"
    if cell and cell["metric"].startswith("break-even") and min(numbers, default=0) > 100:
        return "> 100"
    [interval] = cell.get("intervals", [None]) if cell and len(values) == 1 else [None]
    if interval:
        return f"{values[0]:.1f} ({interval[0]:.1f} to {interval[1]:.1f})"
    shape = ".3g" if cell and cell["unit"] == "mJ" else ".2f"  # small networks take a thousandth of a large one
    if len(numbers) < 2:
        return f"{numbers[0]:{shape}}" if numbers else ""
    return f"{statistics.mean(numbers):{shape}} ± {statistics.stdev(numbers):{shape}}"


def grid_picture(cells: list[dict], title: str, path: Path) -> bool:
    """Draw lines over the one number that grids vary, a panel for each metric; False where there is nothing to draw."""
    points = [cell for cell in cells if len(cell.get("at", {})) == 1 and cell["metric"] in ("accuracy", "firing_rate")]
    curves: dict[str, dict[str, list]] = {}
    for cell in points:
        [(key, value)] = cell["at"].items()
        up, mean = cell["metric"].replace("_", " "), mean_of(cell)
        half = 1.96 * math.sqrt(mean * (100 - mean) / cell["texts"]) if "texts" in cell else 0.0
        up += " %, band: 95 % interval" if "texts" in cell else " %"
        curves.setdefault(f"{up} over {key}", {}).setdefault(cell["curve"], []).append((value, mean, half))
    if curves:
        line_curves(title, curves, str(path))
    return bool(curves)


def attack_picture(cells: list[dict], title: str, path: Path) -> bool:
    """Draw the accuracy under attack of each row at each value of its grid, and the mean of the intervals of its seeds.

    False where there is nothing to draw.
    """
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for cell in cells:
        if cell["metric"] == "accuracy_under_attack" and "at" in cell:
            under = ", ".join(str(value).partition("[")[0] for value in reversed(cell["at"].values()))
            low, high = (statistics.mean(ends) for ends in zip(*filter(None, cell["intervals"]), strict=True))
            groups.setdefault(under, {})[cell["curve"]] = (mean_of(cell), low, high)
    if groups:
        grouped_intervals(title, "accuracy under attack %, with its 95 % interval", groups, str(path))
    return bool(groups)


def mean_of(cell: dict[str, Any]) -> float:
    """The mean of a cell's seeds, diverged ones left out."""
    return statistics.mean(value for value in cell["values"] if value is not None)


def results_page(folder: Path) -> str:
    """RESULTS.md out of all result files."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "results").glob("*.json"))]
    parts = [table(each) + f"\n\nCommand: `{each['command']}`\n" for each in found if "cells" in each]
    networks = [_network(each) for each in found if "network" in each]
    if networks:
        parts.append(f"Networks of unlabelled text\n\n{markdown(networks)}\n")
    return "\n".join([_PAGE_HEAD, *parts])


def _network(result: dict[str, Any]) -> dict[str, Any]:
    """A line about a network of unlabelled text; loss: summed features of stage 1, or nats for each hidden token."""
    made = result["network"]
    scores = made.get("validation", {})
    tokens, seconds = made["tokens"], made["wall_s"]
    return {
        "command": f"`{result['command']}`",
        "tokens": tokens,
        "passes": f"{made['epochs']:g}",
        "steps": str(made.get("steps", "")),
        "validation loss": f"{scores['loss']:.2f}" if scores else "",
        "found %": f"{100 * scores['accuracy']:.1f}" if "accuracy" in scores else "",
        "seconds": f"{seconds:.0f} ({computed_by(made) or 'CPU'})",
        "tokens a second": f"{made['epochs'] * tokens / seconds:.0f}" if seconds else "",  # under a twentieth is 0.0
    }
