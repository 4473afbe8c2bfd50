"""What a person reads: one HTML file that loads nothing from anywhere, and the same facts as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

import msgspec

import ayni
from ayni.trained_model import Scores
from ayni_export.bundle import Bundle
from ayni_export.diagnose import Diagnosis, FileError, confidence_sentence, in_words
from ayni_export.heat_map import data_uri, enlarged, heat, legend_colours, overlay

NOT_PRIMARY = "Not for primary diagnosis."
MAX_BARS = 8


class ReportedModel(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str
    title: str
    site: str
    role: str
    kind: str
    classes: tuple[str, ...]
    intended_use: str
    weights_sha256: str
    signer: str  # fingerprint of the site's key that signed the bundle
    coordinator: str  # fingerprint of the coordinator that vouches for that key, or empty
    compared: str  # which of the two the user gave and so compared: "site", "coordinator", or empty
    device: str


class ReportedImage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file: a finding with its figures, or an error."""

    file: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    finding: str = ""
    confidence: float = 0.0
    confidence_words: str = ""
    least_confidence: float = 0.0  # in the same finding, with the one part hidden that lowers it most
    probabilities: dict[str, float] = {}
    logits: dict[str, float] = {}
    error: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The content of report.json."""

    format: int = 1
    note: str = NOT_PRIMARY
    created: str
    ayni_version: str = ayni.__version__
    model: ReportedModel
    images: list[ReportedImage]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the report: the figures, and its section of the page (made at once, so that pixels can go)."""

    reported: ReportedImage
    section: str


def entry(bundle: Bundle, answer: Diagnosis | FileError, number: int) -> Entry:
    """`number` counts the files from 1 and makes the section's anchor."""
    if isinstance(answer, FileError):
        return Entry(ReportedImage(file=printable(str(answer.path)), error=printable(answer.reason)), "")
    by_class = zip(answer.classes, answer.probabilities_C.tolist(), answer.logits_C.tolist(), strict=True)
    figures = {name: (round(probability, 6), round(logit, 6)) for name, probability, logit in by_class}
    reported = ReportedImage(
        file=printable(str(answer.path)),
        sha256=answer.sha256,
        width=answer.width,
        height=answer.height,
        finding=answer.finding,
        confidence=round(answer.confidence, 6),
        confidence_words=in_words(answer.confidence),
        least_confidence=round(answer.least_confidence, 6),
        probabilities={name: probability for name, (probability, _) in figures.items()},
        logits={name: logit for name, (_, logit) in figures.items()},
    )
    return Entry(reported, _section(bundle, answer, reported, number))


def make_report(bundle: Bundle, images: Sequence[ReportedImage], *, created: str, device: str) -> Report:
    """`created`: ISO 8601, UTC."""
    info = bundle.info
    model = ReportedModel(
        name=info.name,
        version=info.version,
        title=info.title,
        site=info.site,
        role=info.role,
        kind=info.kind,
        classes=info.classes,
        intended_use=info.intended_use,
        weights_sha256=info.weights_sha256,
        signer=bundle.signer.fingerprint,
        coordinator=bundle.signer.coordinator,
        compared=bundle.signer.compared,
        device=device,
    )
    return Report(created=created, model=model, images=list(images))


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
    yield from sections
    yield f"""{_model_section(bundle, report)}
<footer>Made with Ayni {escape(report.ayni_version)} on this machine. No image left it.</footer>
</main>
</body>
</html>
"""


def printable(text: str) -> str:
    """Text from outside without what could steer a terminal, reverse a line or fail to encode.

    >>> printable("a\\x1b[31m\\udcff\\u202egnp.png")
    'a�[31m��gnp.png'
    """
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def percent(share: float) -> str:
    """Never a flat 100 % or 0 %: no model is that sure.

    >>> percent(0.934), percent(0.99999), percent(0.00001)
    ('93 %', '> 99 %', '< 1 %')
    """
    if share > 0.99:
        return "> 99 %"
    return "< 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _section(bundle: Bundle, answer: Diagnosis, reported: ReportedImage, number: int) -> str:
    heated = overlay(enlarged(answer.shown_HWK), heat(answer.falls_hw))
    finding = escape(printable(answer.finding))
    scale = f"linear-gradient(90deg,{','.join(legend_colours())})"
    return f"""<section id="image-{number}">
<h2>{escape(reported.file)}</h2>
<p class="finding">{finding} <small>{percent(answer.confidence)} · {reported.confidence_words}</small></p>
<p class="meaning">{escape(confidence_sentence(bundle.info, answer.confidence))}</p>
<div class="pictures">
<figure><img class="small" src="{data_uri(enlarged(answer.shown_HWK))}" alt="The image">
<figcaption>{_size(bundle, answer)}</figcaption></figure>
<figure><img src="{data_uri(heated, photo=True)}" alt="The image with the heat map over it">
<figcaption>{_hiding(answer)}</figcaption>
<div class="legend">no change<i style="background:{scale}"></i>most</div></figure>
</div>
<div class="bars">
{_bars(reported)}</div>
<p class="hash">SHA-256 {reported.sha256}</p>
</section>
"""


