"""Floor 1: pictures of one model: attention, spikes, firing rates, losses, calibration, answers over time.

Each takes plain numbers (`spiketext.insight` gathers them) and returns a matplotlib figure, for `figures.save` or
`inline`. All raise ValueError without matplotlib (the extra `plots`).
"""

from __future__ import annotations

import html
import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spiketext.figures import canvas, letters_as_text, take_as_written

_INK = "#010203"  # lines and letters of `inline`: becomes the colour of the text around
_COLOURS = ("#0f8f8c", "#e07a1f", "#7a5cc0", "#c2427a", "#5a8f29", "#3b78c4")
_CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Source Han Sans SC", "SimHei", "PingFang SC",
            "Microsoft YaHei")  # fmt: skip
_NOT_CURVES = {"epoch", "step", "learning_rate", "grad_norm", "total_flos", "train_loss"}


def attention_map(tokens: Sequence[str], scores: Any, title: str = "") -> Any:
    """Attention [H, L, L] of L tokens, mean over heads: rows look at columns (SpikeBERT figure 4).

    Raises ValueError when tokens and scores do not fit together.
    """
    if scores.ndim != 3 or scores.shape[1:] != (len(tokens), len(tokens)):
        raise ValueError(f"attention of {len(tokens)} tokens: expected scores [H, L, L], got {list(scores.shape)}")
    size = max(3.6, 0.2 * len(tokens) + 1.2)
    figure, (axis,) = canvas(1, size, size)
    image = axis.imshow(scores.mean(0), cmap="viridis")
    places = range(len(tokens))
    axis.set_xticks(places, tokens, rotation=90, fontsize=7)
    axis.set_yticks(places, tokens, fontsize=7)
    axis.set(title=title, xlabel="looked at", ylabel="looks")
    figure.colorbar(image, ax=axis, shrink=0.7)
    return _letters(figure)


