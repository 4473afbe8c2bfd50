"""The demo's report: one HTML file that loads nothing, for the people who decide (and for those who check them)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ayni.artefacts.files import write_atomic
from ayni.auc_error import auc_standard_error
from ayni_coordinator.demo import sections, wording
from ayni_coordinator.demo.markup import Html, join, tag
from ayni_coordinator.demo.results import DemoResults, ReportExtras, fedavg_bytes, write_results
from ayni_coordinator.demo.wording import duration, megabytes

REPORT_FILE = "report.html"
LOADS_NOTHING = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(results: DemoResults, extras: ReportExtras, folder: Path) -> Path:
    """Writes report.html, results.json and details.json to `folder`; returns the path of the page."""
    write_results(results, extras, folder)
    path = folder / REPORT_FILE
    write_atomic(path, render(results, extras).encode())
    return path


def render(results: DemoResults, extras: ReportExtras) -> str:
    """The page. Its content security policy forbids it to load anything."""
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=LOADS_NOTHING),
        tag("title", f"{extras.title} – Ayni demo"),
        tag("style", Html(style)),
    )
    body = tag(
        "main",
        _opening(results, extras),
        sections.alone_and_together(results, extras),
        sections.while_they_learned(results, extras),
        sections.over_the_line(results, extras),
        sections.what_happened(results, extras),
        sections.some_diagnoses(extras),
        _how_to_read(results, extras),
        _footer(results, extras),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _opening(results: DemoResults, extras: ReportExtras) -> Html:
    hospitals, clinics = len(results.of_role("hospital")), len(results.of_role("clinic"))
    who = f"{wording.count(hospitals, 'hospital')} and {wording.count(clinics, 'clinic')}".capitalize()
    return tag(
        "header",
        tag("div", _mark(), tag("span", tag("b", "Ayni"), f" · {extras.title}"), class_="brand"),
        tag("h1", wording.headline(results)),
        tag(
            "p",
            f"{who} trained together over encrypted lines for {results.rounds} rounds. Their images stayed where they "
            "were, and so did each hospital’s large network.",
            class_="lead",
        ),
        tag("ul", *(_tile(figure, what) for figure, what in _key_figures(results, extras)), class_="tiles"),
    )


def _mark() -> Html:
    """Two open rings that hold each other: ayni is the Quechua word for reciprocity."""
    alone = tag("path", d="M18 15a8 8 0 1 1 0-10", stroke="var(--alone)")
    together = tag("path", d="M12 5a8 8 0 1 1 0 10", stroke="var(--together)")
    return tag("svg", alone, together, viewBox="0 0 30 20", class_="mark", aria_hidden="true")


def _key_figures(results: DemoResults, extras: ReportExtras) -> Iterable[tuple[str, str]]:
    for title, sites in reversed(sections.groups(results)):
        before = wording.mean([site.local.auc for site in sites])
        after = wording.mean([site.federated.auc for site in sites])
        yield (
            join(tag("i", f"{before:.3f} → "), f"{after:.3f}"),
            f"mean test AUC of the {title.lower()}, alone → together",
        )
    most = max(site.num_bytes for site in results.of_role("clinic") or results.sites)
    share = most / fedavg_bytes(results.rounds, extras.num_weights)
    yield megabytes(most), f"at most, over a clinic’s line: {share:.1%} of plain federated averaging"
    yield duration(results.wall_s), "for all of it, on one computer"


def _tile(figure: str, what: str) -> Html:
    return tag("li", tag("span", figure, class_="figure"), tag("span", what, class_="what"))


def _how_to_read(results: DemoResults, extras: ReportExtras) -> Html:
    terms = [
        (
            "AUC",
            "Take one ill and one healthy patient at random: the chance that the network ranks the ill one higher.",
        ),
        (
            "Balanced accuracy",
            "The share of right answers when the more probable class is the answer, each class counting the same.",
        ),
        (
            "Together",
            "Each hospital lets its large network teach a small one. Only changes of small networks travel, and the "
            "coordinator averages them. From the small network, a hospital takes back only the order of the classes, "
            "so that a weaker teacher does not pull it down (FedHelp, arXiv 2412.19654).",
        ),
    ]
    if extras.guidance:
        asked = f"was asked once about each of the public images, {extras.guidance_calls:,} questions in all"
        text = f"A general-purpose model ({extras.guidance}) {asked}, and saw no image of any site."
        terms.append(("Guidance", text))
    return tag(
        "section",
        tag("h2", "How to read this"),
        tag("div", sections.definitions(*terms), class_="note"),
        tag("h3", "Limits"),
        tag("div", tag("ul", *(tag("li", limit) for limit in _limits(results, extras))), class_="note"),
    )


def _limits(results: DemoResults, extras: ReportExtras) -> Iterable[str]:
    if len(extras.num_test_per_class) == 2:
        auc = wording.mean([site.federated.auc for site in results.sites])
        num_healthy, num_ill = extras.num_test_per_class.values()
        error = auc_standard_error(auc, num_positive=num_ill, num_negative=num_healthy)
        yield (
            f"With {wording.of_classes(extras.num_test_per_class)} test images, an AUC of {auc:.2f} has a standard "
            f"error of about {error:.3f} (Hanley and McNeil 1982)."
        )
    yield f"This is one run, with seed {results.seed}. Small differences may fall out otherwise with another."
    yield (
        "A demonstration on a public benchmark of very small images, split by chance over the sites. Real sites differ "
        "in equipment and patients, which makes it harder."
    )
    yield "All sites ran on one computer. Bytes are measured; times on a slow line are calculated."
    yield "Not a medical device, and not for primary diagnosis."


def _footer(results: DemoResults, extras: ReportExtras) -> Html:
    facts = [f"task {results.task}", f"seed {results.seed}", f"{extras.num_public:,} public images", extras.machine]
    versions = [*(f"{name} {version}" for name, version in extras.versions.items()), extras.created]
    lines = [extras.data_credit, *(" · ".join(part for part in parts if part) for parts in (facts, versions))]
    return tag("footer", *(tag("p", line) for line in lines if line))
