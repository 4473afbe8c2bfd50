"""A volume in the report: three cuts with the outlines, and each structure's volume; or the finding and three cuts."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from ayni_export.bundle import Bundle
from ayni_export.contours import css_colour
from ayni_export.diagnose import confidence_sentence, in_words
from ayni_export.report_cuts import pictures
from ayni_export.report_finding import HEAT_LEGEND, bars, hiding
from ayni_export.reported import Entry, ReportedImage, ReportedStructure, percent, printable
from ayni_export.volume_answer import OutlinedVolume, VolumeFile, VolumeFinding

VOLUME_COLUMNS = ("Structure", "Volume", "Sure")
NOTHING = "nothing outlined"
UNCHECKED = "What the model outlines. Drawn by a program, and checked by nobody."
MM3_OF_ML = 1000.0


def outlined_volume_entry(answer: OutlinedVolume, number: int, mask: str) -> Entry:
    """`number` makes the section's anchor; `mask` is the label map, from the report's folder."""
    structures = {}
    for structure in answer.structures:
        sure_share = structure.sure_share
        structures[structure.name] = ReportedStructure(
            mask=mask,
            label=structure.label,
            voxels=structure.num_voxels,
            volume_mm3=round(structure.num_voxels * answer.file.voxel_mm3, 4),
            share=round(structure.share, 6),
            highest_probability=round(structure.highest, 6),
            sure_share=None if sure_share is None else round(sure_share, 6),
        )
    reported = ReportedImage(
        file=printable(str(answer.file.path)),
        sha256=answer.file.sha256,
        structures=structures,
        shape=answer.file.shape,
        voxel_mm=_rounded(answer.file.voxel_mm),
        shared_voxels=answer.num_shared,
        windows=answer.num_windows,
    )
    return Entry(reported, _outlined_section(answer, reported, number))


def found_volume_entry(bundle: Bundle, answer: VolumeFinding, number: int) -> Entry:
    """`number` makes the section's anchor."""
    reported = ReportedImage(
        file=printable(str(answer.file.path)),
        sha256=answer.file.sha256,
        shape=answer.file.shape,
        voxel_mm=_rounded(answer.file.voxel_mm),
        finding=answer.finding,
        confidence=round(answer.confidence, 6),
        confidence_words=in_words(answer.confidence),
        least_confidence=0.0 if answer.least_confidence is None else round(answer.least_confidence, 6),
        probabilities=_by_class(answer.classes, answer.probabilities_C.tolist()),
        logits=_by_class(answer.classes, answer.logits_C.tolist()),
    )
    finding = escape(printable(answer.finding))
    section = f"""<section id="image-{number}">
<h2>{escape(reported.file)}</h2>
<p class="finding">{finding} <small>{percent(answer.confidence)} · {reported.confidence_words}</small></p>
<p class="meaning">{escape(confidence_sentence(bundle.info, answer.confidence))}{_caution(answer.file)}</p>
{_heated(answer)}
{pictures(answer.planes)}
<div class="bars">
{bars(reported)}</div>
<p class="masks">{_about(answer.file)}</p>
<p class="hash">SHA-256 {reported.sha256}</p>
</section>
"""
    return Entry(reported, section)


def volume_rows(image: ReportedImage, between: str) -> list[tuple[str, str, str]]:
    """Of a table with VOLUME_COLUMNS: one row per structure."""
    return [
        (
            printable(name),
            volume_words(structure, between),
            "" if structure.sure_share is None else percent(structure.sure_share),
        )
        for name, structure in image.structures.items()
    ]


def volume_words(structure: ReportedStructure, between: str) -> str:
    """
    >>> volume_words(ReportedStructure(mask="", voxels=2560, share=0.01, highest_probability=1, volume_mm3=1280), ", ")
    '1,280 mm³ (1.28 ml), 2,560 voxels'
    >>> volume_words(ReportedStructure(mask="", voxels=1, share=0.01, highest_probability=1, volume_mm3=0.5), ", ")
    '0.5 mm³, 1 voxel'
    """
    if not structure.voxels or structure.volume_mm3 is None:
        return NOTHING
    mm3 = structure.volume_mm3
    size = f"{mm3:,.0f} mm³" if mm3 >= 100 else f"{mm3:.3g} mm³"
    if mm3 >= MM3_OF_ML:
        ml = mm3 / MM3_OF_ML
        size += f" ({ml:,.0f} ml)" if ml >= 100 else f" ({ml:.3g} ml)"
    return between.join([size, f"{structure.voxels:,} voxel{'' if structure.voxels == 1 else 's'}"])


