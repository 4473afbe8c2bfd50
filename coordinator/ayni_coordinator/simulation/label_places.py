"""Where the names of points go, so that no name lies over another, over a point, or over a point's whisker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HEIGHT_PX = 14.0
DIRECTIONS = 16
DISTANCES_PX = (10.0, 18.0, 28.0, 40.0, 56.0, 76.0, 100.0, 130.0)
MARK_PX = 7.0  # half of a mark, with a little air

Place = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area in common.

        >>> Box(0, 0, 2, 2).overlap(Box(1, 1, 5, 5))
        1
        """
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)

    def within(self, other: Box) -> bool:
        inside_x = other.left <= self.left and self.right <= other.right
        return inside_x and other.top <= self.top and self.bottom <= other.bottom

    def holds(self, place: Place) -> bool:
        return self.left <= place[0] <= self.right and self.top <= place[1] <= self.bottom


def spread(xs: Sequence[float], step_px: float) -> list[float]:
    """Sorted places moved as little as keeps them `step_px` apart, in their order; a crowd stays about its middle.

    >>> spread([0, 10, 10, 10, 40], 6)
    [-1.5, 4.5, 10.5, 16.5, 40.0]
    """
    crowds: list[list[float]] = []
    for x in xs:
        crowds.append([x])
        while len(crowds) > 1 and _first(crowds[-1], step_px) < _last(crowds[-2], step_px) + step_px:
            crowds[-2:] = [crowds[-2] + crowds[-1]]
    return [_first(crowd, step_px) + number * step_px for crowd in crowds for number in range(len(crowd))]


def _first(crowd: Sequence[float], step_px: float) -> float:
    return sum(crowd) / len(crowd) - step_px * (len(crowd) - 1) / 2


def _last(crowd: Sequence[float], step_px: float) -> float:
    return sum(crowd) / len(crowd) + step_px * (len(crowd) - 1) / 2


def places(points: Sequence[Place], widths: Sequence[float], whiskers: Sequence[Box], frame: Box) -> list[Box]:
    """One box for the name of each point, one after the other: near, and over nothing that is there already."""
    marks = [Box(x - MARK_PX, y - MARK_PX, x + MARK_PX, y + MARK_PX) for x, y in points]
    taken = [*whiskers, *marks]
    boxes: list[Box] = []
    for number, (point, width) in enumerate(zip(points, widths, strict=True)):
        others = [*marks[:number], *marks[number + 1 :], *boxes]
        boxes.append(min(_around(point, width), key=lambda box: _cost(box, point, taken, others, frame)))
        taken += [boxes[-1], *(Box(x, y, x + 1, y + 1) for x, y in _way(point, boxes[-1]))]
    return boxes


def _cost(box: Box, point: Place, taken: Sequence[Box], others: Sequence[Box], frame: Box) -> float:
    """First that the name lies on nothing; then that its line meets no other mark or name; then that it is near."""
    if not box.within(frame):
        return math.inf
    covered = sum(box.overlap(other) for other in taken)
    crossed = sum(any(other.holds(place) for place in _way(point, box)) for other in others)
    return (10_000 + 100 * covered if covered else 0) + 200 * crossed + math.dist(point, nearest_edge(box, point))


def _around(point: Place, width: float) -> Iterator[Box]:
    """Places about the point, the nearest first and to the right first."""
    x, y = point
    for distance in DISTANCES_PX:
        for number in range(DIRECTIONS):
            turn = (number + 1) // 2 * (1 if number % 2 else -1) * 2 * math.pi / DIRECTIONS
            along, up = math.cos(turn), math.sin(turn)
            centre_x, centre_y = x + along * (distance + width / 2), y - up * (distance + HEIGHT_PX / 2)
            left, top = centre_x - width / 2, centre_y - HEIGHT_PX / 2
            yield Box(left, top, left + width, top + HEIGHT_PX)


def nearest_edge(box: Box, point: Place) -> Place:
    """Where a line from the point meets the box."""
    x, y = point
    return min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)


def _way(point: Place, box: Box) -> list[Place]:
    """Some places on the line from the point to the box."""
    (x, y), (end_x, end_y) = point, nearest_edge(box, point)
    return [(x + (end_x - x) * part / 12, y + (end_y - y) * part / 12) for part in range(2, 12)]
