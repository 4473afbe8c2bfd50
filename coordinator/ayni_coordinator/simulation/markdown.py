"""Figures and tables as Markdown text."""

from __future__ import annotations

from collections.abc import Sequence

from ayni_coordinator.simulation.statistics import Estimate

NOTHING = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    >>> print(table(["method", "AUC"], [["local", "0.9"]]))
    | method | AUC |
    |---|---|
    | local | 0.9 |
    """
    lines = [header, ["---"] * len(header), *rows]
    if any(len(line) != len(header) for line in lines):
        raise ValueError("a row of the table has another number of cells than its header")
    return "\n".join("|---" * len(header) + "|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text from outside, with nothing in it that Markdown reads as more than text.

    >>> plain("a|b <c>"), plain("fedhelp_no_guidance")
    ('a&#124;b &lt;c&gt;', 'fedhelp_no_guidance')
    """
    for sign, instead in {"&": "&amp;", "|": "&#124;", "<": "&lt;", ">": "&gt;", "`": "'", "*": "&#42;"}.items():
        text = text.replace(sign, instead)
    return " ".join(text.split())


def signed(value: float, digits: int) -> str:
    """
    >>> signed(0.0312, 3), signed(-0.0021, 3), signed(-0.0004, 3)
    ('+0.031', '−0.002', '±0.000')
    """
    text = f"{abs(value):.{digits}f}"
    return ("±" if float(text) == 0 else "+" if value > 0 else "−") + text


def score_text(score: Estimate | None, digits: int, *, cells: int = 0) -> str:
    """Mean and interval, and of how many cells if some of `cells` are missing.

    >>> score_text(Estimate(0.95, (0.9, 0.97), 2, 2, 3), 2, cells=4)
    '0.95 [0.90, 0.97] (3 of 4)'
    """
    if score is None:
        return NOTHING
    interval = "" if score.interval is None else " [{:.{d}f}, {:.{d}f}]".format(*score.interval, d=digits)
    return f"{score.mean:.{digits}f}{interval}{_of_how_many(score, cells)}"


def difference_text(difference: Estimate | None, digits: int, *, cells: int = 0, lower_is_better: bool = False) -> str:
    """Bold if the interval is on the better side of zero, italic if on the worse side.

    >>> difference_text(Estimate(0.02, (0.01, 0.03), 3, 4, 12), 3)
    '**+0.020 [+0.010, +0.030]**'
    >>> difference_text(Estimate(0.02, (0.01, 0.03), 3, 4, 12), 3, lower_is_better=True)
    '*+0.020 [+0.010, +0.030]*'
    """
    if difference is None:
        return NOTHING
    text = signed(difference.mean, digits)
    if difference.interval is not None:
        low, high = difference.interval
        text += f" [{signed(low, digits)}, {signed(high, digits)}]"
    better, worse = difference.above_zero, difference.below_zero
    if lower_is_better:
        better, worse = worse, better
    mark = "**" if better else "*" if worse else ""
    return f"{mark}{text}{mark}{_of_how_many(difference, cells)}"


def _of_how_many(known: Estimate, cells: int) -> str:
    return f" ({known.num_cells} of {cells})" if known.num_cells < cells else ""


def listed(words: Sequence[str]) -> str:
    """
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
