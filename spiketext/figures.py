"""Floor 0: results as columns of text and as pictures. Pictures need matplotlib (the extra `plots`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

MARKERS = {"spiking": "o", "dense": "s", "published spiking": "^"}


def columns(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text under a header: numbers with four figures, None and what a row does not have as "-"."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
    left = [all(isinstance(row.get(name), str) for row in rows) for name in names]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in cells
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _lines(values: Mapping[str, Any]) -> str:
    return columns([{"": name, " ": value} for name, value in values.items() if value is not None])


def energy_text(result: Mapping[str, Any], layers: bool = False) -> str:
    """What `energy.energy` returns, as text; layers: every layer too."""
    about = {name: result[name] for name in ("model", "data", "split", "texts", "tokens", "length", "time_steps")}
    about["network"] = f"spiking: {result['sends']}" if result["spiking"] else "dense: no layer of spiking neurons"
    about["measured, joules of one text"] = result["measured"] and result["measured"]["meters"]
    hidden = ("microjoules by step", "rate by step")
    rows = [{name: value for name, value in row.items() if name not in hidden} for row in result["layers"]]
    parts = (
        _lines(about),
        columns([{"for one text": name, "": float(value)} for name, value in result["operations"].items()]),
        columns([{"our account, mJ": name, **parts} for name, parts in result["ours"].items()]),
        columns(result["papers"]),
        columns(capped(result["comparisons"])),
        columns(rows) if layers else "",
    )
    return "\n\n".join(part for part in parts if part)


def capped(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `energy.comparisons` for people: no density is above 100 %, so no break-even is shown there."""
    key = "break-even density %"
    return [{**row, key: "> 100" if (row[key] or 0) > 100 else row[key]} for row in comparisons]


def audit_text(result: Mapping[str, Any]) -> str:
    """What `audit.audit` returns, as text."""
    total, impure = len(result["layers"]), len(result["impure"])
    verdict = f"all {total} layers that must be spiking read {result['declared']} inputs"
    if impure:
        verdict = f"{impure} of {total} layers that must be spiking are not ({result['declared']} inputs expected)"
    others = f"not spiking: {', '.join(result['not_spiking'])}, the mean over tokens and steps"
    if not result["spiking"]:
        verdict, others = "dense: no layer of spiking neurons", ""
    told = {"suggested rate", "norm factor"}  # the advice says them
    neurons = [{name: value for name, value in row.items() if name not in told} for row in result["neurons"]]
    parts = (columns(result["layers"]), columns(neurons), verdict, others)
    return "\n\n".join(part for part in parts if part)


def energy_by_layer(result: Mapping[str, Any], path: str) -> None:
    """Draw energy (microjoules) and firing rate by layer, one bar for each step. result: what `energy.energy` returns.

    Raises ValueError without matplotlib, or for an ending that it cannot write.
    """
    layers = [row for row in result["layers"] if row["microjoules by step"]]
    neurons = [row for row in result["layers"] if row["rate by step"]]
    figure, axes = canvas(2 if neurons else 1, max(6.0, 0.22 * max(len(layers), len(neurons))))
    _bars(axes[0], layers, "microjoules by step", "µJ of matrix work, one text")
    if neurons:
        _bars(axes[1], neurons, "rate by step", "firing rate")
        axes[1].set_ylim(0, 1)
    axes[0].set_title(f"{result['model']} on {result['data']}: mean of {result['texts']} texts")
    save(figure, path)


def _bars(axis: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str) -> None:
    steps = max(len(row[key]) for row in rows)
    for step in range(steps):
        places = [i + (step + 0.5) / steps - 0.5 for i, row in enumerate(rows) if step < len(row[key])]
        values = [row[key][step] for row in rows if step < len(row[key])]
        axis.bar(places, values, width=0.9 / steps, label=f"step {step + 1}" if steps > 1 else None)
    axis.set_xticks(
        range(len(rows)), [row["layer"].removeprefix("spikebert.") for row in rows], rotation=90, fontsize=6
    )
    axis.set_ylabel(label)
    if steps > 1:
        axis.legend(fontsize=7)


def accuracy_against_energy(
    points: Sequence[Mapping[str, Any]], path: str, title: str = "", across: str = "mJ for one text"
) -> None:
    """Draw points {"name", "millijoules", "accuracy" (%), "kind"}; kind: spiking, dense or published spiking.

    Raises ValueError for no points, a kind that is none, no matplotlib, or an ending that it cannot write.
    """
    if not points:
        raise ValueError("accuracy against energy: no points, expected at least one")
    unknown = sorted({point["kind"] for point in points} - set(MARKERS))
    if unknown:
        raise ValueError(f"accuracy against energy: kind {unknown[0]!r}, expected one of {', '.join(MARKERS)}")
    figure, (axis,) = canvas(1, 7.0)
    for kind, marker in MARKERS.items():
        those = [point for point in points if point["kind"] == kind]
        if those:
            axis.scatter([p["millijoules"] for p in those], [p["accuracy"] for p in those], marker=marker, label=kind)
    axis.set(xscale="log", xlabel=across, ylabel="accuracy %", title=title)
    axis.margins(x=0.25, y=0.1)
    figure.legend(loc="outside lower center", ncols=len(MARKERS))
    _name_points(figure, axis, [(point["name"], (point["millijoules"], point["accuracy"])) for point in points])
    save(figure, path)


