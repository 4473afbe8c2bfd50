"""The content of report.json, and how figures and foreign texts are written in a report."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

import ayni
from ayni_export.routed.record import Adaptation

NOT_PRIMARY = "Not for primary diagnosis."


class ReportedModel(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str
    title: str
    site: str
    role: str
    kind: str
    task_kind: str
    dimensions: int  # 2 of images, 3 of volumes
    classes: tuple[str, ...]
    intended_use: str
    weights_sha256: str
    signer: str  # fingerprint of the site's key that signed the bundle
    coordinator: str  # fingerprint of the coordinator that vouches for that key, or empty
    compared: str  # which of the two the user gave and so compared: "site", "coordinator", or empty
    device: str


class ReportedStructure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is outlined of one structure; shares are 0 to 1. Of a volume, `voxels` takes the place of `pixels`."""

    mask: str  # a PNG in the size of the image's file, or a NIfTI file of all structures; from the report's folder
    pixels: int | None = None  # of the image's file
    voxels: int | None = None
    share: float  # of the image
    highest_probability: float  # anywhere in the image
    sure_share: float | None = None  # of the outlined pixels, those with a probability of at least .9
    area_mm2: float | None = None  # if the file says how large a pixel is
    volume_mm3: float | None = None
    label: int | None = None  # its number in a volume's mask


class ReportedImage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file: a finding with its figures, or the outlined structures, or an error."""

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
    structures: dict[str, ReportedStructure] = {}
    pixel_mm: tuple[float, float] | None = None  # between the middles of pixels, as the file has it
    pixel_mm_on_detector: bool = False  # the body part itself is smaller
    shape: tuple[int, ...] = ()  # of a volume: voxels along the file's axes
    voxel_mm: tuple[float, ...] = ()  # from voxel to voxel along these axes
    shared_voxels: int = 0  # of several structures; the mask gives each to the likeliest
    windows: int = 0  # that the model was asked about
    error: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The content of report.json."""

    format: int = 1
    note: str = NOT_PRIMARY
    created: str
    ayni_version: str = ayni.__version__
    model: ReportedModel
    images: list[ReportedImage]
    routing: Adaptation | None = None  # of a bundle that holds several experts: which one spoke, and why


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the report: the figures, and its section of the page (made at once, so that pixels can go)."""

    reported: ReportedImage
    section: str


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
