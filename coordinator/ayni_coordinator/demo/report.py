"""The demo's report: one HTML file that loads nothing, for the people who decide (and for those who check them)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from ayni.artefacts.files import write_atomic
from ayni_coordinator.demo import charts, wording
from ayni_coordinator.demo.results import DemoResults, ReportExtras, Sample, SiteResult, fedavg_bytes, write_results
from ayni_coordinator.demo.wording import duration, megabytes, signed, verdict

REPORT_FILE = "report.html"
SLOW_LINE_BITS_PER_S = 256_000
_BADGE = {"gain": "▲", "loss": "▼", "level": "="}
_DOTS = {
    "alone": '<svg aria-hidden="true"><circle class="alone" cx="13" cy="7" r="6"/></svg>',
    "together": '<svg aria-hidden="true"><circle class="together" cx="13" cy="7" r="5.5"/></svg>',
    "solid": '<svg aria-hidden="true"><polyline class="curve together" points="0,7 26,7"/></svg>',
    "dashed": '<svg aria-hidden="true"><polyline class="curve alone" points="0,7 26,7"/></svg>',
    "up": '<svg aria-hidden="true"><rect class="up" x="4" y="0" width="18" height="14" rx="2"/></svg>',
    "down": '<svg aria-hidden="true"><rect class="down" x="4" y="0" width="18" height="14" rx="2"/></svg>',
    "ghost": '<svg aria-hidden="true"><rect class="ghost" x="2" y="1" width="22" height="12" rx="3"/></svg>',
}
_MARK = (
    '<svg viewBox="0 0 30 20" aria-hidden="true" fill="none" stroke-width="3" stroke-linecap="round">'
    '<path d="M18 15a8 8 0 1 1 0-10" stroke="var(--alone)"/><path d="M12 5a8 8 0 1 1 0 10" stroke="var(--together)"/></svg>'
)


def write_report(results: DemoResults, extras: ReportExtras, folder: Path) -> Path:
    """Writes report.html, results.json and details.json to `folder`; returns the path of the page."""
    write_results(results, extras, folder)
    path = folder / REPORT_FILE
    write_atomic(path, render(results, extras).encode())
    return path


def render(results: DemoResults, extras: ReportExtras) -> str:
    """The page. Its content security policy forbids it to load anything."""
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    sections = [
        _opening(results, extras),
        _alone_and_together(results, extras),
        _curves(results, extras),
        _traffic(results, extras),
        _story(results, extras),
        _samples(extras),
        _reading(results, extras),
        _footer(results, extras),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(extras.title)} – Ayni demo</title><style>{style}</style></head><body><main>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def _opening(results: DemoResults, extras: ReportExtras) -> str:
    clinics, hospitals = results.of_role("clinic"), results.of_role("hospital")
    who = f"{wording.number(len(hospitals))} hospitals and {wording.number(len(clinics))} clinics".capitalize()
    return (
        f'<header><div class="brand">{_MARK}<span><b>Ayni</b> · {escape(extras.title)}</span></div>'
        f"<h1>{escape(wording.headline(results))}</h1>"
        f'<p class="lead">{who} trained together over an encrypted line for {results.rounds} rounds. '
        "Their images stayed where they were, and so did each hospital’s large network.</p></header>"
        f'<ul class="tiles">{"".join(_tiles(results, extras, clinics, hospitals))}</ul>'
    )


def _tiles(
    results: DemoResults, extras: ReportExtras, clinics: Sequence[SiteResult], hospitals: Sequence[SiteResult]
) -> list[str]:
    tiles = []
    for name, sites in [("clinics", clinics), ("hospitals", hospitals)]:
        if sites:
            before = wording.mean([site.local.auc for site in sites])
            after = wording.mean([site.federated.auc for site in sites])
            figure = f"<i>{before:.3f} →</i> {after:.3f}"
            tiles.append(_tile(figure, f"mean test AUC of the {name}, alone → together"))
    if clinics:
        most = max(clinic.num_bytes for clinic in clinics)
        share = most / fedavg_bytes(results.rounds, extras.num_weights)
        what = f"at most, over a clinic’s line: {share:.1%} of what plain federated averaging moves"
        tiles.append(_tile(megabytes(most), what))
    tiles.append(_tile(duration(results.wall_s), "for all of it, on one computer"))
    return tiles


def _tile(figure: str, what: str) -> str:
    return f'<li><span class="figure">{figure}</span><span class="what">{what}</span></li>'


def _alone_and_together(results: DemoResults, extras: ReportExtras) -> str:
    values = [value for site in results.sites for value in (site.local.auc, site.federated.auc)]
    marks = charts.ticks(min(values) - 0.004, min(1.0, max(values) + 0.004))
    parts = []
    for title, sites in _groups(results):
        parts.append(f"<h3>{title}</h3>")
        for site in sites:
            label = f"{site.name}: test AUC {site.local.auc:.3f} alone, {site.federated.auc:.3f} together"
            parts.append(
                f'<div class="row"><div class="name">{escape(site.name)}<small>{site.num_train:,} training images</small></div>'
                f"{charts.dumbbell(site.local.auc, site.federated.auc, marks, label)}"
                f'<div class="numbers"><span class="before">{site.local.auc:.3f} →</span> {site.federated.auc:.3f} '
                f"{_badge(site.gain)}</div></div>"
            )
    scale = f'<div class="row scale"><div class="name"></div>{charts.axis(marks)}<div class="numbers"></div></div>'
    tests = sum(extras.num_test_per_class.values())
    return (
        "<section><h2>Alone, and together</h2>"
        f"<p>How well each site’s own network tells the classes apart on the same {tests} test images, which no site trained on "
        "(area under the ROC curve: 0.5 is a coin, 1 is perfect). The same network, trained for the same number of steps.</p>"
        f'<div class="card"><ul class="legend"><li>{_DOTS["alone"]}trained alone</li><li>{_DOTS["together"]}trained together</li>'
        f"<li>▲ better &nbsp;▼ worse &nbsp;= level (within {wording.LEVEL})</li></ul>"
        f"{''.join(parts)}{scale}</div>{_table(results)}</section>"
    )


def _groups(results: DemoResults) -> list[tuple[str, list[SiteResult]]]:
    groups = [
        ("Hospitals, large network", results.of_role("hospital")),
        ("Clinics, small network", results.of_role("clinic")),
    ]
    return [(title, sites) for title, sites in groups if sites]


def _badge(difference: float) -> str:
    kind = verdict(difference)
    return f'<span class="badge {kind}">{_BADGE[kind]} {signed(difference)}</span>'


def _table(results: DemoResults) -> str:
    rows = []
    for title, sites in _groups(results):
        rows.append(f'<tr class="group"><th colspan="8" scope="rowgroup">{title}</th></tr>')
        for site in sites:
            change = site.federated.balanced_accuracy - site.local.balanced_accuracy
            rows.append(
                f'<tr><th scope="row">{escape(site.name)}</th><td>{site.num_train:,}</td>'
                f"<td>{site.local.auc:.3f}</td><td>{site.federated.auc:.3f}</td><td>{_badge(site.gain)}</td>"
                f"<td>{site.local.balanced_accuracy:.3f}</td><td>{site.federated.balanced_accuracy:.3f}</td>"
                f"<td>{_badge(change)}</td></tr>"
            )
    heads = ["training<br>images", "AUC<br>alone", "AUC<br>together", "change"]
    heads += ["balanced<br>accuracy<br>alone", "balanced<br>accuracy<br>together", "change"]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<details open><summary>All figures as a table</summary><div class="scroll"><table><thead><tr><th scope="col">site</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _curves(results: DemoResults, extras: ReportExtras) -> str:
    values = [value for curve in extras.curves for value in (*curve.federated, *curve.alone) if value is not None]
    if not values:
        return ""
    marks = charts.ticks(max(min(values), 0.4), max(values))
    order = {site.name: place for place, (_, sites) in enumerate(_groups(results)) for site in sites}
    sizes = {site.name: site.num_train for site in results.sites}
    curves = sorted(extras.curves, key=lambda curve: (order.get(curve.site, 9), -sizes.get(curve.site, 0), curve.site))
    plots = "".join(
        f"<figure><figcaption>{escape(curve.site)} <small>{curve.num_holdout} images held out</small></figcaption>"
        f"{charts.learning_curve(curve, marks)}</figure>"
        for curve in curves
    )
    return (
        "<section><h2>While they learned</h2><p>AUC on the images that each site held aside from its own data, after each round. "
        "A site with few images has few to hold aside, so its curve moves in steps.</p>"
        f'<div class="card"><ul class="legend"><li>{_DOTS["solid"]}together</li><li>{_DOTS["dashed"]}alone, after as many steps</li></ul>'
        f'<div class="plots">{plots}</div></div></section>'
    )


def _traffic(results: DemoResults, extras: ReportExtras) -> str:
    plain = fedavg_bytes(results.rounds, extras.num_weights)
    parts = []
    for title, sites in _groups(results):
        parts.append(f"<h3>{title.split(',')[0]}</h3>")
        for site in sites:
            label = f"{site.name}: {megabytes(site.bytes_up)} up, {megabytes(site.bytes_down)} down"
            label += f", {site.num_bytes / plain:.1%} of {megabytes(plain)}"
            parts.append(
                f'<div class="row bytes"><div class="name">{escape(site.name)}<small>{megabytes(site.bytes_up)} up · '
                f"{megabytes(site.bytes_down)} down</small></div>{charts.stacked_bar(site.bytes_up, site.bytes_down, plain, label)}"
                f'<div class="numbers">{megabytes(site.num_bytes)}<span class="badge level">{site.num_bytes / plain:.1%}</span></div></div>'
            )
    slow = max((site.num_bytes for site in results.of_role("clinic")), default=0) * 8 / SLOW_LINE_BITS_PER_S
    slow_plain = plain * 8 / SLOW_LINE_BITS_PER_S
    return (
        "<section><h2>Over the line</h2><p>Everything that each site sent and received in the whole demo, the public images and the "
        "final model included, against what plain federated averaging of the same small network would have moved.</p>"
        f'<div class="card"><ul class="legend"><li>{_DOTS["up"]}up</li><li>{_DOTS["down"]}down</li>'
        f"<li>{_DOTS['ghost']}plain federated averaging, {megabytes(plain)}</li></ul>{''.join(parts)}</div>"
        f"<p>Plain federated averaging: {results.rounds} rounds × 2 ways × 4 bytes × {extras.num_weights:,} weights = {plain:,} bytes. "
        f"On a line of 256 kbit/s, that is {duration(slow_plain)} of pure transfer; the clinic with the most traffic needed "
        f"{duration(slow)}.</p>{_purposes(extras)}</section>"
    )


def _purposes(extras: ReportExtras) -> str:
    if not extras.bytes_by_purpose:
        return ""
    purposes = sorted({purpose for used in extras.bytes_by_purpose.values() for purpose in used})
    head = "".join(f'<th scope="col">{escape(purpose)}</th>' for purpose in purposes)
    rows = "".join(
        f'<tr><th scope="row">{escape(site)}</th>'
        + "".join(f"<td>{megabytes(used.get(purpose, 0))}</td>" for purpose in purposes)
        + "</tr>"
        for site, used in extras.bytes_by_purpose.items()
    )
    return (
        '<details><summary>What the bytes were for</summary><div class="scroll"><table><thead><tr><th scope="col">site</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _story(results: DemoResults, extras: ReportExtras) -> str:
    if not extras.steps:
        return ""
    whole = max(results.wall_s, max(step.start_s + step.wall_s for step in extras.steps))
    items = "".join(
        f"<li><div><b>{escape(step.title)}</b><p>{escape(step.text)}</p>"
        f"{charts.span_bar(step.start_s, step.wall_s, whole, f'from {duration(step.start_s)}, for {duration(step.wall_s)}')}</div>"
        f"<time>{duration(step.wall_s)}</time></li>"
        for step in extras.steps
    )
    return (
        f"<section><h2>What happened</h2><p>The whole demo took {duration(results.wall_s)}. Each bar shows when its step ran.</p>"
        f'<div class="card"><ol class="story">{items}</ol></div></section>'
    )


def _samples(extras: ReportExtras) -> str:
    if not extras.samples:
        return ""
    return (
        "<section><h2>Some diagnoses</h2><p>Test images, put to models that sites exported and ran without the training software. "
        "The heat map shows where the network found evidence for its answer; it does not show why.</p>"
        f'<div class="samples">{"".join(_sample(sample) for sample in extras.samples)}</div></section>'
    )


def _sample(sample: Sample) -> str:
    right = sample.answer == sample.truth
    chances = "".join(
        f'<div class="chance"><span>{escape(name)}</span><svg aria-hidden="true"><rect class="rail" width="100%" height="9" rx="3"/>'
        f'<rect class="fill{"" if name == sample.answer else " other"}" width="{100 * chance:.1f}%" height="9" rx="3"/></svg>'
        f"<span>{chance:.0%}</span></div>"
        for name, chance in sample.probabilities.items()
    )
    said = "✓ agrees with the label" if right else "✗ differs from the label"
    return (
        f'<article><div class="pair"><figure>{_picture(sample.picture, f"X-ray {sample.image}")}<figcaption>image</figcaption></figure>'
        f"<figure>{_picture(sample.heat_map, f'heat map of {sample.image} for {sample.answer}')}<figcaption>heat map</figcaption></figure></div>"
        f'<p class="verdict {"right" if right else "wrong"}">Model: {escape(sample.answer)} · label: {escape(sample.truth)}<br><b>{said}</b></p>'
        f"{chances}<small>{escape(sample.site)} · {escape(sample.image)}</small></article>"
    )


def _picture(png: bytes, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _reading(results: DemoResults, extras: ReportExtras) -> str:
    chance = ""
    if len(extras.num_test_per_class) == 2:
        auc = wording.mean([site.federated.auc for site in results.sites])
        error = wording.standard_error(auc, list(extras.num_test_per_class.values()))
        chance = (
            f"<li>With {escape(wording.of_classes(extras.num_test_per_class))} test images, an AUC of {auc:.2f} has a standard error of "
            f"about {error:.3f} (Hanley and McNeil 1982). This is one run with seed {results.seed}: small differences mean little.</li>"
        )
    guidance = ""
    if extras.guidance:
        guidance = (
            f"<dt>Guidance</dt><dd>A general-purpose model ({escape(extras.guidance)}) was asked once about each of the public "
            f"images, {extras.guidance_calls:,} questions in all, and never saw a patient’s image.</dd>"
        )
    return (
        '<section><h2>How to read this</h2><div class="note"><dl>'
        "<dt>AUC</dt><dd>Take one ill and one healthy patient at random: the chance that the network ranks the ill one higher.</dd>"
        "<dt>Balanced accuracy</dt><dd>The share of right answers, each class counting the same, when the more probable class is "
        "the answer.</dd>"
        "<dt>Together</dt><dd>Each hospital keeps its large network and lets it teach a small one; only changes of small networks "
        "travel, and the coordinator averages them. A hospital takes back only the order of the classes, so that a weaker teacher "
        f"does not pull it down (FedHelp, arXiv 2412.19654).</dd>{guidance}</dl></div>"
        '<h3>Limits</h3><div class="note"><ul>'
        f"{chance}<li>A demonstration on a public benchmark of very small images, split by chance over the sites. Real sites differ in "
        "equipment and patients, which makes it harder.</li>"
        "<li>All sites ran on one computer and one network. Bytes are measured; times on a real line are calculated.</li>"
        "<li>Not a medical device, and not for primary diagnosis.</li></ul></div></section>"
    )


def _footer(results: DemoResults, extras: ReportExtras) -> str:
    facts = [f"task {results.task}", f"seed {results.seed}", f"{extras.num_public:,} public images", extras.machine]
    versions = [f"{name} {version}" for name, version in extras.versions.items()]
    lines = [
        extras.data_credit,
        " · ".join(fact for fact in facts if fact),
        " · ".join([*versions, extras.created]).strip(" ·"),
    ]
    return f"<footer>{''.join(f'<p>{escape(line)}</p>' for line in lines if line)}</footer>"
