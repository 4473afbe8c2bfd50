"""Figures in words, as the report says them: sizes, times, and what the federation brought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ayni_coordinator.demo.results import DemoResults, SiteResult

LEVEL = 0.005  # a smaller difference of the AUC is called level: one run cannot tell it from chance
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def number(count: int) -> str:
    return _NUMBERS[count] if 0 <= count < len(_NUMBERS) else str(count)


def megabytes(num_bytes: float) -> str:
    """
    >>> megabytes(934_000), megabytes(20_100_000), megabytes(800)
    ('0.93 MB', '20.1 MB', '0.8 kB')
    """
    if num_bytes < 100_000:
        return f"{num_bytes / 1e3:.1f} kB"
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes < 10e6 else f"{num_bytes / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """
    >>> duration(0.4), duration(59.7), duration(432.2), duration(4000)
    ('0.4 s', '1 min', '7 min 12 s', '1 h 7 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def signed(difference: float) -> str:
    """
    >>> signed(0.0312), signed(-0.0021), signed(0.0)
    ('+0.031', '−0.002', '±0.000')
    """
    text = f"{abs(difference):.3f}"
    return ("±" if text == "0.000" else "+" if difference > 0 else "−") + text


def verdict(difference: float) -> str:
    """One of gain, loss and level."""
    return "level" if abs(difference) <= LEVEL else "gain" if difference > 0 else "loss"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def standard_error(auc: float, num_images: Sequence[int]) -> float:
    """Of an AUC on so many images of two classes (Hanley and McNeil 1982, Radiology 143, equation 2).

    >>> round(standard_error(0.95, [234, 390]), 4)
    0.0101
    """
    first, second = num_images
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = auc * (1 - auc) + (second - 1) * (q1 - auc * auc) + (first - 1) * (q2 - auc * auc)
    return math.sqrt(max(variance, 0.0) / (first * second))


def headline(results: DemoResults) -> str:
    """What the federation brought, in one sentence that claims no more than the figures."""
    said = [_of_clinics(results.of_role("clinic")), _of_hospitals(results.of_role("hospital"))]
    return "; ".join(part for part in said if part) + "."


def _of_clinics(clinics: Sequence[SiteResult]) -> str:
    if not clinics:
        return ""
    better = sum(clinic.gain > 0 for clinic in clinics)
    if better == len(clinics):
        who = "The clinic diagnoses" if better == 1 else f"All {number(better)} clinics diagnose"
        return f"{who} better together than alone"
    some = number(better).capitalize()
    return f"{some} of {number(len(clinics))} clinics {'diagnoses' if better == 1 else 'diagnose'} better together than alone"


def _of_hospitals(hospitals: Sequence[SiteResult]) -> str:
    losers = [hospital.name for hospital in hospitals if hospital.gain < -LEVEL]
    if not hospitals:
        return ""
    if losers:
        return f"{' and '.join(losers)} lost by it"
    if all(hospital.gain > LEVEL for hospital in hospitals):
        return "the hospital gained too" if len(hospitals) == 1 else "the hospitals gained too"
    return "the hospital lost nothing" if len(hospitals) == 1 else "no hospital lost by it"


def of_classes(counts: Mapping[str, int]) -> str:
    """
    >>> of_classes({"normal": 234, "pneumonia": 390})
    '234 normal and 390 pneumonia'
    """
    return " and ".join(f"{count} {name}" for name, count in counts.items())