def _hiding(answer: Diagnosis) -> str:
    """What the heat map is and what it is not."""
    finding = f"<em>{escape(printable(answer.finding))}</em>"
    whole, hidden = percent(answer.confidence), percent(answer.least_confidence)
    if hidden == whole:
        change = f"Hiding any one place leaves {finding} at {whole}; the colours show where it falls a little"
    else:
        change = f"Hiding the coloured places lowers {finding}, the yellow ones most: from {whole} to {hidden}"
    return f"{change}. Not a segmentation, and no proof."


def _size(bundle: Bundle, answer: Diagnosis) -> str:
    image = bundle.info.image
    text = f"The image, {answer.width} x {answer.height} pixels"
    if (answer.width, answer.height) != (image.width, image.height):
        text += f", scaled to fit {image.width} x {image.height} for the model"
    return text


def _bars(reported: ReportedImage) -> str:
    shares = list(reported.probabilities.items())
    if len(shares) > MAX_BARS:
        shares = sorted(shares, key=lambda share: -share[1])[:MAX_BARS]
    rows = [
        f'<div class="bar{" found" if name == reported.finding else ""}"><span>{escape(printable(name))}</span>'
        f'<i><i style="width:{100 * share:.1f}%"></i></i><b>{percent(share)}</b></div>\n'
        for name, share in shares
    ]
    num_more = len(reported.probabilities) - len(shares)
    return "".join(rows) + (f"<p class='hash'>{num_more} less likely classes in report.json</p>\n" if num_more else "")


def _overview(report: Report) -> str:
    """A table of all files if there is more than one, or if one failed."""
    if len(report.images) == 1 and not report.images[0].error:
        return ""
    rows = []
    for number, image in enumerate(report.images, start=1):
        file = escape(image.file)
        if image.error:
            reason = escape(image.error.removeprefix(image.file).lstrip(": "))  # the name stands beside it
            rows.append(f'<tr class="failed"><td>{file}</td><td colspan="2">{reason}</td></tr>')
        else:
            rows.append(
                f'<tr><td><a href="#image-{number}">{file}</a></td><td>{escape(printable(image.finding))}</td>'
                f"<td>{percent(image.confidence)} · {image.confidence_words}</td></tr>"
            )
    head = "<thead><tr><th>File</th><th>Finding</th><th>Confidence</th></tr></thead>"
    return f"<section>\n<table>\n{head}\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>\n</section>"


def _model_section(bundle: Bundle, report: Report) -> str:
    info, model = bundle.info, report.model
    facts = {
        "Model": f"{model.name}, version {model.version}",
        "Made by": f"{model.site} ({model.role}), {_how(model.kind, info.rounds)}",
        "Signed by": _signed_by(model),
        "Trained on": f"{sum(info.num_train_per_class.values())} images at this site",
        "Checked on": _checked_on(info.validation),
        "Heat map": "occlusion: a grey patch, a quarter of the image wide and high, hides one place after the other, "
        "and the model answers again. The colour tells how far the odds of the finding then fall. The strongest place "
        "of each image has the full colour, if hiding it at least halves the odds",
        "Ran on": f"{'this GPU' if model.device == 'gpu' else 'this processor'}, {report.created}",
    }
    rows = "\n".join(f"<dt>{name}</dt><dd>{escape(printable(text))}</dd>" for name, text in facts.items())
    return f"<section>\n<h2>About the model</h2>\n<dl>\n{rows}\n</dl>\n</section>"


def _checked_on(scores: Scores) -> str:
    if not scores.num_images:
        return "no image: the site had too few to hold any out"
    figures = f"area under the ROC curve {scores.auc:.2f}, balanced accuracy {scores.balanced_accuracy:.2f}"
    return f"{scores.num_images} held-out images of this site: {figures}"


def _signed_by(model: ReportedModel) -> str:
    if model.coordinator:
        who = f"{model.site} ({model.signer}), a site of the federation of the coordinator with fingerprint "
        who += f"{model.coordinator}. "
    else:
        who = f"{model.signer}; no coordinator vouches for this key. "
    if model.compared:
        return f"{who}The {model.compared}'s fingerprint was compared with the one given: they are the same"
    return f"{who}Not compared with a fingerprint that somebody gave you (--signer), so anybody could have made it"


def _how(kind: str, rounds: int) -> str:
    return f"after {rounds} federated rounds at this site" if kind == "federated" else "trained alone"


def _tally(report: Report) -> str:
    num_failed = sum(1 for image in report.images if image.error)
    num_done = len(report.images) - num_failed
    text = f"{num_done} image{'' if num_done == 1 else 's'}"
    return text if not num_failed else f"{text}, {num_failed} file{'' if num_failed == 1 else 's'} could not be used"


def _day_and_time(created: str) -> str:
    return created.replace("T", ", ")[:17] + " UTC"


def _without_note(intended_use: str) -> str:
    """The intended use often ends with the very words that the banner begins with."""
    return printable(intended_use).replace(NOT_PRIMARY, "").strip()
