"""What the page says of a model of volumes."""

from __future__ import annotations

import math

from ayni_export.bundle import BundleInfo
from ayni_export.calibration import calibration_words
from ayni_export.occlusion import MAX_HIDDEN_VOXELS


def volume_facts(info: BundleInfo) -> dict[str, str]:
    """What the page says of a model of volumes instead of, or beside, what it says of one of images."""
    spacing = info.image.spacing_mm
    size = " x ".join(map(str, info.image.size))
    seen = " x ".join(map(str, info.image.seen))
    prepared = "turned to the patient's axes; "
    prepared += f"resampled to {' x '.join(f'{step:g}' for step in spacing)} mm; " if spacing else ""
    prepared += "the darkest and the brightest half percent of the voxels are clipped. What is smaller than "
    prepared += f"{size} (slices x rows x columns) gets black around it (rules {info.rules})"
    if info.image.patch:
        prepared += f". The model sees {seen} voxels at once, in windows that overlap by half"
    if info.task_kind == "classification":
        return {"Prepared": prepared, "Heat map": _heat_map_words(info)}
    return {
        "Outlines": "a voxel lies inside where the model's probability for it is 0.5 or more; "
        f"{calibration_words(info)}. How much of an outline has 0.9 or more tells how sure the model is of what it "
        "outlines, and nothing of what it may have missed",
        "Volumes": "voxels of the file, times the size of a voxel as the file's header has it",
        "Prepared": prepared,
    }


def _heat_map_words(info: BundleInfo) -> str:
    if math.prod(info.image.size) > MAX_HIDDEN_VOXELS:
        return "none: hiding one place after the other takes too long in volumes of this size"
    return (
        "occlusion: a grey block, two fifths of each side, hides one place after the other, and the model answers "
        "again. The colour tells how far the odds of the finding then fall. The strongest place of each volume has "
        "the full colour, if hiding it at least halves the odds, and the three cuts go through it"
    )
