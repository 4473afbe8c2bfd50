"""Whether a site's own network is better than the global model even at home: on images that the site held out.

Where it is not, little speaks for mixing it in elsewhere. What leaves the site is one mean and one deviation, of
`MIN_CASES` images or more.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ayni.learning.batches import Normaliser
from ayni.learning.scores import answers, dice_of_each
from ayni.learning.site_data import OwnImages
from ayni.task import Kind
from ayni.tensors.expert import MIN_CASES


def home_gain(
    personal: nn.Module, general: nn.Module, own: OwnImages, normalise: Normaliser, kind: Kind
) -> tuple[int, float, float]:
    """Of the site's held-out images: their number, the mean of `personal`'s figure less `general`'s, and its standard
    deviation (the number below the root); all 0 of fewer than `MIN_CASES`.

    The figure is an image's Dice, the mean over structures, or the logarithm (nats) of what its true class was given:
    an area under a curve says nothing of the few images that a clinic can hold out.
    """
    number = len(own.holdout_truth)
    if number < MIN_CASES:
        return 0, 0.0, 0.0
    figures = [
        _figure(answers(network.eval(), own.holdout_MCHW, normalise), own.holdout_truth, kind)
        for network in (personal, general)
    ]
    gain_M = figures[0] - figures[1]
    return number, float(gain_M.mean()), float(gain_M.std(correction=0))


def _figure(logits: Tensor, truth: Tensor, kind: Kind) -> Tensor:
    """[M], higher is better."""
    if kind == "segmentation":
        return dice_of_each(logits, truth).double()
    return -functional.cross_entropy(logits.double(), truth, reduction="none")
