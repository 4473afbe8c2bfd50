"""The cuts through a volume on the page: in a row, at one scale, with letters for where right, front and head are."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ayni_export.contours import draw_outlines
from ayni_export.heat_map import Pixels, data_uri, overlay
from ayni_export.three_planes import Plane

Over = Literal["outlines", "heat", "nothing"]
SIDES = ("left", "right", "top", "bottom")
FROM = {"axial": "feet", "coronal": "back", "sagittal": "patient's left"}


def pictures(planes: tuple[Plane, ...], over: Over = "nothing") -> str:
    """A row of figures; all have the same scale."""
    figures = "\n".join(_figure(plane, over) for plane in planes)
    return f'<div class="planes">\n{figures}\n</div>'


def _figure(plane: Plane, over: Over) -> str:
    """All three have the same scale: their widths on the page are in proportion to those of the pictures."""
    pixels: Pixels = plane.shown_hw1
    if over == "outlines":
        pixels = draw_outlines(pixels, plane.masks)
    elif over == "heat" and plane.heat_hw is not None:
        pixels = overlay(pixels, np.ascontiguousarray(plane.heat_hw))
    look = ' class="small"' if plane.in_squares else ""
    letters = "".join(f'<b class="{side}">{letter}</b>' for side, letter in zip(SIDES, plane.edges, strict=True))
    alt = f"{plane.name.capitalize()} cut{'' if over == 'nothing' else f' with the {over} over it'}"
    caption = f"{plane.name.capitalize()}, {plane.number} of {plane.num_slices} from the {FROM[plane.name]}"
    uri = data_uri(pixels, photo=over == "heat" or (over == "outlines" and not plane.in_squares))
    return f"""<figure style="flex-grow:{pixels.shape[1]}"><div class="cut"><img{look} src="{uri}" alt="{alt}">\
{letters}</div>
<figcaption>{caption}</figcaption></figure>"""
