"""A segmentation in the report: the outlines over the image, and each structure's area and how sure the model is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

import numpy as np

from ayni_export.bundle import BundleInfo
from ayni_export.calibration import calibration_words, images_word
from ayni_export.contours import css_colour, draw_outlines
from ayni_export.heat_map import data_uri, enlarged
from ayni_export.reported import Entry, ReportedImage, ReportedStructure, percent, printable
from ayni_export.segmentation import Segmentation, shown_mask

OUTLINE_COLUMNS = ("Structure", "Area", "Sure")
SURE_MEANS = "Sure: the share of the area in which the model's probability is 0.9 or more."
NOTHING = "nothing outlined"


def outlines_entry(answer: Segmentation, number: int, masks: Sequence[str]) -> Entry:
    """`number` makes the section's anchor; `masks` are the structures' files, from the report's folder."""
    spacing = answer.spacing
    structures = {}
    for structure, mask in zip(answer.structures, masks, strict=True):
        area_mm2, sure_share = answer.area_mm2(structure), structure.sure_share
        structures[structure.name] = ReportedStructure(
            mask=mask,
            pixels=structure.num_pixels,
            share=round(structure.share, 6),
            highest_probability=round(structure.highest, 6),
            sure_share=None if sure_share is None else round(sure_share, 6),
            area_mm2=None if area_mm2 is None else round(area_mm2, 4),
        )
    reported = ReportedImage(
        file=printable(str(answer.path)),
        sha256=answer.sha256,
        width=answer.width,
        height=answer.height,
        structures=structures,
        pixel_mm=None if spacing is None else spacing.mm,
        pixel_mm_on_detector=spacing is not None and spacing.on_detector,
    )
    return Entry(reported, _section(answer, reported, number))


def outline_rows(image: ReportedImage, between: str) -> list[tuple[str, str, str]]:
    """Of a table with OUTLINE_COLUMNS: one row per structure."""
    return [
        (printable(name), area_words(structure, between), sure_words(structure))
        for name, structure in image.structures.items()
    ]


def area_words(structure: ReportedStructure, between: str) -> str:
    """
    >>> area_words(ReportedStructure(mask="", pixels=5120, share=0.3125, highest_probability=1, area_mm2=20.48), ", ")
    '5,120 pixels, 31.2 % of the image, 20.5 mm²'
    """
    if not structure.pixels:
        return NOTHING
    share = f"{100 * structure.share:.1f}" if structure.share >= 0.001 else "< 0.1"
    parts = [f"{structure.pixels:,} pixel{'' if structure.pixels == 1 else 's'}", f"{share} % of the image"]
    if structure.area_mm2 is not None:
        parts.append(f"{structure.area_mm2:,.0f} mm²" if structure.area_mm2 >= 100 else f"{structure.area_mm2:.3g} mm²")
    return between.join(parts)


def sure_words(structure: ReportedStructure) -> str:
    return "" if structure.sure_share is None else percent(structure.sure_share)


def outline_facts(info: BundleInfo) -> dict[str, str]:
    """What the page says of the model beside who made it."""
    seen = ", ".join(f"{name} in {number}" for name, number in info.num_train_per_class.items())
    return {
        "Trained on": f"{images_word(info)} of this site: {seen} of them",
        "Checked on": _checked_on(info),
        "Outlines": "a pixel lies inside where the model's probability for it is 0.5 or more; "
        f"{calibration_words(info)}. How much of an outline has 0.9 or more tells how sure the model is of what it "
        "outlines, and nothing of what it may have missed",
        "Areas": "in pixels of the image's file, and in mm² only if the file says how large a pixel is",
    }


def _checked_on(info: BundleInfo) -> str:
    scores = info.validation
    if not scores.num_images:
        return "no image: the site had too few to hold any out"
    images = images_word(info)
    meaning = (
        f"Dice is the overlap with the masks that came with these {images}, 0 to 1, the mean of {images} and structures"
    )
    if scores.hd95 is not None:
        unit = "mm" if scores.unit == "mm" else "pixels of what the model sees"
        meaning += f"; HD95 is how far apart the outlines lie, in {unit} (the 95th percentile)"
    if scores.assd is not None:
        meaning += "; ASSD the mean of these distances"
    return f"{scores.num_images} held-out {images} of this site: {scores.words()}. {meaning}"


def _section(answer: Segmentation, reported: ReportedImage, number: int) -> str:
    image_HWK = enlarged(answer.shown_HWK)
    height, width = image_HWK.shape[:2]
    in_squares = height > answer.shown_HWK.shape[0]
    look = ' class="small"' if in_squares else ""
    drawn_HW3 = draw_outlines(image_HWK, [shown_mask(each.mask_HW, height, width) for each in answer.structures])
    return f"""<section id="image-{number}">
<h2>{escape(reported.file)}</h2>
{_structures(reported)}
<div class="pictures">
<figure><img{look} src="{data_uri(np.ascontiguousarray(image_HWK))}" alt="The image">
<figcaption>The image, {answer.width} x {answer.height} pixels{_scaled(answer)}</figcaption></figure>
<figure><img{look} src="{data_uri(drawn_HW3, photo=not in_squares)}" alt="The image with the outlines over it">
<figcaption>What the model outlines{_together(answer)}. Drawn by a program, and checked by nobody.</figcaption>
<div class="legend">{_legend(answer)}</div></figure>
</div>
<p class="masks">Masks in the image's own size: {_links(reported)}</p>
<p class="hash">SHA-256 {reported.sha256}</p>
</section>
"""


def _structures(reported: ReportedImage) -> str:
    on_detector = " The area in mm² is that on the detector: the body part itself is smaller."
    lines = []
    for name, structure in reported.structures.items():
        if structure.sure_share is None:
            meaning = (
                f"The model's probability is {structure.highest_probability:.2f} at most; it outlines from 0.5 on."
            )
        else:
            meaning = f"In {percent(structure.sure_share)} of this area the model's probability is 0.9 or more."
            meaning += on_detector if reported.pixel_mm_on_detector else ""
        words = f"{escape(printable(name))} <small>{area_words(structure, ' · ')}</small>"
        lines.append(f'<p class="finding outlined">{words}</p>\n<p class="meaning">{meaning}</p>')
    return "\n".join(lines)


def _scaled(answer: Segmentation) -> str:
    height, width = answer.shown_HWK.shape[:2]
    return f", shown at {width} x {height}" if (width, height) != (answer.width, answer.height) else ""


def _together(answer: Segmentation) -> str:
    return "; where outlines lie on one another, their colours take turns" if len(answer.structures) > 1 else ""


def _legend(answer: Segmentation) -> str:
    return " ".join(
        f'<span><b style="background:{css_colour(number)}"></b>{escape(printable(structure.name))}</span>'
        for number, structure in enumerate(answer.structures)
    )


def _links(reported: ReportedImage) -> str:
    return ", ".join(
        f'<a href="{quote(structure.mask)}">{escape(structure.mask)}</a>' for structure in reported.structures.values()
    )
