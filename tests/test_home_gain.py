"""What a site says of its own network beside the global one: on held-out images, worked out by hand."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ayni.learning.batches import Normaliser
from ayni.learning.home_gain import home_gain
from ayni.learning.site_data import OwnImages

AS_THEY_ARE = Normaliser((0.0,), (1.0,))
NOTHING = torch.zeros(0, 1, 2, 2, dtype=torch.uint8)


class Always(nn.Module):
    """The same logits for every image."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.logits.expand(len(x_BCHW), *self.logits.shape)


def held_out(truth: Tensor) -> OwnImages:
    pixels = torch.zeros(len(truth), 1, 2, 2, dtype=torch.uint8)
    return OwnImages(NOTHING, torch.zeros(0), pixels, truth, NOTHING, AS_THEY_ARE, "")


def test_of_classes_it_is_the_logarithm_of_what_the_true_one_was_given() -> None:
    """The global model gives both classes 1/2, the site's gives 1/4 and 3/4; four images of six are of the second."""
    own = held_out(torch.tensor([0, 1, 1, 0, 1, 1]))
    personal, general = Always([0.0, math.log(3)]), Always([0.0, 0.0])
    each = [math.log(1 / 2), math.log(3 / 2), math.log(3 / 2)] * 2
    mean, spread = fmean(each), pstdev(each)
    assert home_gain(personal, general, own, AS_THEY_ARE, "classification") == pytest.approx((6, mean, spread))
    assert home_gain(general, personal, own, AS_THEY_ARE, "classification") == pytest.approx((6, -mean, spread))


def test_of_structures_it_is_dice() -> None:
    """Two pixels of four are inside. The site's outlines these: 1; the global one all four: 2 * 2 / 6."""
    inside = [[[5.0, 5.0], [-5.0, -5.0]]]
    own = held_out(torch.from_numpy((np.array(inside) > 0).astype(np.uint8))[None].repeat(5, 1, 1, 1))
    everything = Always([[[5.0, 5.0], [5.0, 5.0]]])
    assert home_gain(Always(inside), everything, own, AS_THEY_ARE, "segmentation") == pytest.approx(
        (5, 1 - 4 / 6, 0), abs=1e-6
    )


def test_fewer_than_five_images_could_tell_of_one_patient_so_nothing_is_told() -> None:
    for number in (0, 4):
        own = held_out(torch.zeros(number, dtype=torch.int64))
        assert home_gain(Always([0.0, 1.0]), Always([0.0, 0.0]), own, AS_THEY_ARE, "classification") == (0, 0, 0)