def raster(tokens: Sequence[str], spikes: Any, title: str = "", most: int = 64) -> Any:
    """Spikes [T, places, neurons] of at most `most` neurons, evenly chosen: time runs right within each place.

    A dot is a spike; the OFF neuron's is drawn in a second colour, a code above one larger. Where there are as many
    places as tokens, they are named. Raises ValueError for another number of axes.
    """
    if spikes.ndim != 3:
        raise ValueError(f"raster: expected spikes [T, places, neurons], got {list(spikes.shape)}")
    steps, places, neurons = spikes.shape
    chosen = spikes[..., :: -(-neurons // most)]
    wide = chosen.transpose(1, 0, 2).reshape(places * steps, -1)
    figure, (axis,) = canvas(1, min(10.0, max(8.0, 0.05 * len(wide))), 2.6)
    for sign, colour in ((1, _COLOURS[0]), (-1, _COLOURS[1])):
        times, rows = (sign * wide > 0).nonzero()
        dots = axis.scatter(times, rows, s=1.5 * abs(wide[times, rows].astype(float)), c=colour, linewidths=0)
        dots.set_rasterized(True)  # thousands of dots: a picture within the picture
    for place in range(1, places):
        axis.axvline(place * steps - 0.5, linewidth=0.4, alpha=0.35, color=_INK)
    if places == len(tokens):
        axis.set_xticks([place * steps + (steps - 1) / 2 for place in range(places)], tokens, rotation=90, fontsize=6)
    else:
        axis.set_xlabel("time step" if places == 1 else f"windows of the text (T = {steps})")
    axis.set(title=title, ylabel=f"neuron ({wide.shape[1]} / {neurons})", xlim=(-0.5, len(wide) - 0.5))
    axis.set_ylim(-0.5, wide.shape[1] - 0.5)
    return _letters(figure)


def firing_rates(rates: Mapping[str, Sequence[float]], title: str = "") -> Any:
    """Firing rate 0..1 by layer (rows) and time step (columns)."""
    if not rates:
        raise ValueError("firing rates: no layer of neurons, expected at least one")
    steps = max(map(len, rates.values()))
    values = [[*by_step, *[float("nan")] * (steps - len(by_step))] for by_step in rates.values()]
    figure, (axis,) = canvas(1, max(4.2, 0.12 * steps + 3), max(2.0, 0.2 * len(values) + 1))
    image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=0)
    axis.set_yticks(range(len(values)), list(rates), fontsize=6)
    every = max(1, steps // 8)
    axis.set_xticks(range(0, steps, every), range(1, steps + 1, every))
    axis.set(title=title, xlabel="time step")
    figure.colorbar(image, ax=axis, label="firing rate")
    return _letters(figure)


def learning_curves(history: Sequence[Mapping[str, float]], title: str = "") -> dict[str, Any]:
    """A trainer's log (history.json) as figures: "losses", every term in training, and the scores, "validation"."""
    training = [row for row in history if "loss" in row]
    validation = [row for row in history if "eval_loss" in row]
    figures = {}
    for kind, rows, prefix, label in (
        ("losses", training, "", "loss, training"), ("validation", validation, "eval_", "validation"),
    ):  # fmt: skip
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if _is_curve(name)]
        if not names:
            continue
        if len(names) == 2 and names[0] == "loss":
            names.pop(0)  # it is the other
        figure, (axis,) = canvas(1, 4.4, 3.0)
        for name, colour in zip(names, (c for _ in names for c in _COLOURS), strict=False):
            points = [(row["step"], row[name]) for row in rows if name in row]
            marker = "o" if len(points) < 30 else None
            axis.plot(*zip(*points, strict=True), label=name.removeprefix(prefix), color=colour, marker=marker, ms=3)
        values = [row[name] for row in rows for name in names if name in row]
        if not prefix and min(values) > 0 and max(values) > 20 * min(values):
            axis.set_yscale("log")
        axis.set(title=title, xlabel="step", ylabel=label)
        axis.legend(fontsize=7, frameon=False)
        figures[kind] = _letters(figure)
    return figures


def _is_curve(name: str) -> bool:
    return name not in _NOT_CURVES and "runtime" not in name and not name.endswith("per_second")


def reliability(bins: Sequence[Mapping[str, float]], title: str = "") -> Any:
    """Accuracy against confidence in bins (`insight.calibration`); the area of a dot is its number of texts."""
    figure, (axis,) = canvas(1, 3.6, 3.2)
    axis.plot([0, 1], [0, 1], linewidth=0.8, linestyle="--", color=_INK, alpha=0.5)
    total = sum(row["texts"] for row in bins)
    axis.plot([row["confidence"] for row in bins], [row["accuracy"] for row in bins], color=_COLOURS[0])
    axis.scatter([row["confidence"] for row in bins], [row["accuracy"] for row in bins], color=_COLOURS[0],
                 s=[12 + 300 * row["texts"] / total for row in bins], alpha=0.7)  # fmt: skip
    axis.set(title=title, xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    return _letters(figure)


def over_steps(values: Sequence[float], label: str, title: str = "") -> Any:
    """One value after each time step, from the first on."""
    figure, (axis,) = canvas(1, 3.6, 3.2)
    axis.plot(range(1, len(values) + 1), values, color=_COLOURS[0], marker="o" if len(values) < 30 else None, ms=4)
    axis.set(title=title, xlabel="time steps", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    return _letters(figure)


def relabel(figure: Any, say: Callable[[str], str]) -> None:
    """Put the names of a figure's axes and curves, without what stands in brackets, into another language."""
    for axis in figure.axes:
        legend = axis.get_legend()
        for text in (axis.xaxis.label, axis.yaxis.label, *(legend.get_texts() if legend else ())):
            name, bracket, rest = text.get_text().partition(" (")
            text.set_text(say(name) + bracket + rest)


def inline(figure: Any, name: str) -> str:
    """A figure as an <svg> for a page: no background, in the page's colour and letters; name keeps its ids apart.

    Who cannot see it is told its name, its title and what its axes are.
    """
    import matplotlib

    stream = io.StringIO()
    quiet = {key: None for key in ("Date", "Creator", "Format", "Type")}
    take_as_written(figure)
    settings: Any = {"svg.hashsalt": name}
    with letters_as_text(), matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", transparent=True, metadata=quiet, dpi=150)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    axis = figure.axes[0]
    told = ", ".join(filter(None, [name, axis.get_title(), axis.get_ylabel(), axis.get_xlabel()]))
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(told)}"', 1)
    ids = set(re.findall(r'\bid="([^"]+)"', svg))
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)([^")]+)', lambda m: f"{m[1]}{name}-{m[2]}" if m[2] in ids else m[0], svg)
    return re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)


def _letters(figure: Any) -> Any:
    """Ink for every line and letter, and a font with Chinese where one is installed."""
    from matplotlib import font_manager

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # a font without every weight will do
    installed = {font.name for font in font_manager.fontManager.ttflist}
    family = ["DejaVu Sans", *(name for name in _CHINESE if name in installed)]
    for axis in figure.axes:
        axis.tick_params(colors=_INK)
        for spine in axis.spines.values():
            spine.set_edgecolor(_INK)
    for text in figure.findobj(lambda artist: hasattr(artist, "set_fontfamily")):
        text.set_color(_INK)
        text.set_fontfamily(family)
        text.set_fontsize(min(text.get_fontsize(), 9))
    return figure
