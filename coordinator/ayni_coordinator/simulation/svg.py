"""Small parts of an SVG picture: scales with round ticks, marks, text. White behind it, so dark pages show it too.

Colours are Okabe and Ito's, told apart by colour-blind eyes; each kind of method has its own shape as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ayni_coordinator.demo.markup import Html, tag
from ayni_coordinator.simulation.method_titles import Kind

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
INK, SOFT, GRID = "#1b1f24", "#57606a", "#d8dee4"
COLOURS: dict[Kind, str] = {
    "bound": "#57606a", "baseline": "#0072b2", "ours": "#d55e00", "ablation": "#d55e00", "personal": "#009e73",
}  # fmt: skip
KINDS: dict[Kind, str] = {
    "bound": "without a federation", "baseline": "baseline", "ours": "ours", "ablation": "ours, a part left out",
    "personal": "a personal model",
}  # fmt: skip
CHARACTER_PX = 6.9  # of the 12 px font; generous, since every reader's font differs
TEXT_PX = 12


@dataclass(frozen=True, slots=True)
class Scale:
    """From low..high to pixels; `log` for powers of ten."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start_px + (self.end_px - self.start_px) * (at - low) / (high - low)


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that cover low..high: at most `most` steps, and at least two numbers.

    >>> round_ticks(0.83, 0.97)
    [0.8, 0.85, 0.9, 0.95, 1.0]
    """
    width = max(high - low, 1e-9)
    power = math.floor(math.log10(width)) - 1
    for step in (factor * 10.0**exponent for exponent in range(power, power + 4) for factor in (1, 2, 5)):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that cover low..high, two at least; the powers alone if low..high is wide.

    >>> log_ticks(3_000, 60_000), log_ticks(3, 20_000)
    ([2000.0, 5000.0, 10000.0, 20000.0, 50000.0, 100000.0], [1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0])
    """
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if high / low < 3000 else (1,))]
    first = max(index for index, mark in enumerate(marks) if mark <= low)
    last = min(index for index, mark in enumerate(marks) if mark >= high)
    return marks[first : max(last, first + 1) + 1]


def decimals(ticks: Sequence[float]) -> int:
    """How many all of them need.

    >>> decimals([0.8, 0.85, 1.0])
    2
    """
    return next(places for places in range(13) if all(abs(round(t, places) - t) < 1e-12 for t in ticks))


def text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK, bold: bool = False) -> Html:
    weight = "600" if bold else ""
    return tag("text", words, x=px(x), y=px(y), fill=colour, text_anchor=anchor, font_weight=weight)


def line(x1: float, y1: float, x2: float, y2: float, *, colour: str, width: float = 1, dashes: str = "") -> Html:
    ends = {"x1": px(x1), "y1": px(y1), "x2": px(x2), "y2": px(y2)}
    return tag("line", **ends, stroke=colour, stroke_width=f"{width:g}", stroke_dasharray=dashes)


def mark(kind: Kind, x: float, y: float) -> Html:
    """A filled circle for a baseline, a ring for a bound, a diamond for ours, hollow for an ablation of ours."""
    colour = COLOURS[kind]
    fill = colour if kind in ("baseline", "ours", "personal") else "#ffffff"
    look = {"fill": fill, "stroke": colour, "stroke_width": "2"}
    if kind in ("bound", "baseline"):
        return tag("circle", cx=px(x), cy=px(y), r="4.5", **look)
    if kind == "personal":
        return tag("rect", x=px(x - 4), y=px(y - 4), width="8", height="8", **look)
    corners = [(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)]
    return tag("polygon", points=" ".join(f"{px(a)},{px(b)}" for a, b in corners), **look)


def legend(kinds: Sequence[Kind], x: float, y: float) -> list[Html]:
    parts: list[Html] = []
    for kind in kinds:
        parts += [mark(kind, x + 6, y - 4), text(x + 18, y, KINDS[kind], colour=SOFT)]
        x += 18 + CHARACTER_PX * len(KINDS[kind]) + 22
    return parts


def ticks_across(
    scale: Scale, ticks: Sequence[float], top: float, bottom: float, say: Callable[[float], str]
) -> list[Html]:
    """Upright grid lines with their numbers below."""
    parts = [line(scale(tick), top, scale(tick), bottom, colour=GRID) for tick in ticks]
    return parts + [text(scale(tick), bottom + 17, say(tick), anchor="middle", colour=SOFT) for tick in ticks]


def ticks_upward(
    scale: Scale, ticks: Sequence[float], left: float, right: float, say: Callable[[float], str]
) -> list[Html]:
    """Level grid lines with their numbers at the left."""
    parts = [line(left, scale(tick), right, scale(tick), colour=GRID) for tick in ticks]
    return parts + [text(left - 8, scale(tick) + 4, say(tick), anchor="end", colour=SOFT) for tick in ticks]


def picture(width: float, height: float, title: str, parts: Sequence[Html]) -> str:
    """The whole file."""
    white = tag("rect", width="100%", height="100%", fill="#ffffff")
    size = {"width": px(width), "height": px(height), "viewBox": f"0 0 {px(width)} {px(height)}"}
    font = {"font_family": FONT, "font_size": str(TEXT_PX)}
    namespace = {"xmlns": "http://www.w3.org/2000/svg"}
    content = tag("svg", tag("title", title), white, *parts, role="img", **namespace, **size, **font)
    return content.replace("><", ">\n<") + "\n"


def px(value: float) -> str:
    """
    >>> px(3.14159), px(2.0)
    ('3.1', '2')
    """
    return f"{round(value, 1):g}"
