"""The sections of the report that show figures: each takes the results and gives its part of the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from ayni_coordinator.demo import charts, wording
from ayni_coordinator.demo.markup import Html, join, tag
from ayni_coordinator.demo.results import DemoResults, ReportExtras, Sample, SiteResult, Step, fedavg_bytes
from ayni_coordinator.demo.wording import duration, megabytes, signed, verdict

NOTHING = Html("")
SLOW_LINE_BITS_PER_S = 256_000
_SIGNS = {"gain": "▲", "loss": "▼", "level": "="}


def groups(results: DemoResults) -> list[tuple[str, list[SiteResult]]]:
    """Hospitals and clinics apart, each with the largest site first."""
    both = [("Hospitals", results.of_role("hospital")), ("Clinics", results.of_role("clinic"))]
    return [(title, sites) for title, sites in both if sites]


def alone_and_together(results: DemoResults, extras: ReportExtras) -> Html:
    """Test AUC of each site before and after, as a picture and as a table."""
    values = [value for site in results.sites for value in (site.local.auc, site.federated.auc)]
    marks = charts.ticks(min(values) - 0.004, min(1.0, max(values) + 0.004))
    rows = []
    for title, sites in groups(results):
        rows += [tag("h3", f"{title}, {'large' if title == 'Hospitals' else 'small'} network")]
        rows += [_dumbbell_row(site, marks) for site in sites]
    empty = tag("div", class_="name"), tag("div", class_="numbers")
    num_tests = sum(extras.num_test_per_class.values())
    return tag(
        "section",
        tag("h2", "Alone, and together"),
        tag(
            "p",
            f"How well each site’s own network tells ill from healthy on the same {num_tests:,} test images, which no "
            "site trained on. The figure is the area under the ROC curve (AUC): 0.5 is a coin, 1 is perfect. Alone or "
            "together, it is the same network, trained for the same number of steps.",
        ),
        tag(
            "div",
            _legend(("alone", "trained alone"), ("together", "trained together")),
            *rows,
            tag("div", empty[0], charts.axis(marks), empty[1], class_="row scale"),
            tag("p", f"▲ better   ▼ worse   = level: within {wording.LEVEL}", class_="key"),
            class_="card",
        ),
        _table(results),
    )


def _dumbbell_row(site: SiteResult, marks: Sequence[float]) -> Html:
    words = f"{site.name}: test AUC {site.local.auc:.3f} alone, {site.federated.auc:.3f} together"
    return tag(
        "div",
        tag("div", site.name, tag("small", f"{site.num_train:,} training images"), class_="name"),
        charts.dumbbell(site.local.auc, site.federated.auc, marks, words),
        tag(
            "div",
            tag("span", f"{site.local.auc:.3f} → ", class_="before"),
            f"{site.federated.auc:.3f}",
            _badge(site.gain),
            class_="numbers",
        ),
        class_="row",
    )


def _badge(difference: float) -> Html:
    kind = verdict(difference)
    return tag("span", f"{_SIGNS[kind]} {signed(difference)}", class_=f"badge {kind}")


def _legend(*marks: tuple[str, str]) -> Html:
    return tag("ul", *(tag("li", charts.legend_sign(kind), words) for kind, words in marks), class_="legend")


def _table(results: DemoResults) -> Html:
    heads = ["training images", "AUC alone", "AUC together", "change"]
    heads += ["balanced accuracy alone", "balanced accuracy together", "change"]
    rows = []
    for title, sites in groups(results):
        rows.append(tag("tr", tag("th", title, colspan=str(len(heads) + 1), scope="rowgroup"), class_="group"))
        rows += [_table_row(site) for site in sites]
    return tag("details", tag("summary", "All figures as a table"), _grid("site", heads, rows), open="open")


def _table_row(site: SiteResult) -> Html:
    before, after = site.local.balanced_accuracy, site.federated.balanced_accuracy
    cells = [f"{site.num_train:,}", f"{site.local.auc:.3f}", f"{site.federated.auc:.3f}", _badge(site.gain)]
    cells += [f"{before:.3f}", f"{after:.3f}", _badge(after - before)]
    return tag("tr", tag("th", site.name, scope="row"), *(tag("td", cell) for cell in cells))


def _grid(corner: str, heads: Sequence[str], rows: Sequence[Html]) -> Html:
    head = tag("tr", *(tag("th", name, scope="col") for name in [corner, *heads]))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll", tabindex="0")


def while_they_learned(results: DemoResults, extras: ReportExtras) -> Html:
    """Small multiples: held-out AUC after each round."""
    values = [value for curve in extras.curves for value in (*curve.federated, *curve.alone) if value is not None]
    if not values:
        return NOTHING
    marks = charts.ticks(max(min(values), 0.4), max(values))
    place = {site.name: number for number, site in enumerate(site for _, sites in groups(results) for site in sites)}
    plots = [
        tag(
            "figure",
            tag("figcaption", f"{curve.site} ", tag("small", f"{curve.num_holdout:,} images held out")),
            charts.learning_curve(curve, marks),
        )
        for curve in sorted(extras.curves, key=lambda curve: place.get(curve.site, len(place)))
    ]
    return tag(
        "section",
        tag("h2", "While they learned"),
        tag(
            "p",
            "AUC on the images that each site held aside from its own data, after each round. A site with few images "
            "has few to hold aside: its curve moves in large steps.",
        ),
        tag(
            "div",
            _legend(("solid", "together"), ("dotted", "alone, after as many steps")),
            tag("div", *plots, class_="plots"),
            class_="card",
        ),
    )


def over_the_line(results: DemoResults, extras: ReportExtras) -> Html:
    """Bytes of each site against plain federated averaging of the small network."""
    plain = fedavg_bytes(results.rounds, extras.num_weights)
    rows = []
    for title, sites in groups(results):
        rows += [tag("h3", title), *(_bytes_row(site, plain) for site in sites)]
    most = max((site.num_bytes for site in results.of_role("clinic") or results.sites), default=0)
    return tag(
        "section",
        tag("h2", "Over the line"),
        tag(
            "p",
            "Everything that each site sent and received in the whole demo, the public images and the final model "
            "included, against what plain federated averaging of the same small network would have moved.",
        ),
        tag(
            "div",
            _legend(("up", "up"), ("down", "down"), ("ghost", f"plain federated averaging, {megabytes(plain)}")),
            *rows,
            class_="card",
        ),
        tag(
            "p",
            f"Plain federated averaging: {results.rounds} rounds × 2 ways × 4 bytes × {extras.num_weights:,} weights "
            f"= {plain:,} bytes. On a line of 256 kbit/s that is {_on_a_slow_line(plain)} of pure transfer; the "
            f"clinic with the most traffic would have needed {_on_a_slow_line(most)}.",
        ),
        _purposes(extras),
    )


def _on_a_slow_line(num_bytes: int) -> str:
    return duration(8 * num_bytes / SLOW_LINE_BITS_PER_S)


def _bytes_row(site: SiteResult, plain: int) -> Html:
    share, ways = f"{site.num_bytes / plain:.1%}", f"{megabytes(site.bytes_up)} up, {megabytes(site.bytes_down)} down"
    words = f"{site.name}: {ways}, {share} of {megabytes(plain)}"
    return tag(
        "div",
        tag("div", site.name, tag("small", ways), class_="name"),
        charts.stacked_bar(site.bytes_up, site.bytes_down, plain, words),
        tag("div", megabytes(site.num_bytes), tag("span", share, class_="badge level"), class_="numbers"),
        class_="row bytes",
    )


def _purposes(extras: ReportExtras) -> Html:
    if not extras.bytes_by_purpose:
        return NOTHING
    purposes = sorted({purpose for used in extras.bytes_by_purpose.values() for purpose in used})
    rows = [
        tag("tr", tag("th", site, scope="row"), *(tag("td", megabytes(used.get(name, 0))) for name in purposes))
        for site, used in extras.bytes_by_purpose.items()
    ]
    return tag("details", tag("summary", "What the bytes were for"), _grid("site", purposes, rows))


def what_happened(results: DemoResults, extras: ReportExtras) -> Html:
    """The story of the demo with its times."""
    if not extras.steps:
        return NOTHING
    whole_s = max(results.wall_s, *(step.start_s + step.wall_s for step in extras.steps))
    return tag(
        "section",
        tag("h2", "What happened"),
        tag("p", f"The whole demo took {duration(results.wall_s)}. Each bar shows when its step ran."),
        tag("div", tag("ol", *(_step(step, whole_s) for step in extras.steps), class_="story"), class_="card"),
    )


def _step(step: Step, whole_s: float) -> Html:
    words = f"from {duration(step.start_s)}, for {duration(step.wall_s)}"
    bar = charts.span_bar(step.start_s, step.wall_s, whole_s, words)
    told = tag("div", tag("b", step.title), tag("p", step.text), bar)
    return tag("li", told, tag("span", duration(step.wall_s), class_="took"))


def some_diagnoses(extras: ReportExtras) -> Html:
    if not extras.samples:
        return NOTHING
    return tag(
        "section",
        tag("h2", "Some diagnoses"),
        tag(
            "p",
            "Test images, put to models that sites exported and ran without the training software. The heat map shows "
            "where hiding a part lowers the answer most; it does not show why.",
        ),
        tag("div", *(_sample(sample) for sample in extras.samples), class_="samples"),
    )


def _sample(sample: Sample) -> Html:
    right = sample.answer == sample.truth
    chances = [
        tag(
            "div",
            tag("span", name),
            charts.chance_bar(chance, answer=name == sample.answer),
            tag("span", f"{chance:.0%}"),
            class_="chance",
        )
        for name, chance in sample.probabilities.items()
    ]
    return tag(
        "article",
        tag(
            "div",
            _picture(sample.picture, "image", f"X-ray {sample.image}"),
            _picture(sample.heat_map, "heat map", f"heat map of {sample.image} for {sample.answer}"),
            class_="pair",
        ),
        tag(
            "p",
            tag("b", "✓ right" if right else "✗ wrong"),
            f" – model: {sample.answer}, label: {sample.truth}",
            class_=f"verdict {'right' if right else 'wrong'}",
        ),
        *chances,
        tag("small", f"{sample.site} · {sample.image}"),
    )


def _picture(png: bytes, name: str, words: str) -> Html:
    image = tag("img", alt=words, src=f"data:image/png;base64,{base64.b64encode(png).decode()}")
    return tag("figure", image, tag("figcaption", name))


def definitions(*pairs: tuple[str, str]) -> Html:
    return tag("dl", *(join(tag("dt", term), tag("dd", meaning)) for term, meaning in pairs))
