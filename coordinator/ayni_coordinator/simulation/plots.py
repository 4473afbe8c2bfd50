"""The two pictures of a task as SVG text: how well each method does, and what its gain costs in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ayni_coordinator.demo.markup import Html
from ayni_coordinator.simulation import svg
from ayni_coordinator.simulation.evidence import TaskEvidence
from ayni_coordinator.simulation.label_places import Box, nearest_edge, places, spread
from ayni_coordinator.simulation.markdown import signed
from ayni_coordinator.simulation.method_titles import Kind, title_of
from ayni_coordinator.simulation.page_tables import ALONE, metric_name
from ayni_coordinator.simulation.results import SiteRole
from ayni_coordinator.simulation.statistics import Estimate

WIDTH = 860.0
ROW_PX, TOP, GAP = 24.0, 58.0, 46.0
PANELS: tuple[tuple[SiteRole, str], ...] = (("clinic", "small sites"), ("hospital", "large sites"))


def dot_plot(evidence: TaskEvidence) -> str:
    """One line per method: mean and interval, small sites and large sites in panels of their own."""
    roles = [(role, name) for role, name in PANELS if any(evidence.cells(m, role) for m in evidence.methods)]
    left = 24 + svg.CHARACTER_PX * max((len(method) for method in evidence.methods), default=0)
    panel_px = (WIDTH - left - 24 - GAP * (len(roles) - 1)) / max(len(roles), 1)
    bottom = TOP + ROW_PX * len(evidence.methods)
    title = f"{evidence.task}: {metric_name(evidence.metric)} on test images, mean and 95 % interval"
    parts = [svg.text(16, 24, title, bold=True)]
    for index, method in enumerate(evidence.methods):
        y = _row_y(index)
        parts.append(svg.text(left - 12, y + 4, method, anchor="end", bold=title_of(method).kind == "ours"))
    for number, (role, name) in enumerate(roles):
        start = left + number * (panel_px + GAP)
        parts += _panel(evidence, role, name, start, start + panel_px, bottom)
    parts += svg.legend(_kinds(evidence.methods), 16, bottom + 50)
    if roles and evidence.cells(ALONE, roles[0][0]):
        parts.append(svg.text(WIDTH - 20, bottom + 50, f"dashed: {ALONE}", anchor="end", colour=svg.SOFT))
    return svg.picture(WIDTH, bottom + 66, title, parts)


def _row_y(index: int) -> float:
    return TOP + ROW_PX * (index + 0.5)


def _panel(evidence: TaskEvidence, role: SiteRole, name: str, start: float, end: float, bottom: float) -> list[Html]:
    scores = {index: evidence.score(method, role) for index, method in enumerate(evidence.methods)}
    known = {index: score for index, score in scores.items() if score is not None}
    ticks = svg.round_ticks(*_span(list(known.values())))
    scale = svg.Scale(ticks[0], ticks[-1], start + 8, end - 8)
    parts = [svg.text((start + end) / 2, TOP - 10, name, anchor="middle", colour=svg.SOFT)]
    parts += svg.ticks_across(scale, ticks, TOP, bottom, lambda tick: f"{tick:.{svg.decimals(ticks)}f}")
    if (alone := evidence.score(ALONE, role)) is not None:
        x = scale(alone.mean)
        parts.append(svg.line(x, TOP, x, bottom, colour=svg.SOFT, dashes="4 3"))
    for index, score in known.items():
        kind, y = title_of(evidence.methods[index]).kind, _row_y(index)
        if score.interval is not None:
            low, high = score.interval
            parts.append(svg.line(scale(low), y, scale(high), y, colour=svg.COLOURS[kind], width=2))
        parts.append(svg.mark(kind, scale(score.mean), y))
    return parts


@dataclass(frozen=True, slots=True)
class _Point:
    method: str
    kind: Kind
    num_bytes: float
    gain: Estimate


def bytes_plot(evidence: TaskEvidence) -> str:
    """Bytes a round at a small site against the gain over being alone; ablations are left to their own table."""
    points = _points(evidence)
    title = f"{evidence.task}: gain in {metric_name(evidence.metric)} of the small sites over {ALONE}, and its bytes"
    frame = Box(74, 50, WIDTH - 20, 420)
    parts = [svg.text(16, 24, title, bold=True)]
    if not points:
        words = f"no method moved bytes and has {ALONE} to compare with"
        return svg.picture(WIDTH, 80, title, [*parts, svg.text(16, 54, words, colour=svg.SOFT)])
    x_ticks = svg.log_ticks(min(p.num_bytes for p in points), max(p.num_bytes for p in points))
    low, high = _span([p.gain for p in points])
    y_ticks = svg.round_ticks(min(low, 0.0), max(high, 0.0), most=8)
    across = svg.Scale(x_ticks[0], x_ticks[-1], frame.left + 40, frame.right - 60, log=True)
    upward = svg.Scale(y_ticks[0], y_ticks[-1], frame.bottom, frame.top)
    digits = svg.decimals(y_ticks)
    parts += svg.ticks_across(across, x_ticks, frame.top, frame.bottom, _bytes_tick)
    parts += svg.ticks_upward(upward, y_ticks, frame.left, frame.right, lambda tick: signed(tick, digits))
    parts.append(svg.line(frame.left, upward(0), frame.right, upward(0), colour=svg.SOFT, dashes="4 3", width=1.5))
    parts += _marks_with_names(points, across, upward, frame)
    middle = (frame.left + frame.right) / 2
    below = "bytes a round at a small site, up and down (log scale; near ones stand side by side)"
    parts.append(svg.text(middle, frame.bottom + 38, below, anchor="middle", colour=svg.SOFT))
    parts += svg.legend(_kinds([p.method for p in points]), 16, frame.bottom + 64)
    beside = "; ".join([f"dashed: {ALONE}", *(f"{method} moves no bytes" for method in _without_bytes(evidence))])
    parts.append(svg.text(WIDTH - 20, frame.bottom + 64, beside, anchor="end", colour=svg.SOFT))
    return svg.picture(WIDTH, frame.bottom + 80, title, parts)


def _points(evidence: TaskEvidence) -> list[_Point]:
    found = []
    for method in evidence.methods:
        kind = title_of(method).kind
        gain, num_bytes = evidence.difference(method, ALONE, "clinic"), evidence.round_bytes(method)
        if kind not in ("ablation", "personal") and gain is not None and num_bytes:
            found.append(_Point(method, kind, num_bytes, gain))
    return sorted(found, key=lambda point: (point.num_bytes, point.method))


def _without_bytes(evidence: TaskEvidence) -> list[str]:
    return [method for method in evidence.methods if method != ALONE and evidence.round_bytes(method) == 0]


def _bytes_tick(num_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:g} {unit}"
    return f"{num_bytes:g} B"


def _marks_with_names(points: Sequence[_Point], across: svg.Scale, upward: svg.Scale, frame: Box) -> list[Html]:
    centres, whiskers = [], []
    for x, p in zip(spread([across(p.num_bytes) for p in points], 14), points, strict=True):
        low, high = p.gain.interval or (p.gain.mean, p.gain.mean)
        centres.append((x, upward(p.gain.mean)))
        whiskers.append(Box(x - 3, upward(high) - 2, x + 3, upward(low) + 2))
    zero_line = Box(frame.left, upward(0) - 1, frame.right, upward(0) + 1)
    boxes = places(centres, [svg.CHARACTER_PX * len(p.method) + 4 for p in points], [*whiskers, zero_line], frame)
    parts: list[Html] = []
    for (x, y), box in zip(centres, boxes, strict=True):
        edge_x, edge_y = nearest_edge(box, (x, y))
        parts.append(svg.line(x, y, edge_x, edge_y, colour="#8c959f"))
    for p, (x, y), box in zip(points, centres, boxes, strict=True):
        if p.gain.interval is not None:
            low, high = (upward(value) for value in p.gain.interval)
            parts.append(svg.line(x, low, x, high, colour=svg.COLOURS[p.kind], width=2))
        parts.append(svg.mark(p.kind, x, y))
        name_x, name_y = (box.left + box.right) / 2, box.bottom - 3
        parts.append(svg.text(name_x, name_y, p.method, anchor="middle", bold=p.kind == "ours"))
    return parts


def _span(known: Sequence[Estimate]) -> tuple[float, float]:
    ends = [end for score in known for end in (score.mean, *(score.interval or ()))] or [0.0]
    return min(ends), max(ends)


def _kinds(methods: Sequence[str]) -> list[Kind]:
    there = {title_of(method).kind for method in methods}
    return [kind for kind in svg.KINDS if kind in there]
