"""What a person reads: one HTML file that loads nothing from anywhere, and the same facts as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files

import msgspec

from ayni_export.bundle import Bundle, BundleInfo
from ayni_export.diagnose import Answer, FileError
from ayni_export.report_finding import COLUMNS, finding_entry, finding_facts, finding_rows
from ayni_export.report_outlines import OUTLINE_COLUMNS, outline_facts, outline_rows, outlines_entry
from ayni_export.report_routing import routed_facts, routing_section
from ayni_export.report_volume_facts import volume_facts
from ayni_export.report_volumes import (
    VOLUME_COLUMNS,
    found_volume_entry,
    outlined_volume_entry,
    volume_rows,
)
from ayni_export.reported import NOT_PRIMARY, Entry, Report, ReportedImage, ReportedModel, printable
from ayni_export.routed.record import Adaptation
from ayni_export.segmentation import Segmentation
from ayni_export.volume_answer import OutlinedVolume, VolumeFinding


def entry(bundle: Bundle, answer: Answer, number: int, masks: Sequence[str] = ()) -> Entry:
    """`number` counts the files from 1 and makes the section's anchor. `masks`: files of the structures."""
    if isinstance(answer, FileError):
        return Entry(ReportedImage(file=printable(str(answer.path)), error=printable(answer.reason)), "")
    if isinstance(answer, Segmentation):
        return outlines_entry(answer, number, masks)
    if isinstance(answer, OutlinedVolume):
        return outlined_volume_entry(answer, number, masks[0])
    if isinstance(answer, VolumeFinding):
        return found_volume_entry(bundle, answer, number)
    return finding_entry(bundle, answer, number)


def columns_of(report: Report) -> tuple[str, ...]:
    """What a table says of each file."""
    if report.model.task_kind == "classification":
        return COLUMNS
    return OUTLINE_COLUMNS if report.model.dimensions == 2 else VOLUME_COLUMNS


def rows_of(image: ReportedImage, between: str) -> Sequence[tuple[str, ...]]:
    """What stands in these columns; `between` parts what is in one cell."""
    if not image.structures:
        return finding_rows(image, between)
    return volume_rows(image, between) if image.shape else outline_rows(image, between)


def make_report(
    bundle: Bundle,
    images: Sequence[ReportedImage],
    *,
    created: str,
    device: str,
    routing: Adaptation | None = None,
) -> Report:
    """`created`: ISO 8601, UTC. `routing`: how a bundle of several experts was mixed."""
    info = bundle.info
    model = ReportedModel(
        name=info.name,
        version=info.version,
        title=info.title,
        site=info.site,
        role=info.role,
        kind=info.kind,
        task_kind=info.task_kind,
        dimensions=len(info.image.size),
        classes=info.classes,
        intended_use=info.intended_use,
        weights_sha256=info.weights_sha256,
        signer=bundle.signer.fingerprint,
        coordinator=bundle.signer.coordinator,
        compared=bundle.signer.compared,
        device=device,
    )
    return Report(created=created, model=model, images=list(images), routing=routing)


def report_json(report: Report) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def report_html(bundle: Bundle, report: Report, sections: Iterable[str]) -> Iterator[str]:
    """The whole page, in pieces. Every text that is not ours is escaped."""
    style = files("ayni_export").joinpath("report.css").read_text()
    title = escape(printable(report.model.title))
    yield f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
<p>{_tally(report)} · {escape(_day_and_time(report.created))}</p>
</header>
<p class="care"><strong>{NOT_PRIMARY}</strong> {escape(_without_note(report.model.intended_use))}</p>
{_overview(report)}
"""
    if bundle.info.routed is not None and report.routing is not None:
        yield routing_section(bundle.info.routed, report.routing)
    yield from sections
    yield f"""{_model_section(bundle, report)}
<footer>Made with Ayni {escape(report.ayni_version)} on this machine. No image left it.</footer>
</main>
</body>
</html>
"""


def _overview(report: Report) -> str:
    """A table of all files if there is more than one, or if one failed."""
    if len(report.images) == 1 and not report.images[0].error:
        return ""
    rows, columns = [], columns_of(report)
    for number, image in enumerate(report.images, start=1):
        file = escape(image.file)
        if image.error:
            reason = escape(image.error.removeprefix(image.file).lstrip(": "))  # the name stands beside it
            rows.append(f'<tr class="failed"><td>{file}</td><td colspan="{len(columns)}">{reason}</td></tr>')
            continue
        link = f'<a href="#image-{number}">{file}</a>'
        for row, cells in enumerate(rows_of(image, " · ")):
            said = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            rows.append(f"<tr><td>{'' if row else link}</td>{said}</tr>")
    head = "<thead><tr>" + "".join(f"<th>{title}</th>" for title in ("File", *columns)) + "</tr></thead>"
    return f"<section>\n<table>\n{head}\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>\n</section>"


def _model_section(bundle: Bundle, report: Report) -> str:
    info, model = bundle.info, report.model
    facts = {
        "Model": f"{model.name}, version {model.version}",
        "Made by": _made_by(model, info.rounds),
        "Signed by": _signed_by(model),
        **_facts(info),
        **({} if info.routed is None else routed_facts(info.routed)),
        "Ran on": f"{'this GPU' if model.device == 'gpu' else 'this processor'}, {report.created}",
    }
    rows = "\n".join(f"<dt>{name}</dt><dd>{escape(printable(text))}</dd>" for name, text in facts.items())
    return f"<section>\n<h2>About the model</h2>\n<dl>\n{rows}\n</dl>\n</section>"


def _facts(info: BundleInfo) -> dict[str, str]:
    facts = outline_facts(info) if info.task_kind == "segmentation" else finding_facts(info)
    if info.image.depth:
        facts.pop("Areas", None)
        return {**facts, **volume_facts(info)}
    return facts


def _signed_by(model: ReportedModel) -> str:
    if model.kind == "routed":
        who = f"the coordinator of the federation ({model.signer}). "
    elif model.coordinator:
        who = f"{model.site} ({model.signer}), a site of the federation of the coordinator with fingerprint "
        who += f"{model.coordinator}. "
    else:
        who = f"{model.signer}; no coordinator vouches for this key. "
    if model.compared:
        return f"{who}The {model.compared}'s fingerprint was compared with the one given: they are the same"
    return f"{who}Not compared with a fingerprint that somebody gave you (--signer), so anybody could have made it"


def _made_by(model: ReportedModel, rounds: int) -> str:
    if model.kind == "routed":
        return f"the coordinator, from the sites' models after {rounds} federated rounds"
    which = ", its personal model" if model.kind == "personal" else ""
    how = "trained alone" if model.kind == "alone" else f"after {rounds} federated rounds at this site"
    return f"{model.site} ({model.role}), {how}{which}"


def _tally(report: Report) -> str:
    num_failed = sum(1 for image in report.images if image.error)
    num_done = len(report.images) - num_failed
    what = "image" if report.model.dimensions == 2 else "volume"
    text = f"{num_done} {what}{'' if num_done == 1 else 's'}"
    return text if not num_failed else f"{text}, {num_failed} file{'' if num_failed == 1 else 's'} could not be used"


def _day_and_time(created: str) -> str:
    return created.replace("T", ", ")[:17] + " UTC"


def _without_note(intended_use: str) -> str:
    """The intended use often ends with the very words that the banner begins with."""
    return printable(intended_use).replace(NOT_PRIMARY, "").strip()
