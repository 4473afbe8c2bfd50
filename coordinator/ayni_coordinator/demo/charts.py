"""The report's small pictures as inline SVG. Colours come from the style sheet.

Tracks give positions in per cent, so that they stretch with the page while text keeps its size. Every picture
has a text alternative, and nothing is told by colour alone: alone is hollow or dotted, together filled or solid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ayni_coordinator.demo.markup import Html, tag
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
    return [round(number * step, 4) for number in range(first, max(last, first + 2) + 1)]


def legend_sign(kind: str) -> Html:
    """The sign of one kind of mark: alone, together, solid, dotted, up, down or ghost."""
    signs = {
        "alone": tag("circle", class_="alone", cx="13", cy="7", r="6"),
        "together": tag("circle", class_="together", cx="13", cy="7", r="5.5"),
        "solid": tag("polyline", class_="curve together", points="0,7 26,7"),
        "dotted": tag("polyline", class_="curve alone", points="0,7 26,7"),
        "up": tag("rect", class_="up", x="4", y="0", width="18", height="14", rx="2"),
        "down": tag("rect", class_="down", x="4", y="0", width="18", height="14", rx="2"),
        "ghost": tag("rect", class_="ghost", x="2", y="1", width="22", height="12", rx="3"),
    }
    return tag("svg", signs[kind], aria_hidden="true")


def axis(marks: Sequence[float]) -> Html:
    """The numbers below a column of tracks."""
    labels = [tag("span", f"{mark:.2f}", style=f"left:{_place(mark, marks)}") for mark in marks]
    return tag("div", *labels, class_="axis", aria_hidden="true")


def dumbbell(alone: float, together: float, marks: Sequence[float], words: str) -> Html:
    """One site: a hollow dot for alone, a filled one for together, and the way from one to the other."""
    grid = [tag("line", class_="grid", x1=_place(m, marks), x2=_place(m, marks), y1="0", y2="100%") for m in marks]
    before, after = _place(alone, marks), _place(together, marks)
    return tag(
        "svg",
        *grid,
        tag("line", class_=f"way {'gain' if together >= alone else 'loss'}", x1=before, x2=after, y1="50%", y2="50%"),
        tag("circle", class_="alone", cx=before, cy="50%", r="6.5"),
        tag("circle", class_="together", cx=after, cy="50%", r="5.5"),
        class_="track",
        role="img",
        aria_label=words,
    )


def _place(value: float, marks: Sequence[float]) -> str:
    return f"{100 * (value - marks[0]) / (marks[-1] - marks[0]):.2f}%"


def stacked_bar(up: float, down: float, whole: float, words: str) -> Html:
    """Bytes up and down, as parts of an outlined bar that stands for `whole`."""
    whole = max(whole, up + down, 1)
    first, second = 100 * up / whole, 100 * down / whole
    return tag(
        "svg",
        tag("rect", class_="ghost", x="0", y="1", width="100%", height="16", rx="3"),
        tag("rect", class_="up", x="0", y="1", width=f"{first:.3f}%", height="16"),
        tag("rect", class_="down", x=f"{first:.3f}%", y="1", width=f"{second:.3f}%", height="16"),
        class_="bar",
        role="img",
        aria_label=words,
    )


def span_bar(start: float, length: float, whole: float, words: str) -> Html:
    """When a step ran within the whole; never thinner than can be seen."""
    width = min(max(100 * length / max(whole, 1e-9), 0.8), 100.0)
    x = min(100 * start / max(whole, 1e-9), 100 - width)
    return tag(
        "svg",
        tag("rect", class_="rail", x="0", y="4", width="100%", height="2", rx="1"),
        tag("rect", class_="up", x=f"{x:.3f}%", y="1", width=f"{width:.3f}%", height="8", rx="2"),
        class_="bar thin",
        role="img",
        aria_label=words,
    )


def chance_bar(chance: float, *, answer: bool) -> Html:
    """The probability of one class; its number stands beside it."""
    rail = tag("rect", class_="rail", width="100%", height="9", rx="3")
    kind = "fill" if answer else "fill other"
    return tag(
        "svg", rail, tag("rect", class_=kind, width=f"{100 * chance:.1f}%", height="9", rx="3"), aria_hidden="true"
    )


def learning_curve(curve: Curve, marks: Sequence[float]) -> Html:
    """AUC on held-out images after each round: together solid, alone dotted."""
    num_rounds = max(len(curve.federated), len(curve.alone), 2) - 1
    parts = [*_levels(marks), *_rounds(num_rounds)]
    for kind, values in [("alone", curve.alone), ("together", curve.federated)]:
        points = [(_x(n, num_rounds), _y(value, marks)) for n, value in enumerate(values) if value is not None]
        if points:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(tag("polyline", class_=f"curve {kind}", points=line))
            parts.append(tag("circle", class_=kind, cx=f"{points[-1][0]:.1f}", cy=f"{points[-1][1]:.1f}", r="3.5"))
    box = f"0 0 {PLOT_WIDTH} {PLOT_HEIGHT}"
    return tag("svg", *parts, class_="plot", viewBox=box, role="img", aria_label=curve_in_words(curve))


def curve_in_words(curve: Curve) -> str:
    said = []
    for kind, values in [("together", curve.federated), ("alone", curve.alone)]:
        known = [value for value in values if value is not None]
        if known:
            said.append(f"{kind} from {known[0]:.3f} to {known[-1]:.3f}, best {max(known):.3f}")
    return f"{curve.site}, AUC on {curve.num_holdout} held-out images: {'; '.join(said) or 'not known'}"


def _x(number: int, num_rounds: int) -> float:
    return LEFT + (PLOT_WIDTH - LEFT - RIGHT) * number / num_rounds


def _y(value: float, marks: Sequence[float]) -> float:
    inside = min(max(value, marks[0]), marks[-1])
    return TOP + (PLOT_HEIGHT - TOP - BOTTOM) * (marks[-1] - inside) / (marks[-1] - marks[0])


def _levels(marks: Sequence[float]) -> list[Html]:
    parts = []
    for mark in marks:
        y = _y(mark, marks)
        parts.append(tag("line", class_="grid", x1=str(LEFT), x2=str(PLOT_WIDTH - RIGHT), y1=f"{y:.1f}", y2=f"{y:.1f}"))
        parts.append(tag("text", f"{mark:.2f}", x=str(LEFT - 6), y=f"{y + 3.5:.1f}", text_anchor="end"))
    return parts


def _rounds(num_rounds: int) -> list[Html]:
    parts = []
    for number in sorted({0, num_rounds // 2, num_rounds}):
        anchor = "end" if number == num_rounds else "start" if number == 0 else "middle"
        name, x = "start" if number == 0 else f"round {number}", f"{_x(number, num_rounds):.1f}"
        parts.append(tag("text", name, x=x, y=str(PLOT_HEIGHT - 6), text_anchor=anchor))
    return parts