def _heated(answer: VolumeFinding) -> str:
    if answer.least_confidence is None:
        return ""
    said = hiding(answer.finding, answer.confidence, answer.least_confidence)
    return f'{pictures(answer.planes, over="heat")}\n{HEAT_LEGEND}\n<p class="meaning">{said}</p>'


def _outlined_section(answer: OutlinedVolume, reported: ReportedImage, number: int) -> str:
    mask = next(iter(reported.structures.values())).mask
    numbered = ", ".join(f"{each.label} {escape(printable(each.name))}" for each in answer.structures)
    return f"""<section id="image-{number}">
<h2>{escape(reported.file)}</h2>
{_structures(reported)}
{_remarks(answer)}{_cuts(answer)}
<p class="masks">Label map on the volume's own voxels: <a href="{quote(mask)}">{escape(mask)}</a> ({numbered}\
{_about_shared(answer)})</p>
<p class="masks">{_about(answer.file)}</p>
<p class="hash">SHA-256 {reported.sha256}</p>
</section>
"""


def _structures(reported: ReportedImage) -> str:
    lines = []
    for name, structure in reported.structures.items():
        if structure.sure_share is None:
            meaning = (
                f"The model's probability is {structure.highest_probability:.2f} at most; it outlines from 0.5 on."
            )
        else:
            meaning = f"In {percent(structure.sure_share)} of this volume the model's probability is 0.9 or more."
        words = f"{escape(printable(name))} <small>{volume_words(structure, ' · ')}</small>"
        lines.append(f'<p class="finding outlined">{words}</p>\n<p class="meaning">{meaning}</p>')
    return "\n".join(lines)


def _remarks(answer: OutlinedVolume) -> str:
    said = f"{_about_windows(answer)}{_caution(answer.file)}".strip()
    return f'<p class="meaning">{said}</p>\n' if said else ""


def _cuts(answer: OutlinedVolume) -> str:
    """With the outlines and without them; once where there are none."""
    if not any(structure.num_voxels for structure in answer.structures):
        return pictures(answer.planes)
    legend = f'<div class="legend">{_legend(answer)}<span>{UNCHECKED}</span></div>'
    return f"{pictures(answer.planes, over='outlines')}\n{legend}\n{pictures(answer.planes)}"


def _about_windows(answer: OutlinedVolume) -> str:
    if answer.is_larger:
        return (
            f"This volume is larger than those that the model was trained on; it was looked at in {answer.num_windows} "
            "overlapping parts. Look at it with particular care."
        )
    return f"Looked at in {answer.num_windows} overlapping parts." if answer.num_windows > 1 else ""


def _about_shared(answer: OutlinedVolume) -> str:
    if not answer.num_shared:
        return ""
    shared = f"{answer.num_shared:,} voxel{' belongs' if answer.num_shared == 1 else 's belong'}"
    return f"; {shared} to several, and the map gives each to the likeliest"


def _caution(file: VolumeFile) -> str:
    if file.is_oriented:
        return ""
    return " The file does not say how the patient lies in it: left, right, front and head are guesses here."


def _about(file: VolumeFile) -> str:
    shape = " x ".join(map(str, file.shape))
    steps = " x ".join(f"{step:.3g}" for step in file.voxel_mm)
    return f"{file.source}, {shape} voxels of {steps} mm"


def _legend(answer: OutlinedVolume) -> str:
    return " ".join(
        f'<span><b style="background:{css_colour(number)}"></b>{escape(printable(structure.name))}</span>'
        for number, structure in enumerate(answer.structures)
    )


def _by_class(classes: tuple[str, ...], values: list[float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in zip(classes, values, strict=True)}


def _rounded(steps_mm: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(step, 6) for step in steps_mm)
