"""Floor 0: curves on two logarithmic axes as SVG text, which every browser shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8a5fbf", "#c77d0a")
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 420, 70, 40, 190, 50


def log_curves(title: str, across: str, up: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Points (x, y) above 0 of each curve, by its name in the legend -> an SVG document; the axes show whole decades.

    Raises ValueError when there is no point, or one that has no logarithm.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points or not all(0 < value < math.inf for point in points for value in point):
        raise ValueError(f"plot {title!r}: expected points above 0, got {points[:3]}")
    x_low, x_high = _decades([x for x, _ in points])
    y_low, y_high = _decades([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        right = (math.log10(x) - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        below = (y_high - math.log10(y)) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + right, _TOP + below

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
             'font-size="13">', '<rect width="100%" height="100%" fill="white"/>',
             _text(_LEFT, 22, title, size=15)]  # fmt: skip
    for power in range(x_low, x_high + 1):
        x, bottom = place(10.0**power, 10.0**y_low)
        parts += [_line(x, _TOP, x, bottom), _text(x, bottom + 18, f"{10.0**power:g}", "middle")]
    for power in range(y_low, y_high + 1):
        left, y = place(10.0**x_low, 10.0**power)
        parts += [_line(left, y, _WIDTH - _RIGHT, y), _text(left - 8, y + 4, f"{10.0**power:g}", "end")]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, across, "middle"))
    parts.append(_text(12, _TOP - 8, up))
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = _TOP + 16 + 20 * number
        parts.append(_line(_WIDTH - _RIGHT + 10, y - 4, _WIDTH - _RIGHT + 32, y - 4, colour, 2))
        parts.append(_text(_WIDTH - _RIGHT + 38, y, name))
    return "\n".join([*parts, "</svg>", ""])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _line(x: float, y: float, to_x: float, to_y: float, colour: str = "#ddd", width: int = 1) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