def _name_points(figure: Any, axis: Any, places: Sequence[tuple[str, tuple[float, float]]]) -> None:
    """Write names beside points: where nothing else is, out of eight places around each, if one of them is free."""
    from matplotlib.transforms import Bbox

    take_as_written(figure)
    figure.draw_without_rendering()  # from here on places are known in pixels
    frame = axis.bbox.padded(-5)
    taken = [Bbox([axis.transData.transform(place)] * 2).padded(5) for _, place in places]

    def is_free(label: Any) -> bool:
        box = label.get_window_extent()
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        return inside and not any(box.overlaps(other) for other in taken)

    for name, place in places:
        tried = [axis.annotate(name, place, xytext=(x, y), textcoords="offset points", fontsize=7, in_layout=False,
                               ha="left" if x > 0 else "right", parse_math=False)
                 for y in (3, -8, 11, -16) for x in (4, -4)]  # fmt: skip
        kept = next(filter(is_free, tried), tried[0])
        taken.append(kept.get_window_extent())
        for label in tried:
            if label is not kept:
                label.remove()


def log_curves(
    title: str, across: str, up: str, curves: Mapping[str, Sequence[tuple[float, float]]], path: str
) -> None:
    """Draw points (x, y) above 0 of each curve, by its name in the legend, on two logarithmic axes.

    Raises ValueError when there is no point, or one that has no logarithm; else as the others.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points or not all(0 < value < math.inf for point in points for value in point):
        raise ValueError(f"plot {title!r}: expected points above 0, got {points[:3]}")
    figure, (axis,) = canvas(1, 7.0)
    for name, curve in curves.items():
        axis.plot(*zip(*curve, strict=True), marker=".", label=name)
    axis.set(xscale="log", yscale="log", xlabel=across, ylabel=up, title=title)
    axis.legend()
    save(figure, path)


def line_curves(
    title: str, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]], path: str
) -> None:
    """Draw points (x, y, half the width of y's interval) of each curve, a panel for each name "UP over ACROSS".

    An interval of no width is not drawn. Raises ValueError as the others.
    """
    figure, axes = canvas(len(panels), 7.0)
    for axis, (name, curves) in zip(axes, panels.items(), strict=True):
        for label, curve in curves.items():
            x, y, half = zip(*sorted(curve), strict=True)
            [line] = axis.plot(x, y, marker=".", label=label)
            if any(half):
                ends = [[value + sign * wide for value, wide in zip(y, half, strict=True)] for sign in (-1, 1)]
                axis.fill_between(x, *ends, color=line.get_color(), alpha=0.12, linewidth=0)
        up, _, across = name.partition(" over ")
        axis.set(xlabel=across.replace("_", " "), ylabel=up)
        axis.legend(fontsize=7)
    axes[0].set_title(title)
    save(figure, path)


def grouped_intervals(
    title: str, across: str, groups: Mapping[str, Mapping[str, tuple[float, float, float]]], path: str
) -> None:
    """Draw (value, low, high) of each name in each group, a line of its own for each, a colour for each name.

    Raises ValueError as the others.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    height = len(names) + 1
    figure, (axis,) = canvas(1, 7.0, 1.0 + 0.2 * height * len(groups))
    for place, name in enumerate(names):
        drawn = [
            (number * height + place, group[name]) for number, group in enumerate(groups.values()) if name in group
        ]
        y, points = zip(*drawn, strict=True)
        value, low, high = zip(*points, strict=True)
        reach = [
            [v - end for v, end in zip(value, low, strict=True)],
            [end - v for v, end in zip(value, high, strict=True)],
        ]
        axis.errorbar(value, y, xerr=reach, fmt="o", markersize=4, capsize=2, label=name)
    middles = [number * height + (len(names) - 1) / 2 for number in range(len(groups))]
    axis.set(yticks=middles, yticklabels=groups, xlabel=across, title=title)
    axis.invert_yaxis()
    figure.legend(fontsize=7, loc="outside lower center", ncols=len(names))
    save(figure, path)


def require_drawable(*paths: str) -> None:
    """Ask before the work whether its pictures can be written. Raises ValueError as `canvas` and `save` would."""
    figure, _ = canvas(1, 1.0)
    known = figure.canvas.get_supported_filetypes()
    for path in paths:
        ending = Path(path).suffix.lower().removeprefix(".")
        if ending and ending not in known:
            raise ValueError(f"picture {path}: expected a name that ends in one of {', '.join(known)}, got .{ending}")


def canvas(rows: int, width: float, height: float = 4.2) -> tuple[Any, Any]:
    """A matplotlib figure of so many axes, one below the other; inches. Raises ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib; pip install 'spiketext[plots]'") from None
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    return figure, figure.subplots(rows, 1, squeeze=False)[:, 0]


def save(figure: Any, path: str) -> None:
    """Write a figure; the ending of the path says as what. Raises ValueError for an ending that it cannot write."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    take_as_written(figure)
    try:
        with letters_as_text() if path.lower().endswith(".svg") else nullcontext():
            figure.savefig(path, dpi=150)
    except ValueError as error:
        raise ValueError(f"picture {path}: {error}") from None


@contextmanager
def letters_as_text() -> Iterator[None]:
    """An SVG written in here keeps its letters as text: who looks at it has those that are missing on this machine."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none"}):
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def take_as_written(figure: Any) -> None:
    """Let two $ in a name or a text of a figure be what they are, no formula; numbers on logarithmic axes are one."""
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        if "$" in text.get_text() and r"\mathdefault" not in text.get_text():
            text.set_parse_math(False)
