"""The report's small pictures as inline SVG and HTML. Colours come from the style sheet, text stays text.

Tracks give positions in per cent, so that they stretch with the page while text keeps its size. Every picture
has a text alternative, and nothing is told by colour alone: alone is hollow or dashed, together filled or solid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ayni_coordinator.demo.results import Curve

PLOT_WIDTH, PLOT_HEIGHT = 300, 168
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 10, 24


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers that cover low..high.

    >>> ticks(0.83, 0.97)
    [0.8, 0.85, 0.9, 0.95, 1.0]
    """
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= 6:
            break
    return [round(number * step, 4) for number in range(first, last + 1)]


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * (value - low) / (high - low):.2f}%"


def axis(marks: Sequence[float], form: str = "{:.2f}") -> str:
    """The numbers above or below a row of tracks."""
    low, high = marks[0], marks[-1]
    labels = "".join(
        f'<span style="left:{_percent(mark, low, high)}">{escape(form.format(mark))}</span>' for mark in marks
    )
    return f'<div class="axis" aria-hidden="true">{labels}</div>'


def dumbbell(alone: float, together: float, marks: Sequence[float], label: str) -> str:
    """One site: a hollow dot for alone, a filled one for together, and the way from one to the other."""
    low, high = marks[0], marks[-1]
    grid = "".join(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="100%"/>' for x in _positions(marks))
    a, b = _percent(alone, low, high), _percent(together, low, high)
    way = f'<line class="way {"gain" if together >= alone else "loss"}" x1="{a}" x2="{b}" y1="50%" y2="50%"/>'
    dots = f'<circle class="alone" cx="{a}" cy="50%" r="6.5"/><circle class="together" cx="{b}" cy="50%" r="5.5"/>'
    return f'<svg class="track" role="img" aria-label="{escape(label)}">{grid}{way}{dots}</svg>'


def _positions(marks: Sequence[float]) -> list[str]:
    return [_percent(mark, marks[0], marks[-1]) for mark in marks]


def stacked_bar(up: float, down: float, whole: float, label: str) -> str:
    """Bytes up and down, as parts of an outlined bar that stands for `whole`."""
    whole = max(whole, up + down, 1)
    a, b = 100 * up / whole, 100 * down / whole
    return (
        f'<svg class="bar" role="img" aria-label="{escape(label)}">'
        '<rect class="ghost" x="0" y="1" width="100%" height="16" rx="3"/>'
        f'<rect class="up" x="0" y="1" width="{a:.3f}%" height="16"/>'
        f'<rect class="down" x="{a:.3f}%" y="1" width="{b:.3f}%" height="16"/></svg>'
    )


def span_bar(start: float, length: float, whole: float, label: str) -> str:
    """When a step ran within the whole; never thinner than can be seen."""
    x = 100 * start / max(whole, 1e-9)
    width = min(max(100 * length / max(whole, 1e-9), 0.8), 100.0)
    x = min(x, 100 - width)
    return (
        f'<svg class="bar thin" role="img" aria-label="{escape(label)}">'
        '<rect class="rail" x="0" y="4" width="100%" height="2" rx="1"/>'
        f'<rect class="up" x="{x:.3f}%" y="1" width="{width:.3f}%" height="8" rx="2"/></svg>'
    )


def learning_curve(curve: Curve, marks: Sequence[float]) -> str:
    """AUC on held-out images after each round: together solid, alone dashed."""
    low, high = marks[0], marks[-1]
    last = max(len(curve.federated), len(curve.alone), 2) - 1

    def x(number: float) -> float:
        return LEFT + (PLOT_WIDTH - LEFT - RIGHT) * number / last

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return TOP + (PLOT_HEIGHT - TOP - BOTTOM) * (high - inside) / (high - low)

    parts = []
    for mark in marks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{PLOT_WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y(mark) + 3.5:.1f}" text-anchor="end">{mark:.2f}</text>')
    for number in sorted({0, last // 2, last}):
        anchor = "end" if number == last else "start" if number == 0 else "middle"
        name = "start" if number == 0 else f"round {number}"
        parts.append(f'<text x="{x(number):.1f}" y="{PLOT_HEIGHT - 6}" text-anchor="{anchor}">{name}</text>')
    for kind, values in [("alone", curve.alone), ("together", curve.federated)]:
        points = [(x(number), y(value)) for number, value in enumerate(values) if value is not None]
        if points:
            line = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
            end = points[-1]
            parts.append(f'<polyline class="curve {kind}" points="{line}"/>')
            parts.append(f'<circle class="{kind}" cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="3.5"/>')
    return (
        f'<svg class="plot" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" role="img" '
        f'aria-label="{escape(_curve_in_words(curve))}">{"".join(parts)}</svg>'
    )


def _curve_in_words(curve: Curve) -> str:
    said = []
    for kind, values in [("together", curve.federated), ("alone", curve.alone)]:
        known = [value for value in values if value is not None]
        if known:
            said.append(f"{kind} from {known[0]:.3f} to {known[-1]:.3f}, best {max(known):.3f}")
    return f"{curve.site}, AUC on {curve.num_holdout} held-out images: {'; '.join(said) or 'not known'}"
