"""Figures in words, as the report says them: sizes, times, and what the federation brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ayni_coordinator.demo.results import DemoResults, SiteResult

LEVEL = 0.005  # a smaller difference of the AUC is called level: one run cannot tell it from chance
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def number(count: int) -> str:
    return _NUMBERS[count] if 0 <= count < len(_NUMBERS) else str(count)


def count(amount: int, what: str) -> str:
    """
    >>> count(1, "clinic"), count(14, "hospital")
    ('one clinic', '14 hospitals')
    """
    return f"{number(amount)} {what}{'' if amount == 1 else 's'}"


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
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


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


def headline(results: DemoResults) -> str:
    """What the federation brought, in one sentence that claims no more than the figures."""
    said = [_of_clinics(results.of_role("clinic")), _of_hospitals(results.of_role("hospital"))]
    sentence = "; ".join(part for part in said if part)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _of_clinics(clinics: Sequence[SiteResult]) -> str:
    if not clinics:
        return ""
    verdicts = [verdict(clinic.gain) for clinic in clinics]
    better, total = verdicts.count("gain"), len(clinics)
    if better == total:
        who = {1: "The clinic diagnoses", 2: "Both clinics diagnose"}.get(
            total, f"All {number(total)} clinics diagnose"
        )
        return f"{who} better together than alone"
    others = "" if "loss" in verdicts else ", and none worse"
    verb = "diagnoses" if better == 1 else "diagnose"
    who = f"{number(better).capitalize()} of {number(total)} clinics {verb}" if better else "No clinic diagnoses"
    return f"{who} better together than alone{others}"


def _of_hospitals(hospitals: Sequence[SiteResult]) -> str:
    if not hospitals:
        return ""
    verdicts = [verdict(hospital.gain) for hospital in hospitals]
    losers = [hospital.name for hospital, found in zip(hospitals, verdicts, strict=True) if found == "loss"]
    if losers:
        return f"{' and '.join(losers)} lost by it"
    if "level" not in verdicts:
        return "the hospital gained too" if len(hospitals) == 1 else "the hospitals gained too"
    none = "the hospital did not lose" if len(hospitals) == 1 else "no hospital lost"
    return f"{none} by it" if min(hospital.gain for hospital in hospitals) >= 0 else f"{none} more than {LEVEL} of AUC"


def of_classes(counts: Mapping[str, int]) -> str:
    """
    >>> of_classes({"normal": 234, "pneumonia": 390})
    '234 normal and 390 pneumonia'
    """
    return " and ".join(f"{count} {name}" for name, count in counts.items())
