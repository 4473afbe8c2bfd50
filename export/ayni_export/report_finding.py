"""A classification in the report: the finding with its confidence, the heat map, a bar per class."""

from __future__ import annotations

from html import escape

from ayni_export.bundle import Bundle, BundleInfo
from ayni_export.calibration import images_word
from ayni_export.diagnose import Diagnosis, confidence_sentence, in_words
from ayni_export.heat_map import data_uri, enlarged, heat, legend_colours, overlay
from ayni_export.reported import Entry, ReportedImage, percent, printable

MAX_BARS = 8
COLUMNS = ("Finding", "Confidence")
HEAT_LEGEND = (
    '<div class="legend">no change<i style="background:'
    f'linear-gradient(90deg,{",".join(legend_colours())})"></i>most</div>'
)


def finding_entry(bundle: Bundle, answer: Diagnosis, number: int) -> Entry:
    """`number` makes the section's anchor."""
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


def finding_rows(image: ReportedImage, between: str) -> list[tuple[str, str]]:
    """Of a table with COLUMNS: one row."""
    return [(printable(image.finding), f"{percent(image.confidence)}{between}{image.confidence_words}")]


def finding_facts(info: BundleInfo) -> dict[str, str]:
    """What the page says of the model beside who made it."""
    return {
        "Trained on": f"{sum(info.num_train_per_class.values())} {images_word(info)} at this site",
        "Checked on": _checked_on(info),
        "Heat map": "occlusion: a grey patch, a quarter of the image wide and high, hides one place after the other, "
        "and the model answers again. The colour tells how far the odds of the finding then fall. The strongest place "
        "of each image has the full colour, if hiding it at least halves the odds",
    }


def _checked_on(info: BundleInfo) -> str:
    scores = info.validation
    if not scores.num_images:
        return "no image: the site had too few to hold any out"
    figures = f"area under the ROC curve {scores.auc:.2f}, balanced accuracy {scores.balanced_accuracy:.2f}"
    return f"{scores.num_images} held-out {images_word(info)} of this site: {figures}"


def _section(bundle: Bundle, answer: Diagnosis, reported: ReportedImage, number: int) -> str:
    heated = overlay(enlarged(answer.shown_HWK), heat(answer.falls_hw))
    finding = escape(printable(answer.finding))
    return f"""<section id="image-{number}">
<h2>{escape(reported.file)}</h2>
<p class="finding">{finding} <small>{percent(answer.confidence)} · {reported.confidence_words}</small></p>
<p class="meaning">{escape(confidence_sentence(bundle.info, answer.confidence))}</p>
<div class="pictures">
<figure><img class="small" src="{data_uri(enlarged(answer.shown_HWK))}" alt="The image">
<figcaption>{_size(bundle, answer)}</figcaption></figure>
<figure><img src="{data_uri(heated, photo=True)}" alt="The image with the heat map over it">
<figcaption>{hiding(answer.finding, answer.confidence, answer.least_confidence)}</figcaption>
{HEAT_LEGEND}</figure>
</div>
<div class="bars">
{bars(reported)}</div>
<p class="hash">SHA-256 {reported.sha256}</p>
</section>
"""


def hiding(finding: str, confidence: float, least_confidence: float) -> str:
    """What the heat map is and what it is not."""
    finding = f"<em>{escape(printable(finding))}</em>"
    whole, hidden = percent(confidence), percent(least_confidence)
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


def bars(reported: ReportedImage) -> str:
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
